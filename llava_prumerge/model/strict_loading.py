"""Whether a checkpoint fits the model it is loaded into: every weight there, known, of its shape, and finite."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedConfig

from llava_prumerge.ground.errors import FileError, InputError
from llava_prumerge.ground.hub_names import is_missing, why_missing
from llava_prumerge.model.configuration import PruMergeLlavaConfig
from llava_prumerge.model.towers import know_tower
from llava_prumerge.model.weight_files import LoadingError, check_finite, check_whole_files, name_first

METHOD_PREFIXES = {"vision": "model.reducer.", "decoder": "model.language_model.pruner."}
ADAPTER_CONFIG_FILE = "adapter_config.json"
_WHERE = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
_LONGEST = 300  # characters of a library's message; some list every model there is
_POSITIONS = "embeddings.position_ids"  # a constant that old CLIP checkpoints store as a weight


class StrictLoading:
    """Makes `from_pretrained` refuse what transformers only warns of, when it starts missing parameters at random."""

    @classmethod
    def from_pretrained(cls, path: Any, *args: Any, **kwargs: Any) -> Any:
        """transformers' own, of a checkpoint that fits.

        A method that is loaded as the checkpoint's config.json names it must find exactly its parameters; one that the caller put in
        its place starts at its own values.

        Raises:
            LoadingError: a weight file is not whole, or weights are missing, unknown, of another shape, NaN or infinite.
        """
        wants_report = kwargs.pop("output_loading_info", False)
        check_folder(path, kwargs)
        settings = kwargs | {"output_loading_info": True, "ignore_mismatched_sizes": True}
        model, report = super().from_pretrained(path, *args, **settings)
        if path is not None:
            report_seen = dict(report)
            if kwargs.get("ignore_mismatched_sizes"):
                report_seen["mismatched_keys"] = set()
            check_strictly(path, changed_sites(path, model.config.reduction, kwargs), report_seen)
            check_finite(model.named_parameters(), str(path))
        return (model, report) if wants_report else model


def load_strictly(model_class: Any, path: str | Path, unused: tuple[str, ...] = (), **settings: Any) -> Any:
    """A stock model under the same rules.

    Args:
        model_class: a transformers model class.
        path: a folder, or a name on the Hub.
        unused: prefixes of weights that the checkpoint may hold and this class has no use for.
        settings: of `from_pretrained`.

    Raises:
        LoadingError: as `StrictLoading`, or there is nothing to load at `path`.
    """
    check_folder(path, settings)
    with in_one_line(path):
        model, report = model_class.from_pretrained(
            path, output_loading_info=True, ignore_mismatched_sizes=True, **settings
        )
    unknown = {key for key in report["unexpected_keys"] if not key.startswith(unused) and not key.endswith(_POSITIONS)}
    check_strictly(path, (), {**report, "unexpected_keys": unknown})
    check_finite(model.named_parameters(), str(path))
    return model


@contextlib.contextmanager
def in_one_line(path: Any) -> Iterator[None]:
    """Turn what libraries raise about files at `path` into a LoadingError of one line that names it.

    A path where nothing is ends here, before a library asks the Hub for a model of that name.
    """
    if path is not None and is_missing(path):
        raise LoadingError(f"{path}: {why_missing(path)}")
    try:
        yield
    except (InputError, FileError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # an odd value in a configuration makes libraries raise whatever they meet first
        if "attn_implementation" in str(error):
            reason = str(error).split(". ")[0].removesuffix(" yet")
            raise LoadingError(f"{path}: {reason}; take another, such as eager") from error
        told = " ".join(str(error).split())[:_LONGEST]
        kind = "" if isinstance(error, OSError | SafetensorError) else f"{type(error).__name__}: "
        raise LoadingError(f"{path} cannot be loaded: {kind}{told or 'no reason is given'}") from error


def read_config(path: Any) -> PreTrainedConfig:
    """The configuration of a folder, or of a name on the Hub, as transformers' classes check it.

    Raises:
        LoadingError: there is none, or it holds a key that its class does not take.
    """
    with in_one_line(path):
        try:
            stored, _ = PreTrainedConfig.get_config_dict(path)
            know_tower(stored.get("vision_config"))
            return AutoConfig.from_pretrained(path)
        except (OSError, ValueError, TypeError, AttributeError, StrictDataclassError) as error:
            reason = " ".join(str(error).split())[:_LONGEST]
            raise LoadingError(f"{path} holds no readable config.json: {reason}") from error


def check_folder(path: Any, settings: Mapping[str, Any]) -> None:
    """Look at a folder's weight files before transformers does, which names no file, and would ask the Hub for adapters' bases.

    Args:
        path: a folder; a name on the Hub is not looked at.
        settings: of `from_pretrained`.

    Raises:
        LoadingError: there is nothing at the path, a file is missing, cut short or a Git LFS pointer, or the folder holds adapters without their model.
    """
    if path is not None and is_missing(path):
        raise LoadingError(f"{path}: {why_missing(path)}")
    if path is None or not Path(path).is_dir() or settings.get("state_dict") is not None:
        return
    folder = Path(path) / (settings.get("subfolder") or "")
    if (folder / ADAPTER_CONFIG_FILE).is_file():
        raise LoadingError(
            f"{folder} holds adapters ({ADAPTER_CONFIG_FILE}) and no whole model; load_model reads adapters, where a base.json "
            "beside them says what they belong to"
        )
    if settings.get("variant") is None:
        check_whole_files(folder)


def changed_sites(path: Any, reduction: dict[str, Any] | None, kwargs: Mapping[str, Any]) -> tuple[str, ...]:
    """Prefixes of the methods that are not those of the checkpoint's own config.json."""
    try:
        stored, _ = PruMergeLlavaConfig.get_config_dict(path, **{key: kwargs[key] for key in _WHERE if key in kwargs})
    except OSError:  # the caller brought a configuration for a folder that has none
        stored = {}
    before, now = stored.get("reduction") or {}, reduction or {}
    return tuple(prefix for site, prefix in METHOD_PREFIXES.items() if before.get(site) != now.get(site))


def check_strictly(path: Any, free: tuple[str, ...], report: Mapping[str, Any]) -> None:
    """Compare what was loaded with what the model has.

    Args:
        free: prefixes of parameters that may be missing, unknown or of another shape.
        report: transformers' loading info.

    Raises:
        LoadingError: with the first of the keys.
    """
    shapes = {
        key: f"{key} {tuple(stored)} (needed {tuple(needed)})" for key, stored, needed in report["mismatched_keys"]
    }
    missing, unknown = set(report["missing_keys"]) - set(shapes), set(report["unexpected_keys"])
    for word, keys in (("lacks", missing), ("has unknown", unknown), ("has misshapen", set(shapes))):
        wrong = sorted(key for key in keys if not key.startswith(free))
        if wrong:
            own = wrong[0].startswith(tuple(METHOD_PREFIXES.values()))
            hint = "; its config.json names a method with other parameters" if own else ""
            raise LoadingError(f"{path} {word} weights: {name_first(shapes.get(key, key) for key in wrong)}{hint}")
