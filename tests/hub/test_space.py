"""The Space of a release: files that Gradio's Spaces accept, written whole, over nothing that is somebody else's."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest
import yaml

from llava_prumerge.ground.revision import Revision
from llava_prumerge.hub import space
from llava_prumerge.hub.__main__ import main
from llava_prumerge.hub.source import COMPLETE, PARTS, ReleaseError

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


@pytest.fixture
def release(tmp_path: Path) -> Path:
    (tmp_path / "release").mkdir()
    (tmp_path / "release" / "model.safetensors").write_bytes(b"x" * 100)
    return tmp_path / "release"


@pytest.mark.parametrize("form", [COMPLETE, PARTS])
def test_a_space_is_three_files(form: str, release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(space, "code_revision", lambda: Revision("c0ffee", changed=False))
    folder = tmp_path / "spaces" / "mine"
    command = space.write_space(folder, release, "my-lab/llava-pocket", "apache-2.0", form)
    assert command == f"hf upload my-lab/llava-pocket-demo {folder} . --repo-type space"
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "app.py", "requirements.txt"]
    _, front, text = (folder / "README.md").read_text("utf-8").split("---\n", 2)
    told = yaml.safe_load(front)
    assert (told["sdk"], told["app_file"], told["sdk_version"]) == ("gradio", "app.py", space.GRADIO)
    assert told["models"] == ["my-lab/llava-pocket"] and told["license"] == "apache-2.0" and told["pinned"] is False
    assert len(told["short_description"]) <= 60 and told["title"].startswith("llava-pocket")
    assert told["suggested_hardware"] == ("l4x1" if form == PARTS else "cpu-basic")
    assert "huggingface.co/my-lab/llava-pocket" in text and str(tmp_path) not in front + text
    wanted = "llava-prumerge[demo] @ git+https://github.com/llava-prumerge/llava-prumerge@c0ffee\n"
    assert (folder / "requirements.txt").read_text() == wanted
    tree = ast.parse((folder / "app.py").read_text("utf-8"))
    assert len(tree.body) == (4 if form == PARTS else 3), "a docstring, what is imported, and one call"
    called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert called == ({"launch", "snapshot_download"} if form == PARTS else {"launch"})
    space.check_space(folder, release)
    space.write_space(folder, release, "my-lab/other", "mit", COMPLETE)
    assert "my-lab/other" in (folder / "app.py").read_text(), "an earlier Space is replaced"


def test_large_weights_ask_for_a_gpu_and_changed_code_for_no_commit(
    release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(space, "SMALL", 50)
    assert space.hardware(release, COMPLETE) == "l4x1"
    for revision in (None, Revision("c0ffee", changed=True)):
        monkeypatch.setattr(space, "code_revision", lambda revision=revision: revision)
        assert space.requirement().endswith("/llava-prumerge")


def test_names_and_versions_are_the_projects() -> None:
    from packaging.requirements import Requirement

    assert PROJECT["urls"]["Repository"] == space.CODE
    assert Requirement(space.requirement().partition(" @ ")[0]).extras == {"demo"}
    extra = next(line for line in PROJECT["optional-dependencies"]["demo"] if line.startswith("gradio"))
    assert Requirement(extra).name == "gradio" and Requirement(extra).specifier.contains(space.GRADIO)
    script = (ROOT / "scripts" / "demo_env.sh").read_text("utf-8")
    assert re.search(rf"^GRADIO={re.escape(space.GRADIO)} ", script, re.MULTILINE)


@pytest.mark.parametrize(
    "files, words",
    [
        ({"app.py": "import gradio"}, "holds app.py"),
        ({"app.py": f"from {space.MODULE} import launch", "notes.txt": ""}, "holds app.py"),
        ({"README.md": "mine"}, "holds README.md"),
    ],
)
def test_somebody_elses_folder_is_left_alone(files: dict[str, str], words: str, release: Path, tmp_path: Path) -> None:
    folder = tmp_path / "space"
    space.check_space(folder, release)
    folder.mkdir()
    space.check_space(folder, release)
    for name, text in files.items():
        (folder / name).write_text(text)
    with pytest.raises(ReleaseError, match=f"--space .*space {words}, and is no Space"):
        space.check_space(folder, release)
    with pytest.raises(ReleaseError, match="holds model.safetensors"):
        space.check_space(release / "model.safetensors", tmp_path)
    with pytest.raises(ReleaseError, match="is the release's own folder"):
        space.check_space(release, release / ".")


def test_the_release_command_writes_it_on_request(
    original_runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {
        "class": "x",
        "dtype": "x",
        "kept": 1,
        "visual_tokens": 1,
        "kept_over_layers": 1,
        "question": "",
        "answer": "",
    }
    monkeypatch.setattr("llava_prumerge.hub.__main__.check_release", lambda *_: seen)
    words = [str(original_runs / "full"), "me/pocket", "--license", "mit", "--dry-run", "--out", str(tmp_path / "out")]
    assert main(words) == 0 and not (tmp_path / "space").exists()
    assert main([*words, "--space", str(tmp_path / "space")]) == 0
    assert f"the Space is in {tmp_path / 'space'}" in capsys.readouterr().out
    assert 'launch("me/pocket")' in (tmp_path / "space" / "app.py").read_text()
    assert main([*words, "--space", str(tmp_path / "out")]) == 2
    assert "is the release's own folder" in capsys.readouterr().err
