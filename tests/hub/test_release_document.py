"""The commands of docs/release.md, as they stand there, on an untrained pocket run."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from fake_hub import TOKEN, FakeHub

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "release.md"
RUN, DATA = "runs/pocket-lora-prumerge_plus", "playground/pocket/data/eval"


def commands() -> list[str]:
    """Every line of the page's bash blocks."""
    blocks = re.findall(r"^```bash\n(.*?)^```", DOCUMENT.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def test_the_page_has_the_commands_these_tests_run() -> None:
    kinds = [shlex.split(line)[1] for line in commands()]
    assert kinds == ["scripts/release.sh"] * 3 + ["scripts/eval/pope.sh"]


def run(line: str, run_folder: Path, environment: dict[str, str], *more: str) -> subprocess.CompletedProcess[str]:
    """A command with the run's real place and further options."""
    words = [word.replace(RUN, str(run_folder)) for word in shlex.split(line)]
    words[1] = str(ROOT / words[1])
    return subprocess.run([*words, *more], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_documented_upload(original_runs: Path, tmp_path: Path, hub: FakeHub, user: dict[str, str]) -> None:
    """Without a token, with a wrong one, with the right one; and no trace of either."""
    dry, real = commands()[:2]
    out = tmp_path / "release"
    more = ("--out", str(out), "--without-results")
    assert real == dry.removesuffix(" --dry-run") and "--dry-run" in dry
    no_token = user | hub.environment(token=None)
    done = run(real, original_runs / "lora", no_token, *more)
    assert done.returncode == 2 and "error: no Hub token" in done.stderr and not out.exists()
    done = run(dry, original_runs / "lora", no_token, *more)
    assert done.returncode == 0 and "was not uploaded" in done.stdout and hub.requests == [], done.stderr
    weights = out / "model.safetensors"
    stamp = weights.stat().st_mtime_ns
    hub.faults["commit"] = 500
    done = run(real, original_runs / "lora", user | hub.environment(), *more)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 2 and last.startswith("error: upload to my-lab/llava-pocket failed: the Hub answered 500")
    assert set(hub.repositories["my-lab/llava-pocket"]) == {".gitattributes"}
    hub.faults.clear()
    done = run(real, original_runs / "lora", user | hub.environment(), *more)
    assert done.returncode == 0 and "uploaded: " in done.stdout, done.stderr
    assert weights.stat().st_mtime_ns == stamp, "the release was not made again"
    there = hub.repositories["my-lab/llava-pocket"]
    assert all(there[path.name] == path.read_bytes() for path in out.iterdir())
    places = (out, Path(user["HF_HOME"]), original_runs)
    written = b"".join(path.read_bytes() for place in places for path in place.rglob("*") if path.is_file())
    assert written and TOKEN.encode() not in written and TOKEN not in done.stdout + done.stderr


@pytest.mark.slow
def test_every_command_in_its_order(original_runs: Path, tmp_path: Path, hub: FakeHub, user: dict[str, str]) -> None:
    """The evaluation first, so that its result is in the card that is uploaded; then the adapters."""
    from playground.pocket import benchmarks, records

    records.build(tmp_path / "data", stage1=8, stage2=8, workers=1)
    benchmarks.build(tmp_path / "data", scale=0.1)
    _, real, adapters, evaluation = commands()
    evaluation = evaluation.replace(DATA, str(tmp_path / "data" / "eval"))
    done = run(evaluation, original_runs / "lora", user, "--out", str(tmp_path / "results"), "limit=12", "batch_size=6")
    assert done.returncode == 0, done.stderr
    out = tmp_path / "release"
    more = ("--out", str(out), "--results", str(tmp_path / "results"))
    done = run(real, original_runs / "lora", user | hub.environment(), *more)
    assert done.returncode == 0 and "evaluation results in the card: pope" in done.stderr, done.stderr
    card = yaml.safe_load(hub.repositories["my-lab/llava-pocket"]["README.md"].decode().split("---\n")[1])
    (result,) = card["model-index"][0]["results"]
    assert result["dataset"]["name"] == "12 questions in POPE's format (not the official set)"
    done = run(adapters, original_runs / "lora", user, "--out", str(tmp_path / "parts"), "--without-results")
    assert done.returncode == 0 and (tmp_path / "parts" / "adapter_model.safetensors").is_file(), done.stderr
