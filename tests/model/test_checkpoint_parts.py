"""LoRA adapters and projectors: from the original layout to ours and back, incomplete releases, and merging."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import published_layouts as layouts
import pytest
import torch
from peft import PeftModel
from published_layouts import WORDS, Published, inputs
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, LlamaConfig, LlamaForCausalLM

from llava_prumerge.model.adapters import Base, load_adapter, save_adapter, save_complete
from llava_prumerge.model.assembling import load_projector
from llava_prumerge.model.loading import load_model
from llava_prumerge.model.weight_files import LoadingError

Convert = Callable[..., list[str]]


def logits(model: nn.Module) -> Tensor:
    """Of the words: rows of new tokens are drawn at random where a model is put together without a checkpoint."""
    given = inputs()
    with torch.no_grad():
        return model(**given).logits[given["attention_mask"].bool()][:, :WORDS]


def base_of(sources: Path) -> list[object]:
    return ["--language-model", sources / "vicuna", "--vision-tower", sources / "clip"]


@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
def test_original_adapters_equal_stock_llava_with_the_product_added(
    sources: Path, model: Published, convert: Convert, tmp_path: Path, suffix: str
) -> None:
    adapters = layouts.write_lora(tmp_path / "lora", model, suffix)
    convert(tmp_path / "lora", tmp_path / "ours", *base_of(sources))
    loaded, processor = load_model(tmp_path / "ours", device="cpu")
    expected, plain = logits(model.stock(adapters)), logits(model.stock())
    torch.testing.assert_close(logits(loaded), expected, atol=2e-5, rtol=1e-5)
    assert (expected - plain).abs().max() > 0.1  # the adapters matter
    assert processor.tokenizer.pad_token_id == layouts.PAD


def test_original_adapters_go_out_as_they_came(sources: Path, convert: Convert, tmp_path: Path) -> None:
    """Bit for bit, and peft itself puts them on a stock Llama."""
    convert(sources / "lora", tmp_path / "ours", *base_of(sources))
    convert(tmp_path / "ours", tmp_path / "back", "--to", "original")
    adapters = load_file(tmp_path / "back" / "adapter_model.safetensors")
    before = torch.load(sources / "lora" / "adapter_model.bin")
    beside = torch.load(tmp_path / "back" / "non_lora_trainables.bin", weights_only=True)
    beside_before = torch.load(sources / "lora" / "non_lora_trainables.bin")
    for got, expected in ((adapters, before), (beside, beside_before)):
        assert set(got) == set(expected)
        assert all(torch.equal(got[key], expected[key]) and got[key].dtype == expected[key].dtype for key in got)
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert config == json.loads((sources / "lora" / "config.json").read_text()) | config
    llama = LlamaForCausalLM.from_pretrained(sources / "vicuna", dtype="float32")
    plain = {key: value.clone() for key, value in llama.state_dict().items()}
    merged = PeftModel.from_pretrained(llama, str(tmp_path / "back")).merge_and_unload().state_dict()
    key = "model.layers.1.mlp.down_proj.weight"
    a, b = (before[f"base_model.model.{key.removesuffix('weight')}lora_{side}.weight"] for side in "AB")
    torch.testing.assert_close(merged[key], plain[key] + b @ a * 2)


def test_adapters_of_ours_go_out_and_come_in_again(ours: Path, convert: Convert, tmp_path: Path, sources: Path) -> None:
    """Adapters as training saves them, on a complete base, their regular expression and their scale included."""
    from peft import LoraConfig, get_peft_model

    model, processor = load_model(ours, device="cpu")
    targets = r"model\.language_model\.layers\.\d+\.self_attn\.(q|v)_proj"
    trained = get_peft_model(model, LoraConfig(r=3, lora_alpha=5, target_modules=targets))
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            if "lora_B" in name or "multi_modal_projector" in name:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    state = {n: p.detach() for n, p in trained.named_parameters() if "lora_" in n or "multi_modal_projector" in n}
    save_adapter(trained, tmp_path / "ours", state, Base(model=str(ours)), processor)
    convert(tmp_path / "ours", tmp_path / "original", "--to", "original")
    settings = json.loads((tmp_path / "original" / "adapter_config.json").read_text())
    assert settings["target_modules"] == ["q_proj", "v_proj"] and (settings["r"], settings["lora_alpha"]) == (3, 5)
    convert(tmp_path / "original", tmp_path / "again", *base_of(sources))
    left, right = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("ours", "again"))
    assert len(left) == 8 and set(left) == set(right) and all(torch.equal(left[key], right[key]) for key in left)
    reference, _ = load_adapter(tmp_path / "ours")
    again, _ = load_adapter(tmp_path / "again")
    torch.testing.assert_close(logits(again), logits(reference), atol=2e-5, rtol=1e-5)
    convert(tmp_path / "ours", tmp_path / "merged", "--merge")
    merged, _ = load_model(tmp_path / "merged", device="cpu")
    assert (logits(merged) - logits(reference)).abs().max() < 0.02  # the base is float16: rounded once more


def test_adapters_name_the_rows_of_their_base(sources: Path, convert: Convert, tmp_path: Path) -> None:
    """LLaVA gives the base so many rows as config.json says; where its own are more, they would start uninitialised."""
    wide = LlamaForCausalLM.from_pretrained(sources / "vicuna", dtype="float32")
    wide.resize_token_embeddings(layouts.WORDS + 20)
    shutil.copytree(sources / "vicuna", tmp_path / "vicuna", ignore=shutil.ignore_patterns("*.bin*"))
    wide.save_pretrained(tmp_path / "vicuna")
    places = ["--language-model", tmp_path / "vicuna", "--vision-tower", sources / "clip"]
    convert(sources / "lora", tmp_path / "ours", *places)
    convert(tmp_path / "ours", tmp_path / "back", "--to", "original")
    values = json.loads((tmp_path / "back" / "config.json").read_text())
    assert values["vocab_size"] == layouts.WORDS + 20
    config = LlamaConfig(**{key: values[key] for key in layouts.TEXT}, dtype="float32")
    loaded = LlamaForCausalLM.from_pretrained(tmp_path / "vicuna", config=config)
    assert torch.equal(loaded.lm_head.weight, wide.lm_head.weight)


def test_no_path_of_this_machine_is_written(sources: Path, ours: Path, convert: Convert, tmp_path: Path) -> None:
    """base.json alone has paths, as adapters have to be put on something; a release names repositories there."""
    convert(sources / "lora", tmp_path / "adapters", *base_of(sources))
    convert(sources / "lora", tmp_path / "merged", *base_of(sources), "--merge")
    convert(tmp_path / "adapters", tmp_path / "back", "--to", "original")
    convert(ours, tmp_path / "hf", "--to", "llava-hf")
    convert(ours, tmp_path / "original", "--to", "original")
    model, processor = load_model(ours, device="cpu")
    save_complete(model, tmp_path / "trained", None, processor)
    projector = {name: p for name, p in model.named_parameters() if "multi_modal_projector" in name}
    save_adapter(model, tmp_path / "stage1", projector, Base(model=str(ours)), processor)
    places = "|".join(re.escape(str(path)) for path in (tmp_path, sources, ours.parent))
    found = {
        f"{file.parent.name}/{file.name}": sorted(set(match))
        for folder in (*tmp_path.iterdir(), ours)
        for file in folder.glob("*.json*")
        if file.name != "base.json"
        and (match := re.findall(rf"is_local|local_files_only|\"_?name_or_path|{places}", file.read_text()))
    }
    assert not found


@pytest.mark.parametrize("to", ["ours", "original", "llava-hf"])
def test_merging_writes_a_whole_model_in_each_layout(
    sources: Path, model: Published, convert: Convert, tmp_path: Path, to: str
) -> None:
    adapters = layouts.adapters()
    convert(sources / "lora", tmp_path / "merged", *base_of(sources), "--merge", "--to", to, "--dtype", "float32")
    if to == "original":
        convert(tmp_path / "merged", tmp_path / "ours", "--vision-tower", sources / "clip")
    loaded, _ = load_model(tmp_path / ("ours" if to == "original" else "merged"), device="cpu")
    # the sum is rounded to the base's float16 before it is cast
    assert (logits(loaded) - logits(model.stock(adapters))).abs().max() < 0.02
    assert (logits(loaded) - logits(model.stock())).abs().max() > 0.1


def test_merging_rounds_once(sources: Path, model: Published, convert: Convert, tmp_path: Path) -> None:
    convert(sources / "lora", tmp_path / "merged", *base_of(sources), "--merge")
    got = load_file(tmp_path / "merged" / "model.safetensors")["language_model.model.layers.0.mlp.up_proj.weight"]
    expected = model.stock(layouts.adapters()).model.language_model.layers[0].mlp.up_proj.weight.half()
    assert got.dtype == torch.float16 and torch.equal(got, expected)


@pytest.mark.parametrize("missing", ["config.json", "non_lora_trainables.bin", "adapter_config.json"])
def test_what_a_release_lacks_is_named_and_taken_from_another(
    sources: Path, model: Published, convert: Convert, tmp_path: Path, missing: str, caplog: pytest.LogCaptureFixture
) -> None:
    """As the PruMerge authors' release, whose users borrowed from liuhaotian/llava-v1.5-7b-lora."""
    shutil.copytree(sources / "lora", tmp_path / "release")
    (tmp_path / "release" / missing).unlink()
    options = [*base_of(sources), "--reduction", "prumerge"]
    if missing != "config.json":
        with pytest.raises(LoadingError, match=rf"release: no {missing}.*--missing-from"):
            convert(tmp_path / "release", tmp_path / "nothing", *options)
    caplog.set_level(logging.WARNING)
    said = convert(tmp_path / "release", tmp_path / "ours", *options, "--missing-from", sources / "lora")
    assert f"{missing} from {sources / 'lora'}" in said[0]
    assert f"release has no {missing}" in caplog.text and f"taken from {sources / 'lora'}" in caplog.text
    record = json.loads((tmp_path / "ours" / "conversion.json").read_text())
    assert record["taken"][missing] == "lora"
    loaded, _ = load_model(tmp_path / "ours", {}, device="cpu")
    torch.testing.assert_close(logits(loaded), logits(model.stock(layouts.adapters())), atol=2e-5, rtol=1e-5)
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["reduction"] == {"vision": {"name": "prumerge"}}


