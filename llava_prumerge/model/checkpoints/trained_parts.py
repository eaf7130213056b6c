"""Trained parts, LoRA adapters and projectors: read from the original layout or from ours."""

from __future__ import annotations

import dataclasses
import logging
import re
from functools import partial
from pathlib import Path
from typing import Any

from llava_prumerge.model.adapters import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_FILE,
    METHOD_FILE,
    METHOD_PREFIXES,
    Base,
    read_base,
)
from llava_prumerge.model.assembling import PROJECTOR_FILE
from llava_prumerge.model.checkpoints import layouts
from llava_prumerge.model.checkpoints.configs import check_original, is_original, text_config
from llava_prumerge.model.checkpoints.plan import Named, match
from llava_prumerge.model.checkpoints.request import Parts, Record, Request, Whole
from llava_prumerge.model.checkpoints.weights import Stored, has_weights, list_model, list_tensors, read_json
from llava_prumerge.model.checkpoints.whole import (
    PROJECTOR_BIN,
    Given,
    earlier_record,
    planned_llama,
    put_together,
    read_transformers,
    tower_folder,
)
from llava_prumerge.model.weight_files import LoadingError, name_first

LOGGER = logging.getLogger(__name__)
NON_LORA, ADAPTER_BIN = "non_lora_trainables.bin", "adapter_model.bin"
PEFT = "base_model.model."
PROJECTOR_NAMES = tuple(f"{layouts.PROJECTOR}linear_{n}.{part}" for n in (1, 2) for part in ("weight", "bias"))
Shapes = dict[str, tuple[int, ...]]
_MATRIX = re.compile(r"^(?P<module>.+)\.lora_(?P<side>[AB])(?:\.default)?\.weight$")
_PLAIN_LORA: dict[str, tuple[Any, ...]] = {  # beside rank, scale, dropout and targets: the values that change nothing
    "bias": ("none", None),
    "fan_in_fan_out": (False, None),
    "modules_to_save": (None, []),
    "use_dora": (False, None),
    "use_rslora": (False, None),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
}


class Places:
    """Looks for files in the source, then in the folder that stands in for it, and keeps account of the latter."""

    def __init__(self, request: Request, record: Record) -> None:
        self.folders = [request.source, *([request.missing_from] if request.missing_from else [])]
        self.record = record

    def find(self, *names: str) -> Path | None:
        """The first of some files; None where none is anywhere."""
        for folder in self.folders:
            for name in names:
                if (folder / name).is_file():
                    if folder != self.folders[0]:
                        self.record.taken[name] = str(folder)
                        LOGGER.warning("%s has no %s; taken from %s", self.folders[0], " or ".join(names), folder)
                    return folder / name
        return None

    def need(self, *names: str) -> Path:
        """The same.

        Raises:
            LoadingError: none is anywhere.
        """
        found = self.find(*names)
        if found is None:
            hint = "" if len(self.folders) > 1 else "; --missing-from names a folder to take it from"
            raise LoadingError(f"{' and '.join(map(str, self.folders))}: no {' or '.join(names)}{hint}")
        return found


def read_lora(request: Request) -> Parts:
    """Adapters in the original layout.

    Raises:
        LoadingError: what the source lacks nobody else has, or adapters, projector and base are not of one model.
    """
    record = Record(str(request.source), "original-lora")
    places = Places(request, record)
    weights = next((f for n in (ADAPTER_FILE, ADAPTER_BIN) if (f := request.source / n).is_file()), None)
    if weights is None:
        raise LoadingError(f"{request.source} has no {ADAPTER_FILE} and no {ADAPTER_BIN}: there are no adapters")
    settings = read_json(places.need(ADAPTER_CONFIG_FILE))
    projector = places.need(NON_LORA, PROJECTOR_BIN)
    base = language_folder(request, settings.get("base_model_name_or_path"))
    values, file = {}, places.find("config.json")
    if file is None:
        record.taken["config.json (with LLaVA-1.5's settings)"] = str(base)
        LOGGER.warning("%s has no config.json; taken from %s, with LLaVA-1.5's settings", request.source, base)
    else:
        values = read_json(file)
        check_original(values, file)
    given = partial(match_projector, list_tensors(projector), whole=request.merge)
    whole = base_of_parts(request, base, values, record, given, places.folders)
    shapes = {name: entry.shape for name, entry in whole.found.items()}
    adapter = match_adapter(list_tensors(weights), settings, shapes, ("llama", "hf-newer"))
    return _parts(whole, adapter, settings, Base(None, str(base), str(_tower(request, values))), record)


