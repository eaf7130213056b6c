"""Scores against numpy and against attention written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llava_prumerge.ops.select import outlier_count, received_attention


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("patches", [1, 2, 3, 4, 5, 144, 575, 576, 577])
@pytest.mark.parametrize("factor", [0.0, 1.5, 3.5])
def test_outlier_count_is_that_of_numpy_percentiles(patches: int, seed: int, factor: float) -> None:
    scores = torch.randn(4, patches, generator=torch.Generator().manual_seed(seed)).exp()
    expected = []
    for row in scores.numpy():
        first, third = np.percentile(row, [25, 75])
        expected.append(int((row > third + factor * (third - first)).sum()))
    assert outlier_count(scores, factor).tolist() == expected


def test_equal_scores_have_no_outlier() -> None:
    assert outlier_count(torch.full((2, 9), 0.1)).tolist() == [0, 0]
    assert outlier_count(torch.tensor([[0.0] * 8 + [1e-6]])).tolist() == [1]


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("rows", [1, 5])
def test_received_attention_is_the_mean_of_softmax_rows(heads: int, rows: int) -> None:
    queries, keys = torch.randn(3, rows, 8), torch.randn(3, 7, 8)
    expected = torch.zeros(3, 7)
    for image in range(3):
        for head in range(heads):
            part = slice(head * 8 // heads, (head + 1) * 8 // heads)
            logits = queries[image, :, part] @ keys[image, :, part].T / (8 / heads) ** 0.5
            expected[image] += logits.softmax(dim=-1).mean(dim=0) / heads
    torch.testing.assert_close(received_attention(queries, keys, heads), expected)


def test_scores_are_float32_whatever_comes_in() -> None:
    queries, keys = torch.randn(2, 1, 8).half(), torch.randn(2, 5, 8).half()
    scores = received_attention(queries, keys)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, received_attention(queries.float(), keys.float()))


def test_width_must_split_into_heads() -> None:
    with pytest.raises(ValueError, match="width 8 does not split into 3 heads"):
        received_attention(torch.randn(1, 1, 8), torch.randn(1, 2, 8), 3)
