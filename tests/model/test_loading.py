"""Checkpoints in and out: stock Llava, ours, parts put together; what does not fit is one clear error."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_llava import (
    IMAGE,
    PATCHES,
    REDUCTIONS,
    pixels,
    rows_of,
    sample_rows,
    stock_twin,
    tiny_config,
    tiny_model,
    write_processor,
)
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPImageProcessor,
    CLIPModel,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    PreTrainedTokenizerFast,
)

from llava_prumerge.ground.errors import InputError
from llava_prumerge.methods import registry
from llava_prumerge.methods.base import DecoderPruner, DecoderShape, DecoderTokens
from llava_prumerge.methods.settings import Settings
from llava_prumerge.model.assembling import assemble, load_projector, parse_dtype
from llava_prumerge.model.loading import load_model
from llava_prumerge.model.modeling import PruMergeLlavaForConditionalGeneration
from llava_prumerge.model.weight_files import LoadingError


@pytest.fixture(scope="module")
def stock_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as llava-hf publishes them, with its processor."""
    folder = tmp_path_factory.mktemp("stock")
    stock_twin(tiny_model()).save_pretrained(folder)
    write_processor(folder)
    return folder


def inputs() -> dict[str, torch.Tensor]:
    return rows_of(*sample_rows()) | {"pixel_values": pixels(4)}


def test_stock_checkpoints_load_with_every_key_and_any_method(stock_folder: Path) -> None:
    """T1, T6: a new model type must not lose the key renaming of LLaVA checkpoints."""
    model, processor = load_model(stock_folder, device="cpu")
    expected = stock_twin(tiny_model())(**inputs()).logits
    real = inputs()["attention_mask"].bool()
    torch.testing.assert_close(model(**inputs()).logits[real], expected[real], atol=1e-5, rtol=1e-5)
    assert model.config.model_type == "prumerge_llava" and model.config.reduction is None
    assert processor.tokenizer("w3 <image>")["input_ids"] == [3, IMAGE]
    reduced, _ = load_model(stock_folder, REDUCTIONS["prumerge_plus"], device="cpu")
    assert reduced.config.reduction == REDUCTIONS["prumerge_plus"] and not reduced.training
    assert reduced(**inputs()).logits.shape[1] < expected.shape[1]


