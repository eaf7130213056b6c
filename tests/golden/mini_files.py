"""Golden files of LLaVA-Mini's modules: the compressor alone, and with the projector and the fusion before the language model."""

from __future__ import annotations

from typing import Any

import torch
from golden_arrays import Arrays, Comparison, whole
from torch.nn import functional

from llava_prumerge.methods.base import VisionTokens
from llava_prumerge.methods.image_tokens import LanguageShape
from llava_prumerge.methods.registry import build_reducer
from llava_prumerge.ops.layout import IGNORE_INDEX, TokenLayout, shift_labels

FIXED = "compressor.pos_embed"


def applies(arrays: Arrays) -> bool:
    """Whether this is such a file."""
    return "compressor.query" in arrays


@torch.no_grad()
def compare(arrays: Arrays, method: str, settings: dict[str, Any]) -> Comparison:
    """Load the file's weights into the method, and compare what it makes."""
    features, found = arrays["features"], Comparison()
    tokens, width = arrays["compressor.query"].shape
    layers = len({name.split(".")[1] for name in arrays if name.startswith("prefusion.")})
    heads = whole(arrays.get("compressor_heads", arrays.get("heads", 1)))
    reducer = build_reducer({"name": method, **settings, "budget": tokens, "heads": heads, "layers": layers})
    language: dict[str, Any] = {}
    if layers:
        inner, hidden = arrays["prefusion.0.mlp.gate_proj.weight"].shape
        fusion = whole(arrays["fusion_heads"])
        language = dict(hidden=hidden, inner=inner, heads=fusion, kv_heads=fusion)
    reducer.grow(LanguageShape(width, **language))
    reducer.load_state_dict(
        {
            name: value
            for name, value in arrays.items()
            if name.startswith(("compressor.", "prefusion.")) and name != FIXED
        }
    )
    side = round(features.shape[1] ** 0.5)
    made, _, _ = reducer(VisionTokens(features, (side, side)))
    if "output" in arrays:
        found.values("output", made, arrays["output"])
        return found

    def project(states: torch.Tensor) -> torch.Tensor:
        for number in ("0", "2"):
            states = functional.linear(states, arrays[f"projector.{number}.weight"], arrays[f"projector.{number}.bias"])
            states = functional.gelu(states) if number == "0" else states
        return states

    ids = arrays["input_ids"]
    at = int((ids[0] == -200).nonzero())
    real = ids > 0  # 0 is padding
    text = arrays["embedding"][ids.clamp(min=0)]
    hidden = torch.cat([text[:, :at], project(made), text[:, at + 1 :]], dim=1)
    stretched = lambda row, fill: torch.cat([row[:, :at], fill.expand(len(ids), tokens), row[:, at + 1 :]], dim=1)  # noqa: E731
    is_image = stretched(torch.zeros_like(real), torch.ones(1, 1, dtype=torch.bool))
    blank = torch.zeros_like(is_image, dtype=torch.long)
    labels = None
    if "labels" in arrays:
        labels = shift_labels(stretched(arrays["labels"], torch.tensor([[IGNORE_INDEX]])))
    layout = TokenLayout(is_image, stretched(real, torch.ones(1, 1, dtype=torch.bool)), blank, blank, labels)
    everything = project(features)
    fused = reducer.rewrite(hidden, layout, everything, torch.ones(everything.shape[:2], dtype=torch.bool))
    found.values("compressed_tokens", fused[:, at : at + tokens], arrays["compressed_tokens"])
    ours = torch.cat([fused[:, :at], fused[:, at + tokens :]], dim=1)
    theirs = torch.cat([arrays["fused_text"][:, :at], arrays["fused_text"][:, at + 1 :]], dim=1)
    found.values("fused_text", ours, theirs)
    return found
