"""The commands of docs/asking.md and docs/visualising.md, run on a small model."""

from __future__ import annotations

import io
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image
from test_documents import ROOT, commands
from tiny_families import write_family
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel

from llava_prumerge import load_model
from llava_prumerge.__main__ import main

PAGES = ["asking.md", "visualising.md"]
PAGED = [(page, command) for page in PAGES for command in commands(ROOT / "docs" / page)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages name."""
    folder = tmp_path_factory.mktemp("pages")
    write_family(folder / "MODEL", "llava")
    size = {"image_size": 48, "patch_size": 8, "hidden_size": 32, "intermediate_size": 64}
    CLIPVisionModel(CLIPVisionConfig(**size, num_hidden_layers=3, num_attention_heads=4)).save_pretrained(
        folder / "TOWER"
    )
    pixels = CLIPImageProcessorPil(size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48})
    pixels.save_pretrained(folder / "TOWER")
    for name in ("photo.jpg", "other.jpg"):
        Image.new("RGB", (60, 40), "red").save(folder / name)
    (folder / "questions.txt").write_text("w5 w6\nw7\n")
    return folder


def test_the_pages_have_commands() -> None:
    assert len(PAGED) >= 5 and all(command.startswith("llava-prumerge ") for _, command in PAGED)


@pytest.mark.parametrize(("page", "command"), PAGED, ids=[command[:50] for _, command in PAGED])
def test_a_command_does_what_its_page_says(
    page: str, command: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    given, _, target = command.partition(" > ")
    given, _, source = given.partition(" < ")
    monkeypatch.setattr("sys.stdin", io.StringIO(Path(source).read_text() if source else "w5\n"))
    words = shlex.split(given)[1:]
    more = ["new_tokens=3", "device=cpu"] if words[0] == "chat" else []
    assert main([*words, *more]) == 0
    out, err = capsys.readouterr()
    if words[0] == "chat":
        asked = 2 if source else 1
        assert len(out.splitlines()) == asked and len(re.findall(r"^\[kept \d+ of 16 ", err, re.MULTILINE)) == asked
    else:
        lines = [line for line in out.splitlines() if " tokens" in line]
        methods, images = command.count("--method"), len(re.findall(r"\w+\.jpg", command))
        assert len(lines) == methods * images
        written = re.search(r"--out (\S+)", command)
        assert Path(written[1] if written else "runs/viz").exists()


def test_their_python_runs(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import llava_prumerge

    monkeypatch.chdir(place)
    model, processor = load_model("MODEL", {"vision": {"name": "prumerge", "budget": 5}}, device="cpu")
    names = {"llava_prumerge": llava_prumerge, "model": model, "processor": processor}
    for page in PAGES:
        for block in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text("utf-8"), re.DOTALL):
            exec(block, names)
    assert len(names["second"].images) == 2 and names["tile"].weights.shape == (5, 16)
