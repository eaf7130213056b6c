"""Model families: one file each, named as transformers names the model's type, found by walking this folder."""

from __future__ import annotations

import importlib
import importlib.metadata
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from packaging.version import Version

from llava_prumerge.model.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

    from llava_prumerge.text.templates import Template

PREFIX = "prumerge_"
MAIN = "llava"
"""The type that the project is about, LLaVA-1.5's: what is asked of it needs no other family's file."""
FORMER_TYPES = {"llava_prumerge": "prumerge_llava"}
"""Types that checkpoints were saved under before, and what they are called now."""


def is_own_type(model_type: str | None) -> bool:
    """Whether a checkpoint of this type is one of ours, today's or an earlier one."""
    return model_type in FORMER_TYPES or (model_type or "").startswith(PREFIX)


def stock_type(model_type: str) -> str:
    """The stock type of a type of ours; a stock type is its own."""
    return FORMER_TYPES.get(model_type, model_type).removeprefix(PREFIX)


@dataclass(frozen=True)
class Family:
    """What a family's file says of it, as its `FAMILY`.

    Attributes:
        host: class that goes in front of the stock model without head (`model.host.Host`).
        refusal: gives for a configuration the one-line reason why no reducer can act on its models, or None.
        places: placeholders of one image where all images have the same number, from the configuration; else None.
        language: the type of its own language model, where it has one.
        templates: its models are asked by LLaVA's conversation templates, as they were trained; others by their processors.
        processor: reads the processor of a checkpoint, folder and configuration given; None: as transformers does.
        text: the prompt of a question (processor, question, number of images) for families that have no chat template.
        template: conversations for training, from the processor, for the same families.
        beside: what its models take beside ids in training, from processor, ids [L] and labels [L]; None: as
            its processor says.
        built: what is done to a model that was just built by its configuration, ahead of everything else.
        videos: settings of its stock processor's part for videos, which is not there without torchvision; None: it takes none.
        remark: what whoever loads a checkpoint of the stock type should know of it, in one line; None: nothing.
        needs: a package that its processor cannot be made without, and what to install for it.
        mark: what stands for an image in a prompt that its processor is given, where there is no chat template to tell.
        since: the first release of transformers with which it is served.
    """

    host: type
    refusal: Callable[[Any], str | None] = lambda config: None
    places: Callable[[Any], int | None] = lambda config: None
    language: str | None = None
    templates: Callable[[Any], bool] = lambda config: False
    processor: Callable[[Any, Any], Any] | None = None
    mark: Callable[[Any], str] = lambda processor: processor.image_token
    text: Callable[[Any, str, int], str] | None = None
    template: Callable[[Any], Template] | None = None
    beside: Callable[[Any, Tensor, Tensor], dict[str, Tensor]] | None = None
    built: Callable[[Any], None] = lambda model: None
    videos: Mapping[str, Any] | None = None
    remark: Callable[[Any], str | None] = lambda model: None
    needs: tuple[str, str] | None = None
    since: str = "5.17"


def family_types() -> list[str]:
    """The types of all families, in order of name; imports none of them."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def family_of(model_type: str) -> Family:
    """A family by its stock type.

    Raises:
        ModelError: there is none of that name, or it needs a later release of transformers.
    """
    if model_type not in family_types():
        raise ModelError(f"models of type {model_type!r} are not served; there are: {', '.join(family_types())}")
    family: Family = importlib.import_module(f"{__name__}.{model_type}").FAMILY
    here = importlib.metadata.version("transformers")  # which is not imported by whoever only asks for names
    if Version(here) < Version(family.since):
        raise ModelError(f"{model_type} needs transformers {family.since} or later; this is {here}")
    return family
