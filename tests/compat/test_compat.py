"""What the converter writes, read by other releases of transformers, each in an environment of its own (make test-compat)."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import published_layouts as layouts
import pytest
from PIL import Image

from llava_prumerge.model.checkpoints.__main__ import main

RELEASES = ("4.37.2", "4.51.3", "4.57.6")
CACHE = "LLAVA_PRUMERGE_COMPAT"  # a folder for the environments; by default one in the system's temporary folder
READER, BACKBONES_READER = (Path(__file__).with_name(name) for name in ("read_export.py", "read_backbones.py"))
BACKBONES = Path(__file__).parents[2] / "playground" / "pocket" / "backbones"
TEXTS = [
    "the  fox",
    "  lead",
    "trail  ",
    "a    b",
    "\n\tdog",
    "",
    " ",
    "é日👍🏽",
    "a</s>the",
    "<s>x",
    "x <image>\nIs there",
    "<unk>",
]
LINKED = ("torch", "numpy", "pillow")  # with what they need; large, and the same for every release of transformers


def needed(names: tuple[str, ...]) -> set[str]:
    """Installed distributions that some need, themselves included."""
    found: set[str] = set()
    left = list(names)
    while left:
        name = re.sub(r"[-_.]+", "-", left.pop()).lower()
        try:
            wanted = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        if name not in found:
            found.add(name)
            left += [re.match(r"[\w.-]+", line)[0] for line in wanted if "extra ==" not in line]
    return found


def link(names: set[str], place: Path) -> None:
    """Make this environment's copies of some distributions visible in another one."""
    for name in names:
        for file in importlib.metadata.files(name) or []:
            top = file.parts[0]
            source = Path(str(file.locate())).parents[len(file.parts) - 1] / top
            if top not in ("..", "__pycache__") and source.exists() and not (place / top).exists():
                (place / top).symlink_to(source)


@pytest.fixture(scope="session", params=RELEASES)
def python(request: pytest.FixtureRequest) -> Path:
    """The interpreter of an environment with one release of transformers; it stays for the next time."""
    mark = hashlib.sha256(f"{sys.prefix} {importlib.metadata.version('torch')}".encode()).hexdigest()[:8]
    cache = Path(os.environ.get(CACHE) or Path(tempfile.gettempdir()) / "llava-prumerge-compat")
    folder = cache / f"transformers-{request.param}-{mark}"
    interpreter, done = folder / "bin" / "python", folder / "ready"
    if not done.exists():
        venv.create(folder, clear=True, with_pip=True)
        place = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
        link(needed(LINKED) - {"setuptools"}, place)
        command = [interpreter, "-m", "pip", "install", "-q", f"transformers=={request.param}", "setuptools"]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode:
            pytest.skip(f"pip cannot install transformers {request.param}: {ended.stderr.strip().splitlines()[-1]}")
        done.touch()
    return interpreter


@pytest.fixture(scope="session")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LLaVA from the original layout, exported for stock transformers, with texts and an image to ask about."""
    place = tmp_path_factory.mktemp("compat")
    model, tokenizer = layouts.published(), layouts.sentencepiece_model()
    layouts.write_original(place / "original", model, tokenizer)
    layouts.write_clip(place / "clip", model)
    main(["convert", str(place / "original"), str(place / "ours"), "--vision-tower", str(place / "clip")])
    main(["convert", str(place / "ours"), str(place / "hf"), "--to", "llava-hf"])
    (place / "texts.json").write_text(json.dumps(TEXTS))
    Image.effect_noise((28, 28), 90).convert("RGB").save(place / "image.png")
    return place


def read(interpreter: Path | str, export: Path) -> dict:
    """What a release makes of the export."""
    return run(interpreter, READER, *(str(export / name) for name in ("hf", "texts.json", "image.png")))


def run(interpreter: Path | str, script: Path, *words: str) -> dict:
    """What a script of this folder prints under a release."""
    start = "import runpy, sys; " + ("" if interpreter != sys.executable else "import llava_prumerge; ")
    start += f"sys.argv = ['', *sys.argv[1:]]; runpy.run_path({str(script)!r})"
    done = subprocess.run([str(interpreter), "-c", start, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="session")
def own(export: Path) -> dict:
    return read(sys.executable, export)


@pytest.mark.compat
def test_another_release_reads_the_same(python: Path, export: Path, own: dict) -> None:
    """Token ids, prompt, side of padding, pixels of a square image, and a greedy answer of the model's weights."""
    theirs = read(python, export)
    assert theirs.pop("version") != own["version"]
    assert theirs == {key: value for key, value in own.items() if key != "version"}
    assert len(own["ids"]) == len(TEXTS) and len(set(own["answer"])) > 1


@pytest.fixture(scope="session")
def backbones() -> tuple[str, ...]:
    return str(BACKBONES / "clip"), str(BACKBONES / "lm"), "USER: a red star at the top left.\n<image> ASSISTANT:"


@pytest.fixture(scope="session")
def own_backbones(backbones: tuple[str, ...]) -> dict:
    return run(sys.executable, BACKBONES_READER, *backbones)


@pytest.mark.compat
def test_another_release_reads_the_pocket_backbones(
    python: Path, backbones: tuple[str, ...], own_backbones: dict
) -> None:
    """Tower, language model and tokenizer as they are committed: nothing starts at random, and all compute the same."""
    theirs = run(python, BACKBONES_READER, *backbones)
    assert theirs["missing"] == own_backbones["missing"] == [] and theirs["ids"] == own_backbones["ids"]
    for name in ("states", "logits"):
        assert theirs[name] == pytest.approx(own_backbones[name], abs=0.02) and len(set(theirs[name])) > 5
