"""Trained parts, LoRA adapters and projectors: written in our layout or the original one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from llava_prumerge.ground.files import whole_folder, write_json
from llava_prumerge.ground.hub_names import is_hub_name
from llava_prumerge.ground.public import make_public, public_name
from llava_prumerge.model.adapters import ADAPTER_CONFIG_FILE, ADAPTER_FILE, METHOD_FILE, Base, write_base
from llava_prumerge.model.assembling import PROJECTOR_FILE
from llava_prumerge.model.checkpoints import layouts
from llava_prumerge.model.checkpoints.configs import original_config, rows_without_ours, text_config
from llava_prumerge.model.checkpoints.plan import Entry
from llava_prumerge.model.checkpoints.request import RECORD_FILE, Parts, Request, Whole
from llava_prumerge.model.checkpoints.targets import tower_name
from llava_prumerge.model.checkpoints.trained_parts import NON_LORA, PEFT
from llava_prumerge.model.checkpoints.weights import Reader, read_json
from llava_prumerge.model.checkpoints.whole import PROJECTOR_BIN
from llava_prumerge.model.checkpoints.writing import write_tensors
from llava_prumerge.model.processors import make_processor, save_processor
from llava_prumerge.model.weight_files import LoadingError, name_first


def plan_parts(parts: Parts, request: Request) -> dict[str, list[Entry]]:
    """The tensors of each file of the result.

    Raises:
        LoadingError: the target's layout has no place for a parameter.
    """
    original = request.to == "original"
    if request.to == "llava-hf":
        raise LoadingError("llava-hf has no layout for adapters or projectors alone; --merge makes a whole model")
    if original and parts.method:
        raise LoadingError(
            f"the original layout has no place for the method's {name_first(sorted(parts.method))}; --reduction none leaves them out"
        )
    adapter, projector = [], []
    for name, item in parts.adapter.items():
        key = PEFT + (layouts.key_of("original", name) if original else name)
        adapter.append(Entry(key, item.shape, item.dtype, (item,)))
    for name, entry in parts.projector.items():
        if original:
            key = (PEFT if adapter else "") + layouts.key_of("original", name)
        else:
            key = name.removeprefix("model.")
        projector.append(dataclasses.replace(entry, key=key))
    method = [dataclasses.replace(entry, key=name.removeprefix("model.")) for name, entry in parts.method.items()]
    if original:
        files = {ADAPTER_FILE: adapter, NON_LORA if adapter else PROJECTOR_BIN: projector}
    else:
        files = {ADAPTER_FILE: adapter, PROJECTOR_FILE: projector, METHOD_FILE: method}
    return {name: entries for name, entries in files.items() if entries}


def write_parts(parts: Parts, request: Request) -> None:
    """Write the result."""
    files = plan_parts(parts, request)
    with whole_folder(request.target) as folder:
        for name, entries in files.items():
            if name.endswith(".bin"):  # LLaVA's own code reads these two files and no other
                torch.save({entry.key: entry.tensor(Reader()).clone() for entry in entries}, folder / name)
            else:
                write_tensors(folder / name, entries, Reader())
        if parts.adapter:
            write_json(folder / ADAPTER_CONFIG_FILE, adapter_config(parts, request))
        if request.to == "ours":
            _write_our_sides(parts, folder)
        elif parts.whole is not None:
            write_json(folder / "config.json", _original_sides(parts.whole, parts.base, request))


def adapter_config(parts: Parts, request: Request) -> dict[str, Any]:
    """peft's settings. A list of bare names (q_proj, ...) would also hit the tower's layers in our model, so ours is a pattern.

    Only settings that peft has had since LLaVA's time, so that its own code can read them.
    """
    modules = sorted({name.rsplit(".lora_", 1)[0].partition(".layers.")[2].partition(".")[2] for name in parts.adapter})
    targets: Any = sorted({module.rpartition(".")[2] for module in modules})
    if request.to == "ours":
        targets = rf"model\.language_model\.layers\.\d+\.({'|'.join(module.replace('.', chr(92) + '.') for module in modules)})"
    named = parts.settings.get("base_model_name_or_path")
    return {
        "base_model_name_or_path": named
        if named and is_hub_name(named)
        else public_name(parts.base.model or parts.base.language_model),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_alpha": parts.settings["lora_alpha"],
        "lora_dropout": parts.settings.get("lora_dropout", 0.0),
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": parts.settings["r"],
        "target_modules": targets,
        "task_type": "CAUSAL_LM" if request.to == "original" else None,
    }


def _write_our_sides(parts: Parts, folder: Path) -> None:
    write_json(folder / RECORD_FILE, parts.record.public())
    if parts.whole is None:
        return
    whole = parts.whole
    whole.config.architectures = ["PruMergeLlavaForConditionalGeneration"]
    whole.config.save_pretrained(folder)
    make_public(folder / "config.json")
    save_processor(make_processor(whole.tokenizer, whole.image_processor, whole.config), folder)
    write_base(parts.base, folder)


def _original_sides(whole: Whole, base: Base, request: Request) -> dict[str, Any]:
    """LLaVA's code gives the base so many rows as this config.json says: others than its own would start uninitialised."""
    if base.language_model is not None:
        file = Path(base.language_model) / "config.json"
        rows = text_config(read_json(file), file).vocab_size
    else:
        rows = rows_without_ours(whole.config, whole.tokenizer)
    return original_config(whole.config, rows, tower_name(whole, request, base), whole.record.original_config)
