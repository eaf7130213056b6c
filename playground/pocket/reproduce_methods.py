"""The method comparison in the pocket world: every method at four budgets against the full model, on one table per budget.

    python playground/pocket/reproduce_methods.py [--list] [--only WORD] [--lanes N] [--scale S] [--trial]

Begins with the steps of reproduce.py that it needs, where those have not run. Then PruMerge+, ATP-LLaVA and LLaVA-Mini are trained by
scripts/finetune_lora.sh, MetaCompress by finetune_method.sh, G-Search and P-Sigmoid are calibrated, every row is evaluated and timed,
and docs/results/methods.md, .json and .png are written. Every step can be interrupted and goes on where it stopped; finished steps are skipped. --scale is the size of the
benchmarks (1: that of reproduce.py's); each size has results of its own. --trial runs the chain on a few questions with
a few training steps, in runs/trial, to see that it works.
"""

# ruff: noqa: T201  (an entry point talks to people)

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)  # this folder itself must not shadow installed packages

from llava_prumerge.ground.command import Parser, command  # noqa: E402
from playground.pocket import reproduce  # noqa: E402
from playground.pocket.comparison.evaluate import REFERENCES  # noqa: E402
from playground.pocket.comparison.places import Places  # noqa: E402
from playground.pocket.comparison.pocket_study import FOLDERS, LEARNT, PLUS, STUDY, TRAINED  # noqa: E402
from playground.pocket.lanes import Lanes, Step, chosen, lanes_option, minutes  # noqa: E402
from playground.pocket.time_left import seconds_of  # noqa: E402

DOCS = Path("docs/results")
SCALE, TRIAL_SCALE = 0.3, 0.02
TRIAL_SHORTER = 20  # a trial's training, most of which is starting up
BASE = ("data", "pretrain none", "finetune_lora none", "finetune_lora prumerge_plus")
"""The steps of `make reproduce` whose outcome is used."""


ATP_RATES = ("learning_rate=5e-4", "projector_lr=5e-4")
"""It starts from the full model, as its paper does from LLaVA-1.5: half of stage 2's rate."""
ATP_TARGET = {72: 72, 36: 39}
"""Budget -> target. A training sample asks eight questions and leaves more tokens than a benchmark's one."""
ATP_START = {72: 0.27, 36: 0.43}
"""Budget -> thresholds that about meet it from the beginning; later modules and the even sample then have their turn."""
ATP_OWN_RATE = {72: "2e-3", 36: "2e-4"}
"""Budget -> rate of the thresholds. With 14 tokens behind the first module the start is what is best, and 2e-3 leads away from it."""
MINI_LAYERS = 2
"""Of fusion: the released 4 are an eighth of 32 layers, and two thirds of 6."""
MINI_RATES = ("learning_rate=1e-3", "method_lr=3e-3")
"""Of the stage that reads captions, with the compressor alone: a fusion that never saw a question makes questions unreadable.
The projector has learnt already, the queries begin from nothing."""


