"""The project equals the original LLaVA and PruMerge, as `original_llava.py` compares them; with Llama's tokenizer where it is at hand."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
_spec = importlib.util.spec_from_file_location("original_llava", HERE / "original_llava.py")
assert _spec and _spec.loader
original = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = original
_spec.loader.exec_module(original)


def test_pixels_features_tokens_logits_and_answers() -> None:
    """Of the pocket backbones, on drawn images of several shapes."""
    rows = original.compare(Path("nowhere"), images=3)
    assert len(rows) == 3 + 3 * 3
    assert all(row.equal == row.compared == 3 for row in rows), "\n".join(map(str, rows))


@pytest.mark.skipif(
    not (original.SHARED / "llama_tokenizer").is_dir(), reason="Llama's own tokenizer.model is not here, by its licence"
)
def test_ids_and_labels_with_llamas_tokenizer() -> None:
    rows = list(original.texts(original.SHARED))
    assert [row.compared for row in rows] == [89, 18, 256, 256]
    assert all(row.equal == row.compared for row in rows), "\n".join(map(str, rows))


def test_a_difference_is_seen() -> None:
    """The reference without its neighbours' share gives other tokens than PruMerge."""
    row = original.Row("x", "y")
    row.near(original.torch.tensor([1.0, 2.0]), original.torch.tensor([1.0, 2.1]))
    row.same([1], [2])
    assert (row.equal, row.compared) == (0, 2) and row.largest > 0.04
