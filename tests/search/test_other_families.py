"""Searches on models of other families: their own prompts and pixels, images of different lengths."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tiny_families import write_family

from llava_prumerge.methods.registry import build_pruner
from llava_prumerge.model.attach import attach
from llava_prumerge.model.loading import load_model
from llava_prumerge.model.modeling import decoder_shape
from llava_prumerge.search.__main__ import main
from llava_prumerge.search.calibration import make_batches, read_pairs
from llava_prumerge.search.comparison import Comparison

NAMES = ["internvl", "qwen2_5_vl"]
SIZES = [(30, 60), (64, 40), (48, 48), (90, 30)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints by name, photos, and questions about them."""
    root = tmp_path_factory.mktemp("search")
    lines = []
    for at, size in enumerate(SIZES):
        pixels = np.random.default_rng(at).integers(0, 255, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{at}.png")
        lines.append(json.dumps({"image": f"{at}.png", "text": "w5 " * (at + 1)}))
    (root / "questions.jsonl").write_text("\n".join(lines))
    for name in NAMES:
        write_family(root / name, name)
    return root


@pytest.mark.parametrize("name", NAMES)
def test_a_pruners_cost_is_that_of_the_pruned_model_asked_alone(name: str, world: Path) -> None:
    """KL of the next token, question by question without padding, from two plain forward passes."""
    model, processor = load_model(world / name)
    pairs = read_pairs(world / "questions.jsonl", 4)
    block = {"name": "fastv", "layer": 1, "keep_ratio": 0.25}
    batches = make_batches(pairs, world, processor, model.config, 4)
    compared = Comparison(model, batches, "kl")
    costs = compared.costs(block)
    alone, counts, texts = [], [], []
    for (batch,) in (make_batches([pair], world, processor, model.config, 1) for pair in pairs):
        with torch.no_grad():
            full = model(**batch).logits[:, -1].double().log_softmax(-1)
            attach(model, {"decoder": block})
            short = model(**batch).logits[:, -1].double().log_softmax(-1)
            attach(model)
        alone.append((short.exp() * (short - full)).sum())
        images = batch["input_ids"] == model.config.image_token_id
        counts.append(int(images.sum()))
        texts.append(int((~images).sum()))
    torch.testing.assert_close(costs, torch.stack(alone), atol=1e-5, rtol=1e-3)
    assert costs.max() > 1e-4, "the pruner acted"
    assert compared.present == pytest.approx(np.mean(counts)) and compared.most == max(counts)
    assert compared.text == pytest.approx(np.mean(texts)) and len(set(counts)) > 1
    assert build_pruner(block, decoder_shape(model.config)).name == "fastv"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("search", ["vtw", "g_search", "p_sigmoid", "stability"])
def test_searches_run_and_write_what_they_found(name: str, search: str, world: Path, tmp_path: Path) -> None:
    if search == "p_sigmoid":
        pytest.importorskip("optuna")
    out = tmp_path / ("found.png" if search == "stability" else "found.yaml")
    more = {"vtw": ["--threshold", "100"], "g_search": ["--steps", "4", "--score", "kl", "--tolerance", "0.5"]}
    more["p_sigmoid"] = ["--flops", "0.85", "--trials", "3", "--sampler", "tpe", "--answer-tokens", "2"]
    words = ["--model", str(world / name), "--questions", str(world / "questions.jsonl"), "--images", str(world)]
    assert not main([search, *words, "--out", str(out), *more.get(search, []), "--device", "cpu"])
    if search == "stability":
        tau = torch.tensor(json.loads(out.with_suffix(".json").read_text())["tau"])
        assert tau.shape == (4, 4) and torch.allclose(tau.diagonal(), torch.ones(4), atol=1e-6)
        return
    found = yaml.safe_load(out.read_text())
    model, _ = load_model(world / name, found)
    assert model.model.decoder.pruner is not None
    if search != "vtw":
        assert out.with_suffix(".png").stat().st_size > 3000
