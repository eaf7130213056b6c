"""Measures what a prefill costs and keeps, row by row: tower, reducer, projector, decoder with its pruner.

    python -m playground.pocket.comparison.prefill --runs DIR --root DIR [--questions 64] [--repeats 5]

Time is CPU time of one thread, for a batch of 16 VQAv2 questions; each row's runs take turns with the full model's, so
that their ratio is fair whatever else the machine does. Token counts are those of each image and layer. One file per row.
"""

from __future__ import annotations

import logging
import statistics
import sys
import time
from functools import cache
from typing import TYPE_CHECKING, Any

import torch

from llava_prumerge.ground.command import Parser, at_least, command
from llava_prumerge.ground.files import write_json
from llava_prumerge.model.loading import load_model
from llava_prumerge.search.calibration import make_batches, read_pairs
from playground.pocket.comparison.places import Places, add_places
from playground.pocket.comparison.rows import REFERENCE, Row

if TYPE_CHECKING:
    from torch import Tensor, nn

logger = logging.getLogger("pocket.comparison")
BATCH = 16


def load(row: Row, places: Places) -> tuple[nn.Module, Any]:
    """The model of a row with its reduction, and the processor."""
    return load_model(places.model(row.model), row.block, device="cpu")


def seconds(model: nn.Module, batch: dict[str, Tensor]) -> float:
    """CPU seconds of one prefill."""
    begun = time.process_time()
    model(**batch, use_cache=True, logits_to_keep=1)
    return time.process_time() - begun


@torch.inference_mode()
def measure(model: nn.Module, full: nn.Module, batches: list[dict[str, Tensor]], repeats: int) -> dict[str, Any]:
    """Times of the first batch in milliseconds per image, and visual tokens of each image of all batches in each layer."""
    times: dict[str, list[float]] = {"row": [], "full": []}
    for repeat in range(repeats + 1):
        for name, one in (("full", full), ("row", model)):
            taken = seconds(one, batches[0])
            if repeat:  # the first warms up
                times[name].append(1e3 * taken / len(batches[0]["input_ids"]))
    visual = torch.cat([model.model(**batch, use_cache=True).visual for batch in batches])  # [B, layers]
    ratios = [own / other for own, other in zip(times["row"], times["full"], strict=True)]
    return {
        "prefill_ms": statistics.median(times["row"]),
        "full_ms": statistics.median(times["full"]),
        "share_of_full": statistics.median(ratios),
        "times_ms": {name: [round(value, 3) for value in values] for name, values in times.items()},
        "visual": visual.tolist(),
    }


def measure_rows(places: Places, questions: int, repeats: int) -> None:
    """Write the files of all rows that have none yet."""
    folder = places.data / "vqav2"
    pairs = read_pairs(folder / "llava_vqav2_mscoco_test-dev2015.jsonl", questions)
    reference = cache(lambda: load(Row(REFERENCE, "", {}), places))
    todo = [row for row in places.rows() if not row.why and row.images == "on" and not row.seed]
    for number, row in enumerate(todo, start=1):
        path = places.prefills / f"{row.stem}.json"
        if path.is_file():
            continue
        full, processor = reference()
        model, _ = load(row, places)
        batches = make_batches(pairs, folder / "images", processor, model.config, BATCH)
        measured = measure(model, full, batches, repeats)
        write_json(path, {"label": row.label, **measured}, indent=None)
        logger.info("row %d of %d: %s %.1f%%", number, len(todo), row.label, 100 * measured["share_of_full"])


@command()
def main(words: list[str]) -> None:
    """The command line."""
    parser = Parser("playground.pocket.comparison.prefill", __doc__)
    add_places(parser)
    parser.add_argument("--questions", type=at_least(1), default=64, help="images whose tokens are counted")
    parser.add_argument("--repeats", type=at_least(1), default=5)
    given = parser.parse_args(words)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(1)
    measure_rows(Places.read(given), given.questions, given.repeats)


if __name__ == "__main__":
    sys.exit(main())
