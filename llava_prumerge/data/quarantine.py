"""Bad samples in training: each is set aside with its reason, and the same sound sample always stands in for it.

Who stands in depends on the seed and on the bad sample's place in the file alone, so the ranks, the workers and a run
that is resumed agree without a word between them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import Dataset

from llava_prumerge.data.errors import SampleError

if TYPE_CHECKING:
    from llava_prumerge.data.dataset import LlavaDataset

TRIES = 64


@dataclass(frozen=True)
class BadSample:
    """A sample that was set aside, by its place in the record file."""

    index: int
    sample_id: str
    reason: str
    replacement: int


class QuarantiningDataset(Dataset):
    """The samples of a `LlavaDataset`; of a bad one, its replacement, which carries `quarantined`: a list of `BadSample`.

    A replacement has an image exactly if the record it replaces does, because batches are made of one modality. It is
    drawn from the whole file rather than taken from the bad sample's neighbours, which may lack the same folder.

    Args:
        dataset: raises a `SampleError` for what cannot be used. Any other exception is no matter of one sample.
        seed: of the draw.

    Raises:
        SampleError: from an item, when `TRIES` draws have found nothing sound either.
    """

    def __init__(self, dataset: LlavaDataset, seed: int = 0) -> None:
        self.dataset = dataset
        self.seed = seed
        columns = dataset.rows.select_columns(["images", "videos"]).with_format("numpy")[:]
        self.shows = (columns["images"] > 0) + 2 * (columns["videos"] > 0)
        faults = dataset.rows.select_columns(["fault"]).with_format("arrow")[:]
        self.well_formed = faults.column("fault").is_null().to_numpy()

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def lengths(self) -> list[int]:
        """As the dataset's, for `GroupedSampler`."""
        return self.dataset.lengths

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            return self.dataset[index]
        except SampleError as error:
            return self._replace(int(index), error)

    def _replace(self, index: int, fault: SampleError) -> dict[str, Any]:
        for candidate in self.candidates(index):
            try:
                item = self.dataset[candidate]
            except SampleError:
                continue  # recorded when its own turn comes
            bad = BadSample(index, fault.sample_id or f"#{index}", fault.reason, candidate)
            return {**item, "quarantined": [bad]}
        raise type(fault)(
            f"{fault.reason} (and none of {TRIES} samples drawn to stand in for it is sound)", fault.sample_id
        ) from fault

    def candidates(self, index: int) -> list[int]:
        """Who may stand in for a record, in the order of trying."""
        pool = self.well_formed & (self.shows == self.shows[index])
        if not pool.any():
            pool = self.well_formed  # a malformed record's image is unknown; stage 1 has no sample without
        places = np.flatnonzero(pool)
        places = places[places != index]
        draw = np.random.default_rng([self.seed, index])
        return draw.choice(places, size=min(TRIES, len(places)), replace=False).tolist()
