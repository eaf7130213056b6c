"""Loads the image tower of any open_clip ViT as transformers' CLIPVisionModel, by exact conversion of its weights.

open_clip itself is needed only to look up a named architecture; a JSON model configuration and a checkpoint need nothing but torch.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel

from llava_prumerge.ground.errors import InputError
from llava_prumerge.ground.naming import not_known, shown
from llava_prumerge.model.weight_files import (
    SAFETENSORS,
    LoadingError,
    check_finite,
    check_fit,
    open_pickled,
    read_object,
    read_weights,
    shapes_of,
)

# Settings of open_clip's vision tower that CLIPVisionModel has no counterpart for, with the value it is equal to.
_PLAIN: dict[str, Any] = {
    "timm_model_name": None,
    "ls_init_value": None,
    "no_ln_pre": False,
    "attentional_pool": False,
    "pos_embed_type": "learnable",
    "pool_type": "tok",
    "final_ln_after_pool": False,
    "qk_norm": False,
    "scaled_cosine_attn": False,
    "scale_heads": False,
    "scale_attn_inner": False,
    "scale_attn": False,
    "scale_fc": False,
    "act_kwargs": None,
}
Value = TypeVar("Value")
TOWER_PREFIX = "vision_model."
"""Of keys in a tower's files, for every transformers release; version 5 takes it off when it loads, 4 needs it."""
_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def vision_config(
    vision_cfg: dict[str, Any], quick_gelu: bool = False, embed_dim: int | None = None
) -> CLIPVisionConfig:
    """The transformers configuration of an open_clip `vision_cfg`.

    Raises:
        ValueError: the tower has a part that CLIPVisionModel lacks.
    """
    for name, plain in _PLAIN.items():
        if vision_cfg.get(name, plain) != plain:
            raise InputError(
                f"open_clip's {name}={vision_cfg[name]!r} has no counterpart in CLIPVisionModel; only {plain!r} has"
            )
    layers, size = vision_cfg.get("layers", 12), vision_cfg.get("image_size", 224)
    if not isinstance(layers, int) or not isinstance(size, int):
        raise InputError(f"only a ViT on square images can be converted, not layers={layers!r}, image_size={size!r}")
    width = vision_cfg.get("width", 768)
    return CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=int(width * vision_cfg.get("mlp_ratio", 4.0)),
        projection_dim=embed_dim or width,
        num_hidden_layers=layers,
        num_attention_heads=width // vision_cfg.get("head_width", 64),
        image_size=size,
        patch_size=vision_cfg.get("patch_size", 16),
        hidden_act="quick_gelu" if quick_gelu else "gelu",
        layer_norm_eps=(vision_cfg.get("norm_kwargs") or {}).get("eps", 1e-5),
    )


def config_of(settings: dict[str, Any]) -> CLIPVisionConfig:
    """The same of a whole model configuration, which is a JSON file of open_clip's."""
    return vision_config(settings["vision_cfg"], settings.get("quick_gelu", False), settings.get("embed_dim"))


def sources_of(layers: int) -> dict[str, tuple[str, int | None]]:
    """Where CLIPVisionModel's tensors come from: the name in open_clip's image tower, and which third of it, or None for all."""
    made: dict[str, tuple[str, int | None]] = {
        "embeddings.class_embedding": ("class_embedding", None),
        "embeddings.patch_embedding.weight": ("conv1.weight", None),
        "embeddings.position_embedding.weight": ("positional_embedding", None),
    }
    for part in ("weight", "bias"):
        for ours, theirs in (("pre_layrnorm", "ln_pre"), ("post_layernorm", "ln_post")):
            made[f"{ours}.{part}"] = f"{theirs}.{part}", None
        for layer in range(layers):
            theirs, ours = f"transformer.resblocks.{layer}", f"encoder.layers.{layer}"
            made |= {f"{ours}.{b}.{part}": (f"{theirs}.{a}.{part}", None) for a, b in _BLOCK.items()}
            fused = f"{theirs}.attn.in_proj_{part}"
            made |= {f"{ours}.self_attn.{name}_proj.{part}": (fused, third) for third, name in enumerate("qkv")}
    return made


