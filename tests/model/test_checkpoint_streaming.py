"""Conversion at size: memory while it streams, the files it writes, and every key of 7B and 13B without weights."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import published_layouts as layouts
import pytest
import torch
from published_layouts import Published
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoConfig, CLIPVisionModel, LlamaForCausalLM, LlavaForConditionalGeneration

from llava_prumerge.model.checkpoints.plan import with_rows
from llava_prumerge.model.tensor_files import Entry, Reader, Stored, write_tensors

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs" / "model"
Convert = Callable[..., list[str]]
MEASURE = """
import sys
from pathlib import Path
from llava_prumerge.model.checkpoints.__main__ import main

def peak():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024

small, large, tower, out = sys.argv[1:]
main(["convert", small, f"{out}/small", "--vision-tower", tower])  # libraries are loaded, the plan is made
before = peak()
main(["convert", large, f"{out}/large", "--vision-tower", tower])
print(peak() - before)
"""


def write_large(folder: Path, model: Published, tokenizer: bytes, suffix: str) -> tuple[int, int]:
    """An original checkpoint of eight shards of about 24 MB. -> bytes of the largest, and of all"""
    layers, width, inner = 8, 512, 7168
    layouts.write_original(folder, model, tokenizer, suffix)
    values = layouts.original_config() | dict(num_hidden_layers=layers, hidden_size=width, intermediate_size=inner)
    layouts.write_json(folder / "config.json", values)
    for file in folder.glob("*model-*"):
        file.unlink()
    with torch.device("meta"):
        config = AutoConfig.for_model("llama", **{key: values[key] for key in layouts.TEXT})
        empty = LlamaForCausalLM(config).state_dict()
    state = {key: torch.full(value.shape, 0.01, dtype=torch.float16) for key, value in empty.items()}
    shapes = {"0.weight": (width, 32), "0.bias": (width,), "2.weight": (width, width), "2.bias": (width,)}
    state |= {f"model.mm_projector.{key}": torch.ones(shape, dtype=torch.float16) for key, shape in shapes.items()}
    layouts.write_shards(folder, state, suffix, shards=layers)
    sizes = [file.stat().st_size for file in folder.glob(f"*model-*{suffix}")]
    return max(sizes), sum(sizes)


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the kernel does not say what the peak was")
@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
def test_the_peak_of_memory_is_under_twice_the_largest_shard(
    sources: Path, model: Published, tokenizer_model: bytes, tmp_path: Path, suffix: str
) -> None:
    largest, total = write_large(tmp_path / "source", model, tokenizer_model, suffix)
    assert total > 6 * largest > 6 * 20e6  # holding everything would show
    command = [sys.executable, "-c", MEASURE, sources / "original", tmp_path / "source", sources / "clip", tmp_path]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    grown = int(done.stdout.split()[-1])
    said = f"grew by {grown / 1e6:.1f} MB; the largest shard has {largest / 1e6:.1f} MB, all {total / 1e6:.1f} MB"
    print(said)
    assert 0 < grown < 2 * largest, said
    assert len(load_file(tmp_path / "large" / "model.safetensors")) == 8 * 9 + 3 + 4 + 55


def test_written_files_are_what_the_library_reads(tmp_path: Path) -> None:
    """All types, odd lengths (so that places would not be aligned), scalars, nothing at all, and tensors with strides."""
    torch.manual_seed(0)
    given = {
        "bytes": torch.arange(3, dtype=torch.uint8),
        "flags": torch.tensor([True, False, True]),
        "half": torch.randn(3).half(),
        "brain": torch.randn(5).bfloat16(),
        "wide": torch.randn(3, dtype=torch.float64),
        "scalar": torch.tensor(2.5),
        "nothing": torch.zeros(0, 4),
        "turned": torch.randn(4, 6).t(),
        "part": torch.randn(8, 3)[2:5],
        "count": torch.tensor([2**40]),
    }
    torch.save(given, tmp_path / "source.bin")
    stored = [Stored(key, tuple(value.shape), value.dtype, tmp_path / "source.bin") for key, value in given.items()]
    entries = [Entry(item.key, item.shape, item.dtype, (item,)) for item in stored]
    write_tensors(tmp_path / "made.safetensors", entries, Reader())
    got = load_file(tmp_path / "made.safetensors")
    assert set(got) == set(given)
    for key, value in given.items():
        assert got[key].dtype == value.dtype and torch.equal(got[key], value), key
    with safe_open(tmp_path / "made.safetensors", "pt") as opened:
        assert opened.metadata() == {"format": "pt"}


def test_rows_are_cut_and_filled_with_the_mean(tmp_path: Path) -> None:
    weight = torch.randn(5000, 3, generator=torch.Generator().manual_seed(0))
    torch.save({"w": weight}, tmp_path / "w.bin")
    entry = Entry("w", (5000, 3), torch.float32, (Stored("w", (5000, 3), torch.float32, tmp_path / "w.bin"),))
    grown = with_rows(entry, 5056).tensor(Reader())
    assert torch.equal(grown[:5000], weight) and torch.equal(
        grown[5000:], weight.double().mean(0).float().expand(56, 3)
    )
    assert torch.equal(with_rows(entry, 4999).tensor(Reader()), weight[:4999])
    assert with_rows(entry, 5000) is entry


LINE = re.compile(
    r"^(?P<key>\S+)  \[(?P<shape>[\d, ]*)\]  (?P<dtype>\w+)  <- (?P<file>\S+): (?P<source>\S+)  \((?P<how>.+)\)$"
)


LLAMA = {
    "7b": (4096, 32 * 9 + 3, 6_738_415_616),
    "13b": (5120, 40 * 9 + 3, 13_015_864_320),
}  # width, tensors, parameters
CLIP_TENSORS, CLIP_PARAMETERS = 24 * 16 + 7, 303_507_456  # of the vision tower at 336 pixels


@pytest.mark.parametrize("size", LLAMA)
def test_every_key_of_the_real_sizes_is_mapped_without_weights(convert: Convert, size: str) -> None:
    """Both ends are stock classes' own keys and shapes on the meta device, not this repository's tables."""
    width, tensors, parameters = LLAMA[size]
    count = tensors + CLIP_TENSORS + 4
    parameters += CLIP_PARAMETERS + 2 * 64 * width + (1024 + 1) * width + (width + 1) * width
    source, tower = CONFIGS / f"llava-v1.5-{size}", CONFIGS / "clip-vit-large-patch14-336"
    lines = [LINE.match(line) for line in convert(source, "--vision-tower", tower, "--to", "llava-hf", "--dry-run")]
    assert all(lines) and len(lines) == count
    shapes = {line["key"]: tuple(map(int, line["shape"].split(", "))) for line in lines}
    config = json.loads((source / "config.json").read_text())
    vision = AutoConfig.from_pretrained(tower)
    with torch.device("meta"):
        text = AutoConfig.for_model("llama", **{key: config[key] for key in layouts.TEXT})
        llama = LlamaForCausalLM(text)
        whole_text = text.to_dict() | {"vocab_size": 32064}
        stock_config = AutoConfig.for_model("llava", vision_config=vision.to_dict(), text_config=whole_text)
        stock = LlavaForConditionalGeneration(stock_config)
        clip = CLIPVisionModel(vision)
    keys = {  # of the older llava-hf layout
        key.replace("model.language_model.", "language_model.model.", 1)
        .replace("lm_head.", "language_model.lm_head.", 1)
        .replace("model.vision_tower.", "vision_tower.vision_model.", 1)
        .replace("model.multi_modal_projector.", "multi_modal_projector.", 1): tuple(value.shape)
        for key, value in stock.state_dict().items()
    }
    assert shapes == keys
    assert sum(value.numel() for value in stock.state_dict().values()) == parameters
    taken = [line["source"] for line in lines]
    projector = {f"model.mm_projector.{key}" for key in ("0.weight", "0.bias", "2.weight", "2.bias")}
    expected = set(llama.state_dict()) | projector | {f"vision_model.{key}" for key in clip.state_dict()}
    assert len(set(taken)) == count and set(taken) == expected
    for line in lines:
        from_tower = line["key"].startswith("vision_tower.")
        assert line["dtype"] == ("float32" if from_tower else "float16")
        assert line["file"] == str((tower if from_tower else source) / "config.json")
        grown = line["key"].endswith(("embed_tokens.weight", "lm_head.weight"))
        assert line["how"] == ("rows 32000 -> 32064, new ones their mean" if grown else "as it is")


def test_llava_hf_at_real_size_goes_out_as_the_original(convert: Convert, tmp_path: Path) -> None:
    """From the config.json on the Hub, which says the least it can and has the padding token one level up."""
    vision = dict(hidden_size=1024, image_size=336, intermediate_size=4096, model_type="clip_vision_model")
    vision |= dict(num_attention_heads=16, num_hidden_layers=24, patch_size=14, projection_dim=768, vocab_size=32000)
    text = dict(_name_or_path="lmsys/vicuna-7b-v1.5", architectures=["LlamaForCausalLM"], model_type="llama")
    text |= dict(max_position_embeddings=4096, rms_norm_eps=1e-05, torch_dtype="float16", vocab_size=32064)
    config = dict(architectures=["LlavaForConditionalGeneration"], ignore_index=-100, image_token_index=32000)
    config |= dict(model_type="llava", pad_token_id=32001, projector_hidden_act="gelu", tie_word_embeddings=False)
    config |= dict(torch_dtype="float16", vision_feature_layer=-2, vision_feature_select_strategy="default")
    layouts.write_json(
        tmp_path / "config.json", config | dict(text_config=text, vision_config=vision, vocab_size=32064)
    )
    lines = [LINE.match(line) for line in convert(tmp_path, "--to", "original", "--dry-run")]
    assert len(lines) == 291 + 4
    changed = {line["key"]: (line["shape"], line["how"]) for line in lines if line["how"] != "as it is"}
    assert changed == dict.fromkeys(
        ("model.embed_tokens.weight", "lm_head.weight"), ("32000, 4096", "rows 32064 -> 32000")
    )


def test_a_dry_run_writes_nothing_and_needs_weights_only_in_earnest(
    sources: Path, convert: Convert, tmp_path: Path
) -> None:
    words = [CONFIGS / "llava-v1.5-7b", tmp_path / "t", "--vision-tower", CONFIGS / "clip-vit-large-patch14-336"]
    convert(*words, "--dry-run")
    with pytest.raises(ValueError, match="llava-v1.5-7b holds no weights"):
        convert(*words)
    lines = convert(sources / "original", "--vision-tower", sources / "clip", "--dry-run")
    assert f"<- {sources / 'original' / 'pytorch_model-00001-of-00002.bin'}: model.embed_tokens.weight" in lines[0]
    assert not list(tmp_path.iterdir())
