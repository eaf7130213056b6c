"""An open_clip checkpoint's image tower as a CLIP folder of transformers, ready to be a LLaVA's vision tower."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel

from llava_prumerge.ground.files import whole_folder
from llava_prumerge.model.checkpoints.request import Request
from llava_prumerge.model.open_clip import OpenClipFolder, convert_open_clip, named_architecture, read_checkpoint
from llava_prumerge.model.weight_files import LoadingError

KEY_PREFIX = "vision_model."  # of every transformers release; version 5 takes it off when it loads


def read_tower(request: Request) -> tuple[CLIPVisionConfig, dict[str, Tensor], dict[str, Any]]:
    """The tower's configuration, its weights under CLIPVisionModel's names, and the image processor's settings.

    Raises:
        LoadingError: no architecture, a part that CLIPVisionModel lacks, or a key that is missing.
    """
    source = request.source
    if OpenClipFolder.is_one(source):
        folder = OpenClipFolder(source)
        settings, preprocess = folder.model, folder.preprocess
        file = next((f for name in folder.WEIGHTS if (f := source / name).is_file()), None)
        if file is None:
            raise LoadingError(f"{source} has none of {', '.join(folder.WEIGHTS)}")
    else:
        settings, preprocess, file = architecture(request), {}, source
    weights = _mapped(file)
    try:
        config, converted = convert_open_clip(
            weights, settings["vision_cfg"], settings.get("quick_gelu", False), settings.get("embed_dim")
        )
    except KeyError as error:
        raise LoadingError(f"{file} lacks visual.{error.args[0]}") from error
    except ValueError as error:
        raise LoadingError(f"{file}: {error}") from error
    _check_shapes(config, converted, weights, file)
    side = {"shortest_edge": config.image_size}, {"height": config.image_size, "width": config.image_size}
    pixels: dict[str, Any] = {"size": side[0], "crop_size": side[1]}
    pixels |= {f"image_{key}": preprocess[key] for key in ("mean", "std") if key in preprocess}
    return config, converted, pixels


def _check_shapes(
    config: CLIPVisionConfig, converted: dict[str, Tensor], weights: dict[str, Tensor], file: Path
) -> None:
    with torch.device("meta"):
        tower = CLIPVisionModel(config)
    needed = {name.removeprefix(KEY_PREFIX): tuple(value.shape) for name, value in tower.state_dict().items()}
    for name, value in converted.items():
        if tuple(value.shape) != needed.get(name):
            raise LoadingError(f"{file}: {name} is {tuple(value.shape)}, the configuration makes it {needed.get(name)}")
    deeper = [key for key in weights if f"resblocks.{config.num_hidden_layers}." in key and "visual." in key]
    if deeper:
        raise LoadingError(f"{file} holds {deeper[0]}, but the configuration has {config.num_hidden_layers} layers")


def _mapped(file: Path) -> dict[str, Tensor]:
    """The checkpoint's tensors; open_clip's training wraps them in a dictionary with the epoch."""
    try:
        return read_checkpoint(file)
    except LoadingError as error:
        raise LoadingError(str(error)) from error


def architecture(request: Request) -> dict[str, Any]:
    """The model configuration of a checkpoint that has none beside it: a JSON file, or a name that open_clip knows.

    Raises:
        LoadingError: none was named, or open_clip does not know it.
    """
    name = request.open_clip_model
    if name is None:
        raise LoadingError(
            f"{request.source} is an open_clip checkpoint: --open-clip-model names its architecture or a JSON file"
        )
    if name.endswith(".json"):
        try:
            settings = json.loads(Path(name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise LoadingError(f"--open-clip-model {name} cannot be read: {error}") from error
        return settings.get("model_cfg", settings)
    return named_architecture(name)


def plan_tower(weights: dict[str, Tensor]) -> list[str]:
    """A line for each tensor of the result."""
    return [
        f"{KEY_PREFIX}{name}  {list(value.shape)}  {str(value.dtype).removeprefix('torch.')}"
        for name, value in weights.items()
    ]


def write_tower(config: CLIPVisionConfig, weights: dict[str, Tensor], pixels: dict[str, Any], request: Request) -> None:
    """Write the folder."""
    kind = request.dtype
    weights = {KEY_PREFIX + name: value if kind is None else value.to(kind) for name, value in weights.items()}
    with whole_folder(request.target) as folder:
        config.architectures = ["CLIPVisionModel"]
        config.dtype = next(iter(weights.values())).dtype
        config.save_pretrained(folder)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        CLIPImageProcessorPil(**pixels).save_pretrained(folder)
