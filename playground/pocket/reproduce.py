"""The whole paper in the pocket world: data, stage 1, stage 2, six benchmarks, four tables.

    python playground/pocket/reproduce.py [--list] [--only WORD]

Each step is a command a user of the real thing types, with RECIPE=pocket. Every step can be interrupted and goes on where it stopped;
finished steps are skipped. --list shows the steps, --only runs those whose name contains a word.
"""

# ruff: noqa: T201  (an entry point talks to people)

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STATE = Path("runs/pocket/steps.json")
RESULTS = Path("runs/pocket/results")
TABLES = Path("runs/pocket/tables")
ALL_TASKS = "vqav2,sqa,textvqa,pope,mme,mmbench"
ABLATION_TASKS = "sqa,textvqa,pope,mme"
FULL_MODEL = "runs/pocket-lora-none/merged"
# As in scripts/launch_train.sh: threads that wait must not spin, and large tensors must not be mapped anew each time.
CPU_MANNERS = {"OMP_WAIT_POLICY": "PASSIVE", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "4294967296"}


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        name: shown, and the key of the state file.
        command: what runs, from the repository's root.
        seconds: a first guess for two cores, scaled by what finished steps took; only the time left comes from it.
        environment: variables beside the caller's.
    """

    name: str
    command: tuple[str, ...]
    seconds: float
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def line(self) -> str:
        """As typed into a shell."""
        settings = [f"{key}={value}" for key, value in self.environment.items()]
        return " ".join([*settings, *map(shlex.quote, self.command)])


def train(script: str, method: str, seconds: float, *settings: str) -> Step:
    """One training, by its script."""
    environment = {"RECIPE": "pocket", "METHOD": method}
    return Step(f"{script} {method}", ("bash", f"scripts/{script}.sh", *settings), seconds, environment)


def evaluate(label: str, model: str, tasks: str, seconds: float, trained: str, *settings: str) -> Step:
    """One row of the tables: a model, a method, some benchmarks."""
    command = (sys.executable, "-m", "eval.run", "run", "--task", tasks, "--model", model)
    command += ("--data", "playground/pocket/data/eval", "--out", str(RESULTS), "model_label=pocket", f"label={label}")
    return Step(f"evaluate {label}", (*command, f"train={trained}", "batch_size=64", *settings), seconds)


def steps() -> list[Step]:
    """Everything, in order.

    The strategies of Table 4 keep as many tokens of each image as PruMerge does (its outliers), so that they differ in nothing but
    the choice. PruMerge+ keeps a quarter, the paper's average: the released stride saturates where a sixth of the patches are outliers.
    """
    ablation = ("prumerge", "cls_topk", "uniform", "first", "grid", "random")
    return [
        Step("data", (sys.executable, "playground/pocket/build.py", "data"), 60),
        train("pretrain", "none", 400),
        train("finetune_lora", "none", 280),
        train("finetune_lora", "prumerge", 190),
        train("finetune_lora", "prumerge_plus", 190, "reduction.vision.budget=36"),
        evaluate("text only", FULL_MODEL, ALL_TASKS, 50, "lora", "images=off"),
        evaluate("full tokens", FULL_MODEL, ALL_TASKS, 90, "lora"),
        evaluate("PruMerge", "runs/pocket-lora-prumerge/merged", ALL_TASKS, 60, "lora"),
        evaluate("PruMerge+", "runs/pocket-lora-prumerge_plus/merged", ALL_TASKS, 60, "lora"),
        *(
            evaluate(f"{name} training-free", FULL_MODEL, ABLATION_TASKS, 45, "none", f"method={name}")
            for name in ablation
        ),
        Step("tables", (sys.executable, "-m", "eval.tables", str(RESULTS), "--out", str(TABLES)), 5),
    ]


def read_state() -> dict[str, float]:
    """Seconds of each finished step."""
    return json.loads(STATE.read_text()) if STATE.exists() else {}


def write_state(state: dict[str, float]) -> None:
    """Replace the state file in one go."""
    STATE.parent.mkdir(parents=True, exist_ok=True)
    new = STATE.with_suffix(".new")
    new.write_text(json.dumps(state, indent=1))
    new.replace(STATE)


def time_left(todo: list[Step], state: dict[str, float], plan: list[Step]) -> float:
    """Guess from the finished steps how fast this machine is."""
    known = [(state[step.name], step.seconds) for step in plan if step.name in state]
    speed = sum(took for took, _ in known) / sum(guess for _, guess in known) if known else 1.0
    return speed * sum(step.seconds for step in todo)


def minutes(seconds: float) -> str:
    """12:05"""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def run(step: Step) -> float:
    """Run one step and pass its output on. -> seconds

    Raises:
        SystemExit: it failed; its command line is shown so that it can be repeated alone.
    """
    begun = time.monotonic()
    done = subprocess.run(step.command, cwd=ROOT, env={**CPU_MANNERS, **os.environ, **step.environment})
    if done.returncode != 0:
        raise SystemExit(f"step '{step.name}' failed with status {done.returncode}; repeat it with:\n  {step.line}")
    return time.monotonic() - begun


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="show the steps and stop")
    parser.add_argument("--only", default="", help="run the steps whose name contains this word")
    arguments = parser.parse_args()
    os.chdir(ROOT)
    plan = [step for step in steps() if arguments.only in step.name]
    if arguments.list:
        print("\n".join(f"{step.name:28} {step.line}" for step in plan))
        return
    state = read_state()
    for number, step in enumerate(plan, 1):
        if step.name in state and step.name != "tables":
            print(f"[{number}/{len(plan)}] {step.name}: done before, in {minutes(state[step.name])}", flush=True)
            continue
        left = time_left([one for one in plan[number - 1 :] if one.name not in state], state, plan)
        print(f"\n[{number}/{len(plan)}] {step.name}, about {minutes(left)} left\n$ {step.line}", flush=True)
        state[step.name] = run(step)
        write_state(state)
    print(f"\nall steps done in {minutes(sum(state.values()))}; the tables are in {TABLES}/")


if __name__ == "__main__":
    main()
