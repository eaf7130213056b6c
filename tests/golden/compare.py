"""Largest absolute difference between a golden file's output and a method's.

    python tests/golden/compare.py FILE.npz METHOD [key=value ...]

A golden file holds features [N, P, C], queries_cls [N, 1, C], keys [N, 1 + P, C] and output [N, K, C] of the authors' released code.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
import yaml

from llava_prumerge.methods.base import VisionTokens
from llava_prumerge.methods.registry import build_reducer


def tokens_of(path: Path) -> tuple[VisionTokens, torch.Tensor]:
    """The inputs as a method sees them, and the golden output, in float32."""
    with np.load(path) as arrays:
        tensors = {name: torch.from_numpy(arrays[name].astype(np.float32)) for name in arrays.files}
    side = int(tensors["features"].shape[1] ** 0.5)
    probe = (tensors["queries_cls"], tensors["keys"])
    return VisionTokens(features=tensors["features"], grid=(side, side), probe=lambda: probe), tensors["output"]


def difference(path: Path, method: str, **settings: object) -> float:
    """Largest absolute difference; infinite where the shapes differ."""
    image, expected = tokens_of(path)
    features, valid, _ = build_reducer({"name": method, **settings})(image)
    if features.shape != expected.shape or not bool(valid.all()):
        return float("inf")
    return (features - expected).abs().max().item()


if __name__ == "__main__":
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    given = dict(item.split("=", 1) for item in sys.argv[3:])
    parsed = {key: yaml.safe_load(value) for key, value in given.items()}
    print(f"{difference(Path(sys.argv[1]), sys.argv[2], **parsed):.3e}")
