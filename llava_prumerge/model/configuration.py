"""Configurations: the stock one of a model family, and the reduction block that a checkpoint always carries.

What is saved has the type `prumerge_<stock type>`. Stock transformers does not know it and refuses such a checkpoint; under
the stock type it would load it and silently forget the method.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, AutoConfig, LlavaConfig, PreTrainedConfig

from llava_prumerge.methods.labels import SITES
from llava_prumerge.methods.resolve import Described, resolve
from llava_prumerge.model.families import FORMER_TYPES, PREFIX, family_types, stock_type
from llava_prumerge.model.towers import know_tower


def check_reduction(reduction: Described) -> dict[str, Any] | None:
    """The reduction block of whatever describes a method; a block is kept as it is, and None stands for no reduction.

    The methods of a block check their own settings when they are built, so that a configuration can be read where they
    are not installed.

    Raises:
        ReductionError: it describes no method.
    """
    if isinstance(reduction, Mapping) and set(reduction) <= set(SITES):
        parts = [part for part in reduction.values() if part is not None]
        if all(isinstance(part, Mapping) and "name" in part for part in parts):
            return dict(reduction) or None
    return resolve(reduction) or None


class OwnConfig:
    """In front of a stock configuration class: `reduction: {"vision": {...}, "decoder": {...}}`, stored verbatim.

    A method can also be described in any way `methods.resolve` reads, such as `reduction="NAME:budget=64"`.
    """

    keys_to_ignore_at_inference = ("past_key_values", "labels", "layout")  # of the output, for transformers' Trainer

    def __post_init__(self, **kwargs: Any) -> None:
        self.reduction = check_reduction(self.reduction)
        know_tower(getattr(self, "vision_config", None))
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As transformers', under today's name of the type."""
        former = config_dict.get("model_type")
        return super().from_dict({**config_dict, "model_type": FORMER_TYPES.get(former, former)}, **kwargs)


@strict
class PruMergeLlavaConfig(OwnConfig, LlavaConfig):
    """LLaVA's configuration with a reduction block."""

    model_type = "prumerge_llava"

    reduction: dict | str | None = None

    @classmethod
    def from_llava(cls, config: LlavaConfig, reduction: Described = None) -> PruMergeLlavaConfig:
        """The same model with a reduction; a plain copy keeps `model_type: llava`, and with it the stock class."""
        return with_reduction(config, reduction)


@functools.cache
def own_config_class(stock: type[PreTrainedConfig]) -> type[PreTrainedConfig]:
    """The class of a family's stock configuration with a reduction block."""
    if issubclass(stock, OwnConfig):
        return stock
    if stock is LlavaConfig:
        return PruMergeLlavaConfig
    body = {
        "__module__": __name__,
        "__doc__": f"{stock.__name__} with a reduction block.",
        "__annotations__": {"reduction": "dict | str | None"},
        "model_type": PREFIX + stock.model_type,
        "reduction": None,
    }
    return strict(type(f"PruMerge{stock.__name__}", (OwnConfig, stock), body))


def stock_config_class(own: type[PreTrainedConfig]) -> type[PreTrainedConfig]:
    """The other way round."""
    return CONFIG_MAPPING[stock_type(own.model_type)]


def with_reduction(config: PreTrainedConfig, reduction: Described) -> PreTrainedConfig:
    """A family's configuration as ours, with another reduction."""
    values = config.to_dict()
    for key in ("model_type", "architectures", "reduction", "transformers_version"):
        values.pop(key, None)
    return own_config_class(type(config))(**values, reduction=reduction)


def __getattr__(name: str) -> Any:
    """Configuration classes that were made: pickle asks for them by name."""
    for model_type in family_types():
        stock = CONFIG_MAPPING[model_type]
        if name == f"PruMerge{stock.__name__}":
            return own_config_class(stock)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def register() -> None:
    """Make `AutoConfig` know the types that our checkpoints have."""
    for model_type in family_types():
        AutoConfig.register(PREFIX + model_type, own_config_class(CONFIG_MAPPING[model_type]), exist_ok=True)
    for former, today in FORMER_TYPES.items():
        CONFIG_MAPPING.register(former, CONFIG_MAPPING[today], exist_ok=True)


register()
