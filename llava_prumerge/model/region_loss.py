"""The projector as a regression: each patch is to become the mean word embedding of what its region shows, or zero.

A frozen language model reads a visual token as it reads words, so a projector that says a patch's words in their own embeddings is
understood from the first step on. What is solved here is a regression of a few minutes, where captions have to find the same
through the whole language model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import CausalLMOutputWithPast

from llava_prumerge.model.errors import ModelError
from llava_prumerge.model.vision_tower import patch_grid

INSIDE = 0.75
"""Share of the loss that patches within regions have, however few they are; those outside have the rest."""


def region_loss(
    model: Any, input_ids: Tensor, region_of: Tensor, pixel_values: Tensor, boxes: Tensor, **_: Any
) -> CausalLMOutputWithPast:
    """The mean over images of the squared error of the projected patches, 3/4 from within regions and 1/4 from outside.

    Args:
        model: of ours, without a reduction.
        input_ids: [B, T] tokens of all regions' texts of an image.
        region_of: [B, T] which of the image's regions each belongs to, from 1; 0 for none.
        pixel_values: [B, 3, S, S].
        boxes: [M, 4] of all images' regions: left, top, right, bottom as fractions of the pixels. Where two overlap the later
            one counts.

    Raises:
        ModelError: the features are not patches of one grid.
    """
    host = model.model
    features = host.get_image_features(pixel_values=pixel_values, return_dict=True).pooler_output
    grid = patch_grid(host.vision_tower, pixel_values)
    projected = torch.stack(list(features)).float()  # [B, P', D], registers and the like ahead of the patches
    if projected.shape[1] < grid[0] * grid[1]:
        raise ModelError(f"objective=regions: {projected.shape[1]} visual tokens are fewer than patches of {grid}")
    projected = projected[:, projected.shape[1] - grid[0] * grid[1] :]
    with torch.no_grad():
        words = model.get_input_embeddings()(input_ids).float()
        targets, inside = patch_targets(words, region_of, boxes.float(), grid)
    errors = (projected - targets).square().mean(dim=-1)  # [B, P]
    loss = INSIDE * _mean_of(errors, inside) + (1 - INSIDE) * _mean_of(errors, ~inside)
    return CausalLMOutputWithPast(loss=loss.mean())


def patch_targets(words: Tensor, region_of: Tensor, boxes: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """What each patch is to become.

    Args:
        words: [B, T, D] embeddings.
        region_of, boxes: as in `region_loss`.
        grid: rows and columns.

    Returns:
        [B, P, D], zero outside all regions, and which patches are inside one [B, P].
    """
    images, width = len(words), words.shape[-1]
    counts = region_of.amax(dim=1)  # [B]
    owners = torch.repeat_interleave(torch.arange(images, device=words.device), counts)  # [M]
    first = counts.cumsum(0) - counts
    real = region_of > 0
    index = (first[:, None] + region_of)[real]  # rows of `means`, of which 0 is that of no region
    means = words.new_zeros(len(boxes) + 1, width).index_add(0, index, words[real])
    tokens = torch.bincount(index, minlength=len(boxes) + 1).clamp(min=1)
    numbers = covered(boxes, grid) * torch.arange(1, len(boxes) + 1, device=boxes.device)[:, None]  # [M, P]
    rows = owners[:, None].expand_as(numbers)
    shown = numbers.new_zeros(images, grid[0] * grid[1]).scatter_reduce(0, rows, numbers, "amax")
    return (means / tokens[:, None])[shown], shown > 0


def covered(boxes: Tensor, grid: tuple[int, int]) -> Tensor:
    """Patches whose middle lies in a box, of a box without one the patch around its own middle. [M, 4] -> [M, P] bool"""
    rows, columns = grid
    across = (torch.arange(columns, device=boxes.device) + 0.5) / columns
    down = (torch.arange(rows, device=boxes.device) + 0.5) / rows
    left, top, right, bottom = boxes[:, :, None].unbind(dim=1)  # [M, 1] each
    within = ((across >= left) & (across < right))[:, None, :] & ((down >= top) & (down < bottom))[:, :, None]
    middle = torch.stack([(top + bottom)[:, 0] / 2 * rows, (left + right)[:, 0] / 2 * columns], dim=1).floor().long()
    seen = ((middle >= 0) & (middle < torch.tensor(grid, device=boxes.device))).all(dim=1)
    middle = middle.clamp(min=0).minimum(torch.tensor(grid, device=boxes.device) - 1)
    alone = torch.zeros_like(within)
    alone[torch.arange(len(boxes), device=boxes.device), middle[:, 0], middle[:, 1]] = seen
    return torch.where(within.flatten(1).any(dim=1)[:, None, None], within, alone).flatten(1)


def _mean_of(errors: Tensor, chosen: Tensor) -> Tensor:
    """[B, P] -> [B]; 0 where none is chosen."""
    return (errors * chosen).sum(dim=1) / chosen.sum(dim=1).clamp(min=1)
