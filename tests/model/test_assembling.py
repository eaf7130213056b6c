"""A LLaVA-1.5 of any served language model and any served tower: put together, asked, saved and loaded again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from decoders import KINDS, TOWERS, write_decoder, write_tower
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration

from llava_prumerge.data.conversation import encode, prompt
from llava_prumerge.data.images import ImagePreprocessor
from llava_prumerge.model.adapters import Base
from llava_prumerge.model.assembling import assemble
from llava_prumerge.model.decoder import SERVED
from llava_prumerge.model.loading import load_model
from llava_prumerge.model.parts import load_image_processor
from llava_prumerge.model.vision_tower import TOWERS as SERVED_TOWERS
from llava_prumerge.model.weight_files import LoadingError
from llava_prumerge.text.chat_templates import resolve_template, template_of

PAIRS = [(kind, "clip") for kind in KINDS] + [("qwen2", tower) for tower in TOWERS if tower != "clip"]
METHOD = {"vision": {"name": "uniform", "budget": 4}, "decoder": {"name": "fastv", "layer": 1, "keep": 0.5}}
PICTURE = Image.effect_noise((50, 34), 90).convert("RGB")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """By kind: the language model as it was written, and the places of an image behind a tower; `folder` has all."""
    folder = tmp_path_factory.mktemp("parts")
    found: dict[str, Any] = {kind: write_decoder(kind, folder / kind).eval() for kind in KINDS}
    return found | {tower: write_tower(tower, folder / tower) for tower in TOWERS} | {"folder": folder}


def test_all_served_types_are_tried() -> None:
    assert set(KINDS) == {kind for kind in SERVED if not kind.endswith("_vl_text")}
    tried = {"clip_vision_model", "siglip_vision_model", "dinov2", "dinov2_with_registers", "pixtral"}
    assert tried <= set(SERVED_TOWERS)


@pytest.mark.parametrize(("kind", "tower"), PAIRS)
@torch.no_grad()
def test_a_model_of_any_parts(parts: dict[str, Any], kind: str, tower: str, tmp_path: Path) -> None:
    folder = parts["folder"]
    model, processor = assemble(folder / kind, folder / tower)
    assert not any(value.is_meta for value in [*model.parameters(), *model.buffers()])
    tokenizer, config = processor.tokenizer, model.config
    assert (
        tokenizer.pad_token not in (None, tokenizer.eos_token, tokenizer.unk_token)
        and len(tokenizer) <= config.text_config.vocab_size
    )
    alone, text = parts[kind], torch.tensor([tokenizer("What colour is this")["input_ids"]])
    logits, expected = model(text).logits[..., : alone.config.vocab_size], alone(text).logits
    cap = getattr(alone.config, "final_logit_softcapping", None)  # transformers' Llava leaves the last cap out
    torch.testing.assert_close(torch.tanh(logits / cap) * cap if cap else logits, expected, atol=1e-5, rtol=1e-5)

    template = resolve_template("own", processor)
    assert template_of(processor) == template and processor.chat_template == template.source
    ends = model.generation_config.eos_token_id
    assert tokenizer.convert_tokens_to_ids(template.end) in (ends if isinstance(ends, list) else [ends])
    asked = [
        {"role": "user", "content": [{"type": "image", "image": PICTURE}, {"type": "text", "text": "What is this"}]}
    ]
    inputs = processor.apply_chat_template(
        asked, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    ids = encode(tokenizer, prompt(template, "What is this"), config.image_token_id, config.image_seq_length)
    assert (
        inputs["input_ids"][0].tolist() == ids
        and ids.count(config.image_token_id) == parts[tower] == config.image_seq_length
    )
    padded = ImagePreprocessor(processor.image_processor)([PICTURE])
    torch.testing.assert_close(inputs["pixel_values"], padded, atol=0.02, rtol=0)

    full = model(**inputs).logits
    stock = LlavaForConditionalGeneration(stock_config(config)).eval()
    stock.load_state_dict(model.state_dict())
    sizes = {"image_sizes": torch.tensor([[28, 28]])} if tower == "pixtral" else {}
    torch.testing.assert_close(full, stock(**inputs, **sizes).logits, atol=1e-5, rtol=1e-5)

    model.save_pretrained(tmp_path / "whole")
    processor.save_pretrained(tmp_path / "whole")
    again, other = load_model(tmp_path / "whole", reduction={}, device="cpu")
    torch.testing.assert_close(again(**inputs).logits, full)
    read = other(text=["<image>"], images=[[PICTURE]], return_tensors="pt")
    assert torch.equal(read["pixel_values"], inputs["pixel_values"])
    assert (
        other.chat_template
        == processor.chat_template
        == AutoProcessor.from_pretrained(tmp_path / "whole").chat_template
    )
    short, _ = load_model(tmp_path / "whole", reduction=METHOD, device="cpu")
    short(**inputs)
    layers = short.reduction_stats()["layer_tokens"]
    left = 4 + (4 if tower == "dinov2_with_registers" else 0)  # registers stay
    assert layers[0] == left and layers[-1] == left // 2
    assert short.generate(**inputs, max_new_tokens=3, do_sample=False).shape[1] > len(ids)
    assert type(AutoModelForImageTextToText.from_pretrained(tmp_path / "whole")) is type(model)


def stock_config(config: Any) -> Any:
    """The stock configuration of one of ours."""
    from transformers import LlavaConfig

    values = config.to_dict()
    for key in ("model_type", "reduction", "architectures"):
        values.pop(key, None)
    return LlavaConfig(**values)


def test_other_parts_are_refused_by_their_type(parts: dict[str, Any], tmp_path: Path) -> None:
    from transformers import GPT2Config, ViTConfig

    folder = parts["folder"]
    for name, config in (("gpt2", GPT2Config()), ("vit", ViTConfig())):
        (tmp_path / name).mkdir()
        for file in (folder / "qwen2").glob("token*"):
            (tmp_path / name / file.name).symlink_to(file)
        config.save_pretrained(tmp_path / name)
    with pytest.raises(LoadingError, match="a 'gpt2' is no language model that is served; there are: llama, mistral"):
        assemble(tmp_path / "gpt2", folder / "clip")
    with pytest.raises(LoadingError, match="vit"):
        assemble(folder / "qwen2", tmp_path / "vit")


@pytest.mark.parametrize("size", [(50, 34), (20, 61), (30, 30)])
def test_siglips_images_are_padded_as_llavas_code_pads_them(parts: dict[str, Any], size: tuple[int, int]) -> None:
    """By hand: centred on a square of the mean colour, then what SigLIP's own processor makes of that."""
    image = Image.effect_noise(size, 90).convert("RGB")
    side = max(size)
    canvas = Image.new("RGB", (side, side), (127, 127, 127))
    canvas.paste(image, ((side - size[0]) // 2, (side - size[1]) // 2))
    expected = load_image_processor(parts["folder"] / "siglip")([canvas], return_tensors="pt")["pixel_values"]
    _, processor = assemble(parts["folder"] / "qwen2", parts["folder"] / "siglip")
    found = processor(text=["<image>"], images=[[image]], return_tensors="pt")["pixel_values"]
    assert torch.equal(found, expected)
    assert torch.equal(ImagePreprocessor(processor.image_processor)([image]), expected)
    squeezed = load_image_processor(parts["folder"] / "siglip")([image], return_tensors="pt")["pixel_values"]
    assert torch.equal(ImagePreprocessor(processor.image_processor, "square")([image]), squeezed), "as in stage 1"


def test_the_questions_words_are_known_in_training_as_in_use(parts: dict[str, Any], tmp_path: Path) -> None:
    """A method that reads them would else rank by the whole prompt where it is trained, and by the words where it is used."""
    folder = parts["folder"]
    model, processor = assemble(folder / "qwen2", folder / "clip", reduction={"vision": {"name": "mmtok", "budget": 4}})
    assert model.model.words is processor.tokenizer
    told = model.model.words
    model.save_pretrained(tmp_path / "whole")
    processor.save_pretrained(tmp_path / "whole")
    model, processor = Base(str(tmp_path / "whole"), None, None, 0).build(None, None, "float32", None)
    assert model.model.words is processor.tokenizer
    alone = type(model).from_pretrained(tmp_path / "whole")  # by transformers, which tells the model nothing
    assert alone.model.words is None
    ids = torch.tensor([[5, *[model.config.image_token_id] * model.config.image_seq_length, 6, 7]])
    size = model.config.vision_config.image_size
    with torch.no_grad():
        alone(input_ids=ids, pixel_values=torch.randn(1, 3, size, size))
    assert alone.model.words.get_vocab() == told.get_vocab()
