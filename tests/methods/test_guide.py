"""The examples of docs/adding_a_method.md run, and pass what is asked of every method."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from vision_tokens import alone, make_tokens

from llava_prumerge.methods import base, registry
from llava_prumerge.ops.layout import TokenLayout
from llava_prumerge.profiling import reducer as measured

GUIDE = (Path(__file__).resolve().parents[2] / "docs" / "adding_a_method.md").read_text(encoding="utf-8")
SHAPE = base.DecoderShape(layers=32, hidden=64, heads=4, patches=16)


def fenced(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, flags=re.DOTALL)


@pytest.fixture(scope="module", autouse=True)
def examples(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The guide's modules, registered for the tests of this file alone."""
    before = dict(registry._REGISTRY)
    for number, source in enumerate(fenced("python")):
        path = tmp_path_factory.mktemp("methods") / f"example_{number}.py"
        path.write_text(source, encoding="utf-8")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        sys.modules[path.stem] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    yield
    registry._REGISTRY.clear()
    registry._REGISTRY.update(before)


def test_reducer_of_the_guide() -> None:
    block = yaml.safe_load(fenced("yaml")[0])["vision"]
    image = make_tokens(images=4)
    features, valid, origin = registry.build_reducer(block | {"budget": 40})(image)
    expected = image.features.norm(dim=-1).topk(40, dim=1).indices.sort(dim=1).values
    assert torch.equal(origin, expected) and valid.all()
    assert torch.equal(features, image.features.gather(1, expected[..., None].expand(-1, -1, 16)))
    adaptive = registry.build_reducer({"name": "feature_norm"})
    _, valid, origin = adaptive(image)
    assert len(set(valid.sum(dim=1).tolist())) > 1
    for index in range(4):
        assert adaptive(alone(image, index))[2][0].tolist() == origin[index][valid[index]].tolist()


def test_settings_of_the_guides_reducer_are_checked() -> None:
    with pytest.raises(base.ReductionError, match="feature_norm: power 0"):
        registry.build_reducer({"name": "feature_norm", "power": 0})
    with pytest.raises(
        base.ReductionError,
        match="There are: budget, iqr_factor, per_head, positions, power|there are: budget, iqr_factor, per_head, positions, power",
    ):
        registry.build_reducer({"name": "feature_norm", "norm": 2})
    broken = make_tokens()
    broken.features[0, 0, 0] = float("nan")
    with pytest.raises(base.ReductionError, match="feature_norm: .*NaN"):
        registry.build_reducer({"name": "feature_norm"})(broken)


def test_pruner_of_the_guide() -> None:
    pruner = registry.build_pruner({"name": "withdrawal_example", "layer": 3}, SHAPE)
    is_image = torch.tensor([[False, True, True, False]])
    whole = torch.ones_like(is_image)
    layout = TokenLayout(is_image, whole, torch.arange(4)[None], torch.tensor([[-1, 0, 1, -1]]))
    keep = pruner(3, base.DecoderTokens(torch.zeros(1, 4, 64), layout, attention=None))
    assert pruner.layers == (3,) and keep.tolist() == [[True, False, False, True]]
    assert layout.compact(keep)[0].key_mask.shape == (1, 2)


def test_guide_names_what_exists() -> None:
    root = Path(__file__).resolve().parents[2]
    for name in re.findall(r"`(\w+\.py)`", GUIDE):
        assert list((root / "llava_prumerge" / "methods").rglob(name)), name
    for field in ("attention", "keys", "text", "text_mask"):
        assert hasattr(base.VisionTokens, field)


