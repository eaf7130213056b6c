"""A checkpoint whose method block or method parameters do not fit is one clear error at load, by either way of loading."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_llava import PATCHES, stock_twin, tiny_model, write_processor
from transformers import AutoModelForImageTextToText

from llava_prumerge.model.loading import load_model
from llava_prumerge.model.weight_files import LoadingError

ATP = {"decoder": {"name": "atp_llava"}}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a method with parameters, none of them at its start value."""
    folder = tmp_path_factory.mktemp("trained")
    model = tiny_model(ATP)
    with torch.no_grad():
        for parameter in model.model.language_model.pruner.parameters():
            parameter.add_(1)
    model.save_pretrained(folder)
    write_processor(folder)
    return folder


def by_auto(folder: Path) -> Any:
    return AutoModelForImageTextToText.from_pretrained(folder)


def by_us(folder: Path) -> Any:
    return load_model(folder, device="cpu")[0]


def edit(folder: Path, change: Callable[[dict], Any]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(
        {key: value.contiguous() for key, value in weights.items()}, folder / "model.safetensors", {"format": "pt"}
    )


def say(folder: Path, reduction: dict[str, Any]) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"reduction": reduction}))


PRUNER = "language_model.model.pruner.modules_before.1.shared.weight"
CASES = {
    "unknown method": (lambda f: say(f, {"vision": {"name": "prumrge"}}), r"'prumrge' is not known; did you mean 'prumerge'. There are: .*prumerge"),
    "unknown site": (lambda f: say(f, {"vison": {"name": "prumerge"}}), r"key 'vison' is not known; did you mean 'vision'"),
    "unknown setting": (lambda f: say(f, {"vision": {"name": "prumerge", "k": 3}}), r"prumerge: setting 'k' is not known; there are: anchors, budget, "),
    "no name": (lambda f: say(f, {"vision": {"budget": 3}}), r"must name a method"),
    "parameters missing": (lambda f: edit(f, lambda w: w.pop(PRUNER)), r"lacks weights: model.language_model.pruner.modules_before.1.shared.weight \(1 in all\); its config.json names a method with other parameters"),
    "parameters of another": (lambda f: say(f, {"decoder": {"name": "fastv"}}), r"has unknown weights: model.language_model.pruner.modules_before"),
    "parameters of another shape": (lambda f: edit(f, lambda w: w.update({PRUNER: w[PRUNER][:5]})), r"has misshapen weights: model.language_model.pruner.modules_before.1.shared.weight \(5, 32\) \(needed \(64, 32\)\)"),
    "weights missing": (lambda f: edit(f, lambda w: w.pop("multi_modal_projector.linear_1.bias")), r"lacks weights: model.multi_modal_projector.linear_1.bias \(1 in all\)$"),
    "weights of another": (lambda f: edit(f, lambda w: w.update({"language_model.model.extra": torch.zeros(1)})), r"has unknown weights: model.language_model.extra"),
}  # fmt: skip


@pytest.mark.parametrize("load", [by_auto, by_us])
@pytest.mark.parametrize("case", CASES)
def test_what_does_not_fit_is_an_error(trained: Path, tmp_path: Path, load: Callable, case: str) -> None:
    harm, message = CASES[case]
    folder = tmp_path / "copy"
    shutil.copytree(trained, folder)
    harm(folder)
    with pytest.raises(ValueError, match=message) as caught:
        load(folder)
    if "weights" in message:
        assert isinstance(caught.value, LoadingError) and str(folder) in str(caught.value)


@pytest.mark.parametrize("load", [by_auto, by_us])
def test_what_fits_loads_with_its_parameters(trained: Path, load: Callable) -> None:
    model = load(trained)
    stored = load_file(trained / "model.safetensors")[PRUNER]
    assert torch.equal(model.model.language_model.pruner.modules_before["1"].shared.weight, stored)


def test_a_method_put_in_its_place_starts_anew(trained: Path, tmp_path: Path) -> None:
    """Training-free use of a trained checkpoint, and a method with parameters on a plain one, are the caller's choice."""
    without, _ = load_model(trained, {}, device="cpu")
    assert without.model.language_model.pruner is None
    pruned, _ = load_model(trained, {"decoder": {"name": "fastv"}}, device="cpu")
    assert pruned.config.reduction == {"decoder": {"name": "fastv"}}
    stock_twin(tiny_model()).save_pretrained(tmp_path)
    write_processor(tmp_path)
    fresh, _ = load_model(tmp_path, ATP, device="cpu")
    assert all(
        torch.isfinite(p).all() and p.abs().max() < PATCHES for p in fresh.model.language_model.pruner.parameters()
    )


def test_transformers_own_switches_keep_working(trained: Path, tmp_path: Path) -> None:
    model, report = AutoModelForImageTextToText.from_pretrained(trained, output_loading_info=True)
    assert not report["missing_keys"] and model.config.reduction == ATP
    shutil.copytree(trained, tmp_path / "copy")
    edit(tmp_path / "copy", lambda weights: weights.update({PRUNER: weights[PRUNER][:5]}))
    model, report = AutoModelForImageTextToText.from_pretrained(
        tmp_path / "copy", output_loading_info=True, ignore_mismatched_sizes=True
    )
    assert len(report["mismatched_keys"]) == 1
