"""The processor of a model: its tokenizer and image processor together, read, made and written for every transformers release."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import (
    LlavaConfig,
    LlavaImageProcessorPil,
    LlavaProcessor,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)

from llava_prumerge.ground.files import write_json
from llava_prumerge.ground.public import make_public
from llava_prumerge.ground.reading import read_json_object
from llava_prumerge.model.parts import input_side, load_image_processor
from llava_prumerge.model.strict_loading import in_one_line
from llava_prumerge.model.template_files import checked_template
from llava_prumerge.model.vision_tower import TOWERS
from llava_prumerge.model.weight_files import LoadingError
from llava_prumerge.text.chat_templates import ChatTemplate, stored_template
from llava_prumerge.text.jinja_sources import is_text_models, with_images
from llava_prumerge.text.templates import DEFAULT, TEMPLATES, Template, chat_template, get_template, is_ours
from llava_prumerge.text.tokenizers import TokenizerError, add_image_tokens, load_tokenizer, make_portable

PROCESSOR_FILE, PIXELS_FILE = "processor_config.json", "preprocessor_config.json"
OLD_TEMPLATE_FILE = "chat_template.json"  # what processors before 4.49 read
PIXEL_SETTINGS = ("size", "crop_size", "do_center_crop", "image_mean", "image_std", "resample")


def load_processor(path: str | Path, config: LlavaConfig) -> LlavaProcessor:
    """The processor saved beside a checkpoint, with LLaVA-1.5's padding to a square switched on.

    Raises:
        LoadingError: its tokenizer or another of its files cannot be read.
    """
    tokenizer = _tokenizer(path)
    with in_one_line(path):
        beside, _ = LlavaProcessor.get_processor_dict(path)
    template = checked_template(beside.get("chat_template") or tokenizer.chat_template, path)
    with in_one_line(path):
        return make_processor(tokenizer, load_image_processor(path), config, template)


def read_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a language model, with the image and padding tokens of a LLaVA.

    Its chat template gets a place for images where it has none, as those of text models have not.

    Raises:
        LoadingError: it cannot be read.
    """
    tokenizer = _tokenizer(path)
    add_image_tokens(tokenizer)
    source = tokenizer.chat_template
    source = source.get("default") if isinstance(source, dict) else source
    tokenizer.chat_template = with_images(source) if source else None
    return tokenizer


def _tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    try:
        return load_tokenizer(path)
    except TokenizerError as error:
        raise LoadingError(str(error)) from error


def make_processor(
    tokenizer: PreTrainedTokenizerBase,
    image_processor: Any,
    config: LlavaConfig,
    template: str | dict[str, str] | None = None,
) -> LlavaProcessor:
    """A stock LlavaProcessor that expands each image to image_seq_length placeholders and pads it to a square.

    Stock image processors crop what LLaVA-1.5 was trained to pad, and SigLIP's squeezes it, so the switch is saved with the
    checkpoint: LLaVA's code pads ahead of any tower's processor, and so do training and evaluation here. Prompts of a batch are padded on the left, as generation needs it; training pads by itself.

    Args:
        tokenizer: gets the template and the side of padding too.
        image_processor: of the vision tower.
        config: of the whole model.
        template: a chat template in Jinja, or several by name; the tokenizer's own for None, and Vicuna's where it has none.
    """
    image_processor = _padding(image_processor)
    tokenizer.padding_side = "left"
    tokenizer.chat_template = template or tokenizer.chat_template or chat_template(DEFAULT)
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=_ahead(config),
        chat_template=tokenizer.chat_template,
    )


def _ahead(config: LlavaConfig) -> int:
    """Tokens of the tower beside the patches, of which the processor takes one off where the strategy is "default"."""
    tower = TOWERS.get(config.vision_config.model_type)
    return (
        int(config.vision_feature_select_strategy == "default") if tower is None else tower.prefix(config.vision_config)
    )


def _padding(image_processor: Any) -> Any:
    """An image processor that pads to a square, of any kind that resizes and normalises."""
    values = image_processor.to_dict()
    kind, side = values["image_processor_type"], input_side(image_processor)
    square = {"height": side, "width": side}
    values |= {"do_center_crop": bool(values.get("do_center_crop", not kind.startswith("Siglip")))}
    if kind.startswith("Siglip"):  # squeezes whatever it gets into a square, and crops nothing
        values |= {"size": square, "crop_size": square}
    elif not kind.startswith(("CLIP", "Llava")):  # these resize to more than they crop, or to no square
        values |= {"size": {"shortest_edge": side}, "crop_size": square, "do_center_crop": True}
    return LlavaImageProcessorPil(**{key: values[key] for key in PIXEL_SETTINGS}, do_pad=True)


def set_template(processor: Any, template: str | Template | ChatTemplate) -> None:
    """Let a processor that goes with a trained model carry the chat template it was trained with.

    One that came with the model from elsewhere stays where the training took the default, and captions have none. What a
    family's processor writes itself is not stored.
    """
    template = template if isinstance(template, ChatTemplate) else get_template(template)
    if not isinstance(template, ChatTemplate) and template.name not in TEMPLATES:
        return
    source, tokenizer = processor.chat_template, processor.tokenizer
    ours = is_ours(source) or is_text_models(source)
    if not template.captions and (ours or template != get_template(DEFAULT)):
        processor.chat_template = tokenizer.chat_template = stored_template(template)


def save_settings(
    config: PreTrainedConfig, processor: LlavaProcessor, folder: Path, class_by_model: bool = False
) -> None:
    """Write what goes beside weights: config.json and the processor's files, as `save_processor` writes them."""
    save_config(config, folder)
    save_processor(processor, folder, class_by_model)


def save_config(config: PreTrainedConfig, folder: Path) -> None:
    """Write config.json, without paths of this machine."""
    config.save_pretrained(folder)
    make_public(folder / "config.json")


def save_processor(processor: ProcessorMixin, folder: Path, class_by_model: bool = False) -> None:
    """Write a processor's files for transformers 4.37 and later, without paths of this machine.

    transformers 5 would put the image processor into processor_config.json, where earlier releases do not look.

    Args:
        processor: is written with its tokenizer and chat template.
        folder: where to.
        class_by_model: leave the image processor's class to the type of the model in config.json. In a llava-hf folder it
            is then the class of each release that pads images as LLaVA does, and CLIP's in those that have none (to 4.48).
    """
    processor.save_pretrained(folder)
    make_portable(processor.tokenizer, folder)
    if not isinstance(processor, LlavaProcessor):  # of other families transformers' own files are read
        return
    settings = read_json_object(folder / PROCESSOR_FILE)
    pixels = settings.pop("image_processor", None) or processor.image_processor.to_dict()
    if class_by_model:
        pixels.pop("image_processor_type", None)
    write_json(folder / PROCESSOR_FILE, settings, sync=False)
    write_json(folder / PIXELS_FILE, pixels | {"processor_class": type(processor).__name__}, sync=False)
    if isinstance(processor.chat_template, str):
        write_json(folder / OLD_TEMPLATE_FILE, {"chat_template": processor.chat_template}, sync=False)
