"""Golden files of methods that act on an image's tokens: features in, kept patches and output."""

from __future__ import annotations

from typing import Any

import torch
from golden_arrays import Arrays, Comparison, whole
from torch import Tensor
from torch.nn import functional

from llava_prumerge.methods.base import Earlier, VisionReducer, VisionTokens
from llava_prumerge.methods.registry import build_reducer, discover, fields_of

FEATURES = ("features", "features_with_cls", "projected")


def applies(arrays: Arrays) -> bool:
    """Whether this is such a file."""
    return (
        "kept_view" in arrays
        or "tokens" in arrays
        or (any(name in arrays for name in FEATURES) and any("output" in name or name == "kept" for name in arrays))
    )


def tokens_of(arrays: Arrays, projected: bool = False) -> VisionTokens:
    """The inputs as a method sees them. Queries and keys are those of the block that made the features.

    Args:
        projected: the method acts behind the projector; a file may hold both sides.
    """
    arrays = _completed(arrays)
    token = arrays["features_with_cls"][:, :1] if "features_with_cls" in arrays else None
    if token is not None:
        patches = arrays["features_with_cls"][:, 1:]
    else:
        patches = arrays[
            "projected" if "features" not in arrays or (projected and "projected" in arrays) else "features"
        ]
    images, count = patches.shape[:2]
    side = round(count**0.5)
    grid = (side, side) if side**2 == count else (1, count)
    keys = _of_block(arrays, "keys", True)
    prompt = clip = None
    if "prompt" in arrays:
        prompt = lambda: (arrays["prompt"], torch.ones(arrays["prompt"].shape[:2], dtype=torch.bool))  # noqa: E731
    if "clip_text" in arrays:
        clip = lambda: _in_clip(arrays, images)  # noqa: E731
    return VisionTokens(
        features=patches,
        grid=grid,
        projections=None if keys is None else lambda own=False: _projections(arrays, own),
        heads=whole(arrays.get("heads", 1)),
        prompt=prompt,
        clip=clip,
        ids=torch.arange(images),
        class_token=token,
        padding=(lambda: _excluded(arrays, images, count)) if "excluded" in arrays else None,
        unprojected=arrays.get("features", patches) if projected else None,
        projected=arrays.get("projected", patches),
        overview=torch.zeros(images, dtype=torch.long) if "kept_view" in arrays else None,
    )


def _completed(arrays: Arrays) -> Arrays:
    """With what a file leaves out: the projector's output, and for files of a step alone what leads to it."""
    if "tokens" in arrays:  # of a clustering alone
        return {**arrays, "features": arrays["tokens"]}
    if "projector_weight" in arrays:
        projected = functional.linear(arrays["features"], arrays["projector_weight"], arrays["projector_bias"])
        return {**arrays, "projected": projected}
    if "kept_view" in arrays:  # only the choice was written down
        keys = _of_block(arrays, "keys", True)
        assert keys is not None
        return {**arrays, "features": torch.zeros_like(keys[:, 1:])}
    if {"features", "kept", "output"} == set(arrays):  # of merging alone: these patches are attended
        images, patches = arrays["features"].shape[:2]
        keys = torch.zeros(images, patches + 1, 1).scatter_(1, arrays["kept"][..., None] + 1, 9.0)
        return {**arrays, "keys": keys, "queries_cls": torch.ones(images, 1, 1)}
    return arrays


def _excluded(arrays: Arrays, images: int, patches: int) -> Tensor:
    """Patches of the padding. [N, P] bool"""
    return torch.zeros(images, patches, dtype=torch.bool).index_fill_(1, arrays["excluded"].flatten().long(), True)


def _projections(arrays: Arrays, own: bool | Earlier) -> tuple[Tensor, Tensor]:
    """Of the block that made the features, or of an earlier one where a file holds it."""
    queries, keys = (_of_block(arrays, name, own) for name in ("queries_cls", "keys"))
    assert keys is not None
    return keys[:, :1] if queries is None else queries, keys  # some methods read keys alone


def _of_block(arrays: Arrays, name: str, own: bool | Earlier) -> Tensor | None:
    """Projections, in files that name their blocks those of the last one, which made the features, or of an earlier one."""
    named = {int(key.rpartition("k")[2]): key for key in arrays if key.startswith(f"{name}_block")}
    if not named:
        return arrays.get(name)
    last = max(named)
    return arrays[named[own.index(last) if isinstance(own, Earlier) else last]]


def _in_clip(arrays: Arrays, images: int) -> tuple[Tensor, Tensor, Tensor]:
    """Patches [N, P, E] and texts [N, T, E] in CLIP's space, and which texts are real: one for each image, or all for each."""
    patches, text = arrays.get("clip_patches"), arrays["clip_text"]
    if patches is None:
        scale, shift = arrays["post_layernorm_weight"], arrays["post_layernorm_bias"]
        normed = functional.layer_norm(
            arrays["features"], scale.shape, scale, shift, float(arrays["post_layernorm_eps"])
        )
        patches = normed @ arrays["visual_projection"].T
    text = text[:, None] if len(text) == images > 1 else text.expand(images, *text.shape)
    return patches, text, torch.ones(text.shape[:2], dtype=torch.bool)


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
    if "padding" in arrays and "count" in fields_of(discover()[method]):  # the release left places empty
        settings = {"count": "released", **settings}
    features, valid, origin = reduced(arrays, method, settings)
    expected = arrays.get("output")
    if "padding" in arrays and expected is not None:  # rows of zeros, which our layout has no need of
        expected = expected[:, : expected.shape[1] - whole(arrays["padding"])]
    if "order_with_cls" in arrays and expected is not None and features.shape[1] == expected.shape[1] - 1:
        expected = expected[:, arrays["order_with_cls"] > 0]
    without = "features_with_cls" in arrays and expected is not None and expected.shape[1] == features.shape[1] + 1
    if without:  # asked for without the class token, which is the first row of the file's output
        features, valid, origin = reduced(arrays, method, {**settings, "class_token": False})
        expected = expected[:, 1:]
        found.lines.append("without the class token, which the file's output has first")
    rows = [row[row >= 0] for row in origin.masked_fill(~valid, -1)]
    if "kept_view" in arrays:
        pairs = list(zip(arrays["kept_view"].tolist(), arrays["kept_patch"].tolist(), strict=True))
        wanted = [sorted(patch for view, patch in pairs if view == tile) for tile in range(len(rows))]
        found.kept("kept of each tile", [sorted(row.tolist()) for row in rows], wanted)
    for name in ("kept", "kept_patches"):
        if name in arrays:
            wanted = arrays[name] if arrays[name].dim() == 2 else arrays[name][None]
            found.kept(name, [sorted(row.tolist()) for row in rows], [sorted(row.tolist()) for row in wanted])
    if "order" in arrays:
        found.kept(
            "order", [row.tolist() for row in rows], [[place for place in arrays["order"].tolist() if place >= 0]]
        )
    if "order_with_cls" in arrays and len(arrays["order_with_cls"]) == origin.shape[1]:  # the class token is 0 there
        found.kept("order", [(origin[0] + 1).tolist()], [arrays["order_with_cls"].tolist()])
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
        return reducer.forward(tokens_of(arrays, reducer.site == "projected"))
