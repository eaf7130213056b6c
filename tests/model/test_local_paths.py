"""A path of one's own where nothing is: an error of one line from everything that loads, and the Hub is not asked for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers.utils.hub
from transformers import LlamaForCausalLM

from llava_prumerge import assemble, load_model
from llava_prumerge.model.modeling import PruMergeLlavaForConditionalGeneration
from llava_prumerge.model.parts import load_image_processor, load_tower, read_tower_config
from llava_prumerge.model.strict_loading import load_strictly
from llava_prumerge.text.tokenizers import load_tokenizer
from llava_prumerge.viz.selection import viewer_of_tower

LOADERS: dict[str, Callable[[str], Any]] = {
    "load_model": load_model,
    "assemble": lambda path: assemble(path, path),
    "load_tower": lambda path: load_tower(path, torch.float32),
    "read_tower_config": read_tower_config,
    "load_image_processor": load_image_processor,
    "load_strictly": lambda path: load_strictly(LlamaForCausalLM, path),
    "from_pretrained": PruMergeLlavaForConditionalGeneration.from_pretrained,
    "load_tokenizer": load_tokenizer,
    "viewer_of_tower": viewer_of_tower,
}


@pytest.mark.parametrize("path", ["runs/my-model", "my-model", "./someone/model", "someone/merged"])
@pytest.mark.parametrize("loader", LOADERS)
def test_what_is_missing_here_is_not_asked_for(loader: str, path: str, tmp_path, monkeypatch) -> None:
    asked = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(transformers.utils.hub, "cached_files", lambda *a, **k: asked.append(a))
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: asked.append(a))
    with pytest.raises((ValueError, OSError), match=r"does not exist") as caught:
        LOADERS[loader](path)
    assert not asked and path in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("loader", ["load_model", "load_tower", "load_tokenizer", "load_image_processor"])
def test_a_name_on_the_hub_is_asked_for(loader: str, tmp_path, monkeypatch) -> None:
    """Offline it is not to be had, and is said not to be: the other half of the test above."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, OSError)) as caught:
        LOADERS[loader]("someone/model")
    assert "seen from" not in str(caught.value)
