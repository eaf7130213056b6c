"""DINOv2-small out of an ONNX graph: weights under transformers' names, and an image processor for LLaVA's 336 pixels.

The graph holds biases, norms, scales and the patch projection under transformers' names. Weight matrices have lost theirs:
a matrix is known by the bias that its product is added to, and lies transposed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model

from llava_prumerge.ground.errors import InputError

SIDE = 336  # pixels: 24 x 24 patches of 14, LLaVA-1.5's 576
PREFIX = "backbone."
LAYERS, WIDTH, HEADS, PATCH, TRAINED_SIDE = 12, 384, 6, 14, 518
_MEAN, _STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # ImageNet's, as DINOv2 was trained with


def config() -> Dinov2Config:
    """Of DINOv2 ViT-S/14, with positions for 37 x 37 patches."""
    return Dinov2Config(
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        patch_size=PATCH,
        image_size=TRAINED_SIDE,
        use_mask_token=False,
    )


def image_processor(side: int = SIDE) -> BitImageProcessorPil:
    """Makes squares of one size; the photograph is padded to a square before, as LLaVA-1.5 does in stage 2."""
    return BitImageProcessorPil(
        do_resize=True,
        size={"shortest_edge": side},
        do_center_crop=True,
        crop_size={"height": side, "width": side},
        image_mean=_MEAN,
        image_std=_STD,
        resample=3,
    )


def read_onnx(content: bytes) -> dict[str, Tensor]:
    """The backbone's weights under transformers' names (of version 4).

    Raises:
        InputError: the onnx package is missing, or the graph is another than expected.
    """
    try:
        import onnx
        from onnx import numpy_helper
    except ModuleNotFoundError as error:
        raise InputError("reading the tower needs the package onnx: pip install 'llava-prumerge[small]'") from error
    graph = onnx.load_model_from_string(content).graph
    arrays = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    products = {node.output[0]: node for node in graph.node if node.op_type == "MatMul"}
    weights = {name: array for name, array in arrays.items() if name.startswith(PREFIX)}
    for node in graph.node:
        if node.op_type != "Add":
            continue
        bias = next((name for name in node.input if name.startswith(PREFIX) and name.endswith(".bias")), None)
        product = next((products[name] for name in node.input if name in products), None)
        matrix = None if product is None else next((name for name in product.input if name in arrays), None)
        if bias is not None and matrix is not None:
            weights[f"{bias.removesuffix('.bias')}.weight"] = arrays[matrix].T
    patches = (TRAINED_SIDE // PATCH) ** 2
    positions = [
        [array for array in arrays.values() if array.shape == (1, count, WIDTH) and array is not weights.get(CLASS)]
        for count in (1, patches)
    ]
    if [len(found) for found in positions] != [1, 1]:
        raise InputError(
            f"the graph has {[len(found) for found in positions]} constants of positions, expected one each"
        )
    made = {name.removeprefix(PREFIX): torch.from_numpy(array.copy()) for name, array in weights.items()}
    made["embeddings.position_embeddings"] = torch.cat(
        [torch.from_numpy(found[0].copy()) for found in positions], dim=1
    )
    return made


CLASS = f"{PREFIX}embeddings.cls_token"


def save(content: bytes, folder: Path) -> None:
    """A folder that transformers reads: weights as safetensors, configuration, image processor.

    Raises:
        InputError: a weight is missing, left over or of another shape.
    """
    weights = read_onnx(content)
    model, told = Dinov2Model.from_pretrained(
        None, config=config(), state_dict=weights, dtype=torch.float32, output_loading_info=True
    )
    wrong: dict[str, Any] = {key: sorted(map(str, value)) for key, value in told.items() if value}
    if wrong:
        raise InputError(f"the graph's weights do not make a DINOv2-small: {wrong}")
    model.save_pretrained(folder)
    image_processor().save_pretrained(folder)
