"""PruMerge and PruMerge+ equal the authors' released code on single images, order included."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).resolve().parent
CASES = [
    ("prumerge_adaptive_a", "prumerge", {}),
    ("prumerge_adaptive_b", "prumerge", {}),
    ("prumerge_plus_adaptive_a", "prumerge_plus", {}),
    ("prumerge_plus_adaptive_b", "prumerge_plus", {}),
    ("prumerge_fixed_ratio_batch2", "prumerge", {"ratio": "1/8"}),
]

_spec = importlib.util.spec_from_file_location("golden_compare", HERE / "compare.py")
compare = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(compare)


@pytest.mark.parametrize("file, method, settings", CASES)
def test_equal_to_the_released_code(file: str, method: str, settings: dict[str, str]) -> None:
    assert compare.difference(HERE / f"{file}.npz", method, **settings) < 1e-5


@pytest.mark.parametrize("file, method, settings", CASES[:4])
def test_single_images_in_a_batch_stay_equal(file: str, method: str, settings: dict[str, str]) -> None:
    """The released code pools its threshold over the batch; ours gives each image what it would get alone."""
    image, expected = compare.tokens_of(HERE / f"{file}.npz")
    other, _ = compare.tokens_of(HERE / f"{CASES[(CASES.index((file, method, settings)) + 1) % 4][0]}.npz")
    probe = tuple(torch.cat(pair) for pair in zip(image.probe(), other.probe()))
    both = compare.VisionTokens(torch.cat([image.features, other.features]), image.grid, probe=lambda: probe)
    features, valid, _ = compare.build_reducer({"name": method, **settings})(both)
    kept = features[0][valid[0]]
    assert kept.shape == expected[0].shape
    torch.testing.assert_close(kept, expected[0], atol=1e-5, rtol=0)


def test_another_method_is_told_apart() -> None:
    assert compare.difference(HERE / "prumerge_adaptive_a.npz", "prumerge", neighbours=31) > 1e-4
    assert compare.difference(HERE / "prumerge_adaptive_a.npz", "prumerge", order="raster") > 1e-2
    assert compare.difference(HERE / "prumerge_adaptive_a.npz", "prumerge_plus") == float("inf")


def test_command_prints_one_number() -> None:
    command = [
        sys.executable,
        str(HERE / "compare.py"),
        str(HERE / "prumerge_fixed_ratio_batch2.npz"),
        "prumerge",
        "ratio=1/8",
    ]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
    output = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=HERE.parents[1], env=environment
    ).stdout
    assert float(output) < 1e-5
