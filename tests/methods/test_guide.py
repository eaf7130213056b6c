"""The examples of docs/adding_a_method.md run, and pass what is asked of every method."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from vision_tokens import alone, make_tokens

from llava_prumerge.methods import base, reducers, registry, settings
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
        match="[Tt]here are: anchors, budget, calibrated, calibration, iqr_factor, per_head, positions, power",
    ):
        registry.build_reducer({"name": "feature_norm", "norm": 2})
    broken = make_tokens()
    broken.features[0, 0, 0] = float("nan")
    with pytest.raises(base.ReductionError, match="feature_norm: .*NaN"):
        registry.build_reducer({"name": "feature_norm"})(broken)


def test_count_of_its_own_of_the_guide() -> None:
    """Against a loop over images: the fewest patches that hold the share, and with a budget as many as it says."""
    image = make_tokens(images=4)
    _, valid, origin = registry.build_reducer({"name": "attention_mass", "mass": 0.6})(image)
    for index, scores in enumerate(image.attention().tolist()):
        order = sorted(range(len(scores)), key=lambda at: -scores[at])
        held = list(itertools.accumulate(scores[at] for at in order))
        kept = next(at for at, mass in enumerate(held, start=1) if mass >= 0.6 * held[-1])
        assert origin[index][valid[index]].tolist() == sorted(order[:kept]) and 1 < kept < len(scores)
    assert registry.build_reducer({"name": "attention_mass", "budget": 7})(image)[1].sum(dim=1).tolist() == [7] * 4


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


def test_the_tables_of_the_guide_are_the_codes() -> None:
    """Base classes exist with the settings beside them; each rule says in a field of its type what the table says."""
    rows = re.findall(r"^\|[^|]*\| `(\w+Reducer)`, `(\w+Settings)` \|", GUIDE, flags=re.MULTILINE)
    assert len(rows) == 7
    for reducer, declared in rows:
        known = vars(reducers) | vars(base)
        assert issubclass(known[reducer], base.VisionReducer) and issubclass(known[declared], base.ReducerSettings)
    rules = re.findall(r"^\| `([^`]*\(.*\))` \|[^|]*\| (a.*) \|$", GUIDE.partition("## Rules")[2], flags=re.MULTILINE)
    assert len(rules) == 7 and {"at_least", "above", "between", "fraction", "Rule"} == {
        r.split("(")[0] for r, _ in rules
    }
    for text, told in rules:
        rule = eval(text, dict(vars(settings)))
        fields = [(kind.__name__, kind, settings.setting(1, "", rule)) for kind in (int, float)]
        made = dataclasses.make_dataclass("Made", fields, bases=(settings.Settings,), frozen=True, kw_only=True)
        assert set(told.split("; ")) <= {info.accepted for info in made.infos().values()}, text


def test_the_guide_followed_literally_passes_the_projects_own_tests(tmp_path: Path) -> None:
    """In a copy of the tree: the files it shows, under the names it gives, and the tests that walk the registry.

    The last example stays outside, and is named by the tests' `--plugin`.
    """
    root = Path(__file__).resolve().parents[2]
    for name in ("llava_prumerge", "configs", "docs", "tests"):
        shutil.copytree(root / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(root / "pyproject.toml", tmp_path)
    places = re.findall(r"As `configs/method/(\w+)\.yaml`:", GUIDE)
    assert places == ["feature_norm", "attention_mass", "withdrawal_example"]
    folders = ("vision", "", "decoder")
    for folder, name, source, text in zip(folders, places, fenced("python"), fenced("yaml"), strict=True):
        if folder:
            (tmp_path / "llava_prumerge" / "methods" / folder / f"{name}.py").write_text(source, encoding="utf-8")
            (tmp_path / "configs" / "method" / f"{name}.yaml").write_text(text, encoding="utf-8")
        else:
            (tmp_path / "my_methods.py").write_text(source, encoding="utf-8")
    asked = ["degenerate", "cost", "pruners", "resolve", "registry", "methods_document"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-k", " or ".join([*places, "has_a_file"])]
        + ["--plugin", "my_methods.py"]
        + [f"tests/methods/test_{name}.py" for name in asked]
        + ["tests/model/test_every_method.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    passed = re.search(r"(\d+) passed", done.stdout)
    assert done.returncode == 0 and passed and int(passed[1]) > 150, done.stdout[-3000:]
    for name in places:
        assert len(re.findall(rf"\[.*{name}.*PASSED", done.stdout)) > 10, name


def test_a_plugin_that_is_none_ends_the_tests_in_one_line() -> None:
    given = SimpleNamespace(getoption=lambda name: {"--plugin": ["nowhere.py"]}[name])
    with pytest.raises(pytest.UsageError, match=r"^plugin nowhere\.py: no such file$"):
        importlib.import_module("conftest").pytest_configure(given)


SHORTER = {"train.run": ["max_steps=1", "global_batch=2", "per_device_batch=2", "precision=fp32", "report_to=[]"]}
"""What is added to a line of the page so that it is tried in seconds."""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what `make reproduce` leaves and the page's lines name: backbones, a model, records, POPE."""
    from PIL import Image
    from safetensors.torch import save_file

    from llava_prumerge import assemble

    world = tmp_path / "playground" / "pocket"
    world.mkdir(parents=True)
    shutil.copytree(Path(__file__).resolve().parents[2] / "playground" / "pocket" / "backbones", world / "backbones")
    model, processor = assemble(world / "backbones" / "lm", world / "backbones" / "clip")
    for part in (model, processor):
        part.save_pretrained(tmp_path / "runs" / "pocket-lora-none" / "merged")
    projector = {
        f"multi_modal_projector.{name}": value for name, value in model.model.multi_modal_projector.state_dict().items()
    }
    (tmp_path / "runs" / "pocket-pretrain-none").mkdir()
    save_file(projector, tmp_path / "runs" / "pocket-pretrain-none" / "mm_projector.safetensors")
    pope = world / "data" / "eval" / "pope"
    for folder in (pope / "val2014", pope / "coco", world / "data" / "images"):
        folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    photo = "COCO_val2014_000000000055.jpg"
    for path in (pope / "val2014" / photo, world / "data" / "images" / photo):
        Image.fromarray(generator.integers(0, 256, (90, 120, 3), dtype=np.uint8)).save(path)
    turns = [{"from": "human", "value": "<image>\nwhat is it ?"}, {"from": "gpt", "value": "a red square"}]
    records = [{"id": str(at), "image": photo, "conversations": turns} for at in range(4)]
    (world / "data" / "stage2.json").write_text(json.dumps(records))
    asked = [
        {"question_id": at, "image": photo, "text": f"Is there a {what}?", "label": "yes", "category": "random"}
        for at, what in enumerate(("cat", "dog"))
    ]
    lines = "".join(json.dumps(record) + "\n" for record in asked)
    for path in (pope / "llava_pope_test.jsonl", pope / "coco" / "coco_pope_random.json"):
        path.write_text(lines)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(measured, "BLOCKS", 1)  # of CLIP-L's 23: the line is tried, not the machine
    return tmp_path


