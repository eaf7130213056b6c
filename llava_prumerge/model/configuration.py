"""The configuration: LLaVA's own, and the reduction block that a checkpoint always carries."""

from __future__ import annotations

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, LlavaConfig

from llava_prumerge.ground.errors import InputError

SITES = ("vision", "decoder")


def check_reduction(reduction: dict[str, Any] | None) -> dict[str, Any] | None:
    """Check the outer shape of a reduction block; the methods check their own settings when they are built.

    Raises:
        ValueError: a key other than vision and decoder, or a block without a name.
    """
    if not reduction:
        return None
    unknown = sorted(set(reduction) - set(SITES))
    if unknown:
        raise InputError(f"reduction has no part {', '.join(unknown)}; it takes: {', '.join(SITES)}")
    for site, block in reduction.items():
        if block is not None and (not isinstance(block, dict) or "name" not in block):
            raise InputError(f"reduction.{site} is {block!r}; it must name a method, as {{'name': 'prumerge'}}")
    return reduction


@strict
class PruMergeLlavaConfig(LlavaConfig):
    """LLaVA's configuration with `reduction: {"vision": {...}, "decoder": {...}}`, stored verbatim."""

    model_type = "llava_prumerge"

    reduction: dict | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self.reduction = check_reduction(self.reduction)
        super().__post_init__(**kwargs)

    @classmethod
    def from_llava(cls, config: LlavaConfig, reduction: dict[str, Any] | None = None) -> PruMergeLlavaConfig:
        """The same model with a reduction; a plain copy keeps `model_type: llava`, and with it the stock class."""
        values = config.to_dict()
        for key in ("model_type", "architectures", "reduction", "transformers_version"):
            values.pop(key, None)
        return cls(**values, reduction=reduction)


def register() -> None:
    """Make `AutoConfig` know `llava_prumerge`."""
    AutoConfig.register(PruMergeLlavaConfig.model_type, PruMergeLlavaConfig, exist_ok=True)


register()
