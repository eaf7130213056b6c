"""What cannot be converted is refused with file and key, and nothing is left behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from published_layouts import Published
from safetensors.torch import load_file, save_file

from llava_prumerge.ground.errors import FileError, InputError
from llava_prumerge.model import tensor_files
from llava_prumerge.model.weight_files import LoadingError

Convert = Callable[..., list[str]]
SHARD = "pytorch_model-00002-of-00002.bin"


def edit_json(file: Path, change: Callable[[dict], Any]) -> None:
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value))


def edit_shard(file: Path, change: Callable[[dict], Any]) -> None:
    value = torch.load(file)
    change(value)
    torch.save(value, file)


def truncate(file: Path, share: float = 0.6) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])


def mixed_keys(folder: Path) -> None:
    """A shard of llava-hf among the original ones, and the index says so too."""
    old, new = "model.norm.weight", "language_model.model.norm.weight"
    edit_shard(folder / SHARD, lambda shard: shard.update({new: shard.pop(old)}))
    edit_json(
        folder / "pytorch_model.bin.index.json",
        lambda index: index["weight_map"].update({new: index["weight_map"].pop(old)}),
    )


def twice(folder: Path) -> None:
    edit_shard(folder / SHARD, lambda shard: shard.update({"model.embed_tokens.weight": torch.zeros(320, 64)}))


def lacking(folder: Path) -> None:
    edit_shard(folder / SHARD, lambda shard: shard.pop("lm_head.weight"))
    edit_json(folder / "pytorch_model.bin.index.json", lambda index: index["weight_map"].pop("lm_head.weight"))


ORIGINAL = {
    "no weights": (
        lambda f: [p.unlink() for p in f.glob("pytorch_model*")],
        r"holds no weights: neither model.safetensors nor pytorch_model.bin",
    ),
    "a shard missing": (
        lambda f: (f / SHARD).unlink(),
        rf"{SHARD} does not exist .pytorch_model.bin.index.json places .* there",
    ),
    "a shard truncated": (lambda f: truncate(f / SHARD), rf"{SHARD} is truncated.*places .*model.layers.1"),
    "a shard empty": (lambda f: (f / SHARD).write_bytes(b""), rf"{SHARD} is empty"),
    "a pointer": (
        lambda f: (f / SHARD).write_bytes(b"version https://git-lfs.github.com/spec/v1\n"),
        rf"{SHARD} is a Git LFS pointer",
    ),
    "no pickle": (
        lambda f: (f / SHARD).write_bytes(b"<html>not found</html>" * 9),
        rf"{SHARD} is no file of torch.save",
    ),
    "no index": (
        lambda f: (f / "pytorch_model.bin.index.json").unlink(),
        r"pytorch_model.bin.index.json, which says what else, is missing",
    ),
    "an index truncated": (lambda f: truncate(f / "pytorch_model.bin.index.json"), r"index.json: .*not JSON"),
    "an index out of the folder": (
        lambda f: edit_json(
            f / "pytorch_model.bin.index.json", lambda v: v["weight_map"].update({"lm_head.weight": "../x.bin"})
        ),
        r"places lm_head.weight in '../x.bin'",
    ),
    "a shard of another": (
        twice,
        rf"{SHARD} holds model.embed_tokens.weight \(1 in all\), which the index does not place there",
    ),
    "a key lost from a shard": (
        lambda f: edit_shard(f / SHARD, lambda v: v.pop("model.norm.weight")),
        rf"{SHARD} lacks model.norm.weight \(1 in all\), which the index places there",
    ),
    "a key lost from the model": (lacking, r"lacks lm_head.weight"),
    "two layouts": (
        mixed_keys,
        rf"{SHARD}: language_model.model.norm.weight is of the hf-older layout, the rest is of the original layout: two are mixed",
    ),
    "another shape": (
        lambda f: edit_shard(f / SHARD, lambda v: v.update({"model.norm.weight": torch.zeros(65)})),
        rf"{SHARD}: model.norm.weight is \(65,\), the configuration makes it \(64,\)",
    ),
    "no tensor": (
        lambda f: edit_shard(f / SHARD, lambda v: v.update({"model.norm.weight": 3})),
        rf"{SHARD}: model.norm.weight is a int",
    ),
    "code": (
        lambda f: torch.save({"model.norm.weight": truncate}, f / SHARD),
        rf"{SHARD} is damaged or holds more than tensors",
    ),
    "no config": (lambda f: (f / "config.json").unlink(), r"holds no config.json"),
    "config truncated": (lambda f: truncate(f / "config.json"), r"config.json: .*not JSON"),
    "no size": (
        lambda f: edit_json(f / "config.json", lambda v: v.pop("hidden_size")),
        r"config.json has no hidden_size",
    ),
    "another projector": (
        lambda f: edit_json(f / "config.json", lambda v: v.update(mm_projector_type="linear")),
        r"mm_projector_type is 'linear'; converted are 'mlp2x_gelu'",
    ),
    "LLaVA-1.6": (
        lambda f: edit_json(f / "config.json", lambda v: v.update(image_aspect_ratio="anyres")),
        r"image_aspect_ratio is 'anyres'",
    ),
    "another tower": (
        lambda f: edit_json(f / "config.json", lambda v: v.update(mm_hidden_size=1024)),
        r"mm_hidden_size is 1024, but the vision tower is 32 wide",
    ),
    "another depth": (
        lambda f: edit_json(f / "config.json", lambda v: v.update(num_hidden_layers=1)),
        r"model.layers.1.* is no parameter of this model",
    ),
    "no tokenizer": (lambda f: (f / "tokenizer.model").unlink(), r"no tokenizer.json and no tokenizer.model"),
    "a tokenizer truncated": (
        lambda f: truncate(f / "tokenizer.model"),
        r"no tokenizer there can be read .*: tokenizer.model is damaged",
    ),
    "a text model": (lambda f: edit_json(f / "config.json", lambda v: v.update(model_type="llama")), r"of a 'llama'"),
}


@pytest.mark.parametrize("case", ORIGINAL)
def test_a_damaged_original_is_refused_by_name(sources: Path, convert: Convert, tmp_path: Path, case: str) -> None:
    harm, message = ORIGINAL[case]
    shutil.copytree(sources / "original", tmp_path / "source")
    harm(tmp_path / "source")
    with pytest.raises(LoadingError, match=message) as caught:
        convert(tmp_path / "source", tmp_path / "target", "--vision-tower", sources / "clip")
    assert "\n" not in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == ["source"]


def test_damaged_safetensors_are_refused_by_name(sources: Path, convert: Convert, tmp_path: Path) -> None:
    shutil.copytree(sources / "original-safetensors", tmp_path / "source")
    shard = tmp_path / "source" / "model-00001-of-00002.safetensors"
    truncate(shard)
    with pytest.raises(LoadingError, match=r"model-00001-of-00002.safetensors is truncated.*places"):
        convert(tmp_path / "source", tmp_path / "target", "--vision-tower", sources / "clip")
    state = load_file(sources / "original-safetensors" / shard.name)
    state["model.embed_tokens.weight"] = state["model.embed_tokens.weight"].to(torch.float8_e4m3fn)
    save_file(state, shard)
    with pytest.raises(LoadingError, match=r"model.embed_tokens.weight is F8_E4M3; read are"):
        convert(tmp_path / "source", tmp_path / "target", "--vision-tower", sources / "clip")
    assert [file.name for file in tmp_path.iterdir()] == ["source"]


def test_a_failure_while_writing_leaves_nothing(
    sources: Path, convert: Convert, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk, after a first shard has been written."""
    real, written = tensor_files.write_tensors, []

    def full_disk(file: Path, *rest: Any) -> None:
        if written:
            assert list(tmp_path.glob(".target.unfinished/model-00001*"))
            raise OSError(28, "No space left on device")
        written.append(file)
        real(file, *rest)

    monkeypatch.setattr(tensor_files, "write_tensors", full_disk)
    words = [sources / "original", tmp_path / "target", "--vision-tower", sources / "clip"]
    with pytest.raises(FileError, match="target: cannot be written: the disk is full"):
        convert(*words, "--shard-size", "0.0001")
    assert written and not list(tmp_path.iterdir())
    monkeypatch.undo()
    convert(*words)
    assert [file.name for file in tmp_path.iterdir()] == ["target"]


