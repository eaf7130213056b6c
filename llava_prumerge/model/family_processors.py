"""Processors of other families than LLaVA-1.5, as transformers reads them, where torchvision is missing too.

transformers' processors for videos need torchvision, and a processor that has one cannot even be built where it is missing. There
`frames.FrameProcessor` takes the place of that part.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoProcessor, AutoTokenizer, ProcessorMixin
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.utils import cached_file, is_torchvision_available

from llava_prumerge.ground.reading import read_json_object
from llava_prumerge.model.configuration import stock_config_class
from llava_prumerge.model.families import family_of, stock_type
from llava_prumerge.model.frames import FrameProcessor
from llava_prumerge.model.parts import load_image_processor
from llava_prumerge.model.strict_loading import in_one_line

VIDEOS = "video_processor"
VIDEOS_FILE, PIXELS_FILE = "video_preprocessor_config.json", "preprocessor_config.json"


class _WithoutTorchvision(ProcessorMixin):
    """In front of a stock processor class."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        """As transformers', which does not know `FrameProcessor`."""
        if not isinstance(argument, FrameProcessor):
            super().check_argument_for_proper_class(argument_name, argument)

    def to_dict(self) -> dict[str, Any]:
        """As transformers'; what is saved of the part for videos is what was read."""
        values = super().to_dict()
        values.pop(VIDEOS, None)
        settings = getattr(self, VIDEOS).own
        return values | ({VIDEOS: dict(settings)} if settings else {})


def read_processor(path: str | Path, config: Any) -> Any:
    """The processor of a checkpoint, whose configuration is given.

    Raises:
        LoadingError: a file is missing or cannot be read.
    """
    stock = PROCESSOR_MAPPING.get(stock_config_class(type(config)), None)
    with in_one_line(path):
        if stock is None or is_torchvision_available() or VIDEOS not in stock.get_attributes():
            return AutoProcessor.from_pretrained(path)
        settings, _ = stock.get_processor_dict(path)
        parts = {
            "image_processor": load_image_processor(path),
            "tokenizer": AutoTokenizer.from_pretrained(path),
            VIDEOS: FrameProcessor(*_video_settings(path, settings), family_of(stock_type(config.model_type)).videos),
        }
        made: Any = type(
            stock.__name__, (_WithoutTorchvision, stock), {"__module__": stock.__module__, "__init__": stock.__init__}
        )
        return made.from_args_and_dict([parts[name] for name in stock.get_attributes()], settings)


def _video_settings(path: str | Path, settings: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """Settings of the part for videos, where transformers looks for them; and whether they are its own, not those of images."""
    if settings.get(VIDEOS):
        return settings[VIDEOS], True
    for name in (VIDEOS_FILE, PIXELS_FILE):
        file = cached_file(path, name, _raise_exceptions_for_missing_entries=False)
        if file is not None:
            return read_json_object(file), name == VIDEOS_FILE
    return {}, False
