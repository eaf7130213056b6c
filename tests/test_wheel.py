"""The wheel, as a stranger gets it: built, installed beside the tested dependencies, and used from another folder."""

from __future__ import annotations

import email
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

import llava_prumerge

ROOT = Path(__file__).resolve().parents[1]
BACKBONES = ROOT / "playground" / "pocket" / "backbones"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
pytestmark = pytest.mark.wheel


def run(*command: object, cwd: Path, **variables: str) -> str:
    """Output of a command that has to succeed, with nothing of the checkout on its path."""
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, cwd=cwd, env=clean | variables)
    assert done.returncode == 0, f"{words}\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}"
    return done.stdout


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, which leaves the checkout as it is."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    for name in ("llava_prumerge", "configs", "eval"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    options = ("--no-deps", "--no-build-isolation", "--no-index", "-q", "-w", out)
    run(sys.executable, "-m", "pip", "wheel", *options, source, cwd=source)
    (made,) = out.glob("*.whl")
    return made


def test_the_wheel_holds_the_whole_product_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = next(name for name in names if name.endswith(".dist-info/METADATA"))
        told = email.message_from_string(archive.read(metadata).decode())
        entry = archive.read(metadata.replace("METADATA", "entry_points.txt")).decode()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"llava_prumerge", Path(metadata).parent.name}, "above all no top-level package `eval`"
    wanted = {
        f"llava_prumerge/{path.relative_to(ROOT / 'llava_prumerge').as_posix()}"
        for path in (ROOT / "llava_prumerge").rglob("*")
        if path.is_file() and path.suffix in (".py", ".pyi", ".yaml", ".html", ".css", ".js", ".typed")
    }
    wanted |= {
        f"llava_prumerge/{path.relative_to(ROOT).as_posix()}"
        for path in (ROOT / "configs").rglob("*")
        if path.is_file()
    }
    assert wanted <= names and "llava_prumerge/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert told["Version"] == llava_prumerge.__version__ and told["License-Expression"] == "Apache-2.0"
    urls = dict(url.split(", ", 1) for url in told.get_all("Project-URL"))
    assert urls["Repository"] == PROJECT["urls"]["Repository"] == llava_prumerge.__url__
    assert all(f"Programming Language :: Python :: 3.{minor}" in told.get_all("Classifier") for minor in (11, 12, 13))
    assert "llava-prumerge = llava_prumerge.__main__:main" in entry


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel, beside the dependencies of the one that runs this test. -> its bin folder"""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    names = {"base": str(folder), "platbase": str(folder)}
    site = Path(sysconfig.get_path("purelib", vars=names))
    # A folder named in a .pth file is searched last, and .pth files in it, such as an editable install's, are not read.
    (site / "tested.pth").write_text(sysconfig.get_path("purelib") + "\n")
    options = ("install", "-q", "--no-deps", "--no-index", "--disable-pip-version-check", wheel)
    run(sys.executable, "-m", "pip", "--python", folder / "bin" / "python", *options, cwd=folder)
    return folder / "bin"


def test_the_command_is_there(installed: Path, tmp_path: Path) -> None:
    command = installed / "llava-prumerge"
    assert run(command, "--version", cwd=tmp_path) == f"llava-prumerge {llava_prumerge.__version__}\n"
    assert "\n  evaluate " in run(command, "--help", cwd=tmp_path)
    assert "roofline" in run(command, "efficiency", cwd=tmp_path)


USE = """
import importlib.util, json, sys
from pathlib import Path
import llava_prumerge
from llava_prumerge.__main__ import main
from llava_prumerge.ground import shipped

inside, backbones = Path(sys.prefix), Path(sys.argv[1])
assert Path(llava_prumerge.__file__).is_relative_to(inside), llava_prumerge.__file__
assert shipped.configs().is_relative_to(inside) and importlib.util.find_spec("eval") is None
assert shipped.find("method", "prumerge_plus") and shipped.find("train", "pocket/finetune_lora")

from PIL import Image
Image.effect_noise((96, 60), 80).convert("RGB").save("photo.png")

# load
model, processor = llava_prumerge.assemble(backbones / "lm", backbones / "clip", reduction="prumerge_plus")
model.save_pretrained("model"); processor.save_pretrained("model")
model, processor = llava_prumerge.load_model("model", device="cpu")
answer = llava_prumerge.ask(model, processor, "What color is the star?", "photo.png", max_new_tokens=3)
assert 0 < answer.kept < answer.images[0].full == 144

# viz
assert main(["viz", "photo.png", "--model", "model", "--out", "pictures"]) == 0
assert main(["viz", "photo.png", "model=model", "method=grid", "rows=3", "columns=3", "out=pictures"]) == 0
assert len(list(Path("pictures").glob("*.png"))) == 2

# score
humans = [{"answer": "red"}] * 9 + [{"answer": "blue"}]
marks = [{"question_id": i, "answer_type": "other", "question_type": "what", "answers": humans} for i in range(2)]
Path("marks.json").write_text(json.dumps({"annotations": marks}))
Path("answers.jsonl").write_text("".join(json.dumps({"question_id": i, "text": text}) + "\\n" for i, text in enumerate(("red", "no"))))
assert main(["score", "--task", "vqav2", "--answers", "answers.jsonl", "--annotations", "marks.json"]) == 0

# one training step, by the names of a recipe and a method that ship
from safetensors.torch import save_file
weights = model.model.multi_modal_projector.state_dict()
save_file({f"multi_modal_projector.{name}": value for name, value in weights.items()}, "projector.safetensors")
turns = [{"from": "human", "value": "<image>\\nWhat color is the star?"}, {"from": "gpt", "value": "red"}]
Path("records.json").write_text(json.dumps([{"id": str(i), "image": "photo.png", "conversations": turns} for i in range(2)]))
places = [f"language_model={backbones / 'lm'}", f"vision_tower={backbones / 'clip'}", "projector=projector.safetensors"]
places += ["data=records.json", "images=.", "output_dir=run", "merge=false", "report_to=none", "precision=fp32"]
steps = ["max_steps=1", "global_batch=2", "per_device_batch=2", "save_steps=0"]
assert main(["train", "pocket/finetune_lora", "prumerge_plus", *places, *steps]) == 0
assert json.loads(Path("run/finished.json").read_text())["steps"] == 1
assert main(["train", "finetune_loar"]) == 2
print("all of it")
"""


def test_it_loads_draws_scores_and_trains_from_another_folder(installed: Path, tmp_path: Path) -> None:
    said = run(installed / "python", "-c", USE, BACKBONES, cwd=tmp_path, OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
    assert said.endswith("all of it\n")
