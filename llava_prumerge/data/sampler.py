"""Sampling order: LLaVA's grouping by modality and length, as a pure function of seed and epoch.

LLaVA draws its inner shuffles from the process-wide random state; here a resumed run, which skips the batches it has
seen, meets the very order it left.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler


class GroupedSampler(Sampler[int]):
    """Every index once per epoch, in megabatches of one modality and similar lengths.

    A megabatch feeds one optimizer step: `batch_size` x `world_size` indices, sorted by length and dealt into
    `world_size` chunks of nearly equal total length, so that no rank waits for another. Image and text megabatches
    are shuffled together; what fills none comes last, mixed.

    Args:
        lengths: one per sample, positive with images, negative without (LLaVA's modality lengths).
        batch_size: per device.
        world_size: ranks x gradient accumulation steps.
        seed: with the epoch, determines the order.
        grouped: False gives a plain shuffle.
    """

    def __init__(
        self, lengths: Sequence[int], batch_size: int, world_size: int = 1, seed: int = 0, grouped: bool = True
    ) -> None:
        if batch_size < 1 or world_size < 1:
            raise ValueError(f"batch_size and world_size must be at least 1, got {batch_size} and {world_size}")
        self.lengths = np.asarray(lengths, dtype=np.int64)
        if grouped and not self.lengths.all():
            raise ValueError(f"sample {int(np.argmin(np.abs(self.lengths)))} has length 0, which has no modality")
        self.batch_size = batch_size
        self.world_size = world_size
        self.seed = seed
        self.grouped = grouped
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
            megabatches += list(indices[:full].reshape(-1, size))
            rest.append(indices[full:])
        megabatches = [megabatches[i] for i in random.permutation(len(megabatches))]
        mixed = np.concatenate(rest)  # fewer than two megabatches
        mixed = mixed[np.argsort(-np.abs(self.lengths[mixed]), kind="stable")]
        if len(mixed) >= size:
            megabatches.append(mixed[:size])
            mixed = mixed[size:]
        return np.concatenate([*map(self._deal, megabatches), mixed])

    def _deal(self, megabatch: np.ndarray) -> np.ndarray:
        """Sorts a megabatch by length and deals it, longest first, always to the chunk that is shortest so far."""
        lengths = np.abs(self.lengths[megabatch])
        chunks: list[list[int]] = [[] for _ in range(self.world_size)]
        totals = [0.0] * self.world_size
        for i in np.argsort(-lengths, kind="stable"):
            shortest = totals.index(min(totals))
            chunks[shortest].append(megabatch[i])
            totals[shortest] += lengths[i]
            if len(chunks[shortest]) == self.batch_size:
                totals[shortest] = float("inf")
        return np.concatenate([np.asarray(chunk) for chunk in chunks])
