"""Whole models: read from any layout into one plan."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, LlamaForCausalLM, LlavaConfig, PreTrainedConfig

from llava_prumerge.model.adapters import METHOD_PREFIXES
from llava_prumerge.model.checkpoints import layouts
from llava_prumerge.model.checkpoints.configs import (
    UnreadTokenizer,
    check_original,
    find_tokenizer,
    is_original,
    text_config,
    whole_config,
)
from llava_prumerge.model.checkpoints.plan import Named, check_complete, match, shapes_of, with_vocabulary
from llava_prumerge.model.checkpoints.request import RECORD_FILE, Record, Request, Whole
from llava_prumerge.model.checkpoints.weights import Stored, has_weights, list_model, list_tensors, read_json
from llava_prumerge.model.configuration import PruMergeLlavaConfig
from llava_prumerge.model.open_clip import OpenClipFolder
from llava_prumerge.model.parts import load_image_processor, read_tower_config
from llava_prumerge.model.processors import load_processor, read_tokenizer
from llava_prumerge.model.weight_files import LoadingError

LOGGER = logging.getLogger(__name__)
PROJECTOR_BIN = "mm_projector.bin"
Given = Callable[[dict[str, tuple[int, ...]]], Named]


def read_whole(request: Request) -> Whole:
    """A complete model from the source, in whichever layout it is.

    Raises:
        LoadingError: something is missing, damaged, mixed or of another model; with file and key.
    """
    config = read_json(request.source / "config.json")
    if is_original(config):
        return read_original(request, config)
    return read_transformers(request, request.source)


def read_original(request: Request, values: dict[str, Any]) -> Whole:
    """A model in the original layout, its tower from a folder of its own."""
    source, file = request.source, request.source / "config.json"
    check_original(values, file)
    text = text_config(values, file)
    tower = tower_folder(request, values.get("mm_vision_tower"), source)
    if has_weights(source) or not request.dry_run:
        tensors = list_model(source)
        layout = layouts.recognise(tensors, ("original", *layouts.OUR_LAYOUTS))
        if layout != "original":
            raise LoadingError(f"{file} says original layout, but {tensors[0]} is of the {layout} layout")
    else:
        tensors = planned_llama(text, file) + planned_projector(text, read_tower_config(tower), file)
    record = Record(str(source), "original", values.get("mm_vision_tower"), original_config=values)
    settings = source / "tokenizer_config.json"
    if (source / "tokenizer.model").is_file() and settings.is_file():
        record.original_tokenizer = read_json(settings)
    return put_together(request, text, tensors, "original", tower, [source], values, record)


def put_together(
    request: Request,
    text: PreTrainedConfig,
    tensors: list[Stored],
    layout: str,
    tower: Path,
    tokenizers: list[Path | None],
    original: dict[str, Any],
    record: Record,
    given: Given | None = None,
    weights_needed: bool = True,
) -> Whole:
    """A whole model of a language model's tensors, with or without projector and tower among them, and a tower's folder.

    Args:
        given: from the model's shapes to parameters that come from elsewhere (a projector trained later) and go before `tensors`.
        weights_needed: False plans with the tower's configuration where its weights are not there.
    """
    where = find_tokenizer(tokenizers)
    if where is None and not request.dry_run:
        raise LoadingError(f"{' and '.join(str(f) for f in tokenizers if f)}: no tokenizer.json and no tokenizer.model")
    tokenizer = UnreadTokenizer(text.vocab_size) if where is None else read_tokenizer(where)
    vision = read_tower_config(tower)
    block = original.get("reduction") if request.reduction is None else request.reduction
    config = whole_config(text, vision, tokenizer, original, block or None, request.source / "config.json")
    shapes = shapes_of(config)
    found = match(tensors, layout, shapes) | (given(shapes) if given else {})
    stray = request.source / PROJECTOR_BIN
    if not any(name.startswith(layouts.PROJECTOR) for name in found) and stray.is_file():
        record.taken["projector"] = str(stray)
        LOGGER.info("the projector is taken from %s", stray)
        found |= match(list_tensors(stray), "original", shapes)
    if any(name.startswith(layouts.TOWER) for name in found):
        LOGGER.info("%s holds vision weights of its own; they are taken, not those of %s", request.source, tower)
    else:
        record.taken["vision tower"] = str(tower)
        found |= match(list_tower(tower, vision, weights_needed and not request.dry_run), "tower", shapes)
    check_complete(found, shapes, f"{request.source} with {tower}", (layout, "tower", "original"))
    found = with_vocabulary(found, config.text_config.vocab_size)
    has_pixels = (tower / "preprocessor_config.json").is_file()
    if not has_pixels and not request.dry_run:
        raise LoadingError(f"{tower} has no preprocessor_config.json")
    return Whole(found, config, tokenizer, load_image_processor(tower) if has_pixels else None, where, record)


def tower_folder(request: Request, name: str | None, source: Path) -> Path:
    """The folder of the vision tower.

    Raises:
        LoadingError: none was given, or it is no CLIP in transformers' layout.
    """
    tower = request.vision_tower
    if tower is None and name and Path(name).is_dir():
        tower = Path(name)
    if tower is None:
        raise LoadingError(f"{source} needs a vision tower: --vision-tower names the folder of {name or 'its CLIP'}")
    if OpenClipFolder.is_one(tower):
        raise LoadingError(f"{tower} is open_clip's; convert it first, its result serves as --vision-tower")
    if not (tower / "config.json").is_file():
        raise LoadingError(f"--vision-tower {tower} has no config.json")
    return tower


def list_tower(folder: Path, config: PreTrainedConfig, weights_needed: bool) -> list[Stored]:
    """What a tower's folder holds, or would hold where it has its configuration alone and that is enough."""
    if has_weights(folder) or weights_needed:
        return list_model(folder)
    with torch.device("meta"):
        tower = AutoModel.from_config(config)
    file, kind = folder / "config.json", config.dtype or torch.float32
    return [Stored(f"vision_model.{key}", tuple(t.shape), kind, file) for key, t in tower.state_dict().items()]


