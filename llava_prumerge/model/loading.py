"""The door to every model: a whole checkpoint, or trained parts with the base they name, on a device and ready to be asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import LlavaProcessor

from llava_prumerge.model.adapters import load_on_cpu
from llava_prumerge.model.assembling import parse_dtype
from llava_prumerge.model.modeling import PruMergeLlavaForConditionalGeneration


def load_model(
    path: str | Path,
    reduction: dict[str, Any] | None = None,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device | None = None,
    attn: str | None = None,
) -> tuple[PruMergeLlavaForConditionalGeneration, LlavaProcessor]:
    """Load a checkpoint of ours or of stock Llava (llava-hf layout), in evaluation mode.

    Args:
        path: a folder, or a name on the Hub.
        reduction: None takes what the checkpoint says; a block replaces it; {} switches it off.
        dtype: of the weights.
        device: where to; a CUDA device if there is one.
        attn: attention implementation; transformers chooses for None.

    Raises:
        LoadingError: the folder holds no such model, or keys are missing or unexpected.
    """
    model, processor = load_on_cpu(path, reduction, parse_dtype(dtype), attn)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return model.to(device).eval(), processor