def test_without_any_config_the_base_says_what_the_model_is(sources: Path, convert: Convert, tmp_path: Path) -> None:
    shutil.copytree(sources / "lora", tmp_path / "release")
    (tmp_path / "release" / "config.json").unlink()
    said = convert(tmp_path / "release", tmp_path / "ours", *base_of(sources))
    assert f"config.json (with LLaVA-1.5's settings) from {sources / 'vicuna'}" in said[0]
    assert load_model(tmp_path / "ours", device="cpu")[0].config.vision_feature_layer == -2


def write_projector(folder: Path, model: Published, sources: Path) -> None:
    """What LLaVA's stage 1 leaves: projector and configuration."""
    folder.mkdir()
    state = {f"model.mm_projector.{key}": value.half() for key, value in model.projector.items()}
    torch.save(state, folder / "mm_projector.bin")
    shutil.copyfile(sources / "lora" / "config.json", folder / "config.json")


@pytest.mark.parametrize("as_file", [True, False])
def test_a_projector_comes_in_alone(
    sources: Path, ours: Path, model: Published, convert: Convert, tmp_path: Path, as_file: bool
) -> None:
    write_projector(tmp_path / "stage1", model, sources)
    source = tmp_path / "stage1"
    if as_file:  # under any name
        source = Path(shutil.copyfile(source / "mm_projector.bin", tmp_path / "step_2181.bin"))
    convert(source, tmp_path / "ours")
    whole, _ = load_model(ours, device="cpu")
    with torch.no_grad():
        whole.model.multi_modal_projector.linear_1.weight.zero_()
    load_projector(whole, tmp_path / "ours")
    torch.testing.assert_close(logits(whole), logits(model.stock()), atol=2e-5, rtol=1e-5)
    convert(tmp_path / "ours", tmp_path / "back", "--to", "original")
    back, before = (
        torch.load(tmp_path / "back" / "mm_projector.bin"),
        torch.load(tmp_path / "stage1" / "mm_projector.bin"),
    )
    assert set(back) == set(before) and all(torch.equal(back[key], before[key]) for key in back)


