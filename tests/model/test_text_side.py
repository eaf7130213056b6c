"""CLIP's text side beside a model whose checkpoint has the tower alone: against transformers' whole CLIP."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_llava import IMAGE, PATCHES, pixels, rows_of, tiny_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

from llava_prumerge.methods.base import VisionTokens
from llava_prumerge.model.attach import attach, detach
from llava_prumerge.ops.layout import IGNORE_INDEX

LONGEST = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A whole CLIP whose vision tower has the width of the tiny model's, with a tokenizer of words."""
    path = tmp_path_factory.mktemp("clip")
    torch.manual_seed(3)
    text = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=128)
    text |= dict(max_position_embeddings=LONGEST, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    vision = dict(hidden_size=32, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28)
    config = CLIPConfig(text_config=text, vision_config=vision | {"patch_size": 14}, projection_dim=12)
    CLIPModel(config).save_pretrained(path)
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"w{number}": number for number in range(3, 128)}
    words = Tokenizer(WordLevel(vocabulary, unk_token="<pad>"))
    words.pre_tokenizer = Whitespace()
    words.post_processor = TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>").save_pretrained(path)
    return str(path)


def asked(folder: str, *words: int, method: str = "trim", **settings: Any) -> tuple[Any, VisionTokens]:
    """A model that was asked these words, and what its reducer was given."""
    model = tiny_model({"vision": {"name": method, "budget": 5, "clip": folder, **settings}})
    model.model.words = SimpleNamespace(decode=lambda ids, **_: " ".join(f"w{number}" for number in ids))
    return model, seen(model, **rows_of([5, *[IMAGE] * PATCHES, *words]), pixel_values=pixels(1))


def seen(model: Any, **batch: Any) -> VisionTokens:
    """What the reducer is given, the text side asked while the pass runs."""
    given: list[VisionTokens] = []
    plain = type(model.model.reducer).forward

    def forward(image: VisionTokens) -> Any:
        held = None if image.clip is None else image.clip()
        given.append(image if held is None else replace(image, clip=lambda: held))
        return plain(model.model.reducer, image)

    model.model.reducer.forward = forward
    model(**batch)
    del model.model.reducer.forward
    return given[0]


@torch.no_grad()
def test_patches_and_question_are_where_clip_puts_them(folder: str) -> None:
    _, image = asked(folder, 20, 30, 40)
    patches, text, mask = image.clip()
    whole = CLIPModel.from_pretrained(folder).eval()
    ids = torch.tensor([[1, 20, 30, 40, 2]])
    found = whole.get_text_features(input_ids=ids, attention_mask=torch.ones_like(ids))
    expected = getattr(found, "pooler_output", found)  # of older releases a tensor
    torch.testing.assert_close(text[:, 0], expected, atol=1e-5, rtol=1e-4)
    assert mask.tolist() == [[True]]
    normed = whole.vision_model.post_layernorm(image.features)
    torch.testing.assert_close(patches, normed @ whole.visual_projection.weight.T, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_trim_ranks_by_them(folder: str) -> None:
    model, image = asked(folder, 20, 30, 40)
    patches, text, _ = image.clip()
    relevance = -(patches @ text.transpose(1, 2))[0, :, 0]
    origin = model.model.reducer(image)[2][0].tolist()
    assert origin == [*sorted(relevance.argsort(descending=True)[:4].tolist()), -1]
    _, plain = asked(folder, 20, 30, 40, space="llm")
    assert plain.clip is None


@torch.no_grad()
@pytest.mark.parametrize("method", ["trim", "cdpruner", "trsm", "par"])
def test_every_method_with_a_space_takes_it(folder: str, method: str) -> None:
    model, image = asked(folder, 20, 30, 40, method=method, space="clip")
    assert image.clip is not None and model.model.reducer(image)[1].sum() == 5


@torch.no_grad()
def test_long_questions_are_cut_into_segments(folder: str) -> None:
    _, image = asked(folder, *range(20, 36))
    _, text, mask = image.clip()
    assert text.shape[:2] == mask.shape == (1, 3) and mask.all()  # 16 words, six in each
    _, shorter = asked(folder, *range(20, 36), after=10)
    assert shorter.clip()[1].shape[1] == 1


@torch.no_grad()
def test_the_answer_is_not_read(folder: str) -> None:
    model, image = asked(folder, 20, 30, 40)
    ids = [5, *[IMAGE] * PATCHES, 20, 30, 40, 51, 52]
    inputs = rows_of(ids) | {"pixel_values": pixels(1)}
    labels = inputs["input_ids"].clone()
    labels[:, :-2] = IGNORE_INDEX
    torch.testing.assert_close(seen(model, **inputs, labels=labels).clip()[1], image.clip()[1])


def test_it_is_not_part_of_the_checkpoint(folder: str, tmp_path: Path) -> None:
    model, _ = asked(folder, 20, 30, 40)
    assert not [name for name in model.state_dict() if "text_side" in name]
    model.save_pretrained(tmp_path)
    detach(model)
    assert not hasattr(model.model, "_text_side") and not hasattr(model.model, "words")


def test_what_cannot_be_is_said_in_one_line(folder: str, tmp_path: Path) -> None:
    model, _ = asked(folder, 20, 30, 40)
    batch = rows_of([5, *[IMAGE] * PATCHES, 20]) | {"pixel_values": pixels(1)}
    attach(model, {"vision": {"name": "trim", "clip": str(tmp_path / "absent")}})
    with pytest.raises(ValueError, match="absent") as caught:
        model(**batch)
    assert "\n" not in str(caught.value)
    attach(model, {"vision": {"name": "trim", "clip": folder}})
    model.model.words = None
    with pytest.raises(ValueError, match=r"attach\(model, \.\.\., tokenizer=processor\)"):
        model(**batch)
