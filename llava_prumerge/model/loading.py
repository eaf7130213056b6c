"""The door to every model: a whole checkpoint, or trained parts with the base they name, on a device and ready to be asked."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlavaProcessor

from llava_prumerge.methods.resolve import Described
from llava_prumerge.model.adapters import load_on_cpu
from llava_prumerge.model.assembling import AUTO, check_attention, parse_dtype
from llava_prumerge.model.configuration import check_reduction
from llava_prumerge.model.devices import choose_device
from llava_prumerge.model.modeling import PruMergeLlavaForConditionalGeneration
from llava_prumerge.model.quantized import check_load


def load_model(
    path: str | Path,
    reduction: Described = None,
    dtype: str | torch.dtype = AUTO,
    device: str | torch.device | None = None,
    attn: str | None = None,
    load: str | None = None,
) -> tuple[PruMergeLlavaForConditionalGeneration, LlavaProcessor]:
    """Load a checkpoint of ours or of stock Llava (llava-hf layout), in evaluation mode.

    Args:
        path: a folder, or a name on the Hub.
        reduction: None takes what the checkpoint says; "visionzip", "dart:layer=3", a file or a block (see
            `methods.resolve`) replaces it; {} switches it off.
        dtype: of the weights, by name or as torch's; "auto" is bfloat16 on a GPU (float16 on one that has no bfloat16) and
            float32 on a CPU.
        device: where to, such as "cuda:1" or "cpu"; None takes a GPU if there is one.
        attn: attention implementation; transformers chooses for None.
        load: "4bit" or "8bit" holds the language model's matrices in so many bits (bitsandbytes); None leaves them as they
            are.

    Raises:
        LoadingError: the folder holds no such model, or keys are missing or unexpected.
        DeviceError: the device is none of this host's.
    """
    check_load(load)
    device = choose_device(None if device is None else str(device))
    model, processor = load_on_cpu(
        path,
        None if reduction is None else check_reduction(reduction) or {},
        parse_dtype(dtype, device),
        check_attention(attn),
        None if load is None else (load, device),
    )
    return (model if load else model.to(device)).eval(), processor
