"""The shapes of models that costs are computed from: named ones (shapes.yaml), or that of a config.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from llava_prumerge.efficiency.errors import EfficiencyError, refuse
from llava_prumerge.ground.errors import FileError
from llava_prumerge.ground.reading import read_json

if TYPE_CHECKING:
    from llava_prumerge.model.image_shape import ImageShape

CLIP = "clip_vision_model"
DATA = Path(__file__).with_name("shapes.yaml")


@dataclass(frozen=True)
class VisionShape:
    """A CLIP vision transformer, or the tower of another family.

    Attributes:
        blocks: it has; `run` of them are needed for the features.
        width, intermediate, heads: of each block.
        image, patch: sides in pixels.
        cut: how an image reaches it, of other families.
    """

    blocks: int
    run: int
    width: int
    intermediate: int
    heads: int
    image: int
    patch: int
    cut: ImageShape | None = None

    @property
    def side(self) -> int:
        """Patches along each side of the image."""
        return self.image // self.patch

    @property
    def patches(self) -> int:
        """P, visual tokens of an image."""
        return self.side**2 if self.cut is None else self.cut.tokens

    @property
    def seen(self) -> int:
        """Patches of an image that the tower sees, in all tiles."""
        return self.side**2 if self.cut is None else self.cut.tiles * self.cut.patches

    @property
    def parameters(self) -> int:
        """All weights and biases, the blocks behind the features included."""
        if self.cut is not None:
            return self.cut.tower_parameters
        width, wide = self.width, self.intermediate
        block = 4 * (width**2 + width) + 2 * width * wide + wide + width + 4 * width
        ends = 3 * self.patch**2 * width + (self.patches + 2) * width + 4 * width  # patches, positions and class, norms
        return self.blocks * block + ends

    def as_config(self) -> dict[str, Any]:
        """In transformers' names, for CLIPVisionConfig."""
        return {
            "hidden_size": self.width,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.blocks,
            "num_attention_heads": self.heads,
            "image_size": self.image,
            "patch_size": self.patch,
        }


@dataclass(frozen=True)
class LanguageShape:
    """A Llama decoder.

    Attributes:
        layers: L; `hidden` is D, `intermediate` the FFN's width.
        heads, kv_heads, head_width: of attention.
        vocabulary: rows of the embedding and of the head.
        embeddings: how many such matrices there are: 1 where both share one.
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_width: int
    vocabulary: int
    embeddings: int = 2

    @property
    def attention_width(self) -> int:
        """Of the queries, all heads together."""
        return self.heads * self.head_width

    @property
    def kv_width(self) -> int:
        """Of the keys, and of the values."""
        return self.kv_heads * self.head_width

    @property
    def linear(self) -> tuple[tuple[int, int], ...]:
        """(inputs, outputs) of one layer's matrices: query, key, value, output, gate, up, down."""
        hidden, wide = self.hidden, self.intermediate
        attention = ((hidden, self.attention_width), (hidden, self.kv_width), (hidden, self.kv_width))
        return (*attention, (self.attention_width, hidden), (hidden, wide), (hidden, wide), (wide, hidden))

    @property
    def layer_parameters(self) -> int:
        """Of one layer, its two norms included."""
        return sum(inputs * outputs for inputs, outputs in self.linear) + 2 * self.hidden

    @property
    def parameters(self) -> int:
        """All weights."""
        return self.layers * self.layer_parameters + self.hidden + self.embeddings * self.vocabulary * self.hidden

    def as_config(self) -> dict[str, Any]:
        """In transformers' names, for LlamaConfig."""
        return {
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_width,
            "vocab_size": self.vocabulary,
        }


@dataclass(frozen=True)
class ModelShape:
    """A LLaVA: tower, two-layer projector, decoder."""

    name: str
    vision: VisionShape
    language: LanguageShape

    def __post_init__(self) -> None:
        for part in (self.vision, self.language):
            for key, value in vars(part).items():
                if key == "cut":
                    continue
                if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                    raise EfficiencyError(f"{self.name}: {key} {value!r} is not a whole number of at least 1")
        if self.vision.run > self.vision.blocks:
            raise EfficiencyError(f"{self.name}: features after {self.vision.run} of {self.vision.blocks} blocks")

    @property
    def projector(self) -> tuple[tuple[int, int], ...]:
        """(inputs, outputs) of the projector's matrices."""
        if self.vision.cut is not None:
            return self.vision.cut.projector
        return ((self.vision.width, self.language.hidden), (self.language.hidden, self.language.hidden))

    @property
    def projector_parameters(self) -> int:
        """Two linear layers with biases."""
        if self.vision.cut is not None:
            return self.vision.cut.projector_parameters
        hidden = self.language.hidden
        return self.vision.width * hidden + hidden**2 + 2 * hidden

    @property
    def parameters(self) -> int:
        """All of them."""
        return self.vision.parameters + self.projector_parameters + self.language.parameters


