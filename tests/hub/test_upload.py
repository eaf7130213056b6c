"""The upload, against a fake Hub that huggingface_hub itself talks to over HTTP."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fake_hub import TOKEN, FakeHub

ROOT = Path(__file__).resolve().parents[2]
UPLOAD = """
import sys
from pathlib import Path
from llava_prumerge.hub.source import ReleaseError
from llava_prumerge.hub.upload import upload
try:
    print(upload(Path(sys.argv[1]), "me/pocket", private=len(sys.argv) > 2))
except ReleaseError as error:
    sys.exit(f"error: {error}")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Something to upload."""
    path = tmp_path / "release"
    path.mkdir()
    (path / "README.md").write_text("---\nlicense: mit\nmodel-index:\n- name: a\n  results: []\n---\n\n# A\n")
    (path / "config.json").write_text("{}")
    (path / "release.json").write_text("{}")
    (path / "model.safetensors").write_bytes(os.urandom(3000))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def run_upload(
    folder: Path, hub: FakeHub, user: dict[str, str], *options: str, **more: str
) -> subprocess.CompletedProcess[str]:
    variables = user | hub.environment() | more
    command = [sys.executable, "-c", UPLOAD, str(folder), *options]
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=False)


def test_everything_arrives_in_one_commit_and_replaces_what_it_must(
    folder: Path, hub: FakeHub, user: dict[str, str]
) -> None:
    done = run_upload(folder, hub, user, "private")
    assert done.returncode == 0 and done.stdout.startswith(f"{hub.address}/me/pocket/commit/"), done.stderr
    assert {".gitattributes", *contents(folder)} == set(hub.repositories["me/pocket"])
    assert all(hub.repositories["me/pocket"][name] == content for name, content in contents(folder).items())
    assert hub.private == {"me/pocket"} and hub.requests.count("POST commit") == 1
    assert "PUT store" in hub.requests, "the weights went by LFS"
    hub.repositories["me/pocket"] |= {
        "adapter_config.json": b"{}",
        "model-00001-of-00002.safetensors": b"x",
        "photo.png": b"p",
        "mine.json": b"{}",
    }
    (folder / "config.json").write_text('{"a": 1}')
    hub.requests.clear()
    assert run_upload(folder, hub, user).returncode == 0
    assert set(hub.repositories["me/pocket"]) == {".gitattributes", "photo.png", "mine.json", *contents(folder)}
    assert hub.repositories["me/pocket"]["config.json"] == b'{"a": 1}'
    assert "PUT store" not in hub.requests, "what lies there already is not sent again"
    download = "import sys; from huggingface_hub import snapshot_download; print(snapshot_download('me/pocket'))"
    anyone = user | hub.environment(token=None)
    got = subprocess.run([sys.executable, "-c", download], env=anyone, capture_output=True, text=True, check=False)
    assert got.returncode == 0, got.stderr
    assert all((Path(got.stdout.strip()) / name).read_bytes() == content for name, content in contents(folder).items())


@pytest.mark.parametrize(
    "route, status, words",
    [
        ("create", 500, "the Hub answered 500: Internal Error"),
        ("commit", 500, "the Hub answered 500: Internal Error"),
        ("store", 403, "the Hub answered 403 (may the token write there?)"),
        ("token", 401, "the Hub answered 401 (is the token valid?): Invalid username or password"),
        ("nobody", 0, "Connection refused"),
        ("card", 400, "Invalid metadata in README.md"),
    ],
)
def test_a_failing_upload_is_one_line_and_changes_nothing(
    route: str, status: int, words: str, folder: Path, hub: FakeHub, user: dict[str, str]
) -> None:
    more = {}
    if route == "token":
        more["HF_TOKEN"] = "hf_wrongTokenOfTheTests0000000000"
    elif route == "nobody":
        more["HF_ENDPOINT"] = "http://127.0.0.1:9"
    elif route == "card":
        (folder / "README.md").write_text("---\nlicense: [\n---\n")
    else:
        hub.faults[route] = status
    before = contents(folder)
    done = run_upload(folder, hub, user, **more)
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert done.returncode == 1 and lines[-1].startswith("error: upload to me/pocket failed: ") and words in lines[-1]
    assert "Traceback" not in done.stderr
    assert f"The release is complete in {folder}" in lines[-1]
    assert contents(folder) == before
    assert set(hub.repositories.get("me/pocket", {})) <= {".gitattributes"}, "nothing of it is on the Hub"
    assert TOKEN not in done.stderr and "hf_wrong" not in done.stderr
