"""Weights that do not fit, are damaged or not finite are one line with the file, wherever they are read; sound ones load."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_llava import rows_of, tiny_model, write_processor
from torch import Tensor

from llava_prumerge.model.adapters import Base, load_complete, save_adapter
from llava_prumerge.model.assembling import assemble, load_projector
from llava_prumerge.model.loading import load_model
from llava_prumerge.model.parts import load_tower
from llava_prumerge.model.weight_files import LoadingError, is_finite, read_header
from llava_prumerge.train.stages import LORA_TARGETS

ATP = {"decoder": {"name": "atp_llava"}}
WORDS = rows_of([1, 5, 6, 7, 8])


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Projector, method and adapters of random values in `lora`, beside their `base`. Not to be changed."""
    root = tmp_path_factory.mktemp("parts")
    tiny_model().save_pretrained(root / "base")
    write_processor(root / "base")
    base = Base(model=str(root / "base"))
    model, processor = base.build(reduction=ATP)
    model.requires_grad_(False)
    wrapped = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=LORA_TARGETS))
    trained = ("lora_", "multi_modal_projector", "pruner")
    torch.manual_seed(3)
    with torch.no_grad():
        state = {
            name: value.normal_(0, 0.3).clone()
            for name, value in wrapped.named_parameters()
            if any(word in name for word in trained)
        }
    save_adapter(wrapped, root / "lora", state, base, processor)
    return root


@pytest.fixture
def copy(parts: Path, tmp_path: Path) -> Path:
    shutil.copytree(parts, tmp_path / "copy")
    return tmp_path / "copy"


def edit(file: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    weights = load_file(file)
    change(weights)
    save_file({key: value.contiguous() for key, value in weights.items()}, file, {"format": "pt"})


def drop_half(weights: dict[str, Tensor]) -> None:
    for key in list(weights)[::2]:
        del weights[key]


def rename(weights: dict[str, Tensor]) -> None:
    for key in list(weights):
        weights[key.replace("layers.", "layers.7")] = weights.pop(key)


def spoil(value: float, key: int = 0) -> Callable[[dict[str, Tensor]], None]:
    def change(weights: dict[str, Tensor]) -> None:
        weights[sorted(weights)[key]].view(-1)[-1] = value

    return change


def crop(weights: dict[str, Tensor]) -> None:
    key = sorted(weights)[0]
    weights[key] = weights[key][:-1]


WEIGHTS: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "half of the tensors gone": (drop_half, r"lacks weights: .* in all\)"),
    "one tensor gone": (lambda w: w.pop(sorted(w)[0]), r"lacks weights: .*\(1 in all\)"),
    "one tensor more": (lambda w: w.update(extra=torch.zeros(2)), r"has unknown weights: extra \(1 in all\)"),
    "all tensors gone": (lambda w: w.clear(), r"lacks weights: .* in all\)"),
    "another shape": (crop, r"has misshapen weights: \S+ \(.*\) \(needed \(.*\)\) \(1 in all\)"),
    "a NaN": (spoil(float("nan")), r"NaN or infinite: .*\(1 in all\)"),
    "an infinity": (spoil(float("-inf"), 1), r"NaN or infinite: .*\(1 in all\)"),
}
FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "cut": (lambda f: f.write_bytes(f.read_bytes()[:-9]), r" is truncated: [\d,]+ bytes, its header says [\d,]+"),
    "cut in the header": (lambda f: f.write_bytes(f.read_bytes()[:40]), r" is truncated: 40 bytes"),
    "longer": (lambda f: f.write_bytes(f.read_bytes() + b"more"), r" is damaged"),
    "empty": (lambda f: f.write_bytes(b""), r" is empty"),
    "a Git LFS pointer": (lambda f: f.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), r" is a Git LFS pointer.*git lfs pull"),
    "no safetensors": (lambda f: f.write_bytes(b"\xff" * 4000), r" is no safetensors file"),
    "a header of another kind": (lambda f: f.write_bytes((4).to_bytes(8, "little") + b"[1] "), r" is damaged .*its header lists no tensors"),
    "a folder": (lambda f: (f.unlink(), f.mkdir()), r" is a folder"),
}  # fmt: skip
PARTS = ("adapter_model.safetensors", "mm_projector.safetensors", "method.safetensors")


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("case", WEIGHTS)
def test_trained_parts_that_do_not_fit_are_refused(copy: Path, name: str, case: str) -> None:
    change, message = WEIGHTS[case]
    edit(copy / "lora" / name, change)
    with pytest.raises(LoadingError, match=rf"{name}.* {message}") as caught:
        load_model(copy / "lora", device="cpu")
    assert "\n" not in str(caught.value)


