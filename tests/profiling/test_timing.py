"""Turns are fair, what prepares is not timed, ratios are of one round, and peaks are those of the run."""

from __future__ import annotations

import time

import pytest
import torch

from llava_prumerge.efficiency.errors import EfficiencyError
from llava_prumerge.profiling import timing
from llava_prumerge.profiling.timing import Action, PeakMeter, peak_memory, quartiles, ratios, spread, take_turns

CPU = torch.device("cpu")


def test_actions_take_turns_and_every_second_round_runs_backwards() -> None:
    seen: list[str] = []
    actions = {name: Action(lambda _, name=name: seen.append(name)) for name in "abc"}
    times = take_turns(actions, CPU, repeats=3, warmup=1)
    assert "".join(seen) == "cba" + "abc" + "cba" + "abc"
    assert {name: len(values) for name, values in times.items()} == {"a": 3, "b": 3, "c": 3}


def test_only_the_run_is_timed_and_shared_by_its_steps() -> None:
    slow = Action(lambda given: time.sleep(given), lambda: time.sleep(0.05) or 0.02, times=4)
    (took,) = take_turns({"slow": slow}, CPU, repeats=1, warmup=0)["slow"]
    assert 0.005 <= took < 0.05, "a quarter of 20 ms, and nothing of the 50 before"


def test_no_round_begins_when_the_time_is_over() -> None:
    nap = {"nap": Action(lambda _: time.sleep(0.01))}
    assert len(take_turns(nap, CPU, repeats=50, seconds=0.0)["nap"]) == 3
    assert len(take_turns(nap, CPU, repeats=50, seconds=0.0, least=1)["nap"]) == 1
    assert len(take_turns(nap, CPU, repeats=2, seconds=0.0)["nap"]) == 2


def test_no_rounds_are_refused() -> None:
    with pytest.raises(EfficiencyError, match="repeats 0"):
        take_turns({}, CPU, repeats=0)


def test_quartiles_and_ratios() -> None:
    assert quartiles([3.0]) == (3.0, 3.0, 3.0)
    assert quartiles([4.0, 1.0, 2.0, 3.0, 5.0]) == (2.0, 3.0, 4.0)
    assert spread([0.001, 0.002, 0.003], 1e3) == {"q1": 1.5, "median": 2.0, "q3": 2.5, "n": 3}
    # Twice as long in every round, whatever the rounds were like: the ratio has no spread.
    assert ratios([2.0, 20.0, 6.0], [1.0, 10.0, 3.0]) == {"q1": 2.0, "median": 2.0, "q3": 2.0, "n": 3}


def test_peak_is_of_what_was_let_go_again_too() -> None:
    if not timing.RESET.exists():
        pytest.skip("this system does not say how much memory a process used at most")
    peak = peak_memory(lambda: torch.ones(32 << 20).sum(), CPU)
    if peak is None:
        pytest.skip("this system does not let a process forget its peak")
    assert 100e6 < peak < 400e6, "128 MB that are gone afterwards"
    assert peak_memory(lambda: None, CPU) < 32e6


def test_a_meter_that_was_not_started_says_nothing() -> None:
    assert PeakMeter(CPU).stop() is None


@pytest.mark.gpu
def test_events_and_peaks_on_a_gpu() -> None:
    device = torch.device("cuda")
    left = torch.randn(2048, 2048, device=device)
    times = take_turns({"product": Action(lambda _: left @ left)}, device)["product"]
    assert all(0 < value < 1 for value in times)
    assert peak_memory(lambda: torch.empty(64 << 20, dtype=torch.uint8, device=device), device) >= 64 << 20
