"""Weights that bitsandbytes holds in 8 and 4 bits: features are never cast to what such weights are stored in."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_llava import REDUCTIONS, pixels, rows_of, sample_rows, stock_twin, tiny_model
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig, LlavaForConditionalGeneration

from llava_prumerge.model.attach import attach

pytestmark = [
    pytest.mark.trainers,
    pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"),
]
BITS = {
    "8 bit": {"load_in_8bit": True},
    "4 bit": {"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.float32},
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
}
every = pytest.mark.parametrize("bits", BITS)


def batch() -> dict[str, torch.Tensor]:
    return rows_of(*sample_rows()[:2]) | {"pixel_values": pixels(2)}


def loaded(cls: Any, folder: Path, bits: str) -> Any:
    return cls.from_pretrained(folder, quantization_config=BitsAndBytesConfig(**BITS[bits])).eval()


@every
def test_attached_to_quantized_weights(bits: str, tmp_path: Path) -> None:
    stock_twin(tiny_model()).save_pretrained(tmp_path)
    model = loaded(LlavaForConditionalGeneration, tmp_path, bits)
    assert not model.model.multi_modal_projector.linear_1.weight.is_floating_point()
    expected = model(**batch()).logits
    assert torch.equal(attach(model)(**batch()).logits, expected)
    reduced = attach(model, REDUCTIONS["pair"])(**batch()).logits
    assert reduced.shape[1] < expected.shape[1] and reduced.isfinite().all()
    assert model.generate(**batch(), max_new_tokens=3, do_sample=False).shape[0] == 2


@every
@pytest.mark.parametrize("name", ["pair", "prumerge_original", "pair_atp"])
def test_a_checkpoint_with_a_method_is_quantized_at_load(name: str, bits: str, tmp_path: Path) -> None:
    model = tiny_model(REDUCTIONS[name])
    model.save_pretrained(tmp_path)
    quantized = loaded(AutoModelForImageTextToText, tmp_path, bits)
    assert quantized.config.reduction == REDUCTIONS[name]
    exact, near = (one(**rows_of(sample_rows()[2])).logits[0, -1] for one in (model, quantized))
    assert torch.nn.functional.cosine_similarity(exact, near, dim=0) > 0.8
    assert quantized(**batch()).logits.isfinite().all()
    assert quantized.reduction_stats()["equivalent_tokens"] < 16 or name == "pair_atp"
