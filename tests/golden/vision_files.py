"""Golden files of methods that act on an image's tokens: features in, kept patches and output."""

from __future__ import annotations

from typing import Any

import torch
from golden_arrays import Arrays, Comparison, whole
from torch import Tensor
from torch.nn import functional

from llava_prumerge.methods.base import VisionReducer, VisionTokens
from llava_prumerge.methods.registry import build_reducer, discover, fields_of

FEATURES = ("features", "features_with_cls", "projected")


def applies(arrays: Arrays) -> bool:
    """Whether this is such a file."""
    return any(name in arrays for name in FEATURES) and any("output" in name or name == "kept" for name in arrays)


def tokens_of(arrays: Arrays, projected: bool = False) -> VisionTokens:
    """The inputs as a method sees them. Queries and keys are those of the block that made the features.

    Args:
        projected: the method acts behind the projector; a file may hold both sides.
    """
    token = arrays["features_with_cls"][:, :1] if "features_with_cls" in arrays else None
    if token is not None:
        patches = arrays["features_with_cls"][:, 1:]
    else:
        patches = arrays[
            "projected" if "features" not in arrays or (projected and "projected" in arrays) else "features"
        ]
    images, count = patches.shape[:2]
    side = round(count**0.5)
    queries, keys = (_of_last_block(arrays, name) for name in ("queries_cls", "keys"))
    if queries is None and keys is not None:  # a method that reads keys alone
        queries = keys[:, :1]
    prompt = clip = None
    if "prompt" in arrays:
        prompt = lambda: (arrays["prompt"], torch.ones(arrays["prompt"].shape[:2], dtype=torch.bool))  # noqa: E731
    if "clip_text" in arrays:
        clip = lambda: _in_clip(arrays, images)  # noqa: E731
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


def _of_last_block(arrays: Arrays, name: str) -> Tensor | None:
    """Projections, in files that name their blocks those of the last one."""
    named = sorted(
        (key for key in arrays if key.startswith(f"{name}_block")), key=lambda key: int(key.rpartition("k")[2])
    )
    return arrays.get(name, arrays[named[-1]] if named else None)


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
    for name in ("kept", "kept_patches"):
        if name in arrays:
            wanted = arrays[name] if arrays[name].dim() == 2 else arrays[name][None]
            found.kept(name, [sorted(row.tolist()) for row in rows], [sorted(row.tolist()) for row in wanted])
    if "order" in arrays:
        found.kept(
            "order", [row.tolist() for row in rows], [[place for place in arrays["order"].tolist() if place >= 0]]
        )
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
