"""LLaVA-1.5 with a reduction as a class of its own, the classes of the other families, and their entry in the Auto classes."""

from __future__ import annotations

from typing import Any

from transformers import CONFIG_MAPPING, AutoModelForImageTextToText, LlavaForConditionalGeneration

from llava_prumerge.model.attach import OWN_PREFIX, own_class, put_on, register_own, stock_class_of
from llava_prumerge.model.configuration import PruMergeLlavaConfig, own_config_class
from llava_prumerge.model.decoder import decoder_shape
from llava_prumerge.model.families import family_of, family_types
from llava_prumerge.model.stretch import ReducedCache
from llava_prumerge.model.whole import WithReduction

__all__ = ["PruMergeLlavaForConditionalGeneration", "ReducedCache", "decoder_shape"]


class PruMergeLlavaForConditionalGeneration(WithReduction, LlavaForConditionalGeneration):
    """LLaVA-1.5 with a language-modelling head. Without a reduction it is transformers' Llava.

    `forward` takes what Llava's takes: input_ids [B, L] with the placeholders of each image, pixel_values [N, 3, h, w] in order
    of appearance, attention_mask [B, L], labels [B, L]; and image_index [N] where pixel_values holds each of several
    equal images once. With a reduction the logits are [B, L', V], the rows padded on the left.
    """

    config_class = PruMergeLlavaConfig
    more_arguments = family_of("llava").host.own_arguments

    def __init__(self, config: PruMergeLlavaConfig) -> None:
        super().__init__(config)
        put_on(self, getattr(config, "reduction", None))


class _Deferred:
    """Stands in the Auto class for a family's class, whose modelling file is imported once a model is wanted."""

    config_class: Any

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        return cls._real().from_pretrained(*args, **kwargs)

    @classmethod
    def _from_config(cls, *args: Any, **kwargs: Any) -> Any:
        return cls._real()._from_config(*args, **kwargs)

    @classmethod
    def _real(cls) -> type[WithReduction]:
        return own_class(stock_class_of(cls.config_class()))


def __getattr__(name: str) -> Any:
    """Classes that were made, by name: pickle and `architectures` of a configuration name them."""
    if name.startswith(OWN_PREFIX):
        for model_type in family_types():
            stock = stock_class_of(CONFIG_MAPPING[model_type]())
            if name == OWN_PREFIX + stock.__name__:
                return own_class(stock)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def register() -> None:
    """Make the Auto class build our models, and let checkpoints of the stock classes load into them."""
    register_own(PruMergeLlavaForConditionalGeneration)
    for model_type in family_types():
        config = own_config_class(CONFIG_MAPPING[model_type])
        made = type(OWN_PREFIX + model_type, (_Deferred,), {"config_class": config})
        own = PruMergeLlavaForConditionalGeneration if config is PruMergeLlavaConfig else made
        AutoModelForImageTextToText.register(config, own, exist_ok=True)


register()
