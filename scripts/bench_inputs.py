"""Time for 100,000 questions and 665,298 records, against a quarter of them: the end of `make bench`, 6 minutes.

    python scripts/bench_inputs.py [--questions N] [--records N]

Questions are read, dealt out and scored, records written once to the cache and opened by two ranks. What grows with the square
of the input shows as a ratio near 16, memory that grows with it as a ratio near 4. 0 leaves a half out.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from llava_prumerge.data import footprint  # noqa: E402
from llava_prumerge.evaluation.answers import pending  # noqa: E402
from llava_prumerge.evaluation.benchmark import Files, find, read_questions  # noqa: E402
from llava_prumerge.evaluation.records import EvaluationError  # noqa: E402


def measure(number: int, folder: Path) -> dict[str, float]:
    """Seconds of processor time by step."""
    asked, truth, answers = folder / "q.jsonl", folder / "truth.json", folder / "a.jsonl"
    questions = ({"question_id": at, "image": f"{at}.jpg", "text": f"What is {at}?"} for at in range(number))
    asked.write_text("".join(json.dumps(one) + "\n" for one in questions))
    humans = [{"answer": "yes"}] * 10
    annotations = [{"question_id": at, "answer_type": "other", "answers": humans} for at in range(number)]
    truth.write_text(json.dumps({"annotations": annotations}))
    answers.write_text("".join(json.dumps({"question_id": at, "text": "yes"}) + "\n" for at in range(number)))
    seconds: dict[str, float] = {}

    def step(name: str, begun: float) -> None:
        seconds[f"s to {name}"] = time.process_time() - begun

    begun = time.process_time()
    read = read_questions(asked)
    step("read", begun)
    begun = time.process_time()
    pending(folder / "none.jsonl", read)
    step("deal out", begun)
    begun = time.process_time()
    try:
        pending(folder / "none.jsonl", read + read)
    except EvaluationError:
        step("name repeated ones", begun)
    begun = time.process_time()
    score = find("vqav2").score(answers, Files(asked, truth))
    step("score", begun)
    if score.n != number or score.headline != 100:
        raise SystemExit(f"error: scored {score.n} questions at {score.headline}")
    return seconds


def measure_records(number: int, folder: Path) -> dict[str, float]:
    """Seconds by the clock and memory in MB of writing records to the cache, and of each of two ranks that open them."""
    found = footprint.measure(folder, folder / f"cache-{number}", number, ranks=2)  # what they share is not their own
    if found["records"] != number:
        raise SystemExit(f"error: {found['records']} of {number} records were opened")
    growth = {f"MB of a rank, {moment}": grown["private"] for moment, grown in found["growth_mb"].items()}
    return {"s to write": found["convert"]["seconds"], "MB to write": found["convert"]["peak_resident_mb"], **growth}


def tell(title: str, many: dict[str, float], few: dict[str, float]) -> None:
    """A table."""
    print(title)
    for name, value in many.items():
        print(f"  {name:<24}{value:9.2f}   {value / max(few[name], 1e-6):5.1f} times a quarter's")


def main() -> int:
    """Print both sizes, and how time and memory grew."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--questions", type=int, default=100_000, metavar="N")
    parser.add_argument("--records", type=int, default=footprint.RECORDS, metavar="N")
    given = parser.parse_args()
    for what, number, work in (("questions", given.questions, measure), ("records", given.records, measure_records)):
        if number > 0:
            with tempfile.TemporaryDirectory() as folder:
                few, many = (work(size, Path(folder)) for size in (max(number // 4, 1), number))
            tell(f"{number:,} {what}", many, few)
    return 0


if __name__ == "__main__":
    sys.exit(main())