@pytest.mark.parametrize("layout", ["older", "newer"])
def test_both_key_layouts_of_llava_hf_load(stock_folder: Path, tmp_path: Path, layout: str) -> None:
    weights = tiny_model().state_dict()
    older = [
        ("model.language_model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
        ("model.vision_tower.", "vision_tower.vision_model."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
    ]
    if layout == "older":
        renamed = {}
        for key, value in weights.items():
            new = next((b + key.removeprefix(a) for a, b in older if key.startswith(a)), key)
            renamed[new] = value
        weights = renamed
    save_file(
        {key: value.contiguous() for key, value in weights.items()}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    tiny_config(cls=LlavaConfig).save_pretrained(tmp_path)
    write_processor(tmp_path)
    model, _ = load_model(tmp_path, device="cpu")
    torch.testing.assert_close(model(**inputs()).logits, tiny_model()(**inputs()).logits)


@pytest.mark.parametrize("name", REDUCTIONS)
def test_round_trip_through_the_auto_classes(name: str, tmp_path: Path) -> None:
    model = tiny_model(REDUCTIONS[name])
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["reduction"] == REDUCTIONS[name]
    again = AutoModelForImageTextToText.from_pretrained(tmp_path, attn_implementation="sdpa").eval()
    assert type(again) is PruMergeLlavaForConditionalGeneration
    assert torch.equal(model(**inputs()).logits, again(**inputs()).logits)


def test_one_line_is_enough_for_the_auto_class(tmp_path: Path) -> None:
    """In a process of its own, and with transformers imported in an unlucky order."""
    tiny_model(REDUCTIONS["prumerge_plus"]).save_pretrained(tmp_path)
    script = (
        "from transformers import LlamaModel, AutoModelForImageTextToText\n"
        "import llava_prumerge\n"
        "llava_prumerge.register()\n"
        f"print(type(AutoModelForImageTextToText.from_pretrained({str(tmp_path)!r})).__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.split() == ["PruMergeLlavaForConditionalGeneration"], done.stderr[-2000:]


class Threshold(DecoderPruner):
    """A learned method, for the tests."""

    name = "threshold_of_the_tests"

    def __init__(self, settings: Settings, shape: DecoderShape, start: float = 0.25) -> None:
        super().__init__(settings, shape, (1,))
        self.start = start
        self.theta = nn.Parameter(torch.empty(shape.layers))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.theta, self.start)

    def forward(self, layer: int, tokens: DecoderTokens) -> torch.Tensor:
        layout = tokens.layout
        row = tokens.attention(layer - 1, layout.last_index()[:, None]).mean(1)[:, 0]
        gate = torch.sigmoid((row * row.shape[1] - self.theta[layer]) * 10)
        if self.training:
            return torch.where(layout.is_image, gate, 1.0)
        return ~layout.is_image | (gate > 0.5)

    def loss(self) -> torch.Tensor:
        return self.theta.sum()


@pytest.fixture
def threshold(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, str]]:
    registry.discover()
    monkeypatch.setitem(registry._REGISTRY, Threshold.name, Threshold)
    return {"decoder": {"name": Threshold.name}}


def test_a_method_with_parameters_starts_at_its_own_values(stock_folder: Path, threshold: dict) -> None:
    """T2: transformers builds on meta; parameters that a checkpoint lacks must not be left as memory held them."""
    model, _ = load_model(stock_folder, threshold, device="cpu")
    pruner = model.model.language_model.pruner
    assert torch.equal(pruner.theta.detach(), torch.full((4,), 0.25))


def test_soft_gates_reach_the_loss_through_sdpa_and_checkpointing(threshold: dict) -> None:
    for checkpointing in (False, True):
        model = tiny_model(threshold).train()
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        given = inputs()
        labels = given["input_ids"].masked_fill(given["input_ids"] == IMAGE, -100)
        model(**given, labels=labels, use_cache=False).loss.backward()
        grad = model.model.language_model.pruner.theta.grad
        assert grad[1] != 0 and grad[0] == grad[2] == grad[3] == 0
        assert model.method_loss() is not None


def test_a_method_with_parameters_keeps_them_in_the_checkpoint(tmp_path: Path, threshold: dict) -> None:
    model = tiny_model(threshold)
    with torch.no_grad():
        model.model.language_model.pruner.theta.fill_(0.7)
    model.save_pretrained(tmp_path)
    write_processor(tmp_path)
    again, _ = load_model(tmp_path, device="cpu")
    assert torch.equal(again.model.language_model.pruner.theta.detach(), torch.full((4,), 0.7))


def write_parts(
    folder: Path, whole_clip: bool, with_image_token: bool
) -> tuple[Path, Path, LlamaForCausalLM, CLIPVisionModel]:
    """A language model with tokenizer, and a CLIP with its image processor, as they come from the Hub."""
    config = tiny_config()
    torch.manual_seed(2)
    text = LlamaConfig(
        **{**config.text_config.to_dict(), "vocab_size": 100 if with_image_token else 99, "pad_token_id": None}
    )
    llama = LlamaForCausalLM(text).eval()
    llama.save_pretrained(folder / "lm")
    words = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, 98)}
    words |= {"<image>": 98, "<pad>": 99} if with_image_token else {"w98": 98}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(folder / "lm")
    if whole_clip:
        from transformers import CLIPConfig, CLIPTextConfig

        small = CLIPTextConfig(
            hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=20
        )
        clip = CLIPModel(CLIPConfig(text_config=small.to_dict(), vision_config=config.vision_config.to_dict())).eval()
        tower = clip.vision_model
    else:
        tower = clip = CLIPVisionModel(config.vision_config).eval()
    clip.save_pretrained(folder / "clip")
    CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}).save_pretrained(
        folder / "clip"
    )
    return folder / "lm", folder / "clip", llama, tower


@pytest.mark.parametrize("whole_clip", [True, False])
@pytest.mark.parametrize("with_image_token", [True, False])
def test_assembling_takes_every_weight_of_the_parts(tmp_path: Path, whole_clip: bool, with_image_token: bool) -> None:
    lm, clip, llama, tower = write_parts(tmp_path, whole_clip, with_image_token)
    model, processor = assemble(lm, clip, reduction=REDUCTIONS["prumerge_plus"])
    assert model.config.image_seq_length == PATCHES
    assert (
        model.config.image_token_id
        == processor.tokenizer.convert_tokens_to_ids("<image>")
        == (98 if with_image_token else 99)
    )
    rows = 100 if with_image_token else 128
    assert (
        model.lm_head.weight.shape[0]
        == model.get_input_embeddings().weight.shape[0]
        == model.config.text_config.vocab_size
        == rows
    )
    text = torch.tensor([[1, 5, 6, 7]])
    torch.testing.assert_close(model(text).logits[..., :98], llama(text).logits[..., :98])
    hidden = tower(pixels(2), output_hidden_states=True).hidden_states[-2][:, 1:]
    torch.testing.assert_close(model.model.encode_images(pixels(2)).features, hidden)
    model.save_pretrained(tmp_path / "whole")
    processor.save_pretrained(tmp_path / "whole")
    again, _ = load_model(tmp_path / "whole", device="cpu")
    ids = torch.tensor([[1, *[model.config.image_token_id] * PATCHES, 5]])
    torch.testing.assert_close(again(ids, pixels(1)).logits, model(ids, pixels(1)).logits)
    assert all(parameter.device.type == "cpu" for parameter in model.parameters())
    stock = AutoProcessor.from_pretrained(tmp_path / "whole")
    prompt = stock(text="<image> w5", images=Image.new("RGB", (40, 30)), return_tensors="pt")
    assert (prompt["input_ids"] == model.config.image_token_id).sum() == PATCHES


