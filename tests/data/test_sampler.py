"""Sampling order: complete, of one modality per step, less padded than chance, and the same whenever asked again."""

from __future__ import annotations

import numpy as np
import pytest

from llava_prumerge.data.sampler import GroupedSampler

BATCH, WORLD = 4, 3


def modality_lengths(images: int, texts: int) -> list[int]:
    random = np.random.default_rng(0)
    lengths = np.concatenate([random.geometric(0.02, images), -random.geometric(0.005, texts)])
    return random.permutation(lengths).tolist()


LENGTHS = modality_lengths(500, 130)


def padding_share(order: list[int], lengths: list[int], batch: int) -> float:
    sizes = np.abs(np.asarray(lengths))[order][: len(order) // batch * batch].reshape(-1, batch)
    return 1 - sizes.sum() / (sizes.max(1) * batch).sum()


@pytest.mark.parametrize("settings", [{}, {"grouped": False}, {"pool": 3}, {"pool": 1000}], ids=str)
@pytest.mark.parametrize("mix", [(500, 130), (37, 0), (0, 24), (3, 2), (13, 13), (12, 12), (1, 0), (0, 0)])
def test_every_index_comes_once(mix: tuple[int, int], settings: dict[str, int]) -> None:
    sampler = GroupedSampler(modality_lengths(*mix), BATCH, WORLD, seed=1, **settings)
    assert sorted(sampler) == list(range(sum(mix))) and len(sampler) == sum(mix)


def test_a_step_has_one_modality_except_at_the_end() -> None:
    order = list(GroupedSampler(LENGTHS, BATCH, WORLD, seed=1))
    signs = np.sign(np.asarray(LENGTHS)[order])
    steps = [signs[i : i + BATCH * WORLD] for i in range(0, len(signs), BATCH * WORLD)]
    pure = [abs(step.sum()) == len(step) for step in steps]
    assert all(pure[:-2])
    kinds = [step[0] for step in steps[:-2]]
    assert kinds.count(-1) >= 9 and kinds != sorted(kinds) and kinds != sorted(kinds, reverse=True)  # shuffled together


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        sampler = GroupedSampler(LENGTHS, BATCH, WORLD, seed=seed)
        np.random.seed(epoch)  # the process's own random state must not matter
        sampler.set_epoch(epoch)
        return list(sampler)

    first = order(1, 0)
    assert first == order(1, 0)
    assert len({tuple(order(seed, epoch)) for seed, epoch in [(1, 0), (1, 1), (2, 0), (0, 1)]}) == 4
    sampler = GroupedSampler(LENGTHS, BATCH, WORLD, seed=1)
    assert [list(sampler), list(sampler)] == [first, first]


def test_a_resumed_run_meets_the_rest_of_the_order() -> None:
    sampler = GroupedSampler(LENGTHS, BATCH, WORLD, seed=3)
    sampler.set_epoch(2)
    straight = list(sampler)
    resumed = GroupedSampler(LENGTHS, BATCH, WORLD, seed=3)
    list(resumed)
    resumed.set_epoch(2)
    skipped = 5 * BATCH * WORLD
    assert list(resumed)[skipped:] == straight[skipped:]


def mixed_lengths() -> list[int]:
    """Sizes as in the 665k mix: 576 placeholders and a short talk, or a long talk."""
    random = np.random.default_rng(1)
    images, texts = 576 + random.geometric(0.01, 940), np.minimum(100 + random.geometric(0.0015, 60), 2048)
    return random.permutation(np.concatenate([images, -texts])).tolist()


def llava_order(order: list[int], lengths: list[int]) -> list[int]:
    """The same steps, each dealt LLaVA's way: longest first, always to the rank with the smallest total so far."""
    dealt = []
    for start in range(0, len(order) // (BATCH * WORLD) * BATCH * WORLD, BATCH * WORLD):
        chunks: list[list[int]] = [[] for _ in range(WORLD)]
        for index in sorted(order[start : start + BATCH * WORLD], key=lambda i: -abs(lengths[i])):
            open_chunks = [chunk for chunk in chunks if len(chunk) < BATCH]
            min(open_chunks, key=lambda chunk: sum(abs(lengths[i]) for i in chunk)).append(index)
        dealt += sum(chunks, [])
    return dealt


def test_grouping_pads_less_than_chance_and_than_even_dealing() -> None:
    lengths = mixed_lengths()

    def share(**settings: int | bool) -> float:
        return padding_share(list(GroupedSampler(lengths, BATCH, WORLD, seed=1, **settings)), lengths, BATCH)

    shuffled, grouped, pooled = share(grouped=False), share(), share(pool=16)
    even = padding_share(llava_order(list(GroupedSampler(lengths, BATCH, WORLD, seed=1)), lengths), lengths, BATCH)
    assert grouped < 0.6 * shuffled, (grouped, shuffled)
    assert grouped < 0.6 * even, (grouped, even)
    assert pooled < 0.3 * grouped, (pooled, grouped)


def test_no_rank_takes_longer_than_with_even_dealing() -> None:
    lengths = mixed_lengths()
    order = list(GroupedSampler(lengths, BATCH, WORLD, seed=1))

    def slowest(indices: list[int]) -> np.ndarray:
        steps = np.abs(np.asarray(lengths))[indices][: len(indices) // (BATCH * WORLD) * BATCH * WORLD]
        return steps.reshape(-1, WORLD, BATCH).max(-1).max(-1)  # a padded batch costs its longest sample

    assert (slowest(order) <= slowest(llava_order(order, lengths))).all()


def test_a_trainer_s_loader_gives_each_rank_its_chunk() -> None:
    """Accelerate deals consecutive batches to ranks in turn, which is what the order is laid out for."""
    from accelerate.data_loader import BatchSamplerShard
    from torch.utils.data import BatchSampler

    sampler = GroupedSampler(LENGTHS, BATCH, WORLD, seed=1)
    order = np.asarray(list(sampler))[: BATCH * WORLD].reshape(WORLD, BATCH)
    for rank in range(WORLD):
        shard = BatchSamplerShard(BatchSampler(sampler, BATCH, drop_last=False), WORLD, rank)
        assert next(iter(shard)) == order[rank].tolist()


def test_bad_settings_are_errors() -> None:
    with pytest.raises(ValueError, match="sample 1 has length 0"):
        GroupedSampler([3, 0, 2], 2)
    with pytest.raises(ValueError, match="at least 1, got 0, 2 and 1"):
        GroupedSampler([1], 0, 2)