def test_a_projector_with_its_base_is_a_model(
    sources: Path, model: Published, convert: Convert, tmp_path: Path
) -> None:
    write_projector(tmp_path / "stage1", model, sources)
    convert(tmp_path / "stage1", tmp_path / "ours", *base_of(sources))
    convert(tmp_path / "stage1", tmp_path / "whole", *base_of(sources), "--merge")
    for name in ("ours", "whole"):
        loaded, _ = load_model(tmp_path / name, device="cpu")
        torch.testing.assert_close(logits(loaded), logits(model.stock()), atol=2e-5, rtol=1e-5)
    assert type(AutoModelForImageTextToText.from_pretrained(tmp_path / "whole")) is type(loaded)
    convert(tmp_path / "ours", tmp_path / "back", "--to", "original")
    assert sorted(file.name for file in (tmp_path / "back").iterdir()) == ["config.json", "mm_projector.bin"]


def test_a_methods_parameters_are_merged_and_have_no_place_elsewhere(
    ours: Path, convert: Convert, tmp_path: Path
) -> None:
    block = {"decoder": {"name": "atp_llava", "layers": [1], "target": "15/16"}}
    model, processor = load_model(ours, block, device="cpu")
    names = [name for name, _ in model.named_parameters() if ".pruner." in name]
    state = {n: p.detach() for n, p in model.named_parameters() if ".pruner." in n or "multi_modal_projector" in n}
    state[names[0]] = torch.full_like(state[names[0]], 0.5)
    save_adapter(model, tmp_path / "ours", state, Base(model=str(ours)), processor)
    convert(tmp_path / "ours", tmp_path / "merged", "--merge")
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    assert merged.config.reduction == block and (merged.get_parameter(names[0]) == 0.5).all()
    for source in ("ours", "merged"):
        with pytest.raises(LoadingError, match="no place for the method's .*pruner.*--reduction none"):
            convert(tmp_path / source, tmp_path / "original", "--to", "original")
    convert(tmp_path / "merged", tmp_path / "original", "--to", "original", "--reduction", "none")
    assert "reduction" not in json.loads((tmp_path / "original" / "config.json").read_text())