def planned_llama(config: PreTrainedConfig, file: Path) -> list[Stored]:
    """What a language model's folder holds, from its configuration alone: the stock class's own keys and shapes."""
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    kind = config.dtype or torch.float32
    return [Stored(key, tuple(value.shape), kind, file) for key, value in model.state_dict().items()]


def planned_projector(text: PreTrainedConfig, vision: PreTrainedConfig, file: Path) -> list[Stored]:
    """LLaVA-1.5's projector: two linear layers with a GELU between them."""
    kind, wide, narrow = text.dtype or torch.float32, text.hidden_size, vision.hidden_size
    shapes = {"0.weight": (wide, narrow), "0.bias": (wide,), "2.weight": (wide, wide), "2.bias": (wide,)}
    return [Stored(f"model.mm_projector.{key}", shape, kind, file) for key, shape in shapes.items()]


def read_transformers(request: Request, source: Path, given: Given | None = None) -> Whole:
    """A model in llava-hf's layout, of either generation, or in ours.

    Args:
        given: as for `put_together`.
    """
    try:
        config = AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise LoadingError(f"{source}: config.json cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(config, LlavaConfig):
        raise LoadingError(
            f"{source / 'config.json'} is of a {config.model_type!r}; a LLaVA in the original layout, in llava-hf's or in ours "
            "can be converted"
        )
    own = getattr(config, "reduction", None)
    dtype = config.dtype
    block = own if request.reduction is None else request.reduction
    config = PruMergeLlavaConfig.from_llava(config, block or None)
    config.dtype = config.text_config.dtype = dtype
    shapes = shapes_of(config)
    if has_weights(source) or not request.dry_run:
        tensors = list_model(source)
        layout = layouts.recognise(tensors, layouts.OUR_LAYOUTS if own is not None else layouts.HF_LAYOUTS)
    else:
        layout = "ours"
        kind, file = dtype or torch.float32, source / "config.json"
        tensors = [Stored(layouts.key_of(layout, name), shape, kind, file) for name, shape in shapes.items()]
    dropped = METHOD_PREFIXES if block != own else ()
    tensors = [item for item in tensors if not any(n.startswith(dropped) for n in layouts.names_of(layout, item.key))]
    found = match(tensors, layout, shapes) | (given(shapes) if given else {})
    check_complete(found, shapes, str(source), (layout,))
    _check_rows(found, config, source)
    record = dataclasses.replace(earlier_record(source) or Record(str(source), layout), taken={})
    where = find_tokenizer([source])
    if where is None and not request.dry_run:
        raise LoadingError(f"{source} has no tokenizer.json and no tokenizer.model")
    if where is None:
        return Whole(found, config, UnreadTokenizer(config.image_token_index), None, None, record)
    processor = load_processor(source, config)
    if config.text_config.pad_token_id is None:  # llava-hf says it one level up
        config.text_config.pad_token_id = processor.tokenizer.pad_token_id
    return Whole(found, config, processor.tokenizer, processor.image_processor, where, record)


def _check_rows(found: Named, config: PruMergeLlavaConfig, source: Path) -> None:
    for name in layouts.VOCABULARY:
        rows = config.text_config.vocab_size
        if name in found and found[name].shape[0] != rows:
            raise LoadingError(f"{found[name].sources[0]} has {found[name].shape[0]} rows, config.json says {rows}")


def earlier_record(folder: Path) -> Record | None:
    """What an earlier conversion wrote about a folder, for the way back."""
    file = folder / RECORD_FILE
    if not file.is_file():
        return None
    try:
        return Record(**read_json(file))
    except TypeError as error:
        raise LoadingError(f"{file} is no record of a conversion: {error}") from error