def base_of_parts(
    request: Request, base: Path, values: dict[str, Any], record: Record, given: Given, tokenizers: list[Path]
) -> Whole:
    """The model that the parts belong to: a language model's folder, a tower's, and what was trained beside adapters.

    Without `merge` the base's weights need not be there; where they are, their keys and shapes are checked.
    """
    text = text_config(read_json(base / "config.json"), base / "config.json")
    for key in ("hidden_size", "num_hidden_layers", "intermediate_size"):
        if values.get(key) not in (None, getattr(text, key)):
            raise LoadingError(
                f"{request.source}: {key} is {values[key]} in config.json, but {getattr(text, key)} in {base}"
            )
    needed = request.merge and not request.dry_run
    tensors = list_model(base) if needed or has_weights(base) else planned_llama(text, base / "config.json")
    layout = layouts.recognise(tensors, ("llama",))
    tower, folders = _tower(request, values), [*tokenizers, base]
    record.original_config, record.vision_tower = values or None, values.get("mm_vision_tower")
    return put_together(request, text, tensors, layout, tower, folders, values, record, given, needed)


def _tower(request: Request, values: dict[str, Any]) -> Path:
    return tower_folder(request, values.get("mm_vision_tower"), request.source)


def _parts(whole: Whole, adapter: dict[str, Stored], settings: dict[str, Any], base: Base, record: Record) -> Parts:
    projector = {name: whole.found[name] for name in PROJECTOR_NAMES}
    method = {name: entry for name, entry in whole.found.items() if name.startswith(METHOD_PREFIXES)}
    return Parts(adapter, settings, projector, method, base, whole, record)


def language_folder(request: Request, name: str | None) -> Path:
    """The folder of the language model that parts were trained on.

    Raises:
        LoadingError: none was given.
    """
    folder = request.language_model or (Path(name) if name and Path(name).is_dir() else None)
    if folder is None:
        raise LoadingError(
            f"{request.source} needs its base: --language-model names the folder of {name or 'its Vicuna'}"
        )
    if not (folder / "config.json").is_file():
        raise LoadingError(f"--language-model {folder} has no config.json")
    return folder


def match_projector(tensors: list[Stored], shapes: Shapes, whole: bool = False) -> Named:
    """The projector among what was trained beside adapters, or alone.

    Args:
        whole: other parameters of the model are taken too (they end in a merged model).

    Raises:
        LoadingError: something else is there, or the projector is not complete.
    """
    plain = [dataclasses.replace(item, key=item.key.removeprefix(PEFT)) for item in tensors]
    layout = layouts.recognise(plain, ("original", "hf-older", "hf-newer"))
    found = match(tensors, layout, shapes, PEFT)
    others = [entry for name, entry in found.items() if not name.startswith(layouts.PROJECTOR)]
    if others and not whole:
        raise LoadingError(f"{others[0].sources[0]} is not of the projector; --merge takes it into a whole model")
    missing = [name for name in PROJECTOR_NAMES if name not in found]
    if missing:
        keys = [layouts.called(name, (layout,)) for name in missing]
        raise LoadingError(f"{tensors[0].file if tensors else 'the projector'} lacks {name_first(keys)}")
    return found


def match_adapter(
    tensors: list[Stored], settings: dict[str, Any], shapes: Shapes, candidates: tuple[str, ...]
) -> dict[str, Stored]:
    """Give LoRA matrices their names in our model.

    Raises:
        LoadingError: adapters of a kind that is not plain LoRA, of another model, or not complete.
    """
    for key, plain in _PLAIN_LORA.items():
        if settings.get(key) not in plain:
            raise LoadingError(f"{ADAPTER_CONFIG_FILE}: {key} is {settings[key]!r}; plain LoRA alone is converted")
    rank = settings.get("r")
    if not isinstance(rank, int) or not isinstance(settings.get("lora_alpha"), int | float):
        raise LoadingError(f"{ADAPTER_CONFIG_FILE} lacks r or lora_alpha")
    plain = [dataclasses.replace(item, key=item.key.removeprefix(PEFT)) for item in tensors]
    layout = layouts.recognise(plain, candidates)
    found: dict[str, Stored] = {}
    for item, inner in zip(tensors, plain, strict=True):
        parts = _MATRIX.match(inner.key)
        module = layouts.names_of(layout, f"{parts['module']}.weight")[0] if parts else ""
        if module not in shapes:
            raise LoadingError(f"{item} is no LoRA matrix of this model")
        wide = shapes[module]
        needed = (rank, wide[1]) if parts["side"] == "A" else (wide[0], rank)
        if item.shape != needed:
            raise LoadingError(f"{item} is {item.shape}; rank {rank} on {module} {wide} makes it {needed}")
        found[f"{module.removesuffix('.weight')}.lora_{parts['side']}.weight"] = item
    _check_pairs(found, tensors[0].file if tensors else None, layout)
    return found


