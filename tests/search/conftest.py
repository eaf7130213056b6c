"""A pocket checkpoint with questions, for the commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_llava import PATCHES


@pytest.fixture(scope="session")
def pocket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the committed backbones, three pictures and questions on them."""
    from PIL import Image

    from llava_prumerge.model.assembling import assemble

    folder = tmp_path_factory.mktemp("pocket")
    backbones = Path(__file__).resolve().parents[2] / "playground" / "pocket" / "backbones"
    model, processor = assemble(backbones / "lm", backbones / "clip")
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    lines = []
    for at, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (96, 64 + 8 * at), colour).save(folder / f"{at}.png")
        lines.append(json.dumps({"question_id": at, "image": f"{at}.png", "text": "what colour is it ?"}))
    (folder / "questions.jsonl").write_text("\n".join(lines))
    assert model.config.image_seq_length > PATCHES
    return folder