def test_adapters_renamed_to_layers_that_do_not_exist_are_refused(copy: Path) -> None:
    edit(copy / "lora" / PARTS[0], rename)
    with pytest.raises(LoadingError, match=r"lacks weights: .* \(56 in all\); has unknown weights: .*layers.7"):
        load_model(copy / "lora", device="cpu")


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("case", FILES)
def test_a_damaged_file_is_named(copy: Path, name: str, case: str) -> None:
    harm, message = FILES[case]
    harm(copy / "lora" / name)
    with pytest.raises(LoadingError, match=name + message) as caught:
        load_model(copy / "lora", device="cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("adapter_model.safetensors", r"lora has adapter_config.json but no adapter_model.safetensors"),
        ("adapter_config.json", r"lora has adapter_model.safetensors but no adapter_config.json"),
        ("mm_projector.safetensors", r"mm_projector.safetensors does not exist"),
        ("method.safetensors", r"method.safetensors lacks weights: "),
        ("base.json", r"holds adapters .adapter_config.json. and no whole model"),
        ("config.json", r"lora has no config.json"),
    ],
)
def test_a_missing_file_is_never_looked_for_on_the_hub(
    copy: Path, monkeypatch: pytest.MonkeyPatch, gone: str, message: str
) -> None:
    """The folder's name, `copy/lora`, would be a name on the Hub."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError(f"the Hub was asked: {args} {kwargs}")

    import huggingface_hub
    from huggingface_hub.utils import _http

    monkeypatch.setattr(_http, "http_backoff", refuse)
    for module in ("peft.utils.save_and_load", "peft.config"):
        monkeypatch.setattr(f"{module}.hf_hub_download", refuse)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)
    monkeypatch.setattr(huggingface_hub.HfApi, "file_exists", refuse)
    monkeypatch.chdir(copy.parent)
    (copy / "lora" / gone).unlink()
    with pytest.raises(LoadingError, match=message):
        load_model(Path("copy") / "lora", device="cpu")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("{", "is no configuration of adapters"),
        ('{"peft_type": "NONSENSE"}', "is no configuration of adapters"),
        ('{"r": 8}', "adapter_config.json is no configuration of adapters|misshapen"),
        ('{"r": 8, "target_modules": "nowhere"}', "is no configuration of adapters for this model: .*nowhere"),
    ],
)
def test_a_configuration_of_other_adapters_is_refused(copy: Path, values: str, message: str) -> None:
    file = copy / "lora" / "adapter_config.json"
    file.write_text(values if values == "{" else json.dumps(json.loads(file.read_text()) | json.loads(values)))
    with pytest.raises(LoadingError, match=message):
        load_model(copy / "lora", device="cpu")


def test_sound_adapters_load_as_pefts_own_loader_loads_them(parts: Path) -> None:
    ours, _ = load_model(parts / "lora", device="cpu")
    base, _ = Base(model=str(parts / "base")).build(parts / "lora" / PARTS[1], ATP)
    theirs = PeftModel.from_pretrained(base, str(parts / "lora"), torch_device="cpu").merge_and_unload()
    stored = load_file(parts / "lora" / PARTS[2])
    assert stored and all(torch.equal(ours.model.state_dict()[name], value) for name, value in stored.items())
    plain, found = tiny_model().state_dict(), ours.state_dict()
    for name, value in theirs.state_dict().items():
        assert "pruner" in name or torch.equal(found[name], value), name
    adapted = [name for name, value in plain.items() if not torch.equal(found[name], value)]
    assert sum("self_attn" in name for name in adapted) == 4 * 4 and sum("mlp" in name for name in adapted) == 4 * 3
    assert not any("vision_tower" in name for name in adapted)


WHOLE = {name: WEIGHTS[name] for name in ("a NaN", "an infinity")}


@pytest.mark.parametrize("case", WHOLE)
def test_a_whole_model_that_is_not_finite_is_refused(copy: Path, case: str) -> None:
    change, message = WHOLE[case]
    edit(copy / "base" / "model.safetensors", change)
    with pytest.raises(LoadingError, match=rf"base holds weights that are {message}"):
        load_model(copy / "base", device="cpu")


@pytest.mark.parametrize("case", FILES)
def test_a_whole_models_damaged_file_is_named(copy: Path, case: str) -> None:
    harm, message = FILES[case]
    harm(copy / "base" / "model.safetensors")
    with pytest.raises(LoadingError, match="model.safetensors" + message) as caught:
        load_model(copy / "base", device="cpu")
    assert "\n" not in str(caught.value)


def shard(folder: Path) -> list[Path]:
    """Write a folder's model anew, in several files."""
    model, _ = load_model(folder, device="cpu")
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="100KB")
    return sorted(folder.glob("model-*.safetensors"))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda files: files[1].unlink(), r"model-00002-of-\d+.safetensors does not exist"),
        (lambda files: FILES["cut"][0](files[-1]), r"-of-\d+.safetensors is truncated"),
        (lambda files: (files[0].parent / "model.safetensors.index.json").write_text("{"), r"index.json: .*not JSON"),
        (lambda files: (files[0].parent / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../x"}}'), r"places a in '../x'"),
    ],
)  # fmt: skip
def test_a_shard_is_named(copy: Path, harm: Callable, message: str) -> None:
    files = shard(copy / "base")
    assert len(files) > 2
    load_model(copy / "base", device="cpu")
    harm(files)
    with pytest.raises(LoadingError, match=message):
        load_model(copy / "base", device="cpu")


