"""Every measure of the small world in one page: training, sight, tokens kept of photographs, layers, times.

    python playground/small/reproduce.py --records train.json --held-out test.json --images FOLDER [--list] [--only WORD] [--lanes N]

Records are image and caption in LLaVA's format. Stage 1 and LoRA run with the 64 patches of largest class attention, not merged: all 576
cost a CPU five times as much, and 120 steps with 32 merged tokens, PruMerge's mean in the paper, taught captions but no sight. Every
step can be interrupted and goes on where it stopped; finished steps are skipped. Times are taken last and alone. The
page is docs/results/small.md, its picture small_kept.png.
"""

# ruff: noqa: T201  (an entry point talks to people)

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)  # this folder itself must not shadow installed packages

from llava_prumerge.ground.command import Parser, command  # noqa: E402
from llava_prumerge.ground.errors import InputError  # noqa: E402
from playground.pocket.lanes import Lanes, Step, chosen, lanes_option, minutes  # noqa: E402
from playground.pocket.reproduce import CPU_MANNERS  # noqa: E402

RUNS = Path("runs/small")
MODEL = RUNS / "model"
PAGE, PLOT = Path("docs/results/small.md"), Path("docs/results/small_kept.png")
METHOD, BUDGET = "cls_topk", 64
STEPS = {"pretrain": 240, "finetune_lora": 30}
TOWERS = RUNS / "towers"
"""What the tower makes of a photograph: training, the held-out losses and the counts of tokens ask for the same."""
SIZE = ("global_batch=16", "per_device_batch=4", "precision=auto", "workers=0", "logging_steps=5", "save_steps=20")
SIZE += ("image_aspect=pad", f"tower_cache={TOWERS}")


def own(name: str, *words: str) -> tuple[str, ...]:
    """One of this folder's commands."""
    return (sys.executable, f"playground/small/{name}.py", *words)


def train(script: str, seconds: float, after: str, records: Path, images: Path, *more: str) -> Step:
    """One training, by its script, with the method in place."""
    words = ("bash", f"scripts/{script}.sh", f"data={records}", f"images={images}", f"output_dir={RUNS / script}")
    words += (f"reduction.vision.budget={BUDGET}", f"max_steps={STEPS[script]}", *SIZE, *more)
    made = (str(RUNS / script / "finished.json"),)
    return Step(script, words, seconds, {"RECIPE": "small", "METHOD": METHOD}, (after,), made)


def steps(records: Path, held_out: Path, images: Path) -> list[Step]:
    """Everything, in order; seconds are of one core of a processor without bf16 arithmetic."""
    seen = ("--images", str(images))
    projector = f"projector={RUNS / 'pretrain' / 'mm_projector.safetensors'}"
    trainings = [
        train("pretrain", 3600, "build", records, images, "learning_rate=1e-3", "warmup_ratio=0.06"),
        train("finetune_lora", 800, "pretrain", records, images, projector),
    ]
    sight = [
        Step(
            f"sight {script}",
            own("sight", str(RUNS / script), "--records", str(held_out), *seen, "--out", f"{RUNS}/sight_{script}.json"),
            300,
            after=(script,),
        )
        for script in STEPS
    ]
    counted = ("--records", str(records), str(held_out), *seen, "--out", f"{RUNS}/kept.jsonl", "--plot", str(PLOT))
    kept = Step(
        "kept",
        own("photographs", *counted, "--summary", f"{RUNS}/kept.json", "--tower-cache", str(TOWERS)),
        900,
        after=("pretrain",),
    )
    measured = [*trainings, *sight, kept]
    layers = own("layers", *seen, "--out", f"{RUNS}/layers.json")
    times = own("times", *seen, "--out", f"{RUNS}/times.json")
    return [
        Step("build", own("build"), 90, makes=(str(MODEL / "config.json"),)),
        *measured,
        Step("layers", layers, 300, after=tuple(step.name for step in measured)),
        Step("times", times, 500, after=("layers",)),
        Step("page", own("page", str(RUNS), str(PAGE)), 2, after=("times", *(step.name for step in measured))),
    ]


@command()
def main(words: list[str]) -> None:
    """The command line."""
    parser = Parser(prog="python playground/small/reproduce.py", description=__doc__)
    parser.add_argument("--records", type=Path, required=True, help="captions to train on")
    parser.add_argument("--held-out", type=Path, required=True, help="captions to measure on")
    parser.add_argument("--images", type=Path, required=True, help="the folder that their paths are relative to")
    parser.add_argument("--list", action="store_true", help="show the steps and stop")
    parser.add_argument("--only", default="", help="run the steps whose name contains this word")
    lanes_option(parser)
    given = parser.parse_args(words)
    files = [path.resolve() for path in (given.records, given.held_out, given.images)]
    for path in files:
        if not path.exists():
            raise InputError(f"{path}: no such file or folder")
    os.chdir(ROOT)
    plan = chosen(steps(*files), given.only)
    if given.list:
        print("\n".join(f"{step.name:22} {step.line}" for step in plan))
        return
    begun = time.monotonic()
    lanes = Lanes(plan, RUNS / "steps.json", RUNS / "logs", ROOT, given.lanes, CPU_MANNERS)
    lanes.state.pop("page", None)  # cheap, and the one step that reads what others may have changed
    lanes.run()
    print(f"\nall steps done, {minutes(time.monotonic() - begun)} in this run; the page is {PAGE}")


if __name__ == "__main__":
    sys.exit(main())
