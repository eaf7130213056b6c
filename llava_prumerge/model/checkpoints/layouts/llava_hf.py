"""llava-hf's layout: stock transformers' Llava, under the keys of releases to 4.51 and from 4.52 on."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, GenerationConfig, LlavaConfig, PreTrainedConfig

from llava_prumerge.model.adapters import METHOD_PREFIXES
from llava_prumerge.model.assembling import processor_of
from llava_prumerge.model.attach import own_class, stock_class_of
from llava_prumerge.model.checkpoints import layout, plan
from llava_prumerge.model.checkpoints.bases import Given, UnreadTokenizer, find_tokenizer
from llava_prumerge.model.checkpoints.request import Request
from llava_prumerge.model.configuration import OwnConfig, with_reduction
from llava_prumerge.model.families import is_own_type
from llava_prumerge.model.processors import make_processor, save_config, save_processor, save_settings
from llava_prumerge.model.tensor_files import Entry, Stored, list_model
from llava_prumerge.model.weight_files import LoadingError, has_weights
from llava_prumerge.text.tokenizers import MODEL_FILE as TOKENIZER_FILE

OLDER_TEXT = (("language_model.model.", plan.TEXT), ("language_model.lm_head.", plan.HEAD))
OLDER_PROJECTOR = ("multi_modal_projector.", plan.PROJECTOR)
OLDER = plan.Keys(
    "hf-older",
    (*OLDER_TEXT, ("vision_tower.vision_model.", plan.TOWER), ("vision_tower.", plan.TOWER), OLDER_PROJECTOR),
)
FAMILY = (
    plan.Keys(  # of other families than LLaVA-1.5: as the modules are named, or as transformers' older releases did
        "transformers",
        ((plan.TEXT, plan.TEXT), (plan.HEAD, plan.HEAD), ("model.", "model."), *OLDER_TEXT, ("", "model.")),
    )
)
SAME = (plan.TEXT, plan.HEAD, plan.TOWER, plan.PROJECTOR, plan.REDUCER)
NEWER = plan.Keys("hf-newer", ((plan.TOWER + "vision_model.", plan.TOWER), *((name, name) for name in SAME)))


def read_transformers(
    request: Request, source: Path, candidates: tuple[plan.Keys, ...], name: str, given: Given | None = None
) -> layout.Whole:
    """A whole LLaVA-1.5 in a folder that transformers' Auto classes read, or, among ours, a model of another family.

    Args:
        candidates: keys that its files may have; a dry run without weights takes the first.
        name: of the layout, for the record.
        given: parameters that go before those of the folder.

    Raises:
        LoadingError: something is missing, damaged, mixed or of another model.
    """
    try:
        config: Any = AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise LoadingError(f"{source}: config.json cannot be read: {str(error).splitlines()[0]}") from error
    other = isinstance(config, OwnConfig) and not isinstance(config, LlavaConfig)
    if not (other or isinstance(config, LlavaConfig)):
        raise LoadingError(f"{source / 'config.json'} is of a {config.model_type!r}, not of a Llava")
    candidates = (FAMILY,) if other else candidates
    own, dtype = getattr(config, "reduction", None), config.dtype
    block = own if request.reduction is None else request.reduction
    config = with_reduction(config, block or None)
    config.dtype = config.text_config.dtype = dtype
    shapes, keys = plan.shapes_of(config), candidates[0]
    if has_weights(source) or not request.dry_run:
        tensors = list_model(source)
        keys = keys if other else layout.recognise(tensors, candidates)
    else:
        file = source / "config.json"
        tensors = [Stored(keys.key_of(one), shape, dtype or torch.float32, file) for one, shape in shapes.items()]
    if block != own:  # the parameters of a method that goes
        tensors = [item for item in tensors if not any(n.startswith(METHOD_PREFIXES) for n in keys.names_of(item.key))]
    found = plan.match(tensors, keys, shapes) | (given(shapes) if given else {})
    plan.check_complete(found, shapes, source, (keys,))
    for one in (found[one] for one in plan.VOCABULARY if one in found):
        if one.shape[0] != config.text_config.vocab_size:
            told = f"{one.shape[0]} rows, config.json says {config.text_config.vocab_size}"
            raise LoadingError(f"{one.sources[0]} has {told}")
    record = layout.Record.earlier(source, request.called(source), name)
    where = find_tokenizer([source], request)
    if where is None:
        return layout.Whole(found, config, UnreadTokenizer(config.image_token_index), None, None, record)
    processor = processor_of(source, config)
    if config.text_config.pad_token_id is None:  # llava-hf says it one level up
        config.text_config.pad_token_id = processor.tokenizer.pad_token_id
    write = partial(save_processor, processor) if other else None
    return layout.Whole(found, config, processor.tokenizer, processor.image_processor, where, record, write)


def write_transformers(whole: layout.Whole, config: PreTrainedConfig, request: Request, folder: Path) -> None:
    """What transformers needs beside the weights of a whole model."""
    dtype = layout.dtype_of(request)
    if dtype is not None:
        config.dtype = config.text_config.dtype = dtype
    write_model(whole, config, folder)
    ids = {key: getattr(whole.tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    GenerationConfig(**ids).save_pretrained(folder)
    if whole.tokenizer_folder is not None and (plain := whole.tokenizer_folder / TOKENIZER_FILE).is_file():
        shutil.copyfile(plain, folder / plain.name)  # unused here; LLaVA's own code wants it after the way back


def write_model(whole: layout.Whole, config: PreTrainedConfig, folder: Path) -> None:
    """A model's configuration, a stock one or ours, and its processor."""
    made: Any = stock_class_of(config)
    stock = not isinstance(config, OwnConfig)
    config.architectures = [made.__name__ if stock else own_class(made).__name__]
    if whole.write_processor is None:
        processor = make_processor(whole.tokenizer, whole.image_processor, whole.config)
        save_settings(config, processor, folder, class_by_model=stock)
    else:
        save_config(config, folder)
        whole.write_processor(folder)


class LlavaHf(layout.Layout):
    """The layout."""

    name = "llava-hf"
    keys = (OLDER, NEWER)

    def kind_of(self, source: layout.Source) -> str | None:
        """A whole model with blocks for its parts, of a stock type."""
        config = source.config or {}
        return layout.WHOLE if "text_config" in config and not is_own_type(config.get("model_type")) else None

    def read(self, request: Request, kind: str) -> layout.Whole:
        """A model of either generation."""
        return read_transformers(request, request.source, self.keys, "llava-hf")

    def files(self, made: layout.Whole | layout.Parts, request: Request) -> dict[str, list[Entry]]:
        """A whole model, under the older keys, which every release reads."""
        if isinstance(made, layout.Parts):
            raise LoadingError("llava-hf has no layout for adapters or projectors alone; --merge makes a whole model")
        return {layout.MODEL_FILE: plan.with_keys(self.placed(made, request), OLDER)}

    def write_beside(self, made: layout.Whole, request: Request, folder: Path) -> None:
        """The configuration of the stock class, and its processor."""
        values = made.config.to_dict()
        for key in ("model_type", "reduction", "architectures"):
            values.pop(key, None)
        write_transformers(made, LlavaConfig(**values), request, folder)


LAYOUT = LlavaHf()
