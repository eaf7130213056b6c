"""Time to read, deal out and score 100,000 questions, against a quarter of them: python scripts/bench_inputs.py [--questions N].

What grows with the square of the input shows as a ratio near 16. 665,298 records: python -m llava_prumerge.data.footprint.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

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
        seconds[name] = time.process_time() - begun

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


def main() -> int:
    """Print both sizes, and how the time grew."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--questions", type=int, default=100_000, metavar="N")
    number = parser.parse_args().questions
    with tempfile.TemporaryDirectory() as folder:
        few, many = (measure(size, Path(folder)) for size in (max(number // 4, 1), number))
    for name, seconds in many.items():
        print(f"{name:<20}{seconds:8.2f} s   {seconds / max(few[name], 1e-6):5.1f} times a quarter's")
    return 0


if __name__ == "__main__":
    sys.exit(main())
