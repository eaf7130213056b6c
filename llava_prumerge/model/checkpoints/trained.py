"""What was trained on a frozen base: LoRA matrices and projectors, by the model's names, checked, and merged into it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from llava_prumerge.ground.hub_names import is_hub_name
from llava_prumerge.ground.public import public_name
from llava_prumerge.model.adapters import ADAPTER_CONFIG_FILE, METHOD_PREFIXES, Base
from llava_prumerge.model.checkpoints.bases import PROJECTOR_NAMES, base_of_parts, language_folder, tower_folder
from llava_prumerge.model.checkpoints.layout import Parts, Record, Whole, known_keys, recognise
from llava_prumerge.model.checkpoints.plan import PROJECTOR, TEXT, Keys, Named, Shapes, check_complete, match
from llava_prumerge.model.checkpoints.request import Request
from llava_prumerge.model.tensor_files import Stored, list_tensors
from llava_prumerge.model.weight_files import LoadingError, name_first

PEFT = "base_model.model."
_MATRIX = re.compile(r"^(?P<module>.+)\.lora_(?P<side>[AB])(?:\.default)?\.weight$")
_LAYER = re.compile(r"\.layers\.\d+\.")
_PLAIN_LORA: dict[str, tuple[Any, ...]] = {  # beside rank, scale, dropout and targets: the values that change nothing
    "bias": ("none", None),
    "fan_in_fan_out": (False, None),
    "modules_to_save": (None, []),
    "use_dora": (False, None),
    "use_rslora": (False, None),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
}


def plain(item: Stored) -> Stored:
    """A tensor under its key without peft's prefix."""
    return dataclasses.replace(item, key=item.key.removeprefix(PEFT))


def match_projector(tensors: list[Stored], shapes: Shapes, whole: bool = False) -> Named:
    """The projector among what was trained beside adapters, or alone.

    Args:
        whole: other parameters of the model are taken too (they end in a merged model).

    Raises:
        LoadingError: something else is there, or the projector is not complete.
    """
    keys = recognise(map(plain, tensors), known_keys(PROJECTOR_NAMES[0]))
    found = match(tensors, keys, shapes, PEFT)
    others = [entry for name, entry in found.items() if not name.startswith(PROJECTOR)]
    if others and not whole:
        raise LoadingError(f"{others[0].sources[0]} is not of the projector; --merge takes it into a whole model")
    check_complete(found, PROJECTOR_NAMES, tensors[0].file if tensors else "the projector", (keys,))
    return found


def match_adapter(tensors: list[Stored], settings: dict[str, Any], shapes: Shapes) -> dict[str, Stored]:
    """Give LoRA matrices their names in our model.

    Raises:
        LoadingError: adapters of a kind that is not plain LoRA, of another model, or not complete.
    """
    for key, harmless in _PLAIN_LORA.items():
        if settings.get(key) not in harmless:
            raise LoadingError(f"{ADAPTER_CONFIG_FILE}: {key} is {settings[key]!r}; plain LoRA alone is converted")
    rank = settings.get("r")
    if not isinstance(rank, int) or not isinstance(settings.get("lora_alpha"), int | float):
        raise LoadingError(f"{ADAPTER_CONFIG_FILE} lacks r or lora_alpha")
    keys = recognise(map(plain, tensors), known_keys(TEXT + "layers."))
    found: dict[str, Stored] = {}
    for item in tensors:
        parts = _MATRIX.match(plain(item).key)
        module = keys.names_of(f"{parts['module']}.weight")[0] if parts else ""
        if parts is None or module not in shapes:
            raise LoadingError(f"{item} is no LoRA matrix of this model")
        wide = shapes[module]
        needed = (rank, wide[1]) if parts["side"] == "A" else (wide[0], rank)
        if item.shape != needed:
            raise LoadingError(f"{item} is {item.shape}; rank {rank} on {module} {wide} makes it {needed}")
        found[f"{module.removesuffix('.weight')}.lora_{parts['side']}.weight"] = item
    _check_pairs(found, tensors[0].file if tensors else None, keys)
    return found


def _check_pairs(found: dict[str, Stored], file: Path | None, keys: Keys) -> None:
    """Every adapted module has both matrices, and every layer the same modules: peft starts what is missing at random."""
    if not found:
        raise LoadingError(f"{file} lacks all LoRA matrices")
    layers = {layer for name in found for layer in _LAYER.findall(name)}
    needed = {_LAYER.sub(layer, name) for name in found for layer in layers}
    needed |= {name.replace(f"lora_{one}", f"lora_{other}") for name in needed for one, other in ("AB", "BA")}
    missing = sorted(needed - set(found))
    if missing:
        raise LoadingError(f"{file} lacks {name_first(PEFT + keys.key_of(name) for name in missing)}")