@cache
def named_shapes() -> dict[str, ModelShape]:
    """The shapes of shapes.yaml by name."""
    found = yaml.safe_load(DATA.read_text(encoding="utf-8"))
    return {
        name: ModelShape(name, VisionShape(**entry["vision"]), LanguageShape(**entry["language"]))
        for name, entry in found.items()
    }


def model_shape(name: str, image: tuple[int, int] = (480, 640)) -> ModelShape:
    """A shape by name, or from the path of a config.json or of the folder it lies in.

    Args:
        name: see above.
        image: (height, width) in pixels, for families whose tokens depend on it.

    Raises:
        EfficiencyError: there is neither a shape nor a file of that name, or the file is of no served family.
    """
    if name in named_shapes():
        return named_shapes()[name]
    path = Path(name)
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise refuse("model", name, [*named_shapes(), "the path of a config.json"])
    try:
        config = read_json(path)
    except FileError as error:
        raise EfficiencyError(str(error)) from error
    return shape_of_config(config, path, image)


def shape_of_config(
    config: Any, path: Path, image: tuple[int, int], pixels: Mapping[str, Any] | None = None
) -> ModelShape:
    """The shape that a configuration tells of.

    Args:
        config: as config.json holds it, of any served family.
        path: of that file, which errors name and whose folder gives the shape its name.
        image: (height, width) in pixels.
        pixels: settings of the processor's part for images; None reads them beside the file.

    Raises:
        EfficiencyError: it is of no served family.
    """
    if not _is_other(config):
        return _shape_of(config, path)
    return _shape_of_family(config, path, image, _pixel_settings(path.parent) if pixels is None else pixels)


def _is_other(config: Any) -> bool:
    """Whether it is of a model whose costs are not those of LLaVA-1.5's CLIP."""
    if not isinstance(config, dict) or not isinstance(config.get("vision_config"), dict):
        return False
    from llava_prumerge.model.families import MAIN, stock_type

    tower = config["vision_config"].get("model_type", CLIP)
    return stock_type(str(config.get("model_type", MAIN))) != MAIN or tower != CLIP


def _shape_of_family(
    config: dict[str, Any], path: Path, image: tuple[int, int], pixels: Mapping[str, Any]
) -> ModelShape:
    """Of any served family, from its own modules. Loads torch."""
    from llava_prumerge.model.image_shape import image_shape, stock_config

    try:
        made = stock_config(config)
        found = image_shape(made, *image, pixels)
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise EfficiencyError(f"{path}: {' '.join(str(error).split())[:300]}") from error
    sides = (math.isqrt(found.patches), 1)
    vision = VisionShape(found.blocks, found.run, found.width, found.intermediate, found.heads, *sides, cut=found)
    language = language_shape(made.get_text_config().to_dict())
    embeddings = 1 if made.tie_word_embeddings else 2
    return ModelShape(path.parent.resolve().name, vision, replace(language, embeddings=embeddings))


def _pixel_settings(folder: Path) -> dict[str, Any]:
    """Settings of the processor's part for images, from whichever file holds them; {} where there is none."""
    for name, part in (("preprocessor_config.json", None), ("processor_config.json", "image_processor")):
        file = folder / name
        try:
            found = read_json(file) if file.is_file() else {}
        except FileError as error:
            raise EfficiencyError(str(error)) from error
        found = found if part is None else found.get(part) or {}
        if found:
            return found
    return {}


def _shape_of(config: Any, path: Path) -> ModelShape:
    """From transformers' Llava configuration; what it leaves out has CLIPVisionConfig's and LlamaConfig's defaults."""
    parts = ("vision_config", "text_config")
    if not isinstance(config, dict) or not all(isinstance(config.get(part), dict) for part in parts):
        raise EfficiencyError(f"{path} is not a LLaVA's: it needs {' and '.join(parts)}, as transformers writes them")
    vision, text = (config[part] for part in parts)
    depth, feature = vision.get("num_hidden_layers", 12), config.get("vision_feature_layer", -2)
    try:
        return ModelShape(
            path.parent.resolve().name,
            VisionShape(
                blocks=depth,
                run=feature if feature >= 0 else depth + 1 + feature,
                width=vision.get("hidden_size", 768),
                intermediate=vision.get("intermediate_size", 3072),
                heads=vision.get("num_attention_heads", 12),
                image=vision.get("image_size", 224),
                patch=vision.get("patch_size", 32),
            ),
            language_shape(text),
        )
    except (TypeError, ZeroDivisionError) as error:
        raise EfficiencyError(f"{path}: {error}") from error


def language_shape(text: Mapping[str, Any]) -> LanguageShape:
    """From transformers' configuration of a decoder, as a mapping; LlamaConfig's defaults where it says nothing."""
    heads, hidden = text.get("num_attention_heads", 32), text.get("hidden_size", 4096)
    return LanguageShape(
        layers=text.get("num_hidden_layers", 32),
        hidden=hidden,
        intermediate=text.get("intermediate_size", 11008),
        heads=heads,
        kv_heads=text.get("num_key_value_heads") or heads,
        head_width=text.get("head_dim") or hidden // heads,
        vocabulary=text.get("vocab_size", 32000),
    )
