"""The runner of `make reproduce`: order, side by side, resume, failure."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from playground.pocket.lanes import Lanes, Step, ready, time_left


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


def test_time_left_is_scaled_by_what_the_finished_steps_took() -> None:
    plan = [Step("a", (), 10), Step("b", (), 30)]
    assert time_left(plan[1:], {}, plan) == 30
    assert time_left(plan[1:], {"a": 20.0}, plan) == 60
    assert time_left(plan[1:], {"a": 20.0}, plan, lanes=2) == 30
