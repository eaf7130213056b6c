"""The examples of docs/adding_a_method.md run, and pass what is asked of every method."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from vision_tokens import alone, make_tokens

from llava_prumerge.methods import base, registry
from llava_prumerge.ops.layout import TokenLayout

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
        + [f"tests/methods/test_{name}.py" for name in asked],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    passed = re.search(r"(\d+) passed", done.stdout)
    assert done.returncode == 0 and passed and int(passed[1]) > 60, done.stdout[-3000:]
