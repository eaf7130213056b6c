"""Whole models: written in our layout, the original one or llava-hf's."""

from __future__ import annotations

import shutil
from pathlib import Path

from transformers import GenerationConfig, LlavaConfig

from llava_prumerge.ground.files import whole_folder, write_json
from llava_prumerge.ground.public import make_public
from llava_prumerge.model.adapters import METHOD_PREFIXES, Base
from llava_prumerge.model.checkpoints import layouts
from llava_prumerge.model.checkpoints.configs import (
    CLIP_NAME,
    original_config,
    rows_without_ours,
    write_original_tokenizer,
)
from llava_prumerge.model.checkpoints.plan import Entry, with_dtype, with_keys, with_vocabulary
from llava_prumerge.model.checkpoints.request import RECORD_FILE, Request, Whole
from llava_prumerge.model.checkpoints.weights import Reader
from llava_prumerge.model.checkpoints.writing import write_model
from llava_prumerge.model.processors import make_processor, save_processor
from llava_prumerge.model.weight_files import LoadingError, name_first
from llava_prumerge.text.tokenizers import MODEL_FILE

KEYS = {"ours": "ours", "original": "original", "llava-hf": "hf-older"}  # by --to


def plan_whole(whole: Whole, request: Request) -> list[Entry]:
    """The tensors of the result.

    Raises:
        LoadingError: the target's layout has no place for a parameter.
    """
    found = whole.found
    if request.to != "ours":
        method = [name for name in found if name.startswith(METHOD_PREFIXES)]
        if method:
            raise LoadingError(
                f"the {request.to} layout has no place for the method's {name_first(method)}; --reduction none leaves them out"
            )
    if request.to == "original":
        if not request.with_vision:
            found = {name: entry for name, entry in found.items() if not name.startswith(layouts.TOWER)}
        found = with_vocabulary(found, original_rows(whole, request))
    return with_keys(with_dtype(found, request.dtype), KEYS[request.to])


def write_whole(whole: Whole, request: Request) -> None:
    """Write the result."""
    entries = plan_whole(whole, request)
    if request.dtype is not None:
        whole.config.dtype = whole.config.text_config.dtype = request.dtype
    files_open = 2 if any(len(entry.sources) > 1 for entry in entries) else 1
    with whole_folder(request.target) as folder:
        write_model(folder, entries, Reader(files_open), request.shard_bytes)
        if request.to == "original":
            write_original_sides(whole, request, folder)
        else:
            write_our_sides(whole, request, folder)


def write_our_sides(whole: Whole, request: Request, folder: Path) -> None:
    """What transformers needs beside the weights."""
    config = whole.config
    if request.to == "llava-hf":
        values = config.to_dict()
        for key in ("model_type", "reduction", "architectures"):
            values.pop(key, None)
        config = LlavaConfig(**values)
        config.architectures = ["LlavaForConditionalGeneration"]
    else:
        config.architectures = ["PruMergeLlavaForConditionalGeneration"]
    config.save_pretrained(folder)
    make_public(folder / "config.json")
    processor = make_processor(whole.tokenizer, whole.image_processor, whole.config)
    save_processor(processor, folder, class_by_model=request.to == "llava-hf")
    ids = {key: getattr(whole.tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    GenerationConfig(**ids).save_pretrained(folder)
    plain = whole.tokenizer_folder / MODEL_FILE
    if plain.is_file():  # unused here; LLaVA's own code wants it after the way back
        shutil.copyfile(plain, folder / plain.name)
    if request.to == "ours":
        write_json(folder / RECORD_FILE, whole.record.public())


def write_original_sides(whole: Whole, request: Request, folder: Path) -> None:
    """What LLaVA's own code needs beside the weights."""
    words, rows = rows_without_ours(whole.config, whole.tokenizer), original_rows(whole, request)
    values = original_config(whole.config, rows, tower_name(whole, request), whole.record.original_config)
    if request.with_vision:
        values["unfreeze_mm_vision_tower"] = (
            True  # LLaVA's code then loads the tower before the checkpoint, not after it
        )
    write_json(folder / "config.json", values)
    ids = {key: values[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in values}
    write_json(folder / "generation_config.json", ids)
    settings = whole.record.original_tokenizer
    write_original_tokenizer(folder, whole.tokenizer, whole.tokenizer_folder, words, settings)


def original_rows(whole: Whole, request: Request) -> int:
    """Rows of the vocabulary in the original layout."""
    return (
        whole.config.text_config.vocab_size if request.keep_rows else rows_without_ours(whole.config, whole.tokenizer)
    )


def tower_name(whole: Whole, request: Request, base: Base | None = None) -> str:
    """What LLaVA's code should load as the vision tower, which its layout does not hold.

    Args:
        base: of trained parts; its tower's folder is named where no name is known.

    Raises:
        LoadingError: nobody said, and it is not the shape of LLaVA-1.5's.
    """
    if request.vision_tower is not None:
        return str(request.vision_tower)
    if whole.record.vision_tower is not None:
        return whole.record.vision_tower
    vision = whole.config.vision_config
    if (vision.hidden_size, vision.num_hidden_layers, vision.image_size, vision.patch_size) == (1024, 24, 336, 14):
        return CLIP_NAME
    if base is not None and base.vision_tower is not None:
        return base.vision_tower
    raise LoadingError(f"{request.source} does not say which CLIP it has: --vision-tower names it")
