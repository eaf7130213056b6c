"""Our layout: what `save_pretrained` and the trainings write, whole models and trained parts."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from llava_prumerge.ground.files import write_json
from llava_prumerge.model.adapters import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_FILE,
    BASE_FILE,
    METHOD_FILE,
    read_base,
    write_base,
)
from llava_prumerge.model.assembling import PROJECTOR_FILE
from llava_prumerge.model.checkpoints import bases, layout, plan, trained
from llava_prumerge.model.checkpoints.layouts import llava_hf
from llava_prumerge.model.checkpoints.request import Request
from llava_prumerge.model.configuration import PruMergeLlavaConfig
from llava_prumerge.model.families import is_own_type
from llava_prumerge.model.tensor_files import Entry, list_tensors
from llava_prumerge.model.weight_files import has_weights, read_object

KEYS = plan.Keys(
    "ours",
    (*llava_hf.OLDER_TEXT, ("vision_tower.", plan.TOWER), llava_hf.OLDER_PROJECTOR, (plan.REDUCER, plan.REDUCER)),
)
GENERATIONS = (KEYS, llava_hf.NEWER, llava_hf.OLDER)  # of whole models; the first is what is written
INNER = "model."  # what trained parts' keys lack


def _pattern(modules: list[str]) -> str:
    """Bare names (q_proj, ...) would also hit the tower's layers in our model."""
    return (
        rf"model\.language_model\.layers\.\d+\.({'|'.join(module.replace('.', chr(92) + '.') for module in modules)})"
    )


class Ours(layout.Layout):
    """The layout."""

    name = "ours"
    keys = (KEYS,)
    takes_methods = True
    families = None

    def kind_of(self, source: layout.Source) -> str | None:
        """Trained parts have base.json; a projector may lie alone; a whole model says its type."""
        if BASE_FILE in source.files:
            return layout.PARTS
        if any("multi_modal_projector." in key for key in source.keys):
            return layout.PROJECTOR
        if PROJECTOR_FILE in source.files and not has_weights(source.path):
            return layout.PROJECTOR
        return layout.WHOLE if is_own_type((source.config or {}).get("model_type")) else None

    def read(self, request: Request, kind: str) -> layout.Whole | layout.Parts:
        """A whole model, trained parts, or a projector."""
        source = request.source
        if kind == layout.PROJECTOR:
            return trained.read_projector(request, source / PROJECTOR_FILE if source.is_dir() else source, {})
        if kind == layout.WHOLE:
            return llava_hf.read_transformers(request, source, GENERATIONS, self.name)
        return self._read_parts(request)

    def _read_parts(self, request: Request) -> layout.Parts:
        source = request.source
        base, own = read_base(source), read_object(source / "config.json").get("reduction")
        block = own if request.reduction is None else request.reduction
        record = layout.Record.earlier(source, request.called(source), "ours-parts")

        def given(shapes: plan.Shapes) -> plan.Named:
            found = trained.match_projector(list_tensors(source / PROJECTOR_FILE), shapes)
            if block == own and (source / METHOD_FILE).is_file():
                tensors = {INNER + item.key: item for item in list_tensors(source / METHOD_FILE)}
                named = plan.match(
                    [dataclasses.replace(item, key=key) for key, item in tensors.items()], llava_hf.NEWER, shapes
                )
                found |= {name: dataclasses.replace(entry, sources=(tensors[name],)) for name, entry in named.items()}
            return found

        inner = dataclasses.replace(request, reduction=block or {})
        if base.model is not None:
            inner = inner.of(Path(base.model))
            whole = llava_hf.read_transformers(inner, inner.source, GENERATIONS, self.name, given)
        else:
            folders: dict[str, Any] = {key: Path(getattr(base, key)) for key in ("language_model", "vision_tower")}
            inner = dataclasses.replace(inner, **folders)
            values, language = record.original_config or {}, inner.place("language_model")
            assert language is not None
            whole = bases.base_of_parts(inner, language, values, record, given, [source])
        adapter, settings = {}, {}
        if (source / ADAPTER_CONFIG_FILE).is_file():
            settings = read_object(source / ADAPTER_CONFIG_FILE)
            shapes = {name: entry.shape for name, entry in whole.found.items()}
            adapter = trained.match_adapter(list_tensors(source / ADAPTER_FILE), settings, shapes)
        return trained.parts_of(whole, adapter, settings, base, record)

    def files(self, made: layout.Whole | layout.Parts, request: Request) -> dict[str, list[Entry]]:
        """A whole model, or a file each for adapters, projector and the method's parameters."""
        found = self.placed(made, request)
        if isinstance(made, layout.Whole):
            main = isinstance(made.config, PruMergeLlavaConfig)
            return {layout.MODEL_FILE: plan.with_keys(found, KEYS if main else llava_hf.FAMILY)}
        adapter = [Entry(trained.PEFT + name, item.shape, item.dtype, (item,)) for name, item in made.adapter.items()]
        projector, method = (
            [dataclasses.replace(entry, key=name.removeprefix(INNER)) for name, entry in part.items()]
            for part in (made.projector, made.method)
        )
        files = {ADAPTER_FILE: adapter, PROJECTOR_FILE: projector, METHOD_FILE: method}
        return {name: entries for name, entries in files.items() if entries}

    def write_beside(self, made: layout.Whole | layout.Parts, request: Request, folder: Path) -> None:
        """Configuration and processor, where they are known, and what the way back needs."""
        write_json(folder / layout.RECORD_FILE, made.record.public())
        if isinstance(made, layout.Whole):
            llava_hf.write_transformers(made, made.config, request, folder)
            return
        if made.adapter:
            write_json(folder / ADAPTER_CONFIG_FILE, trained.adapter_settings(made, _pattern, None))
        if made.whole is not None and made.base is not None:
            whole = made.whole
            llava_hf.write_model(whole, whole.config, folder)
            write_base(made.base, folder)


LAYOUT = Ours()
