"""What is released: the folder that holds the weights, the run they come from, and what they were trained on top of."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from llava_prumerge.ground.errors import FileError, InputError
from llava_prumerge.ground.reading import kind_of, read_json, read_json_object
from llava_prumerge.ground.yaml_files import read_yaml
from llava_prumerge.methods.resolve import stored_reduction
from llava_prumerge.model.families import is_own_type
from llava_prumerge.model.fingerprint import fingerprint
from llava_prumerge.model.weight_files import LoadingError, read_index

BASE_FILE = "base.json"  # beside trained parts: what they have to be put on
MERGED = "merged"
COMPLETE, PARTS, UNMERGED = "complete", "parts", "unmerged"
BASE_KEYS = ("model", "language_model", "vision_tower")


@dataclass(frozen=True)
class KnownBase:
    """A published model: its name on the Hub and the licence it binds what is made of it to, where that is stated."""

    hub: str
    licence: str | None


# By the folder names that docs/training.md tells people to download to.
KNOWN_BASES = {
    "vicuna-7b-v1.5": KnownBase("lmsys/vicuna-7b-v1.5", "llama2"),
    "vicuna-13b-v1.5": KnownBase("lmsys/vicuna-13b-v1.5", "llama2"),
    "llava-1.5-7b-hf": KnownBase("llava-hf/llava-1.5-7b-hf", "llama2"),
    "llava-1.5-13b-hf": KnownBase("llava-hf/llava-1.5-13b-hf", "llama2"),
    "clip-vit-large-patch14-336": KnownBase("openai/clip-vit-large-patch14-336", None),
}


class ReleaseError(InputError):
    """Why something is not released; the message is enough for the person who asked for it."""


@dataclass(frozen=True)
class Source:
    """A checkpoint to release.

    Attributes:
        weights: the folder whose files are released, or whose parts are merged first.
        form: "complete" (a whole model), "parts" (adapters and projector, released as they are), or "unmerged" (parts
            that become a whole model in the release).
        run: the folder with config.yaml and environment.json of the training; None for a checkpoint without one.
        hub_bases: names on the Hub by base key, as told on the command line.
    """

    weights: Path
    form: str
    run: Path | None
    hub_bases: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json of the checkpoint."""
        return read_object(self.weights / "config.json")

    @property
    def reduction(self) -> dict[str, Any]:
        """The method block; {} for none."""
        return stored_reduction(self.weights)

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """Fingerprints of what an evaluation may have loaded: the released folder, and the parts or the merged model beside it."""
        folders = [self.weights]
        if self.run is not None:
            folders += [folder for folder in (self.run, self.run / MERGED) if (folder / "config.json").is_file()]
        return {str(folder): fingerprint(str(folder)) for folder in dict.fromkeys(folders)}

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The run's resolved settings; {} without a run."""
        if self.run is None:
            return {}
        file = self.run / "config.yaml"
        with _as_release_error():
            found = read_yaml(file)
        if not isinstance(found, dict):
            raise ReleaseError(f"{file} must hold the settings of the run, and holds {kind_of(found)}")
        return found

    @cached_property
    def starts(self) -> list[dict[str, Any]]:
        """One entry per start of the training: command, code and versions; [] where none is recorded."""
        file = self.run / "environment.json" if self.run is not None else None
        if file is None or not file.is_file():
            return []
        with _as_release_error():
            found = read_json(file)
        if not isinstance(found, list) or not all(isinstance(start, dict) for start in found):
            raise ReleaseError(
                f"{file} must hold a list of the run's starts; repeat the run's command to write it anew"
            )
        return found

    @cached_property
    def base_entries(self) -> dict[str, dict[str, Any]]:
        """What base.json says of each base; {} for a complete model."""
        file = self.weights / BASE_FILE
        found = read_object(file) if file.is_file() else {}
        entries = {key: entry for key, entry in found.items() if key in BASE_KEYS and entry}
        for key, entry in entries.items():
            if not isinstance(entry, dict) or not isinstance(entry.get("path", entry.get("hub")), str):
                raise ReleaseError(f"{file}: {key} must be an object with a path or a name on the Hub")
        return entries

    @cached_property
    def base_paths(self) -> dict[str, str]:
        """What training started from, by key: model, or language_model and vision_tower; folders, or names on the Hub."""
        if self.base_entries:
            return {key: str(entry.get("path") or entry["hub"]) for key, entry in self.base_entries.items()}
        return {key: str(self.settings[key]) for key in BASE_KEYS if self.settings.get(key)}

    def hub_name(self, key: str) -> str | None:
        """A base's name on the Hub: told, the one it was trained from, or known by its folder's name."""
        known = KNOWN_BASES.get(Path(self.base_paths.get(key, "")).name)
        return self.hub_bases.get(key) or self.base_entries.get(key, {}).get("hub") or (known and known.hub)

    def licence(self) -> str | None:
        """The licence that a known base binds the model to; None where none is known to."""
        known = {base.hub: base.licence for base in KNOWN_BASES.values()}
        found = [known.get(name) for key in BASE_KEYS if (name := self.hub_name(key))]
        return next((licence for licence in found if licence), None)


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object, or an error that names the file."""
    with _as_release_error():
        return read_json_object(path)


@contextlib.contextmanager
def _as_release_error() -> Iterator[None]:
    try:
        yield
    except FileError as error:
        raise ReleaseError(str(error)) from error


def find_source(folder: Path, merge: bool, hub_bases: Mapping[str, str] | None = None) -> Source:
    """What a folder offers for release.

    Args:
        folder: a finished run, its merged/ folder, or a checkpoint without a run.
        merge: of trained parts make a complete model; the one that training left in merged/ is taken.
        hub_bases: names on the Hub by base key, for bases that are not known.

    Raises:
        ReleaseError: the folder is missing, unfinished, no checkpoint of this project, or lacks weights.
    """
    if not folder.is_dir():
        raise ReleaseError(f"{folder}: no such folder; give what training left, such as runs/NAME")
    if folder.name.startswith("checkpoint-"):
        raise ReleaseError(f"{folder} is for resuming a run; give the run's own folder, {folder.parent}")
    run = next((place for place in (folder, folder.parent) if (place / "config.yaml").is_file()), None)
    if run == folder.parent and folder.name != MERGED:
        run = None
    if run is not None and not (run / "finished.json").is_file():
        raise ReleaseError(f"{run} holds a run that is not finished; repeat its command to finish it")
    if not (folder / "config.json").is_file():
        raise ReleaseError(f"{folder} has no config.json, so it is no checkpoint")
    weights, form = folder, COMPLETE
    if (folder / BASE_FILE).is_file():
        form = UNMERGED if merge else PARTS
        if merge and (folder / MERGED / "config.json").is_file():
            weights, form = folder / MERGED, COMPLETE
    source = Source(weights, form, run, dict(hub_bases or {}))
    check_weights(source)
    return source


def check_weights(source: Source) -> None:
    """Refuse what is no checkpoint of ours, or lacks a weight file."""
    kind = source.config.get("model_type")
    if not is_own_type(kind):
        raise ReleaseError(
            f"{source.weights} is a {kind!r} checkpoint; only models trained here (prumerge_...) are released"
        )
    unknown = sorted(set(source.hub_bases) - set(source.base_paths))
    if unknown:
        has = ", ".join(source.base_paths) or "none on record"
        raise ReleaseError(f"--base {unknown[0]}: this model has no such base; its bases: {has}")
    names = weight_files(source)
    missing = [name for name in names if not (source.weights / name).is_file()]
    if missing:
        raise ReleaseError(f"{source.weights} lacks {', '.join(missing)}")
    if source.form == PARTS:
        nameless = [key for key in source.base_paths if source.hub_name(key) is None]
        if nameless:
            told = " ".join(f"--base {key}=NAMESPACE/NAME" for key in nameless)
            raise ReleaseError(
                f"trained parts are of use to others only with bases they can get: name them with {told}, or release a "
                "complete model with --merge"
            )


def weight_files(source: Source) -> list[str]:
    """Names of the safetensors files that make the checkpoint; those of a complete one by its index, where it has one."""
    if source.form != COMPLETE:
        adapter = ["adapter_model.safetensors"] if (source.weights / "adapter_config.json").is_file() else []
        method = ["method.safetensors"] if (source.weights / "method.safetensors").is_file() else []
        return [*adapter, "mm_projector.safetensors", *method]
    index = source.weights / "model.safetensors.index.json"
    if not index.is_file():
        return ["model.safetensors"]
    try:
        return sorted(read_index(index))
    except LoadingError as error:
        raise ReleaseError(str(error)) from error
