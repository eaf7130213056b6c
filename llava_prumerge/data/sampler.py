"""Sampling order: LLaVA's grouping by modality and length, as a pure function of seed and epoch.

LLaVA draws its inner shuffles from the process-wide random state; here a resumed run, which skips the batches it has
seen, meets the very order it left.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler


class GroupedSampler(Sampler[int]):
    """Every index once per epoch, each optimizer step of one modality and its batches of like lengths.

    A step takes a megabatch of `batch_size` x `world_size` indices, drawn at random from the samples with images or
    from those without; steps of the two kinds are shuffled together, and what fills none comes last, mixed. All this is
    LLaVA's. Within a megabatch, LLaVA deals samples so that the ranks' total lengths are even. As batches are padded,
    that makes every rank pay for a long sample; here the megabatch is sorted and cut, which makes no step longer and
    pads less.

    Args:
        lengths: one per sample, positive with images, negative without (LLaVA's modality lengths).
        batch_size: per device.
        world_size: ranks x gradient accumulation steps.
        seed: with the epoch, determines the order.
        grouped: False gives a plain shuffle.
        pool: how many megabatches are sorted by length together. 1 leaves a step a random draw, as LLaVA's is; more
            pads less and evens the ranks out, at the price of steps that see one length each.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        world_size: int = 1,
        seed: int = 0,
        grouped: bool = True,
        pool: int = 1,
    ) -> None:
        if min(batch_size, world_size, pool) < 1:
            raise ValueError(
                f"batch_size, world_size and pool must be at least 1, got {batch_size}, {world_size} and {pool}"
            )
        self.lengths = np.asarray(lengths, dtype=np.int64)
        if grouped and not self.lengths.all():
            raise ValueError(f"sample {int(np.argmin(np.abs(self.lengths)))} has length 0, which has no modality")
        self.batch_size = batch_size
        self.world_size = world_size
        self.seed = seed
        self.grouped = grouped
        self.pool = pool
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch whose order the next iteration gives."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        random = np.random.default_rng([self.seed, self.epoch])
        order = random.permutation(len(self.lengths))
        return iter((self._group(order, random) if self.grouped else order).tolist())

    def _group(self, order: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """Regroups a shuffled order."""
        size = self.batch_size * self.world_size
        megabatches, rest = [], []
        for indices in (order[self.lengths[order] > 0], order[self.lengths[order] < 0]):
            full = len(indices) // size * size
            for start in range(0, full, size * self.pool):
                pool = self._longest_first(indices[start : min(start + size * self.pool, full)])
                megabatches += list(pool.reshape(-1, size))
            rest.append(indices[full:])
        megabatches = [megabatches[i] for i in random.permutation(len(megabatches))]
        mixed = self._longest_first(np.concatenate(rest))  # fewer than two megabatches
        return np.concatenate([*megabatches, mixed])

    def _longest_first(self, indices: np.ndarray) -> np.ndarray:
        return indices[np.argsort(-np.abs(self.lengths[indices]), kind="stable")]