def image_tower(weights: Mapping[str, Value]) -> dict[str, Value]:
    """The image tower's part of a whole open_clip model, by the names within it (without "visual." and DDP's "module.").

    Raises:
        InputError: there is none.
    """
    plain = {name.removeprefix("module."): value for name, value in weights.items()}
    found = {name.removeprefix("visual."): value for name, value in plain.items() if name.startswith("visual.")}
    if not found:
        raise InputError(f"no weight begins with 'visual.', the first are {sorted(weights)[:3]}")
    return found


def convert_open_clip(
    state_dict: dict[str, Tensor], vision_cfg: dict[str, Any], quick_gelu: bool = False, embed_dim: int | None = None
) -> tuple[CLIPVisionConfig, dict[str, Tensor]]:
    """Converts open_clip's image tower.

    Args:
        state_dict: of the whole open_clip model (names under "visual.", perhaps with DDP's "module."); the rest is ignored.
        vision_cfg: the model configuration's block of that name.
        quick_gelu: the model configuration's field of that name.
        embed_dim: likewise; only noted in the configuration.

    Returns:
        the configuration, and the weights under CLIPVisionModel's names.
    """
    config = vision_config(vision_cfg, quick_gelu, embed_dim)
    held, made = image_tower(state_dict), {}
    for name, (key, third) in sources_of(config.num_hidden_layers).items():
        made[name] = (held[key] if third is None else held[key].chunk(3)[third]).detach().clone().contiguous()
    return config, made


def pixel_settings(config: CLIPVisionConfig, statistics: dict[str, Any]) -> dict[str, Any]:
    """Settings of the image processor: the tower's size, and open_clip's mean and standard deviation where they are known."""
    side = config.image_size
    sizes = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    return sizes | {f"image_{key}": statistics[key] for key in ("mean", "std") if statistics.get(key) is not None}


