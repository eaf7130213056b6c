"""QLoRA: the language model's frozen matrices in 4 bits (NF4, double quantised), adapters and everything else as with LoRA.

The matrices are replaced after the model has been put together, so that a run starts from the same folders and seed as any other, and
quantised when they move to the GPU. What is saved are adapters of the full-precision model: `load_model` merges them into that.
"""

from __future__ import annotations

import importlib.util
import re
from typing import TYPE_CHECKING

import torch
from torch import nn

from llava_prumerge.data.recipe import RecipeError

if TYPE_CHECKING:
    from llava_prumerge.train.arguments import TrainArguments

INSTALL = "pip install -e '.[qlora]'"


def check_quantization(arguments: TrainArguments) -> None:
    """Refuse a recipe in 4 bits where nothing can run it.

    Raises:
        RecipeError: bitsandbytes or CUDA is missing.
    """
    if arguments.quantization == "none":
        return
    if importlib.util.find_spec("bitsandbytes") is None:
        raise RecipeError(f"quantization={arguments.quantization} needs bitsandbytes: {INSTALL}")
    if not torch.cuda.is_available():
        raise RecipeError(f"quantization={arguments.quantization} needs a CUDA device, and this machine has none")


def quantize_linears(model: nn.Module, pattern: str, compute_dtype: torch.dtype) -> list[str]:
    """Replace linear layers by 4-bit ones. -> their names

    Args:
        model: on CPU; weights become 4-bit when it is moved to its device.
        pattern: regular expression that a layer's whole name matches.
        compute_dtype: in which the 4-bit layers multiply.
    """
    from bitsandbytes.nn import Linear4bit, Params4bit

    replaced = []
    for name, linear in [item for item in model.named_modules() if isinstance(item[1], nn.Linear)]:
        if not re.fullmatch(pattern, name):
            continue
        layer = Linear4bit(
            linear.in_features,
            linear.out_features,
            bias=linear.bias is not None,
            compute_dtype=compute_dtype,
            compress_statistics=True,
            quant_type="nf4",
            device="meta",
        )
        layer.weight = Params4bit(linear.weight.data, requires_grad=False, compress_statistics=True, quant_type="nf4")
        if linear.bias is not None:
            layer.bias = linear.bias
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer)
        replaced.append(name)
    model.is_loaded_in_4bit = True  # peft asks, to put its adapters around such layers
    return replaced
