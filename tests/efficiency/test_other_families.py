"""Costs of other families, against what torch counts while their stock modules see an image of that size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_families import FAMILIES, stock_model, write_family
from torch.utils.flop_counter import FlopCounterMode

from llava_prumerge.efficiency.__main__ import report
from llava_prumerge.efficiency.flops import split
from llava_prumerge.efficiency.operations import matrix_flops, tower
from llava_prumerge.efficiency.shapes import model_shape
from llava_prumerge.efficiency.tokens import constant_counts, method_counts
from llava_prumerge.inference.asking import prepare
from llava_prumerge.model.chat import fixed_places
from llava_prumerge.model.loading import load_model

SIZE = {"llava_next": (30, 60), "internvl": (64, 120), "qwen2_5_vl": (32, 64)}
"""Height and width, which the tiny processors leave as they are, or cut as they do by default."""


def counted(function: Any) -> int:
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        function()
    return counter.get_total_flops()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {name: write_family(root / name, name) for name in SIZE}


@pytest.mark.parametrize("name", SIZE)
def test_operations_are_those_that_torch_counts(name: str, folders: dict[str, Path]) -> None:
    model, processor = load_model(folders[name], attn="eager")
    height, width = SIZE[name]
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    inputs, _ = prepare(model, processor, "w5 w6 w7", Image.fromarray(pixels))
    shape = model_shape(str(folders[name]), (height, width))
    images = int((inputs["input_ids"] == model.config.image_token_id).sum())
    assert shape.vision.patches == images and fixed_places(model.config) is None
    seen = {key: value for key, value in inputs.items() if "mask" not in key and "ids" not in key}
    vision = counted(lambda: model.model.get_image_features(**seen))
    text = inputs["input_ids"].shape[1] - images
    parts = split(shape, constant_counts(shape, None, text))
    vision_parts = parts["projector"] + cut_away(shape)
    vision_parts += matrix_flops(tower(shape.vision, shape.vision.seen, False, shape.vision.blocks))  # stock runs all
    assert vision_parts == pytest.approx(vision, rel=0.002)
    whole = counted(lambda: model(**inputs, logits_to_keep=1))
    assert parts["prefill"] == pytest.approx(whole - vision, rel=0.002)
    numbers = sum(parameter.numel() for parameter in model.parameters())
    extra = sum(p.numel() for n, p in model.named_parameters() if "image_newline" in n)
    assert shape.parameters == pytest.approx(numbers - extra, rel=0.005)  # without biases of queries, keys and values


def cut_away(shape: Any) -> int:
    """The stock code projects patches at the border before it cuts them away, and no line breaks."""
    cut = shape.vision.cut
    rows = cut.tiles * cut.units - cut.tokens
    return sum(2 * rows * inputs * outputs for inputs, outputs in cut.projector)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_a_shape(name: str, tmp_path: Path) -> None:
    stock_model(name).config.save_pretrained(tmp_path)
    shape = model_shape(str(tmp_path), (64, 96))
    assert shape.vision.patches > 0 and shape.parameters > 0 and shape.language.layers == 4
    counts = method_counts(shape, "uniform", None, settings={"budget": 3})
    cut = shape.vision.cut
    assert counts.visual[0] == (3 if cut is None else 3 * cut.tiles + cut.special)
    assert method_counts(shape, "fastv", None, settings={"layer": 1}).visual[-1] < shape.vision.patches


def test_commands_take_the_folder_and_the_images_size(folders: dict[str, Path]) -> None:
    for words in (["flops"], ["memory"], ["roofline", "--preset", "honest", "--hardware", "V100", "--tokens", "3"]):
        told = report([*words, "--model", str(folders["qwen2_5_vl"]), "--image", "96x48"])
        assert "of 32" in told or "all 32" in told
    told = report(
        ["flops", "--model", str(folders["internvl"]), "--image", "120x64", "--method", "uniform", "budget=4"]
    )
    assert "12 of 48 visual tokens" in told
