"""The time of one whole answer, all tokens against PruMerge+ and PruMerge, and against transformers' own pipeline.

    python playground/small/times.py --images FOLDER [--count 5] [--rounds 5] [--new-tokens 16] [--out FILE.json]

From the image file to the text. All ways take turns on each photograph, so that what else the machine does hits all alike; each is asked
once before it counts. The stock way is `pipeline("image-text-to-text")` with transformers' own Llava class on the same weights. Beside the
times stand what of ours goes where, as `ask` tells it, and the operations of tower, projector and prefill by this project's count.
"""

# ruff: noqa: T201  (an entry point talks to people)

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads starve each other on a shared machine
sys.path[0] = str(ROOT)  # this folder itself must not shadow installed packages

from llava_prumerge.ground.command import Parser, command  # noqa: E402
from llava_prumerge.ground.errors import InputError  # noqa: E402
from llava_prumerge.ground.files import write_json  # noqa: E402

STOCK, FULL = "stock pipeline", "all tokens"
METHODS = {FULL: {}, "PruMerge+": "prumerge_plus", "PruMerge+, 144": "prumerge_plus:budget=144", "PruMerge": "prumerge"}
"""As released: where more than a sixth of the patches are outliers, PruMerge+ samples every patch. 144 is the paper's mean."""
PARTS = ("reading", "tower", "prefill", "decoding")
"""Of an answer: image file, processor and tokenizer; tower, method and projector; up to the first token; the tokens after it."""
QUESTION = "What is in this picture?"
SHAPE = "small"


def stock_pipeline(folder: Path) -> Any:
    """transformers' pipeline around its own class, with the weights of a checkpoint of ours."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration, pipeline

    from llava_prumerge import load_model

    model, processor = load_model(folder, {}, "float32", "cpu")
    values = {key: value for key, value in model.config.to_dict().items() if key not in ("reduction", "model_type")}
    stock = LlavaForConditionalGeneration(LlavaConfig(**values)).eval()
    told = stock.load_state_dict(model.state_dict(), strict=False)
    if told.missing_keys or told.unexpected_keys:
        raise InputError(f"{folder}: not a LLaVA's weights: {told}")
    stock.generation_config = model.generation_config
    return pipeline("image-text-to-text", model=stock, processor=processor, device="cpu")


Answered = tuple[int, Mapping[str, float]]
"""Visual tokens that reached the language model, and the seconds of PARTS but the first; none where they are not known."""


def ways(folder: Path, new_tokens: int) -> dict[str, Callable[[Path], Answered]]:
    """Each way to answer, from an image's path."""
    from llava_prumerge import ask, load_model

    model, processor = load_model(folder, {}, "float32", "cpu")
    stock = stock_pipeline(folder)
    exactly = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": False}

    def by_pipeline(image: Path) -> Answered:
        content = [{"type": "image", "url": str(image)}, {"type": "text", "text": QUESTION}]
        stock(text=[{"role": "user", "content": content}], generate_kwargs=exactly)
        return int(stock.model.config.image_seq_length), {}

    def by_ours(method: Any) -> Callable[[Path], Answered]:
        def answer(image: Path) -> Answered:
            told = ask(model, processor, QUESTION, str(image), reduction=method, **exactly)
            each = told.seconds
            tower = each["tower"] + each["reducer"] + each["projector"]
            return told.kept, {"tower": tower, "prefill": each["prefill"], "decoding": each["decode"]}

        return answer

    return {STOCK: by_pipeline} | {label: by_ours(method) for label, method in METHODS.items()}


def operations(kept: float, text: int) -> float:
    """Operations of tower, projector and prefill with so many visual tokens."""
    from llava_prumerge.efficiency.flops import split
    from llava_prumerge.efficiency.shapes import named_shapes
    from llava_prumerge.efficiency.tokens import constant_counts

    shape = named_shapes()[SHAPE]
    return sum(split(shape, constant_counts(shape, round(kept), text)).values())


def measure(folder: Path, images: list[Path], rounds: int, new_tokens: int) -> dict[str, Any]:
    """Seconds of each way, its tokens, and how many times faster than all tokens it is."""
    asked = ways(folder, new_tokens)
    kept: dict[str, list[int]] = {label: [] for label in asked}
    seconds: dict[str, list[float]] = {label: [] for label in asked}
    parts: dict[str, list[Mapping[str, float]]] = {label: [] for label in asked}
    for turn in range(rounds + 1):
        for image in images if turn else images[:1]:
            for label, answer in asked.items():
                start = time.perf_counter()
                tokens, each = answer(image)
                took = time.perf_counter() - start
                if turn:  # the first one warms up
                    seconds[label].append(took)
                    parts[label].append({"reading": took - sum(each.values()), **each} if each else {})
                    kept[label].append(tokens)
    found = {}
    whole = statistics.fmean(seconds[FULL])
    for label, times in seconds.items():
        tokens = statistics.fmean(kept[label])
        fewer = operations(576, 40) / operations(tokens, 40)
        told = {part: statistics.fmean(each[part] for each in parts[label]) / whole for part in parts[label][0]}
        found[label] = {"kept": tokens, **spread(seconds[FULL], times), "operations": fewer, "parts": told}
    return found


def spread(full: Sequence[float], times: Sequence[float]) -> dict[str, Any]:
    """The median of times, and the median and quartiles of how many times faster each is than its neighbour of `full`."""
    ratios = sorted(slow / fast for slow, fast in zip(full, times, strict=True))
    quartiles = [ratios[len(ratios) // 4], ratios[(3 * len(ratios)) // 4]]
    return {"seconds": statistics.median(times), "faster": statistics.median(ratios), "faster_quartiles": quartiles}


def photographs(folder: Path, count: int) -> list[Path]:
    """So many of the images below a folder, evenly spaced in the order of their names.

    Raises:
        InputError: there is none.
    """
    images = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not images:
        raise InputError(f"{folder}: no JPEG or PNG below it")
    return images[:: max(1, len(images) // count)][:count]


@command()
def main(words: list[str]) -> int:
    """Measure and tell."""
    parser = Parser(prog="python playground/small/times.py", description=__doc__)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--count", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--model", type=Path, default=Path("runs/small/model"))
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(words)
    found = measure(given.model, photographs(given.images, given.count), given.rounds, given.new_tokens)
    for label, told in found.items():
        low, high = told["faster_quartiles"]
        print(
            f"{label:15} {told['kept']:6.1f} tokens {told['seconds']:7.3f} s  {told['faster']:5.2f} times as fast "
            f"[{low:.2f}, {high:.2f}]  operations {told['operations']:.2f} times fewer"
        )
    if given.out:
        settings = {"count": given.count, "rounds": given.rounds, "new_tokens": given.new_tokens}
        write_json(given.out, {"what": "answer times", **settings, "ways": found}, indent=1)
    else:
        print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
