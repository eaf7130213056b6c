"""Whole models come in from every published layout, equal stock models, and go out again bit for bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import published_layouts as layouts
import pytest
import torch
from published_layouts import IMAGE, PAD, PATCHES, ROWS, WORDS, Published, inputs
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoTokenizer, LlamaForCausalLM, LlavaForConditionalGeneration

from llava_prumerge.model.loading import load_model
from llava_prumerge.model.modeling import PruMergeLlavaForConditionalGeneration

Convert = Callable[..., list[str]]


def tensors_of(folder: Path) -> dict[str, Tensor]:
    """Everything in a folder's safetensors files, read by the library."""
    found: dict[str, Tensor] = {}
    for file in sorted(folder.glob("model*.safetensors")):
        part = load_file(file)
        assert not set(part) & set(found)
        found |= part
    return found


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    """Bit for bit, names and types too."""
    return set(left) == set(right) and all(
        left[key].dtype == right[key].dtype and torch.equal(left[key], right[key]) for key in left
    )


def logits(model: torch.nn.Module) -> Tensor:
    given = inputs()
    with torch.no_grad():
        return model(**given).logits[given["attention_mask"].bool()]


@pytest.mark.parametrize("name", ["original", "original-safetensors"])
def test_the_original_layout_equals_stock_llava(
    sources: Path, model: Published, convert: Convert, tmp_path: Path, name: str
) -> None:
    said = convert(sources / name, tmp_path / "ours", "--vision-tower", sources / "clip")
    assert said == [f"{tmp_path / 'ours'}: 80 tensors from {sources / name}, vision tower from {sources / 'clip'}"]
    loaded, processor = load_model(tmp_path / "ours", device="cpu")
    torch.testing.assert_close(logits(loaded), logits(model.stock()), atol=2e-5, rtol=1e-5)
    config = loaded.config
    assert (config.image_token_index, config.text_config.pad_token_id, config.text_config.vocab_size) == (
        IMAGE,
        PAD,
        ROWS,
    )
    assert (config.image_seq_length, config.vision_feature_layer) == (PATCHES, -2)
    assert processor.tokenizer.pad_token_id == PAD and processor.tokenizer.convert_tokens_to_ids("<image>") == IMAGE


def test_the_language_model_alone_equals_stock_llama(ours: Path, sources: Path) -> None:
    loaded, _ = load_model(ours, device="cpu")
    llama = LlamaForCausalLM.from_pretrained(sources / "vicuna", dtype="float32")
    ids = torch.tensor([[1, 17, 200, 33, 8]])
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits[..., :WORDS], llama(ids).logits, atol=2e-5, rtol=1e-5)


def test_every_tensor_keeps_its_type_and_bits(ours: Path, model: Published) -> None:
    """float16 from the language model's files, float32 from the tower's; new rows are the mean of the old."""
    got, original = tensors_of(ours), model.original()
    weight = got["language_model.model.embed_tokens.weight"]
    assert weight.dtype == torch.float16 and weight.shape[0] == ROWS
    assert torch.equal(weight[:WORDS], original["model.embed_tokens.weight"])
    mean = original["model.embed_tokens.weight"].double().mean(0).half()
    assert torch.equal(weight[WORDS:], mean.expand(ROWS - WORDS, -1)) and mean.abs().sum() > 0
    assert torch.equal(got["multi_modal_projector.linear_2.bias"], original["model.mm_projector.2.bias"])
    tower = got["vision_tower.encoder.layers.1.mlp.fc1.weight"]
    assert tower.dtype == torch.float32
    assert torch.equal(tower, model.clip.vision_model.encoder.layers[1].mlp.fc1.weight.detach())


def test_the_keys_are_those_that_save_pretrained_writes(ours: Path, tmp_path: Path) -> None:
    loaded = AutoModelForImageTextToText.from_pretrained(ours)
    assert type(loaded) is PruMergeLlavaForConditionalGeneration
    loaded.save_pretrained(tmp_path)
    assert set(tensors_of(tmp_path)) == set(tensors_of(ours))


