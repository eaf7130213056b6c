"""Whether a checkpoint fits the model it is loaded into: its weights, and above all the parameters of its method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llava_prumerge.model.configuration import PruMergeLlavaConfig

METHOD_PREFIXES = {"vision": "model.reducer.", "decoder": "model.language_model.pruner."}
_WHERE = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
_SHOWN = 5


class LoadingError(ValueError):
    """A folder or setting that no model can be made from; the message names it."""


class StrictLoading:
    """Makes `from_pretrained` refuse what transformers only warns of, when it starts missing parameters at random."""

    @classmethod
    def from_pretrained(cls, path: Any, *args: Any, **kwargs: Any) -> Any:
        """transformers' own, of a checkpoint that fits.

        A method that is loaded as the checkpoint's config.json names it must find exactly its parameters; one that the caller put in
        its place starts at its own values.

        Raises:
            LoadingError: weights are missing, unknown, or of another shape.
        """
        wants_report = kwargs.pop("output_loading_info", False)
        settings = kwargs | {"output_loading_info": True, "ignore_mismatched_sizes": True}
        model, report = super().from_pretrained(path, *args, **settings)
        if path is not None:
            report_seen = dict(report)
            if kwargs.get("ignore_mismatched_sizes"):
                report_seen["mismatched_keys"] = set()
            check_strictly(path, changed_sites(path, model.config.reduction, kwargs), report_seen)
        return (model, report) if wants_report else model


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
            listed = ", ".join(shapes.get(key, key) for key in wrong[:_SHOWN]) + (" ..." if len(wrong) > _SHOWN else "")
            own = wrong[0].startswith(tuple(METHOD_PREFIXES.values()))
            hint = "; its config.json names a method with other parameters" if own else ""
            raise LoadingError(f"{path} {word} weights: {listed} ({len(wrong)} in all){hint}")
