"""The processor of a model: its tokenizer and image processor together, read, made and written for every transformers release."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import LlavaConfig, LlavaImageProcessorPil, LlavaProcessor, PreTrainedTokenizerBase

from llava_prumerge.ground.files import write_json
from llava_prumerge.ground.reading import read_json_object
from llava_prumerge.model.parts import load_image_processor
from llava_prumerge.model.weight_files import LoadingError
from llava_prumerge.text.tokenizers import TokenizerError, add_image_tokens, load_tokenizer, make_portable

PROCESSOR_FILE, PIXELS_FILE = "processor_config.json", "preprocessor_config.json"
OLD_TEMPLATE_FILE = "chat_template.json"  # what processors before 4.49 read
PIXEL_SETTINGS = ("size", "crop_size", "image_mean", "image_std", "resample")


def load_processor(path: str | Path, config: LlavaConfig) -> LlavaProcessor:
    """The processor saved beside a checkpoint, with LLaVA-1.5's padding to a square switched on.

    Raises:
        LoadingError: its tokenizer cannot be read.
    """
    return make_processor(_tokenizer(path), load_image_processor(path), config)


def read_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a language model, with the image and padding tokens of a LLaVA.

    Raises:
        LoadingError: it cannot be read.
    """
    tokenizer = _tokenizer(path)
    add_image_tokens(tokenizer)
    return tokenizer


def _tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    try:
        return load_tokenizer(path)
    except TokenizerError as error:
        raise LoadingError(str(error)) from error


def make_processor(tokenizer: PreTrainedTokenizerBase, image_processor: Any, config: LlavaConfig) -> LlavaProcessor:
    """A stock LlavaProcessor that expands each image to image_seq_length placeholders and pads it to a square.

    Stock image processors of CLIP and of Llava crop what LLaVA-1.5 was trained to pad, so the switch is saved with the checkpoint.
    """
    values = image_processor.to_dict()
    if values["image_processor_type"].startswith(("CLIP", "Llava")):
        image_processor = LlavaImageProcessorPil(**{key: values[key] for key in PIXEL_SETTINGS}, do_pad=True)
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=1 if config.vision_feature_select_strategy == "default" else 0,
    )


def save_processor(processor: LlavaProcessor, folder: Path, class_by_model: bool = False) -> None:
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
    settings = read_json_object(folder / PROCESSOR_FILE)
    pixels = settings.pop("image_processor", None) or processor.image_processor.to_dict()
    if class_by_model:
        pixels.pop("image_processor_type", None)
    write_json(folder / PROCESSOR_FILE, settings, sync=False)
    write_json(folder / PIXELS_FILE, pixels | {"processor_class": type(processor).__name__}, sync=False)
    if isinstance(processor.chat_template, str):
        write_json(folder / OLD_TEMPLATE_FILE, {"chat_template": processor.chat_template}, sync=False)
