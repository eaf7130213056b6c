"""Times of actions that take turns: warmed up, synchronised, with quartiles, and their ratios round by round."""

from __future__ import annotations

import contextlib
import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llava_prumerge.efficiency.errors import EfficiencyError

RESET, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
"""Linux: writing 5 to the first makes the second's VmHWM, the peak of resident memory, start anew."""


@dataclass(frozen=True)
class Action:
    """Something to time.

    Attributes:
        run: is timed; it gets what `prepare` gave.
        prepare: comes before, each time, and is not timed.
        times: how many equal steps one run makes; what is reported is the time of one.
    """

    run: Callable[[Any], object]
    prepare: Callable[[], Any] = lambda: None
    times: int = 1


def time_once(action: Action, device: torch.device) -> float:
    """Seconds of one step: by CUDA events on a GPU, by the clock elsewhere."""
    given = action.prepare()
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        start.record()
        action.run(given)
        end.record()
        torch.cuda.synchronize(device)
        return start.elapsed_time(end) / 1e3 / action.times
    begun = time.perf_counter()
    action.run(given)
    return (time.perf_counter() - begun) / action.times


def take_turns(
    actions: Mapping[str, Action],
    device: torch.device,
    repeats: int = 5,
    warmup: int = 1,
    seconds: float | None = None,
    least: int = 3,
    told: Callable[[int, int], None] = lambda done, rounds: None,
) -> dict[str, list[float]]:
    """Time every action `repeats` times, in rounds of one each, so that what disturbs one disturbs the others too.

    Every second round runs backwards: nobody always comes after the same one.

    Args:
        actions: by name.
        device: where they run.
        repeats: rounds.
        warmup: rounds before, not counted.
        seconds: no new round begins after these, once there are `least`.
        least: rounds in any case.
        told: is called after each round with how many are done, and of how many, those before included.

    Returns:
        Seconds of one step by name, one per round.
    """
    if repeats < 1 or warmup < 0:
        raise EfficiencyError(f"repeats {repeats} and warmup {warmup} must be at least 1 and 0")
    found: dict[str, list[float]] = {name: [] for name in actions}
    began, names = time.monotonic(), list(actions)
    for turn in range(warmup + repeats):
        enough = turn >= warmup + least
        if enough and seconds is not None and time.monotonic() - began > seconds:
            break
        for name in names if turn % 2 else reversed(names):
            took = time_once(actions[name], device)
            if turn >= warmup:
                found[name].append(took)
        told(turn + 1, warmup + repeats)
    return found


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """First quartile, median, third quartile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def spread(values: Sequence[float], scale: float = 1.0, digits: int = 4) -> dict[str, float]:
    """Quartiles for a result file: `q1`, `median`, `q3` in units of 1/scale, and of how many values, `n`."""
    low, middle, high = (round(scale * value, digits) for value in quartiles(values))
    return {"q1": low, "median": middle, "q3": high, "n": len(values)}


def ratios(above: Sequence[float], below: Sequence[float], scale: float = 1.0) -> dict[str, float]:
    """Quartiles of the ratio of two actions, each round's own."""
    return spread([one / other for one, other in zip(above, below, strict=True)], scale)


class PeakMeter:
    """Bytes that something needs at its fullest moment beyond what was held before it.

    On a GPU these are tensors' bytes; on CPU the process's resident memory (Linux), which counts whole pages.

    Args:
        device: where it runs.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.before: float | None = None

    def start(self) -> None:
        """Begin."""
        gc.collect()
        self.before = None
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self.before = float(torch.cuda.memory_allocated(self.device))
        elif RESET.exists():
            _give_back()
            with contextlib.suppress(OSError):  # not allowed in some containers
                RESET.write_text("5")
                self.before = _status("VmRSS")

    def stop(self) -> float | None:
        """Bytes since `start`; None where they cannot be read."""
        if self.before is None:
            return None
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return float(torch.cuda.max_memory_allocated(self.device)) - self.before
        return max(0.0, _status("VmHWM") - self.before)


def peak_memory(run: Callable[[], object], device: torch.device) -> float | None:
    """What `PeakMeter` says of one run."""
    meter = PeakMeter(device)
    meter.start()
    run()
    return meter.stop()


def _give_back() -> None:
    """Return freed memory to the system, where glibc is there to do it: else earlier runs hide what this one needs."""
    import ctypes

    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        return


def _status(key: str) -> float:
    """A size of /proc/self/status in bytes."""
    line = next(line for line in STATUS.read_text(encoding="utf-8").splitlines() if line.startswith(f"{key}:"))
    return 1024.0 * int(line.split()[1])


def spread_text(times: Mapping[str, float], digits: int = 2) -> str:
    """A median with its quartiles: 1.23 (1.20 to 1.30)."""
    return f"{times['median']:.{digits}f} ({times['q1']:.{digits}f} to {times['q3']:.{digits}f})"
