"""Pruners at the decoder layers that their papers name, in a language model that has those layers.

    python playground/small/layers.py --images FOLDER [--count 5] [--rounds 3] [--out FILE.json]

SmolLM2 has 30 decoder layers, so that 2, 4, 8, 14, 15, 16 and 24 are there unscaled. Mechanics and speed only: what the model answers says
nothing about the methods. Of each photograph the visual tokens of every layer are counted and the time to the first token is taken, all
methods in turns; each is asked once before it counts.
"""

# ruff: noqa: T201  (an entry point talks to people)

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads starve each other on a shared machine
sys.path[0] = str(ROOT)  # this folder itself must not shadow installed packages

from llava_prumerge.ground.command import Parser, at_least, command  # noqa: E402
from llava_prumerge.ground.files import write_json  # noqa: E402
from playground.small.times import QUESTION, photographs, spread  # noqa: E402

FULL = "all tokens"
PAPERS: dict[str, dict[str, Any]] = {
    FULL: {},
    "FastV": {"name": "fastv", "layer": 2, "keep_ratio": 0.5},
    "DART": {"name": "dart", "layer": 2},
    "SparseVLM": {"name": "sparsevlm", "layers": [2, 6, 15]},
    "ATP-LLaVA, untrained": {"name": "atp_llava", "layers": [4, 14, 24]},
    "PyramidDrop": {"name": "pyramiddrop", "layers": [8, 16, 24]},
    "uniform stride": {"name": "uniform_stride", "layers": [8, 16, 24]},
    "VTW": {"name": "vtw", "layer": 15},
    "VScan, decoder": {"name": "vscan_decoder", "layers": [16]},
}
"""The layers of LLaVA-1.5-7B's 32, unscaled; uniform stride has PyramidDrop's."""


def falls(layers: Sequence[int]) -> dict[int, int]:
    """Where the number of visual tokens changes, and to what: the first layer that sees so many."""
    return {at: layers[at] for at in range(1, len(layers)) if layers[at] != layers[at - 1]}


def measure(folder: Path, images: Sequence[Path], rounds: int) -> dict[str, Any]:
    """Tokens by layer of the last photograph, their mean over layers and photographs, and how many times faster the prefill is."""
    from llava_prumerge import ask, load_model

    model, processor = load_model(folder, {}, "float32", "cpu")
    seconds: dict[str, list[float]] = {label: [] for label in PAPERS}
    equivalent: dict[str, list[float]] = {label: [] for label in PAPERS}
    fallen: dict[str, dict[int, int]] = {}
    for turn in range(rounds + 1):
        for image in images if turn else images[:1]:
            for label, block in PAPERS.items():
                reduction = {"decoder": block} if block else {}
                answer = ask(model, processor, QUESTION, str(image), reduction=reduction, max_new_tokens=4)
                if turn:  # the first one warms up
                    seconds[label].append(answer.seconds["prefill"])
                    equivalent[label].append(answer.images[0].equivalent)
                    fallen[label] = falls(answer.images[0].layers)
    return {
        label: {
            "falls": fallen[label],
            "equivalent": statistics.fmean(equivalent[label]),
            **spread(seconds[FULL], times),
        }
        for label, times in seconds.items()
    }


@command()
def main(words: list[str]) -> int:
    """Measure and tell."""
    parser = Parser(prog="python playground/small/layers.py", description=__doc__)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--count", type=at_least(1), default=5)
    parser.add_argument("--rounds", type=at_least(1), default=3)
    parser.add_argument("--model", type=Path, default=Path("runs/small/model"))
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(words)
    found = measure(given.model, photographs(given.images, given.count), given.rounds)
    for label, told in found.items():
        low, high = told["faster_quartiles"]
        steps = ", ".join(f"{count} from layer {at}" for at, count in told["falls"].items()) or "all"
        print(
            f"{label:22} {told['equivalent']:6.1f} tokens on average  prefill {told['faster']:.2f} times as fast "
            f"[{low:.2f}, {high:.2f}]  {steps}"
        )
    if given.out:
        settings = {"count": given.count, "rounds": given.rounds}
        write_json(given.out, {"what": "pruners at their papers' layers", **settings, "ways": found}, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
