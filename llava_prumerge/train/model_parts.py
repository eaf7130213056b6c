"""Whether the parts that a recipe names belong together: language model, vision tower, projector, output folder.

Asked before torch is imported. A projector that is here is judged by its shapes, a missing one by the size in its name.
"""

from __future__ import annotations

import re
from pathlib import Path

from llava_prumerge.data.recipe import RecipeError
from llava_prumerge.efficiency.shapes import named_shapes
from llava_prumerge.ground.reading import read_json_object
from llava_prumerge.text.hub_files import folder_of, is_here
from llava_prumerge.train.arguments import TrainArguments

# Published models by the last part of their name, with the shape of shapes.yaml that they have.
LANGUAGE_MODELS = {
    "vicuna-7b-v1.5": "llava-1.5-7b",
    "vicuna-13b-v1.5": "llava-1.5-13b",
    "smollm2-135m-instruct": "small",
    "Qwen2.5-0.5B-Instruct": "small-clip",
}
VISION_TOWERS = {"clip-vit-large-patch14-336": "llava-1.5-7b", "dinov2-small-336": "small"}
WHOLE_MODELS = {"llava-1.5-7b-hf": "llava-1.5-7b", "llava-1.5-13b-hf": "llava-1.5-13b"}

_SIZE = re.compile(r"(?<![a-z0-9.])(\d+(?:\.\d+)?)b(?![a-z0-9])")
_PROJECTOR = "multi_modal_projector."


def check_parts(arguments: TrainArguments) -> None:
    """Refuse a projector or an output folder of another model than the recipe trains.

    Raises:
        RecipeError: with both, and what goes together.
    """
    key = "language_model" if arguments.model is None else "model"
    model = str(getattr(arguments, key))
    advice = "RECIPE=13b has what belongs to 13B" if "13" in sizes_in(model) else "take parts of one size"
    if arguments.model is None and arguments.projector is not None:
        _check_projector(arguments, advice)
    folder = Path(str(arguments.output_dir)).name
    if _differ(folder, model):
        told, right = (_named(sizes_in(text)) for text in (folder, model))
        raise RecipeError(
            f"output_dir={arguments.output_dir} is called {told}, {key}={model} is {right}: {advice}, or give another output_dir"
        )


def _check_projector(arguments: TrainArguments, advice: str) -> None:
    language, projector = str(arguments.language_model), str(arguments.projector)
    found = projector_widths(Path(projector))
    if found is None:
        if _differ(projector, language):
            told, right = (_named(sizes_in(text)) for text in (projector, language))
            raise RecipeError(f"projector={projector} is for {told}, language_model={language} is {right}: {advice}")
        return
    wanted = (
        width_of("vision_tower", str(arguments.vision_tower), VISION_TOWERS),
        width_of("language_model", language, LANGUAGE_MODELS),
    )
    if any(width is not None and width != has for width, has in zip(wanted, found, strict=True)):
        needed = " to ".join("?" if width is None else str(width) for width in wanted)
        raise RecipeError(
            f"projector={projector} leads from {found[0]} to {found[1]} numbers per token, language_model={language} and "
            f"vision_tower={arguments.vision_tower} need {needed}: {advice}"
        )


def sizes_in(text: str) -> frozenset[str]:
    """The model sizes in the last two parts of a path or name: {"13"} for checkpoints/vicuna-13b-v1.5."""
    return frozenset(_SIZE.findall("/".join(Path(text).parts[-2:]).lower()))


def _differ(one: str, other: str) -> bool:
    """Whether both names tell a size, and none in common."""
    first, second = sizes_in(one), sizes_in(other)
    return bool(first and second) and first.isdisjoint(second)


def _named(sizes: frozenset[str]) -> str:
    return " and ".join(f"{size}B" for size in sorted(sizes))


def projector_widths(path: Path) -> tuple[int, int] | None:
    """Numbers per token before and behind a projector, from its file's header; None where there is no such file."""
    file = path / "mm_projector.safetensors" if path.is_dir() else path
    if not file.is_file():
        return None
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np") as weights:
            shapes = {
                name.removeprefix(_PROJECTOR): weights.get_slice(name).get_shape() for name in list(weights.keys())
            }
        return shapes["linear_1.weight"][1], shapes["linear_2.weight"][0]
    except (SafetensorError, OSError, KeyError, IndexError):  # said when it is loaded, with what is wrong
        return None


def width_of(key: str, model: str, published: dict[str, str]) -> int | None:
    """The hidden size of a language model or vision tower, from its config.json or its published name; None if unknown."""
    known = published.get(Path(model).name)
    if not is_here(model):
        if known is None:
            return None
        shape = named_shapes()[known]
        return shape.vision.width if key == "vision_tower" else shape.language.hidden
    try:
        config = read_json_object(folder_of(model) / "config.json")
        inner = config.get("vision_config" if key == "vision_tower" else "text_config") or config
        width = inner.get("hidden_size")
    except (OSError, ValueError, AttributeError):
        return None
    return width if isinstance(width, int) else None