@pytest.fixture
def backbones(tmp_path: Path) -> tuple[Path, Path]:
    """A language model and a vision tower in folders of their own."""
    from transformers import LlamaForCausalLM

    model = tiny_model()
    language = LlamaForCausalLM(model.config.text_config)
    language.save_pretrained(tmp_path / "llama")
    model.model.vision_tower.save_pretrained(tmp_path / "clip")
    for name in ("llama", "clip"):
        write_processor(tmp_path / f"{name}-processor")
        for file in (tmp_path / f"{name}-processor").iterdir():
            shutil.copy(file, tmp_path / name / file.name)
    return tmp_path / "llama", tmp_path / "clip"


def test_backbones_that_do_not_fit_are_refused(backbones: tuple[Path, Path]) -> None:
    """transformers alone starts what is missing at random, with a warning."""
    language, tower = backbones
    assemble(language, tower)
    for folder in backbones:
        file = folder / "model.safetensors"
        sound = file.read_bytes()
        for case, (change, message) in WEIGHTS.items():
            edit(file, change)
            with pytest.raises(LoadingError, match=rf"{folder.name} .*{message}"):
                assemble(language, tower)
            file.write_bytes(sound)
            assert case


def test_a_whole_clip_serves_as_a_tower(tmp_path: Path) -> None:
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig

    vision = tiny_model().config.vision_config
    text = CLIPTextConfig(
        vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    whole = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict()))
    whole.save_pretrained(tmp_path)
    tower = load_tower(tmp_path, torch.float32)
    assert all(
        torch.equal(value, whole.state_dict()[f"vision_model.{name.removeprefix('vision_model.')}"])
        for name, value in tower.state_dict().items()
    )


def test_a_projector_file_is_checked_by_itself(copy: Path) -> None:
    file = copy / "lora" / PARTS[1]
    load_projector(tiny_model(), file)
    edit(file, spoil(float("inf")))
    with pytest.raises(LoadingError, match=rf"{PARTS[1]} holds weights that are NaN or infinite"):
        load_projector(tiny_model(), file)


def test_a_full_models_checkpoint_is_put_back_strictly(copy: Path) -> None:
    model = tiny_model()
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    folder = copy / "full"
    model.save_pretrained(folder, save_original_format=False, max_shard_size="100KB")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    load_complete(model, folder)
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    edit(sorted(folder.glob("*.safetensors"))[0], drop_half)
    with pytest.raises(LoadingError, match=r"full lacks weights: "):
        load_complete(model, folder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_finite_is_told_in_every_type(dtype: torch.dtype) -> None:
    sound = torch.linspace(-400, 400, 1001).to(dtype)
    assert is_finite(sound) and is_finite(sound[:0]) and is_finite(sound.reshape(7, 143))
    for value in (float("nan"), float("inf"), float("-inf")):
        for place in (0, 500, 1000):
            spoiled = sound.to(torch.float32)
            spoiled[place] = value
            if dtype != torch.float8_e4m3fn or value != value:  # that type has no infinity
                assert not is_finite(spoiled.to(dtype)), (value, place)
    assert is_finite(torch.tensor([1, 2], dtype=torch.uint8)) and is_finite(torch.empty(3, device="meta"))


def test_a_header_tells_where_a_tensor_lies(parts: Path) -> None:
    file = parts / "lora" / PARTS[1]
    content, weights = file.read_bytes(), load_file(file)
    for name, entry in read_header(file).items():
        assert entry.shape == tuple(weights[name].shape) and entry.dtype == "F32"
        assert content[entry.begin : entry.end] == weights[name].numpy().tobytes()


def test_the_converter_refuses_weights_that_are_not_finite(sources: Path, convert: Callable, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(sources / "original-safetensors", source)
    file = sorted(source.glob("*.safetensors"))[-1]
    edit(file, spoil(float("nan")))
    with pytest.raises(LoadingError, match=rf"{file.name}: \S+ holds values that are NaN or infinite"):
        convert(source, tmp_path / "target", "--vision-tower", sources / "clip")
    assert not (tmp_path / "target").exists()
