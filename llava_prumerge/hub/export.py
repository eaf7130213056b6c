"""The release folder: written whole under another name, then renamed, with a manifest of what it was made from."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import yaml

from llava_prumerge.ground.errors import FileError
from llava_prumerge.ground.files import whole_folder, write_json, write_text
from llava_prumerge.ground.public import make_public
from llava_prumerge.ground.reading import file_digest
from llava_prumerge.ground.revision import library_versions, revision_text
from llava_prumerge.hub.card import Card
from llava_prumerge.hub.source import (
    BASE_FILE,
    COMPLETE,
    PARTS,
    UNMERGED,
    ReleaseError,
    Source,
    read_object,
    weight_files,
)

logger = logging.getLogger("llava_prumerge.hub")

MANIFEST, CARD, BLOCK_FILE = "release.json", "README.md", "method.yaml"
# What lies beside weights. A name that is not here (optimizer states, logs) is never released.
PROCESSOR_FILES = (
    *("processor_config.json", "preprocessor_config.json", "chat_template.jinja", "chat_template.json"),
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
)
MODEL_FILES = ("config.json", "generation_config.json", "model.safetensors.index.json", "adapter_config.json")


def stored_dtype(source: Source) -> str:
    """What the weights are stored in, as config.json says."""
    return str(source.config.get("dtype") or source.config.get("torch_dtype") or "float32")


def export(source: Source, card: Card, out: Path) -> None:
    """Write the release to `out`, or leave the same release that lies there already.

    Raises:
        ReleaseError: `out` holds something else than an earlier release, or a file cannot be read or written.
    """
    text = card.text()
    made_from = describe(source, card, text)
    if is_same_release(out, made_from):
        logger.info("%s holds this release already", out)
        return
    try:
        with whole_folder(out, replace=True) as folder:  # an earlier release is replaced: `check_out` has looked
            if source.form == UNMERGED or (source.form == COMPLETE and card.dtype != stored_dtype(source)):
                save_model(source, card.dtype, folder)
            else:
                copy_files(source, folder)
            if source.form == PARTS:
                write_hub_base(source, folder)
            write_text(folder / BLOCK_FILE, yaml.safe_dump(source.reduction, sort_keys=False))
            write_text(folder / CARD, text)
            check_files(source, folder)
            write_json(folder / MANIFEST, {**made_from, "files": describe_files(folder)})
    except FileError as error:
        raise ReleaseError(str(error)) from error
    except OSError as error:
        raise ReleaseError(f"{out} could not be written: {error}") from error
    logger.info("release written: %s", out)


def check_out(out: Path) -> None:
    """Refuse a folder that this command did not write, before any work is done."""
    if out.exists() and not (out / MANIFEST).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise ReleaseError(
            f"{out} exists and is no earlier release (it has no {MANIFEST}); give another folder with --out"
        )


def describe(source: Source, card: Card, text: str) -> dict[str, Any]:
    """Everything that decides what a release holds; equal descriptions make equal releases."""
    return {
        "repository": card.repository,
        "form": source.form,
        "dtype": card.dtype,
        "fingerprint": source.fingerprints[str(source.weights)],
        "evaluations": {item.result["task"]: file_digest(item.path) for item in card.evaluations},
        "card": hashlib.sha256(text.encode()).hexdigest(),
        "code": revision_text(),
        "versions": library_versions(),
    }


def is_same_release(out: Path, made_from: dict[str, Any]) -> bool:
    """Whether `out` holds a release made from the same, with every file as it was written."""
    if not (out / MANIFEST).is_file():
        return False
    manifest = read_object(out / MANIFEST)
    files = manifest.pop("files", None)
    return manifest == made_from and files == describe_files(out)


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of each file but the manifest, the hash that the Hub shows for large files."""
    paths = [path for path in sorted(folder.iterdir()) if path.name != MANIFEST]
    return {path.name: {"size": path.stat().st_size, "sha256": file_digest(path)} for path in paths}


def copy_files(source: Source, folder: Path) -> None:
    """Copy the weights byte for byte, as what was evaluated is what is released, and write what belongs to them.

    Runs of earlier versions have no chat template, a tokenizer that older transformers cannot read, and paths in their
    settings, so none of that is copied as it is.
    """
    copied = [*weight_files(source), *MODEL_FILES, "tokenizer.model"]
    inside = source.weights.resolve()
    for name in (*copied, *PROCESSOR_FILES):
        path = source.weights / name
        if not path.is_file():
            continue
        if not path.resolve().is_relative_to(inside):
            raise ReleaseError(f"{path} is a link out of its folder; put the file itself there")
        if name in copied:
            shutil.copyfile(path, folder / name)
        if name in MODEL_FILES:
            make_public(folder / name)
    if not (source.weights / "tokenizer_config.json").is_file():
        raise ReleaseError(f"{source.weights} lacks tokenizer_config.json")
    write_processor(source.weights, folder)


def write_processor(weights: Path, folder: Path) -> None:
    """The processor of a checkpoint, read as `load_model` reads it and written for every transformers release."""
    from llava_prumerge.model.configuration import PruMergeLlavaConfig
    from llava_prumerge.model.processors import load_processor, save_processor
    from llava_prumerge.model.weight_files import LoadingError

    try:
        save_processor(load_processor(weights, PruMergeLlavaConfig.from_pretrained(weights)), folder)
    except (LoadingError, OSError) as error:
        raise ReleaseError(" ".join(str(error).split())) from error


def save_model(source: Source, dtype: str, folder: Path) -> None:
    """Load the model, adapters merged, and write it as a whole."""
    from llava_prumerge.model.adapters import save_complete
    from llava_prumerge.model.loading import load_model
    from llava_prumerge.model.weight_files import LoadingError

    logger.info("loading %s in %s", source.weights, dtype)
    try:
        model, processor = load_model(source.weights, dtype=dtype, device="cpu")
    except LoadingError as error:
        raise ReleaseError(str(error)) from error
    save_complete(model, folder, None, processor)


def write_hub_base(source: Source, folder: Path) -> None:
    """Let base.json name repositories that anyone can get, in place of folders of this machine."""
    values = read_object(source.weights / BASE_FILE)
    named = dict(values)
    for key in source.base_paths:
        told = values.get(key)
        weights = {"weights": told["weights"]} if isinstance(told, dict) and "weights" in told else {}
        named[key] = {"hub": source.hub_name(key), **weights}
    write_json(folder / BASE_FILE, named)
    file = folder / "adapter_config.json"
    if file.is_file():
        settings = read_object(file)
        settings["base_model_name_or_path"] = source.hub_name("model") or source.hub_name("language_model")
        write_json(file, dict(sorted(settings.items())))


def check_files(source: Source, folder: Path) -> None:
    """Refuse a release that lacks what makes it usable."""
    needed = ["config.json", "tokenizer_config.json"]
    if source.form != PARTS:
        needed.append("generation_config.json")
    missing = [name for name in needed if not (folder / name).is_file()]
    if not any((folder / name).is_file() for name in ("processor_config.json", "preprocessor_config.json")):
        missing.append("processor_config.json")
    if missing:
        raise ReleaseError(f"{source.weights} lacks {', '.join(missing)}")
    for path in folder.iterdir():
        os.chmod(path, 0o644)