def test_the_guide_followed_literally_passes_the_projects_own_tests(tmp_path: Path) -> None:
    """In a copy of the tree: the files it shows, under the names it gives, and the tests that walk the registry."""
    root = Path(__file__).resolve().parents[2]
    for name in ("llava_prumerge", "configs", "docs", "tests"):
        shutil.copytree(root / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(root / "pyproject.toml", tmp_path)
    places = re.findall(r"As `configs/method/(\w+)\.yaml`:", GUIDE)
    assert places == ["feature_norm", "withdrawal_example"]
    for folder, name, source, text in zip(("vision", "decoder"), places, fenced("python"), fenced("yaml"), strict=True):
        (tmp_path / "llava_prumerge" / "methods" / folder / f"{name}.py").write_text(source, encoding="utf-8")
        (tmp_path / "configs" / "method" / f"{name}.yaml").write_text(text, encoding="utf-8")
    asked = ["degenerate", "cost", "pruners", "resolve", "registry", "methods_document"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", " or ".join(places)]
        + [f"tests/methods/test_{name}.py" for name in asked]
        + ["tests/model/test_every_method.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    passed = re.search(r"(\d+) passed", done.stdout)
    assert done.returncode == 0 and passed and int(passed[1]) > 100, done.stdout[-3000:]


RECIPE = """
include: {root}/configs/train/pocket/pretrain.yaml
language_model: {root}/playground/pocket/backbones/lm
vision_tower: {root}/playground/pocket/backbones/clip
data: records.json
images: .
global_batch: 2
per_device_batch: 2
max_steps: 1
precision: fp32
report_to: []
output_dir: runs/guide
"""
SHORTER = {"profiling.reducer": ["--batch", "1", "--repeats", "1"]}
"""What is added to a line of the page so that it is tried in seconds."""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the page's lines name: an image, a recipe with its records, a model, POPE in small."""
    from PIL import Image

    from llava_prumerge import assemble

    root = Path(__file__).resolve().parents[2]
    backbones = root / "playground" / "pocket" / "backbones"
    model, processor = assemble(backbones / "lm", backbones / "clip")
    model.save_pretrained(tmp_path / "MODEL")
    processor.save_pretrained(tmp_path / "MODEL")
    (tmp_path / "CLIP_FOLDER").symlink_to(backbones / "clip")
    pope = tmp_path / "playground" / "data" / "eval" / "pope"
    (pope / "val2014").mkdir(parents=True)
    (pope / "coco").mkdir()
    generator = np.random.default_rng(0)
    for path in (tmp_path / "photo.jpg", pope / "val2014" / "0.jpg"):
        Image.fromarray(generator.integers(0, 256, (90, 120, 3), dtype=np.uint8)).save(path)
    turns = [{"from": "human", "value": "<image>\nwhat is it ?"}, {"from": "gpt", "value": "a red square"}]
    records = [{"id": str(at), "image": "photo.jpg", "conversations": turns} for at in range(4)]
    (tmp_path / "records.json").write_text(json.dumps(records))
    (tmp_path / "RECIPE.yaml").write_text(RECIPE.format(root=root))
    asked = [
        {"question_id": at, "image": "0.jpg", "text": f"Is there a {what}?", "label": "yes", "category": "random"}
        for at, what in enumerate(("cat", "dog"))
    ]
    lines = "".join(json.dumps(record) + "\n" for record in asked)
    for path in (pope / "llava_pope_test.jsonl", pope / "coco" / "coco_pope_random.json"):
        path.write_text(lines)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(measured, "BLOCKS", 1)  # of CLIP-L's 23: the line is tried, not the machine
    return tmp_path


def test_the_lines_of_the_page_run_as_they_stand(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All but the last, which is the test above. Run where the method comes from a file, not from the package."""
    lines = fenced("bash")[0].strip().splitlines()
    assert len(lines) == 8 and lines[-1].startswith("python -m pytest ")
    said = {}
    for line in lines[:-1]:
        _, dash, module, *words = shlex.split(line, comments=True)
        assert dash == "-m"
        name = module if "." in module else f"{module}.__main__"
        short = name.removeprefix("llava_prumerge.")
        main = importlib.import_module(f"{name}.__main__" if short in ("viz", "efficiency") else name).main
        assert main([*words, *SHORTER.get(short, [])]) == 0, line
        said[short, words[-1]] = capsys.readouterr().out
    assert list((place / "runs" / "viz").glob("photo_feature_norm.png"))
    assert (place / "runs" / "guide" / "finished.json").is_file()
    results = {
        path.parent.name: json.loads(path.read_text()) for path in (place / "runs" / "results").glob("*/pope.json")
    }
    kept = {result["row"]["method"]: result["kept"]["mean"] for result in results.values()}
    assert kept == {"feature_norm": 64, "prumerge_plus": 64}
    compared = said["__main__", "runs/results"]
    assert "feature_norm budget=64" in compared and "prumerge_plus budget=64" in compared
    from llava_prumerge import load_model

    model, _ = load_model(
        "MODEL", reduction=re.search(r'load_model\(MODEL, reduction="(.+?)"\)', GUIDE)[1], device="cpu"
    )
    assert model.model.reducer.name == "feature_norm" and model.model.reducer.budget == 64