@pytest.mark.parametrize("name", ["original", "original-safetensors"])
def test_original_to_ours_to_original_is_exact(
    sources: Path, model: Published, convert: Convert, tmp_path: Path, name: str
) -> None:
    convert(sources / name, tmp_path / "ours", "--vision-tower", sources / "clip")
    convert(tmp_path / "ours", tmp_path / "back", "--to", "original")
    rotary = {key for key in model.original() if key.endswith("inv_freq")}
    assert len(rotary) == 2
    expected = {key: value for key, value in model.original().items() if key not in rotary}
    assert same(tensors_of(tmp_path / "back"), expected)
    before = json.loads((sources / name / "config.json").read_text())
    after = json.loads((tmp_path / "back" / "config.json").read_text())
    assert {key: after.get(key) for key in before} == before
    for file in ("tokenizer.model", "tokenizer_config.json"):
        left, right = ((folder / file).read_bytes() for folder in (tmp_path / "back", sources / name))
        assert left == right if file == "tokenizer.model" else json.loads(left) == json.loads(right)


def test_ours_to_original_to_ours_is_exact(ours: Path, sources: Path, convert: Convert, tmp_path: Path) -> None:
    """Rows of the image and padding tokens are made anew, as they were."""
    convert(ours, tmp_path / "original", "--to", "original")
    convert(tmp_path / "original", tmp_path / "again", "--vision-tower", sources / "clip")
    assert same(tensors_of(tmp_path / "again"), tensors_of(ours))
    left, right = (json.loads((folder / "config.json").read_text()) for folder in (ours, tmp_path / "again"))
    assert left == right


