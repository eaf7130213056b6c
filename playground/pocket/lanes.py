"""Runs commands that depend on one another, two at a time where they can be, each with its log; what is done is not done again.

Two processes of one thread each are a better use of two cores than one process of two: the pocket world's matrices are small.
"""

# ruff: noqa: T201  (it talks to people)

from __future__ import annotations

import ctypes
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llava_prumerge.ground.command import Parser, at_least
from llava_prumerge.ground.errors import InputError
from llava_prumerge.ground.files import write_json
from llava_prumerge.ground.reading import read_json_object
from playground.pocket.time_left import TimeLeft, share_done

REPORT_EVERY = 15.0  # seconds between two lines on the console


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        name: shown, and the key of the state file.
        command: what runs, from the repository's root.
        seconds: its weight, as long as it takes on one core (`time_left.py`); only the time left comes from it.
        environment: variables beside the caller's.
        after: names of the steps that must be done before.
        makes: files and folders it leaves, from the repository's root; where one is gone the step is to be done again.
    """

    name: str
    command: tuple[str, ...]
    seconds: float
    environment: Mapping[str, str] = field(default_factory=dict)
    after: tuple[str, ...] = ()
    makes: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        """As typed into a shell."""
        settings = [f"{key}={value}" for key, value in self.environment.items()]
        return " ".join([*settings, *map(shlex.quote, self.command)])


def minutes(seconds: float) -> str:
    """12:05"""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def lanes_option(parser: Parser) -> None:
    """`--lanes N`."""
    parser.add_argument("--lanes", type=at_least(1), default=2, help="steps at a time, which share the cores")


def chosen(plan: Sequence[Step], word: str) -> list[Step]:
    """The steps whose name contains a word.

    Raises:
        InputError: there is none.
    """
    found = [step for step in plan if word in step.name]
    if not found:
        raise InputError(f"--only {word!r} is part of no step's name; --list shows them")
    return found


def ready(plan: Sequence[Step], state: Mapping[str, float], running: Sequence[Step]) -> list[Step]:
    """Steps that can start now, in order; what is not part of the plan counts as done."""
    planned, started = {step.name for step in plan}, {step.name for step in running}
    waiting = [step for step in plan if step.name not in state and step.name not in started]
    return [step for step in waiting if all(name in state or name not in planned for name in step.after)]


def die_with_parent() -> None:
    """In a child, on Linux: end when the parent ends, however it does, so that nothing writes on beside a second start."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


class Lanes:
    """Runs a plan.

    Args:
        plan: the steps, those that others wait for first.
        state: file that keeps the seconds of finished steps.
        logs: folder of one log per step.
        root: where commands run.
        lanes: steps at a time; they share the cores.
        environment: variables of every step, under the caller's.
    """

    def __init__(
        self, plan: Sequence[Step], state: Path, logs: Path, root: Path, lanes: int, environment: Mapping[str, str]
    ) -> None:
        self.plan, self.file, self.logs, self.root = list(plan), state, logs, root
        self.lanes, self.environment = lanes, dict(environment)
        self.state: dict[str, float] = read_json_object(state) if state.exists() else {}
        for step in self.plan:
            if step.name in self.state and not all((root / path).exists() for path in step.makes):
                print(f"{step.name}: was done before, but what it made is gone", flush=True)
                del self.state[step.name]
        self.running: dict[str, tuple[Step, subprocess.Popen, float]] = {}
        self.left = TimeLeft(self.plan, lanes)
        self.said: dict[str, str] = {}

    def run(self) -> None:
        """Run everything that is not done.

        Raises:
            SystemExit: a step failed; its last lines are shown, and its command so that it can be repeated alone.
        """
        for step in self.plan:
            if step.name in self.state:
                print(f"{step.name}: done before, in {minutes(self.state[step.name])}", flush=True)
        reported = time.monotonic()
        try:
            while len(self.done()) < len(self.plan):
                self.fill()
                time.sleep(0.2)
                self.collect()
                if time.monotonic() - reported >= REPORT_EVERY:
                    reported = time.monotonic()
                    self.report()
        finally:
            for _, process, _ in self.running.values():
                process.terminate()

    def done(self) -> list[Step]:
        """The finished steps."""
        return [step for step in self.plan if step.name in self.state]

    def fill(self) -> None:
        """Start what can be started; steps that run side by side share the cores."""
        waiting = ready(self.plan, self.state, [step for step, _, _ in self.running.values()])
        for step in waiting[: self.lanes - len(self.running)]:
            beside = len(waiting) > 1 or bool(self.running)
            threads = max(1, (os.cpu_count() or 1) // (self.lanes if beside else 1))
            self.start(step, threads)

    def start(self, step: Step, threads: int) -> None:
        """Start one step, its output going to its log."""
        place = f"[{self.plan.index(step) + 1}/{len(self.plan)}]"
        print(f"{place} {step.name}, {self.left_in_words()}\n    $ {step.line}", flush=True)
        environment = {**self.environment, "OMP_NUM_THREADS": str(threads), **os.environ, **step.environment}
        environment["PYTHON"] = sys.executable  # the scripts would take the environment that is active
        self.logs.mkdir(parents=True, exist_ok=True)
        with self.log(step).open("wb") as log:
            process = subprocess.Popen(
                step.command,
                cwd=self.root,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=die_with_parent,
            )
        self.running[step.name] = (step, process, time.monotonic())

    def collect(self) -> None:
        """Take note of what has ended."""
        for name, (step, process, begun) in list(self.running.items()):
            if process.poll() is None:
                continue
            del self.running[name]
            if process.returncode != 0:
                tail = "\n".join(f"    {line}" for line in self.lines(step)[-20:])
                raise SystemExit(
                    f"step '{name}' failed with status {process.returncode}; its log {self.log(step)} ends with\n{tail}\n"
                    f"repeat it with:\n    {step.line}"
                )
            self.state[name] = time.monotonic() - begun
            write_json(self.file, self.state)
            print(f"    {name}: done in {minutes(self.state[name])}", flush=True)

    def left_in_words(self) -> str:
        """About 12:05 left in all."""
        now = time.monotonic()
        running = {name: (now - begun, share_done(self.last(step))) for name, (step, _, begun) in self.running.items()}
        return f"about {minutes(self.left.show(now, self.state, running))} left in all"

    def report(self) -> None:
        """A line of the whole, and one for each running step whose log has a new last line."""
        print(f"  {len(self.done())} of {len(self.plan)} steps done, {self.left_in_words()}", flush=True)
        for name, (step, _, begun) in self.running.items():
            last = self.last(step)
            if last and last != self.said.get(name):
                self.said[name] = last
                print(f"    {name} {minutes(time.monotonic() - begun)}: {last[:150]}", flush=True)

    def last(self, step: Step) -> str:
        """The last line of a step's log; empty as long as it has printed nothing."""
        return (self.lines(step) or [""])[-1]

    def log(self, step: Step) -> Path:
        """Where a step's output goes."""
        return self.logs / f"{step.name.replace(' ', '_')}.log"

    def lines(self, step: Step) -> list[str]:
        """What a step has printed so far; each state of a progress bar is a line."""
        text = self.log(step).read_text(encoding="utf-8", errors="replace")
        return [line for line in text.replace("\r", "\n").split("\n") if line.strip()]
