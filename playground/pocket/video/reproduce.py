"""The paper's table for videos in the pocket world: clips, a pocket Video-LLaVA, four benchmarks, one page.

    python playground/pocket/video/reproduce.py [--list] [--only WORD] [--lanes N]

Begins with the steps of reproduce.py that it needs, where those have not run: the pictures and stage 1. The model is trained with all
tokens of four frames in place; methods act on each frame, training-free, as in the paper's Table 3. Beside them stand the same methods over
all frames together, and models that have learnt with the method in place. Every step can be interrupted and goes on
where it stopped; finished steps are skipped. The table is written to docs/results/video.md.
"""

# ruff: noqa: T201  (an entry point talks to people)

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path[0] = str(ROOT)  # this folder itself must not shadow installed packages

from llava_prumerge.ground.command import Parser, command  # noqa: E402
from playground.pocket import reproduce  # noqa: E402
from playground.pocket.lanes import Lanes, Step, chosen, lanes_option, minutes  # noqa: E402
from playground.pocket.time_left import seconds_of  # noqa: E402
from playground.pocket.video.clips import FRAMES  # noqa: E402
from playground.pocket.video.table import Row  # noqa: E402

RUNS = Path("runs/pocket-video")
RESULTS = RUNS / "results"
DATA = Path("playground/pocket/data/video")
MODEL = RUNS / "model"
PAGE = Path("docs/results/video.md")
TASKS = "msvd_qa,msrvtt_qa,tgif_qa,activitynet_qa"
BASE = ("data", "pretrain none")
"""The steps of `make reproduce` whose outcome is used."""
FEW, MORE = 18, 36
"""Tokens of a frame's 144: an eighth and a quarter, as the 32 and 64 of 256 that PruMerge and PruMerge+ leave in the paper."""
MERGE = "neighbours=8"
"""The share of 144 patches that the released 32 are of 576."""
OWN = {
    "PruMerge": (FEW, {"method": "prumerge", "budget": str(FEW), "neighbours": "8"}),
    "PruMerge+": (MORE, {"method": "prumerge_plus", "budget": str(MORE), "neighbours": "8", "share": "0.4"}),
}
"""The paper's methods: tokens of a frame, and settings."""


def rows() -> list[Row]:
    """The rows of the table, each with the settings of its evaluation."""
    made = [Row("all tokens", "", ()), Row("text only", "", ("images=off",))]
    for label, (budget, settings) in OWN.items():
        method = settings["method"]
        given = tuple(f"{key}={value}" for key, value in settings.items())
        joint = {**settings, "budget": str(FRAMES * budget), "frames": "joint"}
        described = ",".join(f"{key}={value}" for key, value in joint.items() if key != "method")
        made.append(Row(label, budget, given))
        made.append(Row(f"{label} over all frames", budget, (f"method={method}:{described}",)))
        made.append(Row(f"{label}, trained", budget, (), model=method))
        for other in ("pool", "uniform"):
            made.append(Row(other, budget, (f"method={other}", f"budget={budget}")))
        made += [
            Row("random", budget, ("method=random", f"budget={budget}", f"seed={seed}"), seed) for seed in range(3)
        ]
    return [
        *made,
        Row("PruMerge", "own rule", ("method=prumerge", MERGE)),
        Row("PruMerge+", "own rule", ("method=prumerge_plus",)),
    ]


def trained(method: str) -> Path:
    """The folder of the run that has learnt with a method in place."""
    return RUNS / ("trained" if method == "none" else f"trained-{method}")


def train(method: str, settings: dict[str, str]) -> Step:
    """One training."""
    words = (sys.executable, "-m", "llava_prumerge.train.run", "pocket/video", method, f"model={MODEL}")
    words += (f"output_dir={trained(method)}",)
    words += tuple(f"reduction.vision.{key}={value}" for key, value in settings.items() if key != "method")
    name = "finetune_lora video" if method == "none" else f"finetune_lora video {method}"
    return Step(
        name, words, seconds_of(name), after=("clips", "model"), makes=(str(trained(method) / "finished.json"),)
    )


def evaluate(row: Row, after: str) -> Step:
    """One row of the table."""
    words = (sys.executable, "-m", "eval.run", "run", "--task", TASKS, "--model", str(trained(row.model) / "merged"))
    words += ("--data", str(DATA / "eval"), "--out", str(RESULTS), "model_label=pocket-video", f"label={row.label}")
    words += (f"frames={FRAMES}", "template=own", "max_new_tokens=16", "batch_size=16", *row.settings)
    return Step(f"evaluate {row.label}", words, seconds_of("evaluate video"), after=("clips", after))


def steps() -> list[Step]:
    """Everything, in order."""
    python = sys.executable
    base = [step for step in reproduce.steps() if step.name in BASE]
    clips = Step(
        "clips", (python, "playground/pocket/video/build.py"), seconds_of("clips"), makes=(str(DATA / "train.json"),)
    )
    model = Step(
        "model",
        (python, "playground/pocket/video/model.py", "--out", str(MODEL)),
        seconds_of("model"),
        after=("pretrain none",),
        makes=(str(MODEL / "config.json"),),
    )
    trainings = {"none": train("none", {})}
    trainings |= {settings["method"]: train(settings["method"], settings) for _, settings in OWN.values()}
    asked = [evaluate(row, trainings[row.model].name) for row in rows()]
    table = (python, "-m", "playground.pocket.video.table", str(RESULTS), str(PAGE))
    last = Step("table", table, 3, after=tuple(step.name for step in asked))
    return [*base, clips, model, *trainings.values(), *asked, last]


@command()
def main(words: list[str]) -> None:
    """The command line."""
    parser = Parser(prog="python playground/pocket/video/reproduce.py", description=__doc__)
    parser.add_argument("--list", action="store_true", help="show the steps and stop")
    parser.add_argument("--only", default="", help="run the steps whose name contains this word")
    lanes_option(parser)
    given = parser.parse_args(words)
    os.chdir(ROOT)
    shared, own = steps()[: len(BASE)], steps()[len(BASE) :]
    wanted = chosen([*shared, *own], given.only)
    if given.list:
        print("\n".join(f"{step.name:34} {step.line}" for step in wanted))
        return
    begun = time.monotonic()
    for plan, state in ((shared, reproduce.STATE), (own, RUNS / "steps.json")):
        lanes = Lanes(
            [step for step in plan if step in wanted], state, RUNS / "logs", ROOT, given.lanes, reproduce.CPU_MANNERS
        )
        lanes.state.pop("table", None)  # cheap, and the one step that reads what others may have changed
        lanes.run()
    print(f"\nall steps done, {minutes(time.monotonic() - begun)} in this run; the table is {PAGE}")


if __name__ == "__main__":
    sys.exit(main())