def test_what_is_converted_already_is_refused(ours: Path, sources: Path, convert: Convert, tmp_path: Path) -> None:
    with pytest.raises(LoadingError, match=r"is in the ours layout already"):
        convert(ours, tmp_path / "target")
    tower = ["--vision-tower", sources / "clip"]
    with pytest.raises(LoadingError, match=r"is in the original layout already"):
        convert(sources / "original", tmp_path / "target", "--to", "original", *tower)
    shutil.copytree(sources / "original", tmp_path / "source")
    for file in (tmp_path / "source").glob("pytorch_model*"):
        file.unlink()
    shutil.copyfile(ours / "model.safetensors", tmp_path / "source" / "model.safetensors")
    with pytest.raises(
        LoadingError, match=r"config.json says original layout, but .*model.safetensors: .* of the ours layout"
    ):
        convert(tmp_path / "source", tmp_path / "target", *tower)
    with pytest.raises(LoadingError, match=r"of a 'clip'"):
        convert(sources / "clip", tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_a_target_is_never_overwritten(sources: Path, convert: Convert, tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "mine.txt").write_text("precious")
    with pytest.raises(FileError, match="exists already"):
        convert(sources / "original", tmp_path / "target", "--vision-tower", sources / "clip")
    assert (tmp_path / "target" / "mine.txt").read_text() == "precious"
    (tmp_path / "target" / "mine.txt").unlink()
    convert(sources / "original", tmp_path / "target", "--vision-tower", sources / "clip")
    assert (tmp_path / "target" / "config.json").is_file()


def test_what_is_missing_on_the_command_line_is_named(
    sources: Path, ours: Path, convert: Convert, tmp_path: Path
) -> None:
    for words, message in (
        ([tmp_path / "nowhere", tmp_path / "t"], "nowhere: does not exist"),
        ([sources / "original"], "name the folder to make"),
        (
            [sources / "original", tmp_path / "t"],
            "--vision-tower names the folder of openai/clip-vit-large-patch14-336",
        ),
        (
            [sources / "original", tmp_path / "t", "--vision-tower", tmp_path / "no"],
            "--vision-tower .*no: does not exist",
        ),
        ([sources / "lora", tmp_path / "t"], "--language-model names the folder of lmsys/vicuna-7b-v1.5"),
        ([ours, tmp_path / "t", "--to", "original", "--merge"], "nothing to merge"),
        ([ours, tmp_path / "t", "--to", "llava-hf", "--keep-rows"], "are for whole models that go --to original"),
        (
            [ours, tmp_path / "t", "--to", "llava-hf", "--reduction", "prumerg"],
            "method 'prumerg' is not known; did you mean 'prumerge'",
        ),
        ([ours, tmp_path / "t", "--to", "llava-hf", "--reduction", "no.yaml"], "no.yaml: no such file"),
    ):
        with pytest.raises(InputError, match=message):
            convert(*words)
    assert not list(tmp_path.iterdir())


def change_adapter(folder: Path, change: Callable[[dict], Any]) -> None:
    edit_shard(folder / "adapter_model.bin", change)


A0 = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
LORA = {
    "no adapters": (
        lambda f: (f / "adapter_model.bin").unlink(),
        r"no adapter_model.safetensors and no adapter_model.bin",
    ),
    "truncated": (lambda f: truncate(f / "adapter_model.bin"), r"adapter_model.bin is truncated"),
    "a matrix lost": (
        lambda f: change_adapter(f, lambda v: v.pop(A0)),
        r"adapter_model.bin lacks base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
    ),
    "both lost": (
        lambda f: change_adapter(f, lambda v: [v.pop(A0), v.pop(A0.replace("_A", "_B"))]),
        r"adapter_model.bin lacks .*layers.0.self_attn.q_proj.lora_A.weight",
    ),
    "another rank": (
        lambda f: edit_json(f / "adapter_config.json", lambda v: v.update(r=8)),
        r"lora_A.weight is \(4, 64\); rank 8",
    ),
    "another model": (
        lambda f: change_adapter(f, lambda v: v.update({A0: torch.zeros(4, 65)})),
        r"q_proj.lora_A.weight is \(4, 65\)",
    ),
    "another depth": (
        lambda f: change_adapter(f, lambda v: v.update({A0.replace("layers.0", "layers.7"): v.pop(A0)})),
        r"layers.7.* is no LoRA matrix of this model",
    ),
    "not LoRA": (
        lambda f: change_adapter(f, lambda v: v.update({"base_model.model.model.layers.0.mlp.x.bias": v.pop(A0)})),
        r"mlp.x.bias is no LoRA matrix",
    ),
    "DoRA": (
        lambda f: edit_json(f / "adapter_config.json", lambda v: v.update(use_dora=True)),
        r"use_dora is True; plain LoRA",
    ),
    "another base": (
        lambda f: edit_json(f / "config.json", lambda v: v.update(hidden_size=5120)),
        r"hidden_size is 5120 in config.json, but 64 in",
    ),
    "a projector lost": (
        lambda f: edit_shard(
            f / "non_lora_trainables.bin", lambda v: v.pop("base_model.model.model.mm_projector.2.bias")
        ),
        r"non_lora_trainables.bin lacks model.mm_projector.2.bias",
    ),
    "another projector": (
        lambda f: edit_shard(
            f / "non_lora_trainables.bin",
            lambda v: v.update({"base_model.model.model.mm_projector.0.weight": torch.zeros(64, 33)}),
        ),
        r"mm_projector.0.weight is \(64, 33\)",
    ),
    "more than a projector": (
        lambda f: edit_shard(
            f / "non_lora_trainables.bin", lambda v: v.update({"base_model.model.model.norm.weight": torch.zeros(64)})
        ),
        r"model.norm.weight is not of the projector",
    ),
}


@pytest.mark.parametrize("case", LORA)
def test_damaged_adapters_are_refused_by_name(sources: Path, convert: Convert, tmp_path: Path, case: str) -> None:
    harm, message = LORA[case]
    shutil.copytree(sources / "lora", tmp_path / "source")
    harm(tmp_path / "source")
    base = ["--language-model", sources / "vicuna", "--vision-tower", sources / "clip"]
    with pytest.raises(LoadingError, match=message):
        convert(tmp_path / "source", tmp_path / "target", *base)
    assert [file.name for file in tmp_path.iterdir()] == ["source"]


def test_a_lone_projector_is_checked(model: Published, convert: Convert, tmp_path: Path) -> None:
    file = tmp_path / "mm_projector.bin"
    state = {f"model.mm_projector.{key}": value for key, value in model.projector.items()}
    for change, message in (
        ({"model.mm_projector.2.weight": torch.zeros(64, 63)}, r"mm_projector.2.weight is \(64, 63\)"),
        ({"model.mm_projector.4.weight": torch.zeros(1)}, r"mm_projector.4.weight is of no layout"),
        ({"model.norm.weight": torch.zeros(1)}, r"model.norm.weight is no parameter"),
    ):
        torch.save(state | change, file)
        with pytest.raises(LoadingError, match=message):
            convert(file, tmp_path / "target")
    assert not (tmp_path / "target").exists()