@dataclass(frozen=True)
class Plan:
    """What is run at which size.

    Attributes:
        scale: of the benchmarks.
        trial: few training steps, trials of a search and repeats, in a folder of their own.
    """

    scale: float
    trial: bool

    @property
    def places(self) -> Places:
        """The folders."""
        runs = Path("runs/trial") if self.trial else Path("runs")
        return Places(STUDY, runs, runs / "pocket" / f"methods-{self.scale:g}")

    @property
    def out(self) -> Path:
        """Where the report goes: only the whole at its own size is a result to keep with the repository."""
        return DOCS if self.scale == SCALE and not self.trial else self.places.root / "report"

    def trainings(self) -> list[Step]:
        """Of reproduce.py, and of the methods that have to learn."""
        base = [step for step in reproduce.steps() if step.name in BASE]
        after = "pretrain none"
        own = []
        for budget in TRAINED:
            settings = {
                "target": ATP_TARGET[budget],
                "start": ATP_START[budget],
                "start_later": 0.1,
                "start_spatial": 0.9,
            }
            words = [f"reduction.decoder.{key}={value}" for key, value in settings.items()]
            words += [f"model={self.places.model('full')}", *ATP_RATES, f"method_lr={ATP_OWN_RATE[budget]}"]
            own.append(self.training(f"atp_{budget}", "atp_llava", "finetune_lora none", *words))
        plus = [f"reduction.vision.{key}={value}" for key, value in {"budget": TRAINED[1], **PLUS}.items()]
        own.append(self.training(f"prumerge_plus_{TRAINED[1]}", "prumerge_plus", after, *plus))
        own += self.learners()
        return [self.sized(step) for step in base] + [self.sized(step) for step in own]

    def learners(self) -> list[Step]:
        """Methods whose tokens are all their own, from the full model: MetaCompress, and LLaVA-Mini, whose fusion comes second."""
        full, after = f"model={self.places.model('full')}", "finetune_lora none"
        found = []
        for budget in LEARNT["meta_compress"]:
            words = (full, f"reduction.vision.budget={budget}")
            found.append(
                self.training(f"meta_compress_{budget}", "meta_compress", after, *words, script="finetune_method")
            )
        for budget in LEARNT["llava_mini"]:
            key, first = f"llava_mini_{budget}", self.places.runs / f"pocket-pretrain-llava_mini-{budget}"
            size, layers = f"reduction.vision.budget={budget}", "reduction.vision.layers"
            told = (full, size, f"{layers}=0", *MINI_RATES)
            found.append(reproduce.train("pretrain", "llava_mini", after, *told, called=key, folder=str(first)))
            told = (f"model={first / 'merged'}", size, f"{layers}={MINI_LAYERS}")
            found.append(self.training(key, "llava_mini", f"pretrain {key}", *told))
        return found

    def training(self, key: str, method: str, after: str, *settings: str, script: str = "finetune_lora") -> Step:
        """A training under its own name, into its own folder."""
        folder = str(self.places.runs / FOLDERS[key])
        return reproduce.train(script, method, after, *settings, called=key, folder=folder)

    def sized(self, step: Step) -> Step:
        """A training as short as a trial has it, between the trial's folders."""
        if not self.trial or step.command[0] != "bash":
            return step
        runs, words, makes = self.places.runs, [*step.command, "max_steps=4", "save_steps=4"], step.makes
        stage, method = step.name.split()
        if not any(word.startswith("output_dir=") for word in words):
            folder = f"{runs}/pocket-{'pretrain' if stage == 'pretrain' else 'lora'}-{method}"
            words.append(f"output_dir={folder}")
            makes = (f"{folder}/finished.json",)
        if stage != "pretrain" and not any(word.startswith("model=") for word in words):
            words.append(f"projector={runs}/pocket-pretrain-none/mm_projector.safetensors")
        return replace(step, command=tuple(words), seconds=step.seconds / TRIAL_SHORTER, makes=makes)

    def steps(self, command: str) -> list[Step]:
        """All that follows the trainings.

        Args:
            command: that made the report, for its first lines.
        """
        options = tuple(self.places.options())
        ask = (*self.module("questions"), *options, f"--scale={self.scale:g}")
        rows = [
            self.weighed(
                f"evaluate {table or REFERENCES}",
                (*self.module("evaluate"), *options, "--table", str(table or REFERENCES)),
            )
            for table in STUDY.tables
        ]
        searches = self.searches()
        rows = [replace(row, after=tuple(step.name for step in searches)) for row in rows]
        few = ("--questions=16", "--repeats=1") if self.trial else ()
        timing = self.weighed("prefill times", (*self.module("prefill"), *options, *few))
        timing = replace(timing, after=tuple(row.name for row in rows))  # alone, for times that can be compared
        report = (*self.module("report"), *options, f"--out={self.out}", f"--command={command}")
        report = self.weighed("report", report, timing.name)
        return [self.weighed("questions", ask), *searches, *rows, timing, report]

    def weighed(self, name: str, command: tuple[str, ...], *after: str) -> Step:
        """A step with its weight from the table, which is for SCALE."""
        return Step(name, command, seconds_of(name, self.scale / SCALE), after=after)

    def searches(self) -> list[Step]:
        """G-Search once, P-Sigmoid for each budget that a pruner alone can meet."""
        places = self.places
        shared = ("--model", str(places.model("full")), "--questions", str(places.calibration))
        shared += ("--images", "playground/pocket/data/images", "--batch-size=32")
        shared += ("--samples=8",) if self.trial else ()
        search = (sys.executable, "-m")
        trials = "--trials=2" if self.trial else "--trials=40"
        found = [
            self.weighed(
                f"p_sigmoid {budget}",
                (*search, "llava_prumerge.search.p_sigmoid", *shared, f"--budget={budget}", trials)
                + (f"--out={places.found}/p_sigmoid_{budget}.yaml",),
                "questions",
            )
            for budget in TRAINED
        ]
        g_search = (*search, "llava_prumerge.search.g_search", *shared, f"--out={places.found}/g_search.yaml")
        return [self.weighed("g_search", g_search, "questions"), *found]

    @staticmethod
    def module(name: str) -> tuple[str, ...]:
        """A part of this comparison, as a command."""
        return (sys.executable, "-m", f"playground.pocket.comparison.{name}")


@command()
def main(words: list[str]) -> None:
    """The command line."""
    parser = Parser("playground.pocket.reproduce_methods", __doc__)
    parser.add_argument("--list", action="store_true", help="show the steps and stop")
    parser.add_argument("--only", default="", help="run the steps whose name contains this word")
    lanes_option(parser)
    parser.add_argument("--scale", type=float, help=f"size of the benchmarks (default {SCALE:g})")
    parser.add_argument("--trial", action="store_true", help="tiny, in runs/trial")
    given = parser.parse_args(words)
    if given.scale is not None and not 0 < given.scale < float("inf"):
        parser.error(f"--scale {given.scale:g} is not above 0")
    os.chdir(ROOT)
    scale = given.scale or (TRIAL_SCALE if given.trial else SCALE)
    plan = Plan(scale, given.trial)
    command = " ".join(["python", "playground/pocket/reproduce_methods.py", *words])
    state = plan.places.runs / "pocket" / "steps.json" if plan.trial else reproduce.STATE
    parts = [(plan.trainings(), state), (plan.steps(command), plan.places.root / "steps.json")]
    wanted = chosen([step for steps, _ in parts for step in steps], given.only)
    parts = [([step for step in steps if step in wanted], state) for steps, state in parts]
    if given.list:
        print("\n".join(f"{step.name:34} {step.line}" for steps, _ in parts for step in steps))
        return
    begun = time.monotonic()
    for steps, state in parts:
        lanes = Lanes(steps, state, plan.places.root / "logs", ROOT, given.lanes, reproduce.CPU_MANNERS)
        lanes.state.pop("report", None)  # cheap, and the one step that reads what others may have changed
        lanes.run()
    print(f"\nall steps done, {minutes(time.monotonic() - begun)} in this run; the tables are in {plan.out}/")


if __name__ == "__main__":
    sys.exit(main())
