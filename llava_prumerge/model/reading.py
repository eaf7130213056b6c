"""How a model reads conversations: processor, template, placeholders. Made without its weights; training and the check of records share it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_prumerge.model.chat import fixed_places
from llava_prumerge.model.families import family_of, stock_type
from llava_prumerge.text.chat_templates import OWN, ChatTemplate, resolve_template, spoken_by
from llava_prumerge.text.templates import Template

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Reader:
    """What a model makes a conversation's tokens and pixels with.

    Attributes:
        processor: its own.
        template: of conversations.
        places: placeholders of an image in models whose images all have the same number; None: the processor says it.
        image_token_id, video_token_id: the placeholders.
        takes_videos: whether its records may have videos.
        beside: what it takes beside ids in training, where its processor does not say so.
    """

    processor: Any
    template: Template | ChatTemplate
    places: int | None
    image_token_id: int
    video_token_id: int | None
    takes_videos: bool
    beside: Callable[[Any, Tensor, Tensor], dict[str, Tensor]] | None


def reader_of(
    processor: Any, config: Any, template: str | Template | ChatTemplate, system: str | None = None
) -> Reader:
    """That of a model whose processor and configuration are given.

    Raises:
        InputError: the template does not fit, see `family_template`.
    """
    family = family_of(stock_type(config.model_type))
    return Reader(
        processor,
        family_template(template, processor, config, system),
        fixed_places(config),
        config.image_token_id,
        getattr(config, "video_token_id", None),
        family.videos is not None,
        family.beside,
    )


def load_reader(path: str | Path, template: str = OWN) -> Reader:
    """That of a checkpoint's folder, which needs no weights.

    Raises:
        LoadingError: it cannot be read.
        InputError: the template does not fit.
    """
    from llava_prumerge.model.assembling import processor_of
    from llava_prumerge.model.strict_loading import read_config

    config = read_config(path)
    return reader_of(processor_of(path, config), config, template)


def family_template(
    name: str | Template | ChatTemplate, processor: Any, config: Any, system: str | None = None
) -> Template | ChatTemplate:
    """As `resolve_template`; where a model brings no chat template along, "own" is what its family was trained with.

    Raises:
        InputError: as there.
    """
    own = family_of(stock_type(config.model_type)).template
    if name != OWN or own is None or getattr(processor, "chat_template", None):
        return resolve_template(name, processor, system)
    return own(processor) if system is None else spoken_by(own(processor), system)
