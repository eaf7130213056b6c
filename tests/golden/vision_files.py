"""Golden files of methods that act on an image's tokens: features in, kept patches and output."""

from __future__ import annotations

from typing import Any

import torch
from golden_arrays import Arrays, Comparison, whole
from torch import Tensor

from llava_prumerge.methods.base import VisionReducer, VisionTokens
from llava_prumerge.methods.registry import build_reducer

FEATURES = ("features", "features_with_cls", "projected")


def applies(arrays: Arrays) -> bool:
    """Whether this is such a file."""
    return any(name in arrays for name in FEATURES) and any("output" in name or name == "kept" for name in arrays)


def tokens_of(arrays: Arrays) -> VisionTokens:
    """The inputs as a method sees them. Queries and keys are those of the block that made the features."""
    token = arrays["features_with_cls"][:, :1] if "features_with_cls" in arrays else None
    at_projector = "features" not in arrays and token is None
    patches = (
        arrays["projected"]
        if at_projector
        else arrays["features"]
        if token is None
        else arrays["features_with_cls"][:, 1:]
    )
    images, count = patches.shape[:2]
    side = round(count**0.5)
    queries, keys = arrays.get("queries_cls"), arrays.get("keys")
    if queries is None and keys is not None:  # a method that reads keys alone
        queries = keys[:, :1]
    prompt = clip = None
    if "prompt" in arrays:
        prompt = lambda: (arrays["prompt"], torch.ones(arrays["prompt"].shape[:2], dtype=torch.bool))  # noqa: E731
    return VisionTokens(
        features=patches,
        grid=(side, side),
        projections=None if keys is None else lambda own=False: (queries, keys),
        heads=whole(arrays.get("heads", 1)),
        prompt=prompt,
        clip=clip,
        ids=torch.arange(images),
        class_token=token,
    )


def compare(arrays: Arrays, method: str, settings: dict[str, Any]) -> Comparison:
    """Run the method and compare everything that the file holds."""
    if "output_with_cls" in arrays:  # ToMe: with the class token and without it
        found = Comparison()
        both = [settings["class_token"]] if "class_token" in settings else [True, False]
        for class_token in both:
            features, _, _ = reduced(arrays, method, {**settings, "class_token": class_token})
            expected = arrays["output_with_cls"][:, 1:] if class_token else arrays["output_patches_only"]
            found.values(f"output, class token {class_token}", features, expected)
        return found
    found = Comparison()
    features, valid, origin = reduced(arrays, method, settings)
    expected = arrays.get("output")
    without = "features_with_cls" in arrays and expected is not None and expected.shape[1] == features.shape[1] + 1
    if without:  # asked for without the class token, which is the first row of the file's output
        features, valid, origin = reduced(arrays, method, {**settings, "class_token": False})
        expected = expected[:, 1:]
        found.lines.append("without the class token, which the file's output has first")
    rows = [row[row >= 0] for row in origin.masked_fill(~valid, -1)]
    for name in ("kept", "kept_patches"):
        if name in arrays:
            wanted = arrays[name] if arrays[name].dim() == 2 else arrays[name][None]
            found.kept(name, [sorted(row.tolist()) for row in rows], [sorted(row.tolist()) for row in wanted])
    if "order" in arrays:
        found.kept("order", [row.tolist() for row in rows], [arrays["order"].tolist()])
    if "dominant_indices_with_cls" in arrays:
        contextual = whole(arrays["contextual"])
        ours = [(row[: len(row) - contextual] + 1).tolist() for row in rows]
        wanted = arrays["dominant_indices_with_cls"].sort(dim=1).values
        found.kept("dominant", ours, [row[row > 0].tolist() for row in wanted])
    if expected is not None:
        found.values("output", features if bool(valid.all()) else features[valid][None], expected)
    elif "output_rounded_to_half" in arrays:
        found.values("output", features, arrays["output_rounded_to_half"], tolerance=2e-3)
    return found


def reduced(arrays: Arrays, method: str, settings: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """What the method's rule gives: `forward`, which may hold more tokens than an image has places."""
    reducer: VisionReducer | None = build_reducer({"name": method, **settings})
    assert reducer is not None
    with torch.no_grad():
        return reducer.forward(tokens_of(arrays))