def test_ours_to_llava_hf_and_back_is_exact_and_stock_code_reads_it(
    ours: Path, model: Published, convert: Convert, tmp_path: Path
) -> None:
    convert(ours, tmp_path / "hf", "--to", "llava-hf")
    assert "vision_tower.vision_model.pre_layrnorm.weight" in tensors_of(tmp_path / "hf")
    stock, report = LlavaForConditionalGeneration.from_pretrained(
        tmp_path / "hf", dtype="float32", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"] and stock.config.model_type == "llava"
    assert torch.equal(logits(stock.eval()), logits(model.stock()))
    convert(tmp_path / "hf", tmp_path / "again")
    assert same(tensors_of(tmp_path / "again"), tensors_of(ours))


@pytest.mark.parametrize("prefixes", [layouts.OLDER, layouts.NEWER], ids=["older", "newer"])
def test_both_layouts_of_llava_hf_come_in_and_go_out_as_original(
    model: Published, ours: Path, convert: Convert, tmp_path: Path, prefixes: list[tuple[str, str]]
) -> None:
    renamed = layouts.write_llava_hf(tmp_path / "hf", model, ours, prefixes)
    convert(tmp_path / "hf", tmp_path / "ours", "--reduction", "prumerge_plus")
    got = tensors_of(tmp_path / "ours")
    assert len(got) == len(renamed)
    assert torch.equal(
        got["vision_tower.encoder.layers.0.layer_norm1.bias"],
        model.stock().half().state_dict()["model.vision_tower.encoder.layers.0.layer_norm1.bias"],
    )
    loaded, _ = load_model(tmp_path / "ours", {}, device="cpu")
    stock = model.stock()
    with torch.no_grad():
        for parameter in stock.parameters():  # not the rotary table, which no checkpoint holds
            parameter.copy_(parameter.half())
    torch.testing.assert_close(logits(loaded), logits(stock), atol=2e-5, rtol=1e-5)
    config = AutoModelForImageTextToText.from_pretrained(tmp_path / "ours").config
    assert config.reduction == {"vision": {"name": "prumerge_plus"}} and config.text_config.pad_token_id == PAD
    convert(tmp_path / "hf", tmp_path / "original", "--to", "original", "--vision-tower", "some/clip")
    original = tensors_of(tmp_path / "original")
    assert set(original) == {key for key in model.original() if not key.endswith("inv_freq")}
    assert original["lm_head.weight"].shape[0] == WORDS
    assert json.loads((tmp_path / "original" / "config.json").read_text())["mm_vision_tower"] == "some/clip"


def test_vision_weights_inside_an_original_checkpoint_are_taken(
    sources: Path, model: Published, convert: Convert, tmp_path: Path, tokenizer_model: bytes
) -> None:
    """LLaVA saves them where the tower was trained: they are not the CLIP folder's any more."""
    folder = layouts.write_original(tmp_path / "tuned", model, tokenizer_model)
    state = model.original()
    prefix = "model.vision_tower.vision_tower.vision_model."
    state |= {f"{prefix}{key}": (value + 1).half() for key, value in model.clip.vision_model.state_dict().items()}
    layouts.write_shards(folder, state)
    convert(folder, tmp_path / "ours", "--vision-tower", sources / "clip")
    got = tensors_of(tmp_path / "ours")["vision_tower.post_layernorm.bias"]
    assert torch.equal(got, (model.clip.vision_model.post_layernorm.bias.detach() + 1).half())


def test_a_projector_beside_the_shards_is_taken_where_they_lack_it(
    sources: Path, model: Published, convert: Convert, tmp_path: Path, tokenizer_model: bytes
) -> None:
    folder = layouts.write_original(tmp_path / "split", model, tokenizer_model)
    state = {key: value for key, value in model.original().items() if "mm_projector" not in key}
    layouts.write_shards(folder, state)
    torch.save(
        {key: value for key, value in model.original().items() if "mm_projector" in key}, folder / "mm_projector.bin"
    )
    said = convert(folder, tmp_path / "ours", "--vision-tower", sources / "clip")
    assert f"projector from {folder / 'mm_projector.bin'}" in said[0]
    convert(tmp_path / "ours", tmp_path / "back", "--to", "original")
    assert {key for key in tensors_of(tmp_path / "back") if "mm_projector" in key} == {
        key for key in model.original() if "mm_projector" in key
    }


def test_rows_that_were_trained_stay_where_that_is_asked_for(
    ours: Path, sources: Path, convert: Convert, tmp_path: Path
) -> None:
    """Full fine-tuning moves the output rows of the image and padding tokens: without --keep-rows they are lost."""
    shutil.copytree(ours, tmp_path / "tuned")
    state = {key: value + 1 for key, value in tensors_of(ours).items()}
    state |= {key: value for key, value in tensors_of(ours).items() if key.startswith("vision_tower.")}
    state["language_model.lm_head.weight"][WORDS:] += 3
    save_file(state, tmp_path / "tuned" / "model.safetensors", {"format": "pt"})
    for name, options in (("kept", ["--keep-rows"]), ("cut", [])):
        convert(tmp_path / "tuned", tmp_path / name, "--to", "original", *options)
        convert(tmp_path / name, tmp_path / f"{name}-again", "--vision-tower", sources / "clip")
        assert same(tensors_of(tmp_path / f"{name}-again"), state) == (name == "kept")
    assert len(AutoTokenizer.from_pretrained(tmp_path / "kept")) == WORDS


def test_a_trained_tower_can_stay_in_the_original_layout(
    ours: Path, sources: Path, convert: Convert, tmp_path: Path
) -> None:
    """Then the way back does not take the CLIP folder's weights."""
    shutil.copytree(ours, tmp_path / "tuned")
    state = {k: v + 1 if k.startswith("vision_tower.") else v for k, v in tensors_of(ours).items()}
    save_file(state, tmp_path / "tuned" / "model.safetensors", {"format": "pt"})
    convert(tmp_path / "tuned", tmp_path / "original", "--to", "original", "--with-vision")
    config = json.loads((tmp_path / "original" / "config.json").read_text())
    assert config["unfreeze_mm_vision_tower"] is True
    convert(tmp_path / "original", tmp_path / "again", "--vision-tower", sources / "clip")
    assert same(tensors_of(tmp_path / "again"), state) and not same(state, tensors_of(ours))


TEXTS = ["the fox", "USER: the quick\nbrown fox ASSISTANT: lazy", "é日 jumps", "1 + 1 =  2"]


def test_tokenizers_agree_with_sentencepiece_in_every_layout(
    ours: Path, sources: Path, convert: Convert, tmp_path: Path
) -> None:
    import sentencepiece

    plain = sentencepiece.SentencePieceProcessor(model_file=str(sources / "original" / "tokenizer.model"))
    convert(ours, tmp_path / "back", "--to", "original")
    (tmp_path / "back" / "tokenizer.model").unlink()
    mine, theirs = AutoTokenizer.from_pretrained(ours), AutoTokenizer.from_pretrained(tmp_path / "back")
    assert len(mine) == WORDS + 2 and len(theirs) == WORDS and theirs.pad_token == "<unk>"
    for text in TEXTS:
        assert mine(text)["input_ids"][1:] == theirs(text)["input_ids"][1:] == plain.encode(text)
    assert mine("the <image> fox")["input_ids"].count(IMAGE) == 1


def test_a_method_travels_through_the_original_layout(sources: Path, convert: Convert, tmp_path: Path) -> None:
    method = tmp_path / "method.yaml"
    method.write_text("vision: {name: prumerge, budget: 5}\n")
    convert(sources / "original", tmp_path / "ours", "--vision-tower", sources / "clip", "--reduction", method)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "ours", dtype="float32").eval()
    assert loaded.config.reduction == {"vision": {"name": "prumerge", "budget": 5}}
    assert loaded(**inputs()).logits.shape[1] < inputs()["input_ids"].shape[1]
    convert(tmp_path / "ours", tmp_path / "back", "--to", "original")
    convert(tmp_path / "back", tmp_path / "again", "--vision-tower", sources / "clip")
    convert(tmp_path / "back", tmp_path / "plain", "--vision-tower", sources / "clip", "--reduction", "none")
    blocks = [json.loads((tmp_path / name / "config.json").read_text()).get("reduction") for name in ("again", "plain")]
    assert blocks == [loaded.config.reduction, None]


