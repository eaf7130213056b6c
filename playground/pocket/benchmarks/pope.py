"""Pocket POPE: is there a red star? In three splits: absent objects are random, most frequent, or usual company.

As in POPE the objects' frequencies and co-occurrences are counted over many annotated images, of which some are asked
about; each positive question has one negative beside it, and the positive ones are the same in the three splits. So
that "usual" means something, some objects are frequent, and every object has friends that it is often seen with.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from playground.pocket.questions import SHORT_ANSWER, article
from playground.pocket.scenes import COLOURS, GRID, SHAPES, WORDS, Object, Scene, Word, split_of
from playground.pocket.store import SCENES, Picture, save_pictures, write_json_lines, write_scenes
from playground.pocket.world import POCKET, World

FOLDER = "pope"
POOL = 1000  # annotated images
IMAGES = 51  # asked about, in each split
POSITIVES = 2  # per image, with as many negatives
FRIENDS = 3
LOYALTY = 0.7  # chance that an object is a friend of one that is already there
NAMES = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
FIRST_IDS = {
    "adversarial": 1,
    "random": 10_000_001,
    "popular": 20_000_001,
}  # LLaVA's ids, in the order of its question file


class Society:
    """Which objects are frequent, and which keep company."""

    def __init__(self, rng: random.Random) -> None:
        ranked = rng.sample(NAMES, len(NAMES))
        self.frequency = {name: 1 / (rank + 6) for rank, name in enumerate(ranked)}
        self.friends = {name: rng.sample([other for other in NAMES if other != name], FRIENDS) for name in NAMES}

    def draw(self, rng: random.Random) -> Scene:
        """A scene of two to four different objects, sometimes with a word."""
        wanted = rng.randint(2, 4)
        names: list[str] = []
        while len(names) < wanted:
            friends = [friend for name in names for friend in self.friends[name]]
            if friends and rng.random() < LOYALTY:
                name = rng.choice(friends)
            else:
                name = rng.choices(tuple(self.frequency), tuple(self.frequency.values()))[0]
            if name not in names:
                names.append(name)
        cells = rng.sample([(row, col) for row in range(GRID) for col in range(GRID)], wanted + 1)
        objects = [Object(*reversed(name.split()), *cell) for name, cell in zip(names, cells, strict=False)]
        words = (Word(rng.choice(WORDS), *cells[-1]),) if rng.random() < 0.3 else ()
        return Scene(tuple(objects), words)


class Statistics:
    """How often objects occur, alone and together."""

    def __init__(self, images: Sequence[Sequence[str]]) -> None:
        self.frequency = Counter(name for names in images for name in names)
        self.together: dict[str, Counter[str]] = defaultdict(Counter)
        for names in images:
            for name in names:
                self.together[name].update(other for other in names if other != name)

    def rank(self, counts: Counter[str]) -> list[str]:
        """All objects, those with the highest count first."""
        return sorted(NAMES, key=lambda name: (-counts[name], name))

    def negative(self, split: str, positive: str, taken: set[str], rng: random.Random) -> str:
        """An object that is neither in the image nor asked about yet, chosen as the split does."""
        if split == "random":
            return rng.choice([name for name in NAMES if name not in taken])
        ranking = self.rank(self.frequency if split == "popular" else self.together[positive])
        return next(name for name in ranking if name not in taken)


def ask_about(
    names: Sequence[str], positives: Sequence[str], split: str, counted: Statistics, rng: random.Random
) -> list[tuple[str, str]]:
    """Objects and labels of an image's questions: yes and no in turn."""
    taken, asked = set(names), []
    for positive in positives:
        negative = counted.negative(split, positive, taken, rng)
        taken.add(negative)
        asked += [(positive, "yes"), (negative, "no")]
    return asked


def draw_pool(rng: random.Random, split: str) -> list[Picture]:
    """The annotated images."""
    society, pool, seen = Society(rng), [], set()
    while len(pool) < POOL:
        scene = society.draw(rng)
        if split_of(scene) == split and scene.key not in seen:
            seen.add(scene.key)
            pool.append(Picture(f"COCO_val2014_{42 + 13 * len(pool):012d}.jpg", scene, len(pool)))
    return pool


def write(folder: Path, rng: random.Random, scale: float = 1.0, world: World = POCKET) -> int:
    """Writes the benchmark and returns the number of questions."""
    pool = draw_pool(rng, world.split)
    objects = {picture.path: [item.name for item in picture.scene.objects] for picture in pool}
    counted = Statistics(list(objects.values()))
    chosen = rng.sample(pool, round(IMAGES * scale))
    positives = {picture.path: rng.sample(objects[picture.path], POSITIVES) for picture in chosen}
    prompts = []
    for split, first_id in FIRST_IDS.items():
        labels = []
        for picture in chosen:
            for name, label in ask_about(objects[picture.path], positives[picture.path], split, counted, rng):
                text = f"Is there {article(name)} in the image?"
                labels.append({"question_id": len(labels) + 1, "image": picture.path, "text": text, "label": label})
        write_json_lines(folder / "coco" / f"coco_pope_{split}.json", labels)
        prompts += [
            {
                "question_id": first_id + number,
                "image": label["image"],
                "text": label["text"] + SHORT_ANSWER,
                "category": split,
            }
            for number, label in enumerate(labels)
        ]
    annotated = [{"image": path, "objects": names} for path, names in objects.items()]
    write_json_lines(folder / "segmentation" / "coco_ground_truth_segmentation.json", annotated)
    write_json_lines(folder / "llava_pope_test.jsonl", prompts)
    save_pictures(folder / "val2014", chosen, world=world)
    write_scenes(folder / SCENES, chosen)
    return len(prompts)
