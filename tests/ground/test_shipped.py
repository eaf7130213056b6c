"""Shipped files are found by name from any folder, and a file of the user's own comes first."""

from __future__ import annotations

from pathlib import Path

import pytest

from llava_prumerge.data.recipe import read_recipe
from llava_prumerge.ground import shipped
from llava_prumerge.ground.errors import InputError
from llava_prumerge.train.arguments import load_arguments

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("kind", shipped.KINDS)
def test_every_file_is_found_by_its_name_and_its_path(kind: str) -> None:
    files = sorted(CONFIGS.glob(f"{kind}/**/*{shipped.KINDS[kind]}"))
    names = [path.relative_to(CONFIGS / kind).with_suffix("").as_posix() for path in files]
    assert files and shipped.names(kind) == sorted(names)
    for path, name in zip(files, names):
        for word in (name, f"{name}{path.suffix}", f"configs/{kind}/{name}{path.suffix}", str(path), path):
            assert shipped.find(kind, word) == path
    for word in ("", ".", "..", "../train/finetune", "nothing", "/nothing.yaml", f"configs/{kind}"):
        assert shipped.find(kind, word) is None


def test_a_file_of_ones_own_comes_first() -> None:
    Path("prumerge").write_text("vision: {name: none}\n")
    Path("configs/method").mkdir(parents=True)
    Path("configs/method/grid.yaml").write_text("vision: {name: none}\n")
    assert shipped.find("method", "prumerge") == Path("prumerge")
    assert shipped.find("method", "configs/method/grid.yaml") == Path("configs/method/grid.yaml")
    assert shipped.find("method", "grid") == CONFIGS / "method" / "grid.yaml"


def test_a_name_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(InputError, match=r"^method 'prumrge' is not known; did you mean 'prumerge'\? There are: atp"):
        shipped.require("method", "prumrge", "method")
    with pytest.raises(InputError, match=r"^a/prumrge.yaml: no such file; method 'prumrge' is not known; did you mean"):
        shipped.require("method", "a/prumrge.yaml", "method")


def test_recipes_are_read_by_name() -> None:
    by_name = read_recipe(["pocket/finetune_lora", "prumerge_plus", "seed=7"])
    by_path = read_recipe(
        [str(CONFIGS / "train/pocket/finetune_lora.yaml"), str(CONFIGS / "method/prumerge_plus.yaml"), "seed=7"]
    )
    assert by_name == by_path and by_name["reduction"]["vision"]["name"] == "prumerge_plus"


def test_a_recipes_deepspeed_file_is_found_too() -> None:
    arguments = load_arguments(["finetune"])
    assert arguments.deepspeed == "configs/deepspeed/zero3.json"
    assert arguments.deepspeed_file == str(CONFIGS / "deepspeed" / "zero3.json")
    assert load_arguments(["finetune", "deepspeed=zero2"]).deepspeed_file == str(CONFIGS / "deepspeed" / "zero2.json")
    assert load_arguments(["finetune", "deepspeed=null"]).deepspeed_file is None
