"""What open_clip 3.3.0 computes with made-up weights, recorded: `python tests/open_clip_reference.py` records it anew.

open_clip needs torchvision, which is not everywhere. Weights and pixels come from seeds; recorded are the names and shapes
of its weights, the states between its blocks and its image features.
"""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

FILE = Path(__file__).with_name("golden") / "open_clip.npz"
_VISION = {"image_size": 32, "layers": 3, "width": 64, "head_width": 16, "patch_size": 8, "mlp_ratio": 3.0}
_TEXT = {"context_length": 8, "vocab_size": 32, "width": 32, "heads": 2, "layers": 1}
_SMALL_VISION = {"image_size": 28, "layers": 3, "width": 32, "head_width": 8, "patch_size": 7}
_SMALL_TEXT = {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1}
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {"embed_dim": 24, "quick_gelu": False, "vision_cfg": _VISION, "text_cfg": _TEXT},
    "quick": {"embed_dim": 24, "quick_gelu": True, "vision_cfg": _VISION, "text_cfg": _TEXT},
    "small": {"embed_dim": 16, "quick_gelu": True, "vision_cfg": _SMALL_VISION, "text_cfg": _SMALL_TEXT},
}


@functools.cache
def _record() -> dict[str, np.ndarray]:
    with np.load(FILE) as file:
        return dict(file)


def make_weights(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    """Weights by name; norms are around one, so that none of them can be left out or mixed up unseen."""
    generator = np.random.default_rng(7)
    weights = {}
    for name, shape in sorted(shapes.items()):
        values = 0.1 * generator.standard_normal(shape) + (1.0 if name.endswith(".weight") and len(shape) == 1 else 0.0)
        weights[name] = torch.tensor(values, dtype=torch.float32)
    return weights


def weights(case: str) -> dict[str, Tensor]:
    """The whole model's, under open_clip's names."""
    return make_weights(json.loads(str(_record()[f"{case}_shapes"])))


def pixels(case: str) -> Tensor:
    """[2, 3, S, S]"""
    side = SETTINGS[case]["vision_cfg"]["image_size"]
    return torch.tensor(np.random.default_rng(8).standard_normal((2, 3, side, side)), dtype=torch.float32)


def states(case: str) -> list[Tensor]:
    """What the first block gets, and what each block gives. [2, S, C] each"""
    return list(torch.from_numpy(_record()[f"{case}_states"]))


def features(case: str) -> Tensor:
    """open_clip's image features, not normalised. [2, E]"""
    return torch.from_numpy(_record()[f"{case}_features"])


def compute(case: str) -> tuple[dict[str, list[int]], np.ndarray, np.ndarray]:
    """With open_clip itself. -> shapes of its weights, states, features"""
    import open_clip

    model = open_clip.CLIP(**SETTINGS[case]).eval()
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    model.load_state_dict(make_weights(shapes))
    seen: list[Tensor] = []
    blocks = model.visual.transformer.resblocks
    hooks = [block.register_forward_hook(lambda _, given, out: seen.extend([given[0], out])) for block in blocks]
    with torch.no_grad():
        found = model.encode_image(pixels(case))
    for hook in hooks:
        hook.remove()
    return shapes, torch.stack([seen[0], *seen[1::2]]).numpy(), found.numpy()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from playground.pocket.torchvision_mend import declare_operators

    declare_operators()
    recorded: dict[str, Any] = {}
    for case in SETTINGS:
        shapes, inner, outer = compute(case)
        recorded |= {f"{case}_shapes": json.dumps(shapes), f"{case}_states": inner, f"{case}_features": outer}
    np.savez_compressed(FILE, **recorded)
