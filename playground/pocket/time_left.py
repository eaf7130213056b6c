"""How long a plan still takes: each step's weight from step_seconds.yaml, corrected by what steps take on this machine."""

from __future__ import annotations

import heapq
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

if TYPE_CHECKING:
    from playground.pocket.lanes import Step

TABLE = Path(__file__).with_name("step_seconds.yaml")
TRUST = 60.0
"""Seconds of work at the table's own speed that are taken as seen before the first step: one short step is no proof."""
SETTLING = 60.0
"""Seconds over which what is shown follows a new estimate; until then the clock alone moves it."""
LEAST = 0.05
"""Share of its time that a step is taken to need yet when it has had all of it."""
_TRAINING = re.compile(r"\bstep (\d+)/(\d+)\b")


@cache
def step_seconds() -> dict[str, float]:
    """Seconds of each step by name, on one core of the machine that the table names."""
    return yaml.safe_load(TABLE.read_text(encoding="utf-8"))["seconds"]


def seconds_of(name: str, scale: float = 1.0) -> float:
    """A step's weight.

    Args:
        scale: of its work, against the table's.
    """
    return step_seconds()[name] * scale


def share_done(line: str) -> float | None:
    """How much of a training is done, from its log's last line; None for other lines."""
    found = _TRAINING.search(line)
    return int(found[1]) / max(int(found[2]), 1) if found else None


class TimeLeft:
    """The time left of a plan, as shown: steady, and drawn towards the newest estimate.

    Args:
        plan: all steps.
        lanes: steps at a time.
    """

    def __init__(self, plan: Sequence[Step], lanes: int) -> None:
        self.plan, self.lanes = list(plan), lanes
        self.shown: tuple[float, float] | None = None  # seconds left, and when that was said

    def pace(self, state: Mapping[str, float], running: Mapping[str, tuple[float, float | None]]) -> float:
        """Seconds that a second of the table takes here.

        Args:
            state: seconds of finished steps by name.
            running: seconds so far, and the share done where it is known, of running steps by name.
        """
        took, weight = TRUST, TRUST
        for step in self.plan:
            if step.name in state:
                took, weight = took + state[step.name], weight + step.seconds
            elif step.name in running and (share := running[step.name][1]):
                took, weight = took + running[step.name][0], weight + share * step.seconds
        return took / weight

    def estimate(self, state: Mapping[str, float], running: Mapping[str, tuple[float, float | None]]) -> float:
        """Seconds until the last step ends: what is left is dealt to the lanes in order, each step after those it needs."""
        pace = self.pace(state, running)
        ends = dict.fromkeys(state, 0.0)
        free: list[float] = []
        for step in self.plan:
            if step.name in running:
                elapsed, share = running[step.name]
                whole = pace * step.seconds
                left = whole * (1 - share) if share is not None else max(whole - elapsed, LEAST * whole)
                ends[step.name] = left
                free.append(left)
        free += [0.0] * max(self.lanes - len(free), 0)
        heapq.heapify(free)
        planned = {step.name for step in self.plan}
        waiting = [step for step in self.plan if step.name not in ends]
        while waiting:
            able = [step for step in waiting if all(name in ends or name not in planned for name in step.after)]
            begin = heapq.heappop(free)
            step = min(able, key=lambda one: max([begin, *(ends[name] for name in one.after if name in ends)]))
            begin = max([begin, *(ends[name] for name in step.after if name in ends)])
            ends[step.name] = begin + pace * step.seconds
            heapq.heappush(free, ends[step.name])
            waiting.remove(step)
        return max(ends.values(), default=0.0)

    def show(self, now: float, state: Mapping[str, float], running: Mapping[str, tuple[float, float | None]]) -> float:
        """Seconds left as people shall read them: the clock runs down, and the estimate corrects it bit by bit.

        Args:
            now: of a clock that only goes forward.
        """
        found = self.estimate(state, running)
        if self.shown is not None:
            before, said = self.shown
            passed = max(now - said, 0.0)
            expected = max(before - passed, 0.0)
            found = expected + (found - expected) * min(passed / SETTLING, 1.0)
        self.shown = (found, now)
        return found
