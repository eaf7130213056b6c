"""The whole paper in the pocket world: data, stage 1, stage 2, six benchmarks, four tables.

    python playground/pocket/reproduce.py [--list] [--only WORD] [--lanes N]

Each step is a command a user of the real thing types, with RECIPE=pocket. Every step can be interrupted and goes on where it stopped;
finished steps are skipped. Its output goes to runs/pocket/logs. --list shows the steps, --only runs those whose name contains a word.
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
from playground.pocket.lanes import Lanes, Step, chosen, lanes_option, minutes  # noqa: E402
from playground.pocket.time_left import seconds_of  # noqa: E402

STATE = Path("runs/pocket/steps.json")
QUESTIONS = Path("playground/pocket/data/eval")
RESULTS = Path("runs/pocket/results")
TABLES = Path("runs/pocket/tables")
LOGS = Path("runs/pocket/logs")
PAGES = ("docs/results/pocket.md", "docs/results/pocket_bf16.md")
"""With the tables of a processor without bf16 arithmetic, and of one with it."""
ALL_TASKS = "vqav2,sqa,textvqa,pope,mme,mmbench"
ABLATION_TASKS = "sqa,textvqa,pope,mme"
# As in scripts/launching.sh: threads that wait must not spin, and large tensors must not be mapped anew each time.
# The CPU is what the published tables were made on, and what the set-up is for; GPUS=1 in the caller's environment changes it.
CPU_MANNERS = {
    "GPUS": "0",
    "OMP_WAIT_POLICY": "PASSIVE",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
}


def train(script: str, method: str, after: str, *settings: str, called: str = "", folder: str = "") -> Step:
    """One training, by its script.

    Args:
        called: the step's name behind the script's; the method for nothing.
        folder: of the run, where it is not the recipe's.
    """
    environment = {"RECIPE": "pocket", "METHOD": method}
    name = f"{script} {called or method}"
    command = ("bash", f"scripts/{script}.sh", *settings, *([f"output_dir={folder}"] if folder else []))
    left = folder or f"runs/pocket-{'pretrain' if script == 'pretrain' else 'lora'}-{method}"
    return Step(name, command, seconds_of(name), environment, (after,), (f"{left}/finished.json",))


def evaluate(label: str, method: str, tasks: str, trained: str, *settings: str) -> Step:
    """One row of the tables: the model that stage 2 made with a method, some benchmarks."""
    command = (sys.executable, "-m", "eval.run", "run", "--task", tasks, "--model", f"runs/pocket-lora-{method}/merged")
    command += ("--data", str(QUESTIONS), "--out", str(RESULTS), "model_label=pocket", f"label={label}")
    command += (f"train={trained}", "batch_size=64", *settings)
    name = f"evaluate {label}"
    return Step(name, command, seconds_of(name), after=(f"finetune_lora {method}",))


def steps() -> list[Step]:
    """Everything, in order.

    The strategies of Table 4 keep as many tokens of each image as PruMerge does (its outliers), so that they differ in nothing but
    the choice; an image cannot be resized to a number of its own, so downsampling keeps 30 of all. PruMerge+ keeps PruMerge's number by
    attention and half of the patches in all: where a fifth are outliers the released stride, three more for each, saturates.
    Both merge 8 neighbours, the share of 144 patches that the released 32 are of 576; 32 of 144 reach into every other object.
    """
    merge = ("reduction.vision.neighbours=8",)
    plus = ("reduction.vision.budget=72", "reduction.vision.share=0.4", *merge)
    ablation: dict[str, tuple[str, ...]] = {
        "prumerge": merge,
        **dict.fromkeys(("cls_topk", "uniform", "first", "grid", "random", "pool"), ()),
        "downsample": ("reduction.vision.rows=5", "reduction.vision.columns=6"),
        "prumerge_plus": plus,
    }
    trainings = [
        train("pretrain", "none", "data"),
        train("finetune_lora", "none", "pretrain none"),
        train("finetune_lora", "prumerge", "pretrain none", *merge),
        train("finetune_lora", "prumerge_plus", "pretrain none", *plus),
        train("finetune_lora", "cls_topk", "pretrain none"),
    ]
    rows = [
        evaluate("text only", "none", ALL_TASKS, "lora", "images=off"),
        evaluate("full tokens", "none", ALL_TASKS, "lora"),
        evaluate("PruMerge", "prumerge", ALL_TASKS, "lora"),
        evaluate("PruMerge+", "prumerge_plus", ALL_TASKS, "lora"),
        evaluate("cls_topk", "cls_topk", ALL_TASKS, "lora"),
        *(
            evaluate(f"{name} training-free", "none", ABLATION_TASKS, "none", f"method={name}", *settings)
            for name, settings in ablation.items()
        ),
    ]
    build = (sys.executable, "playground/pocket/build.py", "data")
    tabulate = (sys.executable, "-m", "eval.tables", str(RESULTS), "--out", str(TABLES))
    return [
        Step("data", build, seconds_of("data"), makes=("playground/pocket/data/stage1.json", str(QUESTIONS))),
        *trainings,
        *rows,
        Step("tables", tabulate, seconds_of("tables"), after=tuple(row.name for row in rows)),
    ]


def rows_of(text: str) -> list[str]:
    """The lines of all tables of a Markdown text."""
    return [line for line in text.splitlines() if line.startswith("|")]


def compared(text: str) -> str:
    """Whether these tables are those of a page of the documentation, to the last digit."""
    for page in PAGES:
        if rows_of(text) == rows_of((ROOT / page).read_text(encoding="utf-8")):
            return f"they are those of {page} to the last digit"
    return f"they are those of none of {', '.join(PAGES)}: each kind of processor has its own, see {PAGES[0]}"


@command()
def main(words: list[str]) -> None:
    """The command line."""
    parser = Parser("playground.pocket.reproduce", __doc__)
    parser.add_argument("--list", action="store_true", help="show the steps and stop")
    parser.add_argument("--only", default="", help="run the steps whose name contains this word")
    lanes_option(parser)
    arguments = parser.parse_args(words)
    os.chdir(ROOT)
    plan = chosen(steps(), arguments.only)
    if arguments.list:
        print("\n".join(f"{step.name:28} {step.line}" for step in plan))
        return
    begun = time.monotonic()
    lanes = Lanes(plan, STATE, LOGS, ROOT, arguments.lanes, CPU_MANNERS)
    lanes.state.pop("tables", None)  # cheap, and the one step that reads what others may have changed
    lanes.run()
    print(f"\nall steps done, {minutes(time.monotonic() - begun)} in this run; the tables are in {TABLES}/")
    if not arguments.only:
        print(compared((TABLES / "tables.md").read_text(encoding="utf-8")))


if __name__ == "__main__":
    sys.exit(main())