def test_the_lines_of_the_page_run_as_they_stand(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All but the tests, which are the test above. Run where the method comes from a file, not from the package."""
    lines = re.sub(r"^#.*\n", "", fenced("bash")[0].replace("\\\n", " "), flags=re.MULTILINE).strip().splitlines()
    tried = [line for line in lines if not line.startswith("python -m pytest ")]
    assert (len(lines), len(tried)) == (10, 9)
    said = {}
    for line in tried:
        _, dash, module, *words = shlex.split(line)
        assert dash == "-m"
        name = module if "." in module else f"{module}.__main__"
        short = name.removeprefix("llava_prumerge.")
        main = importlib.import_module(f"{name}.__main__" if short in ("viz", "efficiency") else name).main
        assert main([*words, *SHORTER.get(short, [])]) == 0, line
        said[short, words[0]] = capsys.readouterr().out
    assert "power=2.0" in said["__main__", "methods"]
    assert list((place / "runs" / "viz").glob("*_feature_norm.png"))
    assert (place / "runs" / "pocket-lora-feature_norm" / "finished.json").is_file()
    results = {
        path.parent.name: json.loads(path.read_text()) for path in (place / "runs" / "guide").glob("*/pope.json")
    }
    kept = {result["row"]["method"]: result["kept"]["mean"] for result in results.values()}
    assert kept == {"none": 144, "feature_norm": 24, "prumerge_plus": 24}
    compared = said["__main__", "compare"]
    assert "Differences from none" in compared
    assert compared.count("feature_norm budget=24") == compared.count("prumerge_plus budget=24") == 2
    assert '"method": "feature_norm"' in said["profiling.reducer", "--methods"]
    from llava_prumerge import load_model

    model, _ = load_model(
        "runs/pocket-lora-none/merged",
        reduction=re.search(r'load_model\(MODEL, reduction="(.+?)"\)', GUIDE)[1],
        device="cpu",
    )
    assert model.model.reducer.name == "feature_norm" and model.model.reducer.budget == 64
