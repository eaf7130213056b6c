"""The runner of `make reproduce`: order, side by side, resume, failure."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from playground.photos import reproduce as photos
from playground.pocket import reproduce
from playground.pocket.lanes import Lanes, Step, ready
from playground.pocket.reproduce import CPU_MANNERS
from playground.pocket.reproduce_methods import SCALE, Plan
from playground.pocket.time_left import TimeLeft, share_done, step_seconds
from playground.pocket.video import reproduce as video


def note(name: str, *after: str, wait: float = 0.0) -> Step:
    """A step that writes when it began and ended, and with how many threads."""
    code = (
        "import os, sys, time, pathlib; begun = time.time(); time.sleep(float(sys.argv[2]));"
        "pathlib.Path(sys.argv[1]).write_text(f'{begun} {time.time()} {os.environ[\"OMP_NUM_THREADS\"]}')"
    )
    return Step(name, (sys.executable, "-c", code, f"{name}.txt", str(wait)), 10, after=after)


def lanes(plan: list[Step], folder: Path, n: int = 2) -> Lanes:
    return Lanes(plan, folder / "state" / "steps.json", folder / "logs", folder, n, {})


def test_steps_wait_for_what_they_need_and_run_side_by_side_where_they_can(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    plan = [
        note("first"),
        note("left", "first", wait=2.0),
        note("right", "first", wait=2.0),
        note("last", "left", "right"),
    ]
    lanes(plan, tmp_path).run()
    told = {step.name: (tmp_path / f"{step.name}.txt").read_text().split() for step in plan}
    began, ended = ({name: float(words[at]) for name, words in told.items()} for at in (0, 1))
    assert ended["first"] < min(began["left"], began["right"]) and began["last"] > max(ended["left"], ended["right"])
    assert max(began["left"], began["right"]) < min(ended["left"], ended["right"])
    assert {name: words[2] for name, words in told.items()} == {"first": "4", "left": "2", "right": "2", "last": "4"}
    assert set(json.loads((tmp_path / "state" / "steps.json").read_text())) == set(told)


def test_a_failed_step_shows_the_end_of_its_log_and_is_repeated_alone(tmp_path: Path) -> None:
    broken = Step(
        "broken", (sys.executable, "-c", "print('half a'); raise SystemExit('no such file: x.json')"), 1, after=("ok",)
    )
    with pytest.raises(
        SystemExit, match=r"step 'broken' failed with status 1(.|\n)*no such file: x.json(.|\n)*repeat it"
    ):
        lanes([note("ok"), broken], tmp_path).run()
    stamp = (tmp_path / "ok.txt").stat().st_mtime_ns
    lanes([note("ok"), note("broken", "ok")], tmp_path).run()
    assert (tmp_path / "ok.txt").stat().st_mtime_ns == stamp, "a finished step ran again"


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's signal at a parent's death is Linux's")
def test_children_end_with_a_killed_parent(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    code = (
        "import sys; from pathlib import Path; from playground.pocket.lanes import Lanes, Step;"
        "step = Step('long', ('sleep', '600.25'), 1); here = Path(sys.argv[1]);"
        "Lanes([step], here / 's.json', here, here, 1, {}).run()"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=root, stdout=subprocess.PIPE)

    def sleeping() -> bool:
        return subprocess.run(["pgrep", "-f", "^sleep 600.25"], capture_output=True).returncode == 0

    try:
        deadline = time.monotonic() + 60
        while not sleeping() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert sleeping()
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        while sleeping() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not sleeping()
    finally:
        parent.kill()
        parent.stdout.close()


def test_a_part_of_the_plan_takes_the_rest_as_done() -> None:
    plan = [note("a"), note("b", "a"), note("c", "b")]
    assert [step.name for step in ready(plan, {}, [])] == ["a"]
    assert [step.name for step in ready(plan, {"a": 1.0}, [])] == ["b"]
    assert [step.name for step in ready(plan[2:], {}, [])] == ["c"]
    assert ready(plan, {"a": 1.0}, [plan[1]]) == []


def test_what_a_step_made_is_looked_for(tmp_path: Path, capsys) -> None:
    plan = [replace(note("a"), makes=("a.txt",)), replace(note("b", "a"), makes=("b.txt",))]
    lanes(plan, tmp_path).run()
    (tmp_path / "a.txt").unlink()
    stamp = (tmp_path / "b.txt").stat().st_mtime_ns
    lanes(plan, tmp_path).run()
    assert "a: was done before, but what it made is gone" in capsys.readouterr().out
    assert (tmp_path / "a.txt").exists() and (tmp_path / "b.txt").stat().st_mtime_ns == stamp


def test_steps_are_told_the_python_of_their_plan(tmp_path: Path, monkeypatch) -> None:
    """Whatever environment is active, and on the CPU where nobody says otherwise."""
    monkeypatch.setenv("PYTHON", "another")
    monkeypatch.delenv("GPUS", raising=False)
    code = "import os, pathlib; pathlib.Path('told').write_text(' '.join([os.environ['PYTHON'], os.environ['GPUS']]))"
    plan = [Step("tell", (sys.executable, "-c", code), 1)]
    Lanes(plan, tmp_path / "s.json", tmp_path / "logs", tmp_path, 1, CPU_MANNERS).run()
    assert (tmp_path / "told").read_text() == f"{sys.executable} 0"


def test_the_console_repeats_nothing(tmp_path: Path, capsys, monkeypatch) -> None:
    """A step that prints nothing has no line; one that goes on printing the same has one."""
    monkeypatch.setattr("playground.pocket.lanes.REPORT_EVERY", 0.0)
    quiet = Step("quiet", (sys.executable, "-c", "import time; time.sleep(1.2)"), 10)
    loud = Step("loud", (sys.executable, "-c", "import time; print('loading', flush=True); time.sleep(1.2)"), 10)
    lanes([quiet, loud], tmp_path).run()
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.endswith(": loading") for line in lines) == 1 and not any("starting" in line for line in lines)
    assert sum("of 2 steps done, about 0:" in line for line in lines) > 1


def timed(name: str, seconds: float, *after: str) -> Step:
    return Step(name, (), seconds, after=after)


def test_the_estimate_deals_what_is_left_to_the_lanes() -> None:
    plan = [timed("a", 10), timed("b", 30, "a"), timed("c", 20, "a"), timed("d", 5, "b", "c")]
    assert TimeLeft(plan, 2).estimate({}, {}) == 10 + 30 + 5
    assert TimeLeft(plan, 1).estimate({}, {}) == 65
    assert TimeLeft(plan, 2).estimate({"a": 10.0}, {"b": (10.0, None)}) == 20 + 5
    assert TimeLeft(plan, 2).estimate({"a": 10.0}, {"b": (15.0, 0.5), "c": (15.0, None)}) == 15 + 5
    late = TimeLeft(plan, 2).estimate({"a": 10.0}, {"b": (300.0, None)})
    assert late == pytest.approx(20 + 5)  # the other lane is the longer one then
    assert (
        TimeLeft(plan[3:], 2).estimate({}, {}) == 5 and TimeLeft(plan, 2).estimate(dict.fromkeys("abcd", 1.0), {}) == 0
    )


def test_the_pace_is_this_machines() -> None:
    plan = [timed("a", 600), timed("b", 300)]
    left = TimeLeft(plan, 1)
    assert left.pace({}, {}) == 1
    assert left.pace({"a": 1200.0}, {}) == pytest.approx(1260 / 660)
    assert left.pace({"a": 1200.0}, {"b": (150.0, 0.25)}) == pytest.approx(1410 / 735)
    assert left.pace({"a": 1200.0}, {"b": (150.0, None)}) == left.pace({"a": 1200.0}, {})  # nobody knows how far it is


def test_a_trainings_log_tells_how_far_it_is() -> None:
    assert share_done("05:37:17  step 200/800  loss 6.0  left 0:01:00") == 0.25
    assert share_done("pope:  33%|###   | 100/300 [00:10<00:20]") is None and share_done("") is None


@pytest.mark.parametrize("speed", [0.5, 1.0, 1.9])
def test_the_time_left_is_steady_and_comes_true(speed: float) -> None:
    """The plan of `make reproduce` on a machine of another speed, each step a quarter longer or shorter than the table has it."""
    plan = reproduce.steps()
    left, lanes = TimeLeft(plan, 2), 2
    true = {step.name: step.seconds * speed * (1.25 if at % 2 else 0.75) for at, step in enumerate(plan)}
    state, running, shown, now = {}, {}, [], 0.0
    while len(state) < len(plan):
        for step in ready(plan, state, [step for step in plan if step.name in running])[: lanes - len(running)]:
            running[step.name] = now
        told = {
            name: (now - begun, (now - begun) / true[name] if name.startswith(("pretrain", "finetune")) else None)
            for name, begun in running.items()
        }
        shown.append((now, left.show(now, state, told)))
        now += 5
        for name, begun in list(running.items()):
            if now - begun >= true[name]:
                state[name] = true[name]
                del running[name]
    for (before, was), (then, is_) in pairwise(shown):
        assert abs(is_ - max(was - (then - before), 0)) <= 0.05 * now, "a jump"
    for at in (len(shown) // 4, len(shown) // 2, 3 * len(shown) // 4):
        then, said = shown[at]
        assert said == pytest.approx(now - then, rel=0.35), f"{then:.0f} of {now:.0f} s"


def test_every_step_has_a_weight_from_a_run() -> None:
    """A plan cannot be made otherwise; and the table has no step that is gone."""
    methods = Plan(SCALE, trial=False)
    plans = [*reproduce.steps(), *methods.trainings(), *methods.steps("command")]
    plans += photos.Plan(None, 1.0, trial=False).steps("command")
    videos = [step for step in video.steps() if step.name != "table"]
    named = {"evaluate video" if step.name.startswith("evaluate") else step.name for step in videos}
    assert {step.name for step in plans} | named == set(step_seconds())
    assert all(step.seconds > 0 for step in [*plans, *videos])