def test_a_language_model_without_tokenizer_is_one_clear_error(tmp_path: Path) -> None:
    language = tiny_config().text_config
    LlamaForCausalLM(language).save_pretrained(tmp_path)
    with pytest.raises(LoadingError, match=r"no tokenizer there can be read \(tokenizer.json or tokenizer.model\)"):
        assemble(tmp_path, tmp_path)


def test_the_saved_processor_gives_the_pixels_of_training(tmp_path: Path) -> None:
    """T11: stock image processors do not pad to a square; the one saved beside a checkpoint must."""
    from llava_prumerge.data.images import ImagePreprocessor

    lm, clip, *_ = write_parts(tmp_path, False, True)
    _, processor = assemble(lm, clip)
    processor.save_pretrained(tmp_path / "saved")
    exact = AutoImageProcessor.from_pretrained(tmp_path / "saved", backend="pil")
    stock = AutoProcessor.from_pretrained(tmp_path / "saved")  # torchvision's backend where it is installed
    for size in ((61, 40), (40, 61), (50, 50), (20, 300)):
        image = Image.effect_noise(size, 90).convert("RGB")
        expected = ImagePreprocessor(exact, aspect="pad")([image])
        torch.testing.assert_close(exact(images=image, return_tensors="pt")["pixel_values"], expected)
        near = stock(images=image, text="<image>", return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(near, expected, atol=0.02, rtol=0)  # one level of eight bits


def test_parts_are_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """T7: building the stock parts first and replacing them would hold a 7B twice."""
    from transformers import LlamaModel

    built = []
    original = LlamaModel.__init__
    monkeypatch.setattr(
        LlamaModel, "__init__", lambda self, config: built.append(type(self).__name__) or original(self, config)
    )
    PruMergeLlavaForConditionalGeneration(tiny_config())
    assert built == ["LlamaModel"]


def test_projector_files_are_checked(tmp_path: Path) -> None:
    lm, clip, *_ = write_parts(tmp_path, False, True)
    model, _ = assemble(lm, clip)
    projector = {
        f"multi_modal_projector.{k}": v.contiguous() + 1
        for k, v in model.model.multi_modal_projector.state_dict().items()
    }
    save_file(projector, tmp_path / "mm_projector.safetensors")
    loaded, _ = assemble(lm, clip, projector=tmp_path)
    torch.testing.assert_close(
        loaded.model.multi_modal_projector.linear_2.bias,
        load_file(tmp_path / "mm_projector.safetensors")["multi_modal_projector.linear_2.bias"],
    )
    with pytest.raises(LoadingError, match="nowhere.*does not exist"):
        load_projector(model, tmp_path / "nowhere")
    save_file({k: v[:1].contiguous() for k, v in projector.items()}, tmp_path / "wrong.safetensors")
    with pytest.raises(LoadingError, match=r"wrong.safetensors has misshapen weights: .*needed"):
        load_projector(model, tmp_path / "wrong.safetensors")


def test_what_cannot_be_loaded_is_named(stock_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(LoadingError, match="does not exist"):
        load_model(tmp_path / "missing")
    with pytest.raises(LoadingError, match="config.json"):
        load_model(tmp_path)
    LlamaConfig().save_pretrained(tmp_path)
    with pytest.raises(LoadingError, match="'llama' checkpoint"):
        load_model(tmp_path)
    with pytest.raises(LoadingError, match="float8.*float32"):
        load_model(stock_folder, dtype="float8")
    with pytest.raises(ValueError, match="'nothing' is not known"):
        load_model(stock_folder, {"vision": {"name": "nothing"}}, device="cpu")
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in stock_folder.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    weights = load_file(stock_folder / "model.safetensors")
    gone = next(key for key in weights if "layers.2.mlp.up_proj" in key)
    save_file({k: v for k, v in weights.items() if k != gone}, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(LoadingError, match="lacks weights: .*layers.2.mlp.up_proj"):
        load_model(broken, device="cpu")


@pytest.mark.parametrize(
    ("device", "supported", "expected"),
    [("cpu", True, torch.float32), ("cuda:0", True, torch.bfloat16), ("cuda", False, torch.float16)],
)
def test_weights_are_in_what_the_device_computes_in(
    device: str, supported: bool, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: supported)
    assert parse_dtype("auto", device) == expected
    assert parse_dtype("float16", device) == parse_dtype(torch.float16, device) == torch.float16
    with pytest.raises(LoadingError, match="dtype 'bfloat' is not known; did you mean 'bfloat16'"):
        parse_dtype("bfloat", device)


def test_what_cannot_be_computed_on_or_with_is_said_before_anything_is_loaded(tmp_path: Path) -> None:
    for given, told in (
        ({"attn": "nope"}, "attention implementation 'nope' is not known; there are: eager, "),
        ({"attn": "flash_attention_2"}, "flash_attention_2 needs a GPU and flash-attn"),
        ({"dtype": "half"}, "dtype 'half' is not known"),
        ({"device": "cuda:7"}, "device=cuda:7: torch sees no GPUs here"),
    ):
        if "GPU" in told and torch.cuda.is_available():
            continue
        write_processor(tmp_path / "m")
        with pytest.raises(InputError, match=told):
            load_model(tmp_path / "m", **given)
