"""Whether a trained small model looks: the loss of held-out captions with the right picture and with another's.

    python playground/small/sight.py RUN --records FILE --images FOLDER [--out FILE.json]

RUN is a folder that stage 1 or stage 2 of the recipe `small` made. Each held-out caption is read twice under the run's own recipe and
method: beside its picture, and beside the pictures of --others records, evenly spaced over the file. The difference of the loss with its own
picture from the mean with the others, in nats per token of the caption, is paired by caption and has its 95% interval.
"""

# ruff: noqa: T201  (an entry point talks to people)

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[2]
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads starve each other on a shared machine
sys.path[0] = str(ROOT)  # this folder itself must not shadow installed packages

from llava_prumerge.evaluation.results import mean_of_means  # noqa: E402
from llava_prumerge.ground.command import Parser, at_least, command  # noqa: E402
from llava_prumerge.ground.errors import InputError  # noqa: E402
from llava_prumerge.ground.files import write_json  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor


def row_losses(logits: Tensor, labels: Tensor) -> list[float]:
    """Mean cross-entropy of each row's supervised tokens. [B, L, V], [B, L] (a token's own, -100 for none) -> B numbers"""
    from torch.nn.functional import cross_entropy

    logits, labels = logits[:, :-1], labels[:, 1:]  # what stands at a place says what comes next
    marked = labels != -100
    each = cross_entropy(logits.float().flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
    return ((each * marked).sum(1) / marked.sum(1)).tolist()


def losses(run: Path, records: Path, images: Path, batch: int, others: int) -> Iterator[tuple[float, float]]:
    """Loss of each caption with its own picture, and its mean with others'.

    Raises:
        InputError: the run has no recipe or no model, or a record no picture.
    """
    import torch

    from llava_prumerge import load_model
    from llava_prumerge.data.collator import Collator
    from llava_prumerge.model.tower_cache import keep_tower_states
    from llava_prumerge.train.arguments import load_arguments
    from llava_prumerge.train.assembly import build_dataset

    arguments = load_arguments([str(run / "config.yaml"), f"data={records}", f"images={images}"])
    model, processor = load_model(run / "merged" if arguments.merge else run, device="cpu")
    keep_tower_states(model, arguments.tower_cache)
    dataset = build_dataset(arguments, model.config, processor)
    items = [dataset[number] for number in range(len(dataset))]
    if missing := [item["id"] for item in items if item.get("pixel_values") is None]:
        raise InputError(f"{records}: record {missing[0]} has no picture")
    steps = [0, *(len(items) * (number + 1) // (others + 1) for number in range(others))]
    rows = [
        [{**item, "pixel_values": items[(at + step) % len(items)]["pixel_values"]} for step in steps]
        for at, item in enumerate(items)
    ]
    collate = Collator(processor.tokenizer.pad_token_id)
    with torch.inference_mode():
        for start in range(0, len(rows), batch):
            made = collate([sample for row in rows[start : start + batch] for sample in row])
            made.pop("ids")
            output = model(**made)
            found = row_losses(output.logits, output.labels)
            for at in range(0, len(found), len(steps)):
                yield found[at], statistics.fmean(found[at + 1 : at + len(steps)])


@command()
def main(words: list[str]) -> int:
    """Measure and tell."""
    parser = Parser(prog="python playground/small/sight.py", description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--records", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--batch", type=at_least(1), default=4, help="captions at a time, each with all pictures")
    parser.add_argument("--others", type=at_least(1), default=4, help="pictures of other records beside each caption")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(words)
    found = list(losses(given.run, given.records, given.images, given.batch, given.others))
    right, wrong = ([pair[which] for pair in found] for which in (0, 1))
    difference, half = mean_of_means([[other - own for own, other in found]])
    told: dict[str, Any] = {
        "what": "loss of held-out captions",
        "captions": len(found),
        "others": given.others,
        "right": statistics.fmean(right),
        "other": statistics.fmean(wrong),
        "difference": difference,
        "half": half,
    }
    print(
        f"{len(found)} captions: loss {told['right']:.3f} with the right picture, {told['other']:.3f} with others; "
        f"difference {difference:.3f} ± {half:.3f} (95%)"
    )
    if given.out:
        write_json(given.out, told, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
