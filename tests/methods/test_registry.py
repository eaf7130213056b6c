"""Methods are found by name, and settings that do not exist are refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from vision_tokens import packaged

from llava_prumerge.methods.base import DecoderPruner, DecoderShape, ReductionError, VisionReducer
from llava_prumerge.methods.registry import build_pruner, build_reducer, discover, fields_of, method_names, register

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "configs" / "method").glob("*.yaml"))
SHAPE = DecoderShape(layers=32, hidden=4096, heads=32, patches=576)


def test_every_contract_has_its_methods() -> None:
    expected = {"none", "prumerge", "prumerge_plus", "random", "uniform", "grid", "pool", "downsample", "cls_topk"}
    assert expected <= set(method_names(VisionReducer))
    assert "fastv" in method_names(DecoderPruner)
    assert all(cls.name == name for name, cls in discover().items())


def test_unknown_method_names_those_there_are() -> None:
    with pytest.raises(ReductionError, match="'prumerg' is not known; did you mean 'prumerge'. There are: atp_llava, "):
        build_reducer({"name": "prumerg"})
    with pytest.raises(ReductionError, match="None is no method; a block must name one"):
        build_reducer({})


def test_a_method_of_the_other_kind_says_where_it_goes() -> None:
    with pytest.raises(ReductionError, match="prumerge is a vision reducer; it goes under vision, not under decoder"):
        build_pruner({"name": "prumerge"}, SHAPE)
    with pytest.raises(ReductionError, match="fastv is a decoder pruner; it goes under decoder"):
        build_reducer({"name": "fastv"})


def test_unknown_setting_names_those_there_are() -> None:
    with pytest.raises(
        ReductionError,
        match="prumerge_plus: setting 'buget' is not known; did you mean 'budget'. There are: anchors, budget, ",
    ):
        build_reducer({"name": "prumerge_plus", "buget": 3})
    with pytest.raises(ReductionError, match="none: setting 'budget' is not known; there are: none"):
        build_reducer({"name": "none", "budget": 3})
    with pytest.raises(
        ReductionError, match="fastv: setting 'shape' is not known; there are: budget, keep_ratio, layer"
    ):
        build_pruner({"name": "fastv", "shape": SHAPE}, SHAPE)


def test_fields_reach_through_shared_settings() -> None:
    assert {"share", "grid", "neighbours", "ratio", "budget", "positions"} <= set(
        fields_of(discover()["prumerge_plus"])
    )
    assert {"rows", "columns", "budget", "iqr_factor"} <= set(fields_of(discover()["grid"]))


def test_a_name_is_taken_once(monkeypatch: pytest.MonkeyPatch) -> None:
    other = type("Other", (VisionReducer,), {"__module__": __name__})
    with pytest.raises(ReductionError, match=f"two methods are called 'prumerge': PruMerge of .*Other of {__name__}"):
        register("prumerge")(other)
    monkeypatch.setattr("llava_prumerge.methods.registry._REGISTRY", {})
    again = type("Other", (VisionReducer,), {"__module__": __name__})
    assert register("other")(other) is other and register("other")(again) is again, "a notebook's cell, run twice"
    assert discover()["other"] is again
    with pytest.raises(ReductionError, match="neither a VisionReducer nor a DecoderPruner"):
        register("thing")(torch.nn.Linear)


def test_nothing_is_nothing() -> None:
    assert build_reducer(None) is None and build_pruner(None, SHAPE) is None


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_method_files_build(path: Path) -> None:
    """Every shipped file is a reduction block with a line on its source."""
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# ")
    block = yaml.safe_load(text)
    assert set(block) <= {"vision", "decoder"} and block
    built = [build_reducer(block.get("vision")), build_pruner(block.get("decoder"), SHAPE)]
    assert any(method is not None for method in built)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_method_files_build_on_the_meta_device(path: Path) -> None:
    """As `from_pretrained` builds a model before it loads the weights; the same method comes out."""
    block = yaml.safe_load(path.read_text(encoding="utf-8"))
    plain = build_reducer(block.get("vision")), build_pruner(block.get("decoder"), SHAPE)
    with torch.device("meta"):
        empty = build_reducer(block.get("vision")), build_pruner(block.get("decoder"), SHAPE)
    assert repr(empty) == repr(plain)
    for one, other in zip(plain, empty, strict=True):
        fixed = {key: value for key, value in vars(one or object).items() if isinstance(value, int | float | str)}
        assert fixed == {key: vars(other or object)[key] for key in fixed}


def test_every_method_has_a_file() -> None:
    named = {
        part["name"] for path in CONFIGS for part in yaml.safe_load(path.read_text(encoding="utf-8")).values() if part
    }
    assert named == set(packaged())


@pytest.mark.parametrize(
    "settings, word",
    [
        ({"layer": 0}, "layer 0"),
        ({"keep_ratio": 1.5}, "keep_ratio 1.5"),
        ({"budget": -1}, "budget -1"),
        ({"layer": 32}, "within 0 to 31"),
    ],
)
def test_fastv_checks_its_settings(settings: dict[str, float], word: str) -> None:
    with pytest.raises(ReductionError, match=word):
        build_pruner({"name": "fastv", **settings}, SHAPE)


def test_methods_print_their_settings() -> None:
    assert "neighbours=32" in repr(build_reducer({"name": "prumerge"}))
    assert not list(build_reducer({"name": "prumerge"}).parameters())
    assert isinstance(build_reducer({"name": "grid"}), torch.nn.Module)
