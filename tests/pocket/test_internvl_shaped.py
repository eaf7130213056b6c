"""The model of InternVL's shape: a checkpoint like any other, whose language model is the LLaVA's."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_llava import tiny_model, write_processor

from llava_prumerge.inference.asking import ask
from llava_prumerge.model.loading import load_model
from playground.pocket import internvl_shaped


def test_it_learns_to_see_as_the_llava_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    tiny_model().save_pretrained(tmp_path / "llava")
    write_processor(tmp_path / "llava")
    (tmp_path / "images").mkdir()
    for at in range(6):
        pixels = np.random.default_rng(at).integers(0, 255, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"images/{at}.png")
    errors: list[list[float]] = []
    plain = internvl_shaped.fit
    monkeypatch.setattr(internvl_shaped, "fit", lambda *given: errors.append(plain(*given)) or errors[-1])
    places = {"model": "llava", "images": "images", "out": "made"}
    words = [word for name, place in places.items() for word in (f"--{name}", str(tmp_path / place))]
    monkeypatch.setattr(sys, "argv", ["internvl_shaped", *words, "--steps", "60", "--batch", "4"])
    internvl_shaped.main()
    assert "6 images, 60 steps" in capsys.readouterr().out
    assert sum(errors[0][-5:]) < 0.5 * sum(errors[0][:5])
    model, processor = load_model(tmp_path / "made", {"vision": {"name": "uniform", "budget": 2}})
    answer = ask(model, processor, "w5 w6", tmp_path / "images/0.png", max_new_tokens=3)
    assert (answer.images[0].full, answer.kept) == (4, 2)
    llava, _ = load_model(tmp_path / "llava")
    ids = torch.tensor([[1, 5, 6, 7]])
    rows = llava.config.text_config.vocab_size
    torch.testing.assert_close(model(input_ids=ids).logits[..., :rows], llava(input_ids=ids).logits)
