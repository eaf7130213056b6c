"""The comparison on photographs: a real tower, painted photographs, every method at four budgets, on one page.

    python playground/photos/reproduce.py [--photos FOLDER] [--list] [--only WORD] [--lanes N] [--scale S] [--trial]

Needs the vision tower that `make small` fetches. Paints the scenes, warms the projector up, trains the model with all tokens in place
and PruMerge and PruMerge+ with theirs, evaluates every row, and writes docs/results/photos.md, .json and .png. Every step
can be interrupted and goes on where it stopped; finished steps are skipped. What the tower makes of an image is kept on
disk. Without --photos scenes are painted on generated textures, and the report goes to runs. --scale is the size of
the benchmarks. --trial runs the chain on a few questions with a few training steps and one budget, in runs/trial.
"""

# ruff: noqa: T201  (an entry point talks to people)

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)  # this folder itself must not shadow installed packages

from llava_prumerge.ground.command import Parser, command  # noqa: E402
from llava_prumerge.ground.errors import InputError  # noqa: E402
from playground.photos.backgrounds import SPLITS, backgrounds  # noqa: E402
from playground.photos.study import FOLDERS, MIDDLE, STUDY  # noqa: E402
from playground.pocket.comparison.evaluate import REFERENCES  # noqa: E402
from playground.pocket.comparison.places import Places  # noqa: E402
from playground.pocket.lanes import Lanes, Step, chosen, lanes_option, minutes  # noqa: E402
from playground.pocket.reproduce import CPU_MANNERS  # noqa: E402
from playground.pocket.time_left import seconds_of  # noqa: E402

DOCS = Path("docs/results")
TOWER = Path("playground/small/backbones/dinov2-small-336")
DATA = Path("playground/photos/data")
TRIAL_SCALE, TRIAL_IMAGES, TRIAL_SHORTER = 0.05, 48, 20
WARM = "photos-warm"
TRAINED = {
    "full": ("none", ()),
    "prumerge": ("prumerge", (f"reduction.vision.budget={MIDDLE}",)),
    "prumerge_plus": ("prumerge_plus", (f"reduction.vision.budget={MIDDLE}",)),
    "prumerge_unmerged": (
        "prumerge",
        tuple(
            f"reduction.vision.{key}" for key in (f"budget={MIDDLE}", "per_head=true", "neighbours=0", "extra=false")
        ),
    ),
}
"""Model of a row -> the method that it learns, and settings."""
FIRST = (MIDDLE, 32, 128, 192)
"""Tables in the order in which they are worth having."""