def parts_of(whole: Whole, adapter: dict[str, Stored], settings: dict[str, Any], base: Base, record: Record) -> Parts:
    """The trained parts of a model."""
    projector = {name: whole.found[name] for name in PROJECTOR_NAMES}
    method = {name: entry for name, entry in whole.found.items() if name.startswith(METHOD_PREFIXES)}
    return Parts(adapter, settings, projector, method, base, whole, record)


def read_projector(request: Request, file: Path, values: dict[str, Any]) -> Parts:
    """A projector alone; with its model's configuration where the base was named.

    Args:
        values: an original config.json beside it, empty where there is none.
    """
    name, tensors = values.get("mm_vision_tower"), list_tensors(file)
    record = Record(request.called(request.source), "projector", name, original_config=values or None)
    if request.language_model is None and request.vision_tower is None:
        return Parts({}, {}, _lone_projector(tensors, file), {}, None, None, record)
    base = language_folder(request, values.get("_name_or_path"))
    whole = base_of_parts(request, base, values, record, partial(match_projector, tensors), [base])
    return parts_of(whole, {}, {}, named_base(request, base, tower_folder(request, name)), record)


def _lone_projector(tensors: list[Stored], file: Path) -> Named:
    """A projector that says its own shape."""
    keys = recognise(map(plain, tensors), known_keys(PROJECTOR_NAMES[0]))
    named = {name: item for item in tensors for name in keys.names_of(item.key)}
    first = named.get(PROJECTOR_NAMES[0])
    if first is None or len(first.shape) != 2:
        raise LoadingError(f"{file} lacks {keys.key_of(PROJECTOR_NAMES[0])}, or it is no matrix")
    text, vision = first.shape
    shapes = ((text, vision), (text,), (text, text), (text,))
    return match_projector(tensors, dict(zip(PROJECTOR_NAMES, shapes, strict=True)))


def named_base(request: Request, language_model: Path, vision_tower: Path) -> Base:
    """The two folders, by their names on the Hub where they came from there and no revision was asked for."""
    language, tower = (
        name if is_hub_name(name := request.called(path)) else str(path) for path in (language_model, vision_tower)
    )
    return Base(None, language, tower)


def adapter_settings(parts: Parts, targets: Callable[[list[str]], Any], task: str | None) -> dict[str, Any]:
    """peft's adapter_config.json, with settings alone that peft has had since LLaVA's time, so that its own code can read them.

    Args:
        targets: from the adapted modules within a layer, such as self_attn.q_proj, to `target_modules`.
        task: peft's type of task.
    """
    assert parts.base is not None
    modules = sorted({_LAYER.split(name.rpartition(".lora_")[0])[-1] for name in parts.adapter})
    named = parts.settings.get("base_model_name_or_path")
    known = named if named and is_hub_name(named) else public_name(parts.base.model or parts.base.language_model)
    return {
        "base_model_name_or_path": known,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_alpha": parts.settings["lora_alpha"],
        "lora_dropout": parts.settings.get("lora_dropout", 0.0),
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": parts.settings["r"],
        "target_modules": targets(modules),
        "task_type": task,
    }


def merged(parts: Parts) -> Whole:
    """The whole model with its adapters in the weights: W + alpha / r B A, computed in float32 and rounded once.

    Raises:
        LoadingError: the base was not named.
    """
    if parts.whole is None:
        raise LoadingError("--merge needs --language-model and --vision-tower")
    found, scale = dict(parts.whole.found), parts.settings.get("lora_alpha", 1) / parts.settings.get("r", 1)
    for name, a in parts.adapter.items():
        if ".lora_A." not in name:
            continue
        module, b = name.removesuffix(".lora_A.weight") + ".weight", parts.adapter[name.replace("lora_A", "lora_B")]
        found[module] = dataclasses.replace(
            found[module],
            sources=(*found[module].sources, a, b),
            how=f"W + {scale:g} B A",
            make=lambda weight, a, b: (weight.float() + (b.float() @ a.float()) * scale).to(weight.dtype),
        )
    return dataclasses.replace(parts.whole, found=found)
