"""Pocket POPE: the absent objects really are random, frequent and usual company, and the ids are LLaVA's."""

from __future__ import annotations

import itertools
import json
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from playground.pocket.benchmarks import pope
from playground.pocket.questions import SHORT_ANSWER


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pope")
    assert pope.write(folder, random.Random("pope/0")) == 612
    return folder


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_pope_negatives_are_what_they_are_called(root: Path) -> None:
    """Counted anew from the annotated images."""
    annotated = {
        e["image"]: set(e["objects"]) for e in read_lines(root / "segmentation" / "coco_ground_truth_segmentation.json")
    }
    frequency = {name: sum(name in objects for objects in annotated.values()) for name in pope.NAMES}
    asked: dict[str, dict[str, list[tuple[str, str]]]] = {}
    for split in ("random", "popular", "adversarial"):
        asked[split] = defaultdict(list)
        for label in read_lines(root / "coco" / f"coco_pope_{split}.json"):
            name = label["text"].removesuffix(" in the image?").split(maxsplit=3)[3]
            assert (label["label"] == "yes") == (name in annotated[label["image"]])
            asked[split][label["image"]].append((name, label["label"]))
    seen_together = dict.fromkeys(asked, 0)
    for split, image in itertools.product(asked, asked["random"]):
        taken = set(annotated[image])
        assert [label for _, label in asked[split][image]] == ["yes", "no"] * pope.POSITIVES
        assert [pair for pair in asked[split][image] if pair[1] == "yes"] == [
            pair for pair in asked["random"][image] if pair[1] == "yes"
        ]
        for (positive, _), (negative, _) in zip(asked[split][image][::2], asked[split][image][1::2], strict=True):
            beside = [objects for objects in annotated.values() if positive in objects]
            together = {name: sum(name in objects for objects in beside) for name in pope.NAMES}
            seen_together[split] += together[negative]
            rank = {"popular": frequency, "adversarial": together}.get(split)
            if rank:
                assert rank[negative] == max(count for name, count in rank.items() if name not in taken)
            assert negative not in taken
            taken.add(negative)
    assert seen_together["adversarial"] > 3 * seen_together["random"]


def test_pope_files(root: Path) -> None:
    prompts = read_lines(root / "llava_pope_test.jsonl")
    by_split = {
        split: [prompt for prompt in prompts if prompt["category"] == split]
        for split in ("adversarial", "random", "popular")
    }
    assert [prompt["category"] for prompt in prompts] == [split for split in by_split for _ in range(204)]
    for split, first in (("adversarial", 1), ("random", 10_000_001), ("popular", 20_000_001)):
        assert [prompt["question_id"] for prompt in by_split[split]] == list(range(first, first + 204))
        labels = read_lines(root / "coco" / f"coco_pope_{split}.json")
        assert [label["text"] + SHORT_ANSWER for label in labels] == [prompt["text"] for prompt in by_split[split]]
        assert [label["question_id"] for label in labels] == list(range(1, 205))
    assert all(prompt["image"].startswith("COCO_val2014_") for prompt in prompts)
