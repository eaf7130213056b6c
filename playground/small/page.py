"""The page of the small world's measures: `python playground/small/page.py RUNS PAGE`; reproduce.py makes what it reads."""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)  # this folder itself must not shadow installed packages

from llava_prumerge.ground.command import Parser, command  # noqa: E402
from llava_prumerge.ground.files import write_text  # noqa: E402
from llava_prumerge.ground.json_lines import read_json_lines  # noqa: E402
from llava_prumerge.ground.reading import read_json_object  # noqa: E402
from llava_prumerge.profiling.collect import table  # noqa: E402
from playground.small.times import PARTS  # noqa: E402

HEAD = """# The small world: real backbones and photographs

SmolLM2-135M-Instruct under DINOv2-small at 336 pixels ([what it is](../small.md)); 576 patches, PruMerge's k = 32 unscaled.

Command: `python playground/small/reproduce.py --records train.json --held-out test.json --images FOLDER`; this file is
written by it. The records of this run: 1,927 and 256 web photographs with captions out of LLaVA's stage-1 data, scaled
to at most 336 pixels. They are not ours to pass on; numbers computed from them are.

"""
STAGES = {"pretrain": "stage 1, projector", "finetune_lora": "stage 2, LoRA"}
TITLES = {"prumerge": "PruMerge", "prumerge_plus": "PruMerge+"}


def method_of(runs: Path) -> str:
    """The method that both stages had, for people."""
    block = yaml.safe_load((runs / "pretrain" / "config.yaml").read_text("utf-8"))["reduction"]["vision"]
    return f"`{block['name']}` at {block['budget']} tokens"


def training(runs: Path) -> str:
    """Loss in training, and of held-out captions with the right picture and with another."""
    rows = []
    for stage, title in STAGES.items():
        losses = [row["loss"] for _, row in read_json_lines(runs / stage / "metrics.jsonl") if "loss" in row]
        sight = read_json_object(runs / f"sight_{stage}.json")
        rows.append(
            [
                title,
                f"{losses[0]:.2f}",
                f"{statistics.fmean(losses[-4:]):.2f}",
                str(sight["captions"]),
                f"{sight['right']:.3f}",
                f"{sight['other']:.3f}",
                f"{sight['difference']:+.3f} ± {sight['half']:.3f}",
            ]
        )
    heads = ["stage", "first loss", "last losses", "held-out captions", "right picture", "others", "difference"]
    return (
        f"## Training\n\nBoth stages ran with {method_of(runs)} in place. Losses are in nats per token; the two\n"
        "stages have different prompts, so that they cannot be compared with one another. Held-out captions are read with their\n"
        "own picture and with those of other records; the difference is paired by caption, with its 95% interval.\n\n"
        + table(tuple(heads), rows)
        + "\n"
    )


def kept(runs: Path) -> str:
    """Tokens kept of photographs."""
    found = read_json_object(runs / "kept.json")
    rows = [
        [title, *(f"{found[method][key]:.0f}" for key in ("mean", "min", "p5", "median", "p95", "max"))]
        + [f"{100 * found[method]['share']:.1f}%", f"{100 * found[method]['paper']:.1f}%"]
        for method, title in TITLES.items()
    ]
    heads = ["method", "mean", "fewest", "5%", "median", "95%", "most", "share", "paper"]
    return (
        f"## Tokens kept of {found['photographs']:,} photographs\n\nBy the released rules, of 576. The paper's shares are those of "
        "CLIP ViT-L/14-336 on its benchmarks. PruMerge+ keeps\nevery patch as soon as more than a sixth of them are outliers.\n\n"
        + table(tuple(heads), rows)
        + "\n"
        + "\n![Tokens kept](small_kept.png)\n"
    )


def layers(runs: Path) -> str:
    """Pruners at their papers' layers."""
    found: dict[str, Any] = read_json_object(runs / "layers.json")
    rows = []
    for label, told in found["ways"].items():
        low, high = told["faster_quartiles"]
        fallen = ", ".join(f"{count} from layer {at}" for at, count in told["falls"].items())
        rows.append([label, fallen, f"{told['equivalent']:.0f}", f"{told['faster']:.2f} [{low:.2f}, {high:.2f}]"])
    heads = ["method", "visual tokens of the last photograph", "mean over layers", "prefill, times as fast"]
    return (
        "## Pruners at their papers' layers\n\nOf 30 layers, unscaled, on an untrained projector: mechanics and speed, not quality. Median and "
        "quartiles of ratios, in turns.\n\n" + table(tuple(heads), rows) + "\n"
    )


def times(runs: Path) -> str:
    """A whole answer."""
    found: dict[str, Any] = read_json_object(runs / "times.json")
    rows = []
    for label, told in found["ways"].items():
        low, high = told["faster_quartiles"]
        rows.append(
            [label, f"{told['kept']:.0f}", f"{told['faster']:.2f} [{low:.2f}, {high:.2f}]", f"{told['operations']:.2f}"]
            + [f"{100 * told['parts'][part]:.0f}%" if told["parts"] else "" for part in PARTS]
        )
    heads = ["way", "visual tokens", "times as fast as all tokens", "times fewer operations", *PARTS]
    return (
        f"## One whole answer on a CPU\n\nFrom the image file to {found['new_tokens']} new tokens, {found['count']} photographs, "
        f"{found['rounds']} rounds, all ways in turns; median and quartiles of ratios.\nOperations are those of tower, projector and prefill. The last columns say where "
        "the time goes, in percent of a whole answer with all\ntokens: reading (file, processor, tokenizer), tower (with method and projector), "
        "prefill (to the first token), decoding.\n\n" + table(tuple(heads), rows) + "\n"
    )


@command()
def main(words: list[str]) -> int:
    """Write it."""
    parser = Parser(prog="python playground/small/page.py", description=__doc__)
    parser.add_argument("runs", type=Path)
    parser.add_argument("page", type=Path)
    given = parser.parse_args(words)
    parts = [part(given.runs) for part in (training, kept, layers, times)]
    write_text(given.page, HEAD + "\n".join(parts))
    print(given.page)  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
