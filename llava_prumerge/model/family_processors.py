"""Processors of other families than LLaVA-1.5, as transformers reads them; without torchvision for images alone.

transformers' processors for videos need torchvision, and a processor that has one cannot even be built where it is missing. Images
need Pillow alone, so that there the part for videos is left out, and says so when it is asked.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoProcessor, AutoTokenizer, ProcessorMixin
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.utils import is_torchvision_available

from llava_prumerge.model.configuration import stock_config_class
from llava_prumerge.model.parts import load_image_processor
from llava_prumerge.model.strict_loading import in_one_line

VIDEOS = "video_processor"


class NoVideos:
    """Stands for a processor's part for videos, and keeps its settings.

    Args:
        settings: as they lie in the processor's file.
    """

    _auto_class = None  # asked for by transformers when a processor is saved

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings

    def __getattr__(self, name: str) -> Any:
        """A setting, None where it is not set: stock processors ask for some of them whenever they write text."""
        if name.startswith("_"):
            raise AttributeError(name)
        return self.__dict__.get("settings", {}).get(name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Videos cannot be read here."""
        raise ImportError("videos need torchvision: pip install torchvision")


class _ImagesAlone(ProcessorMixin):
    """In front of a stock processor class."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        """As transformers', which does not know `NoVideos`."""
        return (
            None if isinstance(argument, NoVideos) else super().check_argument_for_proper_class(argument_name, argument)
        )

    def to_dict(self) -> dict[str, Any]:
        """As transformers'; what is saved of the part that is left out is what was read."""
        values = super().to_dict()
        values.pop(VIDEOS, None)
        settings = getattr(self, VIDEOS).settings
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
            VIDEOS: NoVideos(settings.get(VIDEOS) or {}),
        }
        made: Any = type(
            stock.__name__, (_ImagesAlone, stock), {"__module__": stock.__module__, "__init__": stock.__init__}
        )
        return made.from_args_and_dict([parts[name] for name in stock.get_attributes()], settings)
