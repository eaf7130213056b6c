"""The committed backbones meet their gates, by the numbers written beside them and by a short check of the weights themselves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llava_prumerge.model.weight_files import read_header

BACKBONES = Path(__file__).resolve().parents[2] / "playground" / "pocket" / "backbones"


@pytest.fixture(scope="module")
def language() -> tuple:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = BACKBONES / "lm"
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def test_every_release_of_transformers_reads_them(tmp_path: Path) -> None:
    """Keys and settings that version 4 knows, in what is committed and in what the builder writes; weights by header alone."""
    from transformers import AutoTokenizer, CLIPVisionModel

    from llava_prumerge.model.open_clip import save_tower
    from llava_prumerge.text.tokenizers import save_tokenizer

    save_tower(CLIPVisionModel.from_pretrained(BACKBONES / "clip"), tmp_path)
    save_tokenizer(AutoTokenizer.from_pretrained(BACKBONES / "lm"), tmp_path)
    for tower, language in ((BACKBONES / "clip", BACKBONES / "lm"), (tmp_path, tmp_path)):
        assert all(key.startswith("vision_model.") for key in read_header(tower / "model.safetensors"))
        settings = json.loads((language / "tokenizer_config.json").read_text())
        assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
        assert not isinstance(settings.get("extra_special_tokens"), list)
    ours, again = (load_file(folder / "model.safetensors") for folder in (BACKBONES / "clip", tmp_path))
    assert set(ours) == set(again) and all(torch.equal(ours[key], again[key]) for key in ours)


def test_every_kind_of_question_meets_the_gate() -> None:
    from playground.pocket.questions import KINDS
    from playground.pocket.train_lm import GATE

    gate = json.loads((BACKBONES / "lm" / "metrics.json").read_text())["gate"]
    assert {*KINDS, "facts", "letters", "heaped"} == set(gate)
    assert min(gate.values()) >= GATE, gate


def test_clip_retrieves_and_its_patches_can_be_read() -> None:
    gate = json.loads((BACKBONES / "clip" / "metrics.json").read_text())["gate"]
    assert min(gate["image_to_text"], gate["text_to_image"]) > 0.7  # of 128, hard negatives among them; chance is 0.008
    assert min(gate["colour_cell"], gate["place_cell"]) > 0.95 and gate["shape_cell"] > 0.9
    assert 5 < gate["outliers_mean"] < 40  # the class token looks at few patches, as the paper says


def test_language_model_answers_as_its_metrics_say(language: tuple) -> None:
    from playground.pocket.train_lm import gate

    model, tokenizer = language
    stated = json.loads((BACKBONES / "lm" / "metrics.json").read_text())["gate"]
    scores = gate(model, tokenizer, "validation", per_kind=6)
    mean, expected = (sum(found.values()) / len(found) for found in (scores, stated))
    assert abs(mean - expected) < 0.1, scores


def test_generation_gives_the_short_answer(language: tuple) -> None:
    model, tokenizer = language
    text = (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and "
        "polite answers to the user's questions. USER: a red star at the top left and a blue ring at the center.\n"
        "What color is the ring?\nAnswer the question using a single word or phrase. ASSISTANT:"
    )
    ids = tokenizer(text, return_tensors="pt").input_ids
    with torch.no_grad():
        out = model.generate(ids, max_new_tokens=8, do_sample=False)
    assert tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip() == "blue"


def test_tokenizer_follows_llama(language: tuple) -> None:
    _, tokenizer = language
    assert tokenizer.is_fast and tokenizer.convert_ids_to_tokens([0, 1, 2]) == ["<unk>", "<s>", "</s>"]
    assert tokenizer.tokenize("USER: a red CAT") == ["▁USER", ":", "▁a", "▁red", "▁CAT"]
    assert tokenizer.tokenize("\nWhat") == ["▁", "<0x0A>", "What"]
    assert tokenizer.convert_tokens_to_ids("<image>") == tokenizer.image_token_id
    text = "Größe: 96 px, naïve 猫 ~"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text
    whole = tokenizer("USER: What color is the star? ASSISTANT: red</s>", return_offsets_mapping=True)
    ends = [stop for _, stop in whole["offset_mapping"]]
    assert ends == sorted(ends) and whole["input_ids"][-1] == tokenizer.eos_token_id


def test_vision_tower_and_processor_load() -> None:
    from transformers import AutoImageProcessor, CLIPVisionModel

    from playground.pocket.scenes import render, scenes
    from playground.pocket.train_clip import pixels

    tower = CLIPVisionModel.from_pretrained(BACKBONES / "clip").eval()
    processor = AutoImageProcessor.from_pretrained(BACKBONES / "clip", backend="pil")
    images = [render(scene, 0) for scene in scenes("test", 0, 2)]
    ours, theirs = pixels(images), processor(images, return_tensors="pt").pixel_values
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert tower(theirs).last_hidden_state.shape == (2, 145, tower.config.hidden_size)
