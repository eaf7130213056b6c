"""Checkpoints loaded in 4 or 8 bits, by bitsandbytes: the language model's matrices, and nothing else."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch

from llava_prumerge.ground.naming import not_known
from llava_prumerge.model.families import family_of
from llava_prumerge.model.weight_files import LoadingError

LOADS = ("4bit", "8bit")
INSTALL = "pip install 'llava-prumerge[qlora]'"


def check_load(load: str | None) -> None:
    """Refuse what cannot be done here, before anything is read.

    Raises:
        LoadingError: there is no such way to load, or bitsandbytes is not installed.
    """
    if load is None:
        return
    if load not in LOADS:
        raise LoadingError(not_known("load", load, LOADS))
    if importlib.util.find_spec("bitsandbytes") is None:
        raise LoadingError(f"load={load} needs bitsandbytes, which is not installed: {INSTALL}")


def settings_of(load: str, kind: str, dtype: torch.dtype, device: str) -> dict[str, Any]:
    """Arguments of `from_pretrained`.

    Args:
        load: one of LOADS; 4 bits are NF4 with double quantisation, as in training (QLoRA).
        kind: the checkpoint's stock model type.
        dtype: in which 4-bit layers multiply.
        device: where the weights go at once: they are quantised there.
    """
    from transformers import BitsAndBytesConfig

    host: Any = family_of(kind).host
    parts = (*host.tower_names, *host.projector_names, "reducer", f"{host.decoder_name}.pruner")
    kept = [*(f"model.{part}" for part in parts), "lm_head"]
    made: dict[str, Any] = {"load_in_8bit": True}
    if load == "4bit":
        made = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
        made |= {"bnb_4bit_compute_dtype": dtype}
    config = BitsAndBytesConfig(**made, llm_int8_skip_modules=kept)
    return {"quantization_config": config, "device_map": {"": device}}