def test_dtype_casts_all_weights_and_shards_stay_under_their_size(
    sources: Path, convert: Convert, tmp_path: Path
) -> None:
    wide = ["--dtype", "float32", "--shard-size", "0.0001"]
    convert(sources / "original", tmp_path / "ours", "--vision-tower", sources / "clip", *wide)
    got = tensors_of(tmp_path / "ours")
    assert {value.dtype for value in got.values()} == {torch.float32}
    files = sorted((tmp_path / "ours").glob("model-*.safetensors"))
    index = json.loads((tmp_path / "ours" / "model.safetensors.index.json").read_text())
    assert len(files) > 3 and index["metadata"]["total_size"] == sum(value.nbytes for value in got.values())
    for file in files:
        with safe_open(file, "pt") as opened:
            held = {key: opened.get_tensor(key).nbytes for key in opened.keys()}  # noqa: SIM118
        assert sum(held.values()) <= 100_000 or len(held) == 1
        assert all(index["weight_map"][key] == file.name for key in held)
    loaded, _ = load_model(tmp_path / "ours", device="cpu")
    assert loaded.config.dtype == torch.float32


def test_older_pickles_are_read_too(sources: Path, model: Published, convert: Convert, tmp_path: Path) -> None:
    """torch.save before 1.6 wrote files that cannot be mapped."""
    folder = tmp_path / "old"
    shutil.copytree(sources / "original", folder)
    for file in folder.glob("*.bin"):
        torch.save(torch.load(file), file, _use_new_zipfile_serialization=False)
    convert(folder, tmp_path / "ours", "--vision-tower", sources / "clip")
    weight = tensors_of(tmp_path / "ours")["language_model.lm_head.weight"]
    assert torch.equal(weight[:WORDS], model.original()["lm_head.weight"])


def test_weights_that_lie_twice_are_taken_from_safetensors(
    sources: Path, model: Published, convert: Convert, tmp_path: Path
) -> None:
    folder = tmp_path / "both"
    shutil.copytree(sources / "original", folder)
    state = {key: value.contiguous() for key, value in model.original().items()}
    state["model.norm.weight"] = state["model.norm.weight"] + 1
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    convert(folder, tmp_path / "ours", "--vision-tower", sources / "clip")
    assert torch.equal(tensors_of(tmp_path / "ours")["language_model.model.norm.weight"], state["model.norm.weight"])