def tower_shapes(config: CLIPVisionConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of CLIPVisionModel's tensors, without the prefix that some releases give them."""
    with torch.device("meta"):
        state = CLIPVisionModel(config).state_dict()
    return {name.removeprefix(TOWER_PREFIX): tuple(value.shape) for name, value in state.items()}


def build_tower(config: CLIPVisionConfig, weights: dict[str, Tensor]) -> CLIPVisionModel:
    """A CLIPVisionModel with converted weights.

    Raises:
        LoadingError: a name is missing or unknown, or a shape is another.
    """
    tower = CLIPVisionModel(config)
    state = tower.state_dict()
    nested = any(name.startswith(TOWER_PREFIX) for name in state)
    weights = {TOWER_PREFIX + name if nested else name: value for name, value in weights.items()}
    check_fit(shapes_of(weights), shapes_of(state), "the open_clip checkpoint")
    tower.load_state_dict(weights)
    return tower.eval()


def save_tower(tower: CLIPVisionModel, folder: Path) -> None:
    """Write a tower's configuration and weights so that every transformers release reads them.

    transformers 5 alone would write keys that version 4 passes over, and start the tower at random.
    """
    tower.config.architectures = [type(tower).__name__]
    tower.config.dtype = tower.dtype
    tower.config.save_pretrained(folder)
    weights = {TOWER_PREFIX + key.removeprefix(TOWER_PREFIX): value for key, value in tower.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def read_checkpoint(checkpoint: str | Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a pickle as open_clip saves it (read with weights_only).

    Raises:
        LoadingError: the file cannot be read, or a value of the image tower is NaN or infinite.
    """
    file = Path(checkpoint)
    if file.suffix == SAFETENSORS:
        return read_weights(file)
    loaded = open_pickled(file)
    weights = loaded.get("state_dict", loaded)
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise LoadingError(f"{file} holds no tensors by name")
    check_finite(((name, value) for name, value in weights.items() if "visual." in name), str(file))
    return weights


def named_architecture(name: str) -> dict[str, Any]:
    """The model configuration of an architecture that open_clip ships, such as ViT-L-14-336.

    It is read from open_clip's files: importing open_clip would need a torchvision that fits this torch.

    Raises:
        LoadingError: open_clip is not installed, or ships no such architecture.
    """
    spec = importlib.util.find_spec("open_clip")
    if spec is None or spec.origin is None:
        raise LoadingError(
            f"the architecture {name!r} is looked up in open_clip, which is not installed: pip install open_clip_torch, or "
            "give a JSON file with its model configuration"
        )
    files = {path.stem: path for path in Path(spec.origin).parent.joinpath("model_configs").glob("*.json")}
    if name not in files:
        raise LoadingError(not_known("open_clip model", name, sorted(files)))
    return json.loads(files[name].read_text(encoding="utf-8"))


def architecture(name: str) -> dict[str, Any]:
    """A model configuration: a JSON file, or the name of one that open_clip ships.

    Raises:
        LoadingError: the file cannot be read, or open_clip does not know the name.
    """
    if not name.endswith(".json"):
        return named_architecture(name)
    settings = read_object(Path(name))
    inner: dict[str, Any] = settings.get("model_cfg", settings)
    check_object({"model_cfg": inner}, "model_cfg", name)
    check_object(inner, "vision_cfg", name)
    return inner


def check_object(settings: dict[str, Any], key: str, file: str | Path) -> None:
    """Refuse a configuration that has no object of that name."""
    if not isinstance(settings.get(key), dict):
        raise LoadingError(f"{file} must have {key}, an object, found {shown(settings.get(key))}")


def load_open_clip_tower(model: str | Path, checkpoint: str | Path) -> CLIPVisionModel:
    """Loads an open_clip checkpoint's image tower.

    Args:
        model: an open_clip architecture ("ViT-L-14-336"; needs open_clip), or the path of a JSON model configuration.
        checkpoint: .safetensors, or .pt as open_clip saves it (read with weights_only).
    """
    settings, weights = architecture(str(model)), read_checkpoint(checkpoint)
    config, converted = convert_open_clip(
        weights, settings["vision_cfg"], settings.get("quick_gelu", False), settings.get("embed_dim")
    )
    return build_tower(config, converted)


class OpenClipFolder:
    """A folder in open_clip's layout on the Hub: a configuration beside the weights of the whole model."""

    CONFIG = "open_clip_config.json"
    WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        settings = read_object(self.path / self.CONFIG)
        check_object(settings, "model_cfg", self.path / self.CONFIG)
        check_object(settings["model_cfg"], "vision_cfg", self.path / self.CONFIG)
        self.model, self.preprocess = settings["model_cfg"], settings.get("preprocess_cfg", {})

    @classmethod
    def is_one(cls, path: str | Path) -> bool:
        """Whether the folder has that layout and no transformers one beside it."""
        return (Path(path) / cls.CONFIG).exists() and not (Path(path) / "config.json").exists()

    def config(self) -> CLIPVisionConfig:
        """The tower's configuration."""
        return config_of(self.model)

    def weights(self) -> Path:
        """The file of the weights.

        Raises:
            FileNotFoundError: there is none.
        """
        found = [file for name in self.WEIGHTS if (file := self.path / name).exists()]
        if not found:
            raise FileNotFoundError(f"{self.path} has none of {', '.join(self.WEIGHTS)}")
        return found[0]

    def tower(self) -> CLIPVisionModel:
        """The tower with its weights.

        Raises:
            FileNotFoundError: there are none.
            LoadingError: some are missing or misshapen.
        """
        return build_tower(*self._converted(read_checkpoint(self.weights())))

    def _converted(self, weights: dict[str, Tensor]) -> tuple[CLIPVisionConfig, dict[str, Tensor]]:
        quick, width = self.model.get("quick_gelu", False), self.model.get("embed_dim")
        try:
            return convert_open_clip(weights, self.model["vision_cfg"], quick, width)
        except KeyError as error:
            raise LoadingError(f"{self.path} lacks weights: visual.{error.args[0]}") from error

    def pixels(self) -> dict[str, Any]:
        """Settings of the image processor."""
        return pixel_settings(self.config(), self.preprocess)