@dataclass(frozen=True)
class Plan:
    """What is run, and at which size.

    Attributes:
        photos: folder of photographs; None for textures.
        scale: of the benchmarks.
        trial: few images, questions and training steps, in a folder of their own.
    """

    photos: Path | None
    scale: float
    trial: bool

    @property
    def places(self) -> Places:
        """The folders."""
        runs = Path("runs/trial") if self.trial else Path("runs")
        data = runs / "photos" / "data" if self.trial else DATA
        return Places(STUDY, runs, runs / "photos" / f"methods-{self.scale:g}", data)

    @property
    def out(self) -> Path:
        """Where the report goes: only the whole at its own size, on photographs, is a result to keep with the repository."""
        whole = self.scale == 1 and not self.trial and self.photos is not None
        return DOCS if whole else self.places.root / "report"

    def steps(self, command: str) -> list[Step]:
        """Everything, in order.

        Args:
            command: that makes the report, for its first lines.
        """
        places = self.places
        assert places.asked is not None
        build = [sys.executable, "playground/photos/build.py", f"scale={self.scale:g}", f"out={places.asked}"]
        build += [f"photos={self.photos}"] if self.photos else []
        build += [f"images={TRIAL_IMAGES}"] if self.trial else []
        made = (str(places.asked / "stage2.json"), str(places.data))
        data = Step("photos data", tuple(build), self.seconds("photos data"), makes=made)
        warm = self.train("photos warm start", "pretrain", "none", WARM, "photos data")
        tuned = [
            self.train(f"photos training {key}", "finetune", method, FOLDERS[key], warm.name, *settings)
            for key, (method, settings) in TRAINED.items()
        ]
        tables = [REFERENCES, *(FIRST[:1] if self.trial else FIRST), *(section.key for section in STUDY.sections)]
        rows = [self.table(str(key), tuned) for key in tables]
        report = (*self.module("report"), *places.options(), f"--out={self.out}", f"--command={command}")
        report += ("--partial",) if self.trial else ()
        last = Step("report", report, seconds_of("report"), after=tuple(row.name for row in rows))
        return [data, warm, *tuned, *rows, last]

    def train(self, name: str, script: str, method: str, folder: str, after: str, *settings: str) -> Step:
        """A training by its script, as short as a trial has it where this is one."""
        places = self.places
        run = places.runs / folder
        words = ["bash", f"scripts/{script}.sh", *settings, f"output_dir={run}"]
        if script == "finetune":
            words.append(f"projector={places.runs / WARM}/mm_projector.safetensors")
        if self.trial:
            records = "regions.json" if script == "pretrain" else "stage2.json"
            words += ["max_steps=4", "save_steps=4"]
            words += [f"data={places.asked}/{records}", f"images={places.asked}/images"]
        environment = {"RECIPE": "photos", "METHOD": method}
        makes = (str(run / "finished.json"),)
        return Step(name, tuple(words), self.seconds(name), environment, (after,), makes)

    def table(self, key: str, tuned: list[Step]) -> Step:
        """One table's rows."""
        command = (*self.module("evaluate"), *self.places.options(), "--table", key)
        needed = [step.name for step in tuned if key == str(MIDDLE) or "full" in step.name]
        return Step(f"evaluate photos {key}", command, self.seconds(f"evaluate photos {key}"), after=tuple(needed))

    def seconds(self, name: str) -> float:
        """A step's weight."""
        return seconds_of(name, 1 / TRIAL_SHORTER if self.trial else 1.0)

    @staticmethod
    def module(name: str) -> tuple[str, ...]:
        """A part of the comparison, as a command."""
        return (sys.executable, "-m", f"playground.pocket.comparison.{name}")


@command()
def main(words: list[str]) -> None:
    """The command line."""
    parser = Parser("playground.photos.reproduce", __doc__)
    parser.add_argument("--photos", type=Path, help="folder of photographs, with folders below it")
    parser.add_argument("--list", action="store_true", help="show the steps and stop")
    parser.add_argument("--only", default="", help="run the steps whose name contains this word")
    lanes_option(parser)
    parser.add_argument("--scale", type=float, help="size of the benchmarks (default 1)")
    parser.add_argument("--trial", action="store_true", help="tiny, in runs/trial")
    given = parser.parse_args(words)
    if given.scale is not None and not 0 < given.scale < float("inf"):
        parser.error(f"--scale {given.scale:g} is not above 0")
    photos = given.photos.expanduser().resolve() if given.photos else None
    for split in SPLITS:
        backgrounds(photos, split).told()  # a folder that will not do is refused before anything is made
    os.chdir(ROOT)
    plan = Plan(photos, given.scale or (TRIAL_SCALE if given.trial else 1.0), given.trial)
    command = "make reproduce-photos" + (" PHOTOS=FOLDER" if photos else "")
    steps = chosen(plan.steps(command), given.only)
    if given.list:
        print("\n".join(f"{step.name:34} {step.line}" for step in steps))
        return
    if not (TOWER / "config.json").is_file():
        raise InputError(f"{TOWER}: no such tower; `make small` fetches it")
    begun = time.monotonic()
    lanes = Lanes(steps, plan.places.root / "steps.json", plan.places.root / "logs", ROOT, given.lanes, CPU_MANNERS)
    lanes.state.pop("report", None)  # cheap, and the one step that reads what others may have changed
    lanes.run()
    print(f"\nall steps done, {minutes(time.monotonic() - begun)} in this run; the page is in {plan.out}/")


if __name__ == "__main__":
    sys.exit(main())
