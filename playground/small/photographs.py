"""How many tokens PruMerge and PruMerge+ keep of photographs: `python playground/small/photographs.py --records FILE --images FOLDER`.

Each photograph is padded to a square of 336 pixels and seen by the small model's tower; the released rules then decide. Counts go to
--out (JSON lines, one per photograph: a second start goes on), their distribution to --plot, and a summary is printed as JSON.
Records are in LLaVA's format; those without an image, and images that cannot be read, are counted and left out.
"""

# ruff: noqa: T201  (an entry point talks to people)

from __future__ import annotations

import json
import os
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads starve each other on a shared machine
sys.path[0] = str(ROOT)  # this folder itself must not shadow installed packages

from llava_prumerge.ground.command import Parser, command  # noqa: E402
from llava_prumerge.ground.errors import InputError  # noqa: E402
from llava_prumerge.ground.files import write_json  # noqa: E402
from llava_prumerge.ground.json_lines import append_json_lines, read_json_lines  # noqa: E402
from llava_prumerge.ground.reading import read_json  # noqa: E402

METHODS = ("prumerge", "prumerge_plus")
PAPER = {"prumerge": 0.055, "prumerge_plus": 0.25}
"""Mean share of the tokens that the paper reports, over its benchmarks: 32 and 144 of 576."""
BATCH = 8


def image_paths(records: Sequence[Path]) -> list[str]:
    """The images of record files, each once, in order.

    Raises:
        InputError: a file holds something else.
    """
    found: dict[str, None] = {}
    for file in records:
        content = read_json(file)
        if not isinstance(content, list) or not all(isinstance(record, dict) for record in content):
            raise InputError(f"{file}: expected a list of records in LLaVA's format")
        found |= dict.fromkeys(record["image"] for record in content if isinstance(record.get("image"), str))
    if not found:
        raise InputError(f"{', '.join(map(str, records))}: no record has an image")
    return list(found)


def count(model_folder: Path, paths: Sequence[str], images: Path, cache: Path | None) -> Iterator[dict[str, Any]]:
    """Counts of one photograph after the other, in batches."""
    import torch

    from llava_prumerge import load_model
    from llava_prumerge.data.errors import SampleError
    from llava_prumerge.data.images import ImagePreprocessor, load_image
    from llava_prumerge.model.tower_cache import keep_tower_states

    models = [load_model(model_folder, method) for method in METHODS]
    for model, _ in models:
        keep_tower_states(model, cache)
    pixels = ImagePreprocessor(models[0][1].image_processor, aspect="pad")
    for start in range(0, len(paths), BATCH):
        names, opened = [], []
        for name in paths[start : start + BATCH]:
            try:
                opened.append(load_image(images, name))
                names.append(name)
            except SampleError as error:
                yield {"image": name, "bad": str(error)}
        if not opened:
            continue
        batch = pixels(opened)
        with torch.inference_mode():
            kept = [model.get_image_features(pixel_values=batch).visual_tokens.kept.tolist() for model, _ in models]
        for name, *counts in zip(names, *kept, strict=True):
            yield {"image": name, **dict(zip(METHODS, counts, strict=True))}


def summary(counts: Sequence[int], tokens: int) -> dict[str, float]:
    """Mean, spread and ends of counts, and their mean as a share of all tokens."""
    cuts = statistics.quantiles(counts, n=20) if len(counts) > 1 else [counts[0]] * 19
    return {
        "mean": statistics.fmean(counts),
        "share": statistics.fmean(counts) / tokens,
        "min": min(counts),
        "p5": cuts[0],
        "median": statistics.median(counts),
        "p95": cuts[-1],
        "max": max(counts),
    }


def plot(counts: dict[str, list[int]], tokens: int, out: Path) -> None:
    """Both distributions, their means and the paper's."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    titles = {"prumerge": "PruMerge", "prumerge_plus": "PruMerge+"}
    figure, places = pyplot.subplots(1, len(METHODS), figsize=(7.5, 3), sharey=True, layout="constrained")
    for place, method in zip(places, METHODS, strict=True):
        found = counts[method]
        place.hist(found, bins=40, range=(0, max(found) + 1), color="#0072B2")
        mean = statistics.fmean(found)
        place.axvline(mean, color="black", label=f"mean here {mean:.0f}")
        place.axvline(
            PAPER[method] * tokens, color="#D55E00", linestyle="--", label=f"paper {PAPER[method] * tokens:.0f}"
        )
        place.set(title=titles[method], xlabel=f"tokens kept of {tokens}")
        place.legend(frameon=False)
    places[0].set_ylabel("photographs")
    figure.savefig(out, dpi=120)


@command()
def main(words: list[str]) -> int:
    """Count, then tell."""
    parser = Parser(prog="python playground/small/photographs.py", description=__doc__)
    parser.add_argument("--records", type=Path, nargs="+", required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=Path("runs/small/model"))
    parser.add_argument("--out", type=Path, default=Path("runs/small/kept.jsonl"))
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--summary", type=Path, help="the summary as a file, too")
    parser.add_argument("--tower-cache", type=Path, help="folder that keeps what the tower makes of an image")
    parser.add_argument("--tokens", type=int, default=576, help="of an image without a method")
    given = parser.parse_args(words)
    known = (
        {record["image"]: record for _, record in read_json_lines(given.out, cut_off=True)}
        if given.out.exists()
        else {}
    )
    waiting = [path for path in image_paths(given.records) if path not in known]
    given.out.parent.mkdir(parents=True, exist_ok=True)
    for record in count(given.model, waiting, given.images, given.tower_cache) if waiting else ():
        append_json_lines(given.out, [record])
        known[record["image"]] = record
    good = [record for record in known.values() if "bad" not in record]
    if not good:
        raise InputError(f"{given.images}: none of {len(known)} images can be read")
    counts = {method: [record[method] for record in good] for method in METHODS}
    told = {method: summary(found, given.tokens) for method, found in counts.items()}
    told = {method: values | {"paper": PAPER[method]} for method, values in told.items()}
    whole = {"photographs": len(good), "unreadable": len(known) - len(good), **told}
    print(json.dumps(whole))
    if given.summary:
        write_json(given.summary, whole, indent=1)
    if given.plot:
        plot(counts, given.tokens, given.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
