"""A tiny LLaVA in each published layout, written once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import published_layouts as layouts
import pytest

from llava_prumerge.model.checkpoints.__main__ import parse
from llava_prumerge.model.checkpoints.convert import convert as convert_checkpoint


@pytest.fixture(scope="session")
def model() -> layouts.Published:
    return layouts.published()


@pytest.fixture(scope="session")
def tokenizer_model() -> bytes:
    return layouts.sentencepiece_model()


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory, model: layouts.Published, tokenizer_model: bytes) -> Path:
    """original, original-safetensors, vicuna, clip, lora: folders as they lie on the Hub. Not to be changed."""
    root = tmp_path_factory.mktemp("published")
    layouts.write_original(root / "original", model, tokenizer_model)
    layouts.write_original(root / "original-safetensors", model, tokenizer_model, ".safetensors", "llava_llama")
    layouts.write_vicuna(root / "vicuna", model, tokenizer_model)
    layouts.write_clip(root / "clip", model)
    layouts.write_lora(root / "lora", model)
    return root


@pytest.fixture(scope="session")
def convert() -> Callable[..., list[str]]:
    """The command, its words given as they come."""
    return lambda *words: convert_checkpoint(parse(["convert", *map(str, words)]))


@pytest.fixture(scope="session")
def ours(sources: Path, convert: Callable) -> Path:
    """The original checkpoint in our layout. Not to be changed."""
    target = sources.parent / f"{sources.name}-ours"
    convert(sources / "original", target, "--vision-tower", sources / "clip")
    return target