def _check_pairs(found: dict[str, Stored], file: Path | None, layout: str) -> None:
    """Every adapted module has both matrices, and every layer the same modules: peft starts what is missing at random."""
    places = {re.sub(r"\.layers\.\d+\.", ".layers.*.", name) for name in found}
    layers = {layer for name in found for layer in re.findall(r"\.layers\.\d+\.", name)}
    needed = {place.replace(".layers.*.", layer) for place in places for layer in layers}
    needed |= {name.replace("lora_A", "lora_B") for name in needed} | {
        name.replace("lora_B", "lora_A") for name in needed
    }
    missing = [PEFT + layouts.called(name, (layout,)) for name in sorted(needed - set(found))]
    if missing or not found:
        raise LoadingError(f"{file} lacks {name_first(missing) if missing else 'all LoRA matrices'}")


def read_our_parts(request: Request) -> Parts:
    """Trained parts in our layout (base.json beside them)."""
    source = request.source
    base = read_base(source)
    own = read_json(source / "config.json").get("reduction")
    block = own if request.reduction is None else request.reduction
    record = dataclasses.replace(earlier_record(source) or Record(str(source), "ours-parts"), taken={})
    method = source / METHOD_FILE

    def given(shapes: Shapes) -> Named:
        found = match_projector(list_tensors(source / PROJECTOR_FILE), shapes)
        if block == own and method.is_file():
            tensors = [dataclasses.replace(item, key=f"model.{item.key}") for item in list_tensors(method)]
            trained = match(tensors, "hf-newer", shapes)
            found |= {n: dataclasses.replace(e, sources=(_unprefixed(e.sources[0]),)) for n, e in trained.items()}
        return found

    inner = dataclasses.replace(request, reduction=block or {})
    if base.model is not None:
        model = Path(base.model)
        whole = read_transformers(dataclasses.replace(inner, source=model), model, given)
    else:
        inner = dataclasses.replace(inner, vision_tower=Path(base.vision_tower))
        values = record.original_config or {}
        whole = base_of_parts(inner, Path(base.language_model), values, record, given, [source])
    adapter, settings = {}, {}
    if (source / ADAPTER_CONFIG_FILE).is_file():
        settings = read_json(source / ADAPTER_CONFIG_FILE)
        shapes = {name: entry.shape for name, entry in whole.found.items()}
        adapter = match_adapter(list_tensors(source / ADAPTER_FILE), settings, shapes, ("hf-newer",))
    return _parts(whole, adapter, settings, base, record)


def _unprefixed(item: Stored) -> Stored:
    return dataclasses.replace(item, key=item.key.removeprefix("model."))


def read_projector(request: Request) -> Parts:
    """A projector alone, in a file or a folder; with its model's configuration where the base was named."""
    source = request.source
    file = (
        source if source.is_file() else next(f for n in (PROJECTOR_BIN, PROJECTOR_FILE) if (f := source / n).is_file())
    )
    config_file = file.parent / "config.json"
    values = read_json(config_file) if config_file.is_file() else {}
    values = values if is_original(values) else {}
    record = Record(str(source), "projector", values.get("mm_vision_tower"), original_config=values or None)
    if values:
        check_original(values, config_file)
    if request.language_model is None and request.vision_tower is None:
        return Parts({}, {}, _lone_projector(file), {}, None, None, record)
    base = language_folder(request, values.get("_name_or_path"))
    whole = base_of_parts(request, base, values, record, partial(match_projector, list_tensors(file)), [base])
    return _parts(whole, {}, {}, Base(None, str(base), str(_tower(request, values))), record)


def _lone_projector(file: Path) -> Named:
    tensors = list_tensors(file)
    layout = layouts.recognise(tensors, ("original", "hf-older", "hf-newer"))
    named = {(layouts.names_of(layout, item.key) or [item.key])[0]: item for item in tensors}
    first = named.get(PROJECTOR_NAMES[0])
    if first is None or len(first.shape) != 2:
        raise LoadingError(f"{file} lacks {layouts.key_of(layout, PROJECTOR_NAMES[0])}, or it is no matrix")
    text, vision = first.shape
    shapes = dict(zip(PROJECTOR_NAMES, ((text, vision), (text,), (text, text), (text,)), strict=True))
    return match_projector(tensors, shapes)


def merge(parts: Parts) -> Whole:
    """The whole model with its adapters in the weights: W + alpha / r B A, computed in float32 and rounded once."""
    if parts.whole is None:
        raise LoadingError("--merge needs --language-model and --vision-tower")
    whole, scale = parts.whole, parts.settings.get("lora_alpha", 1) / parts.settings.get("r", 1)
    found = dict(whole.found)
    for name, a in parts.adapter.items():
        if ".lora_A." not in name:
            continue
        module, b = name.removesuffix(".lora_A.weight") + ".weight", parts.adapter[name.replace("lora_A", "lora_B")]
        entry = found[module]
        found[module] = dataclasses.replace(
            entry,
            sources=(*entry.sources, a, b),
            how=f"W + {scale:g} B A",
            make=lambda weight, a, b: (weight.float() + (b.float() @ a.float()) * scale).to(weight.dtype),
        )
    return dataclasses.replace(whole, found=found)
