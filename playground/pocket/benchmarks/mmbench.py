"""Pocket MMBench: multiple choice in one table with the images inside.

Every question is asked once per rotation of its options, for CircularEval.
"""

from __future__ import annotations

import base64
import csv
import random
from collections.abc import Iterator
from pathlib import Path

from playground.pocket.balance import YES_OR_NO, Balance, give_options, option_lines
from playground.pocket.questions import LETTERS, Question
from playground.pocket.records import draw_scene
from playground.pocket.store import SCENES, Picture, encode_picture, write_scenes
from playground.pocket.world import POCKET, World

FOLDER = "mmbench"
TABLE = "mmbench_dev_20230712.tsv"
QUESTIONS = {4: 92, 3: 38, 2: 20}  # by number of options, before rotation; those with two are yes/no
ROTATION = 1_000_000
HINT = "Look at the image."
HINTED = 0.3
INSTANCE, CROSS = "finegrained_perception (instance-level)", "finegrained_perception (cross-instance)"
CATEGORIES = {
    **dict.fromkeys(("where_is", "count_all", "count_shape", "count_colour"), ("object_localization", INSTANCE)),
    **dict.fromkeys(("colour_of", "shape_of", "what_at", "colour_at", "shape_at"), ("attribute_recognition", INSTANCE)),
    **dict.fromkeys(("word_any", "word_at"), ("ocr", INSTANCE)),
    **dict.fromkeys(("relation", "position"), ("spatial_relationship", CROSS)),
    "commonsense": ("physical_property_reasoning", "attribute_reasoning"),
    "word_kind": ("identity_reasoning", "attribute_reasoning"),
}
COLUMNS = (
    "index",
    "question",
    "hint",
    *"ABCD",
    "answer",
    "category",
    "image",
    "source",
    "l2-category",
    "comment",
    "split",
)


def plan(rng: random.Random, scale: float) -> list[int]:
    """The number of options of each question, in random order."""
    counts = [options for options, number in QUESTIONS.items() for _ in range(round(number * scale))]
    rng.shuffle(counts)
    return counts


def rotations(question: str, options: list[str], right: int) -> Iterator[tuple[int, list[str], str]]:
    """All rotations of the options with their number and the letter of the right one."""
    for turn in range(len(options)):
        yield turn, options[turn:] + options[:turn], LETTERS[(right - turn) % len(options)]


def draw(options: int, fair: Balance, rng: random.Random, seen: set[str], split: str) -> tuple[Picture, Question]:
    """A scene and a question about it."""
    while True:
        scene = draw_scene(split, rng, seen)
        if drawn := fair.draw(scene, rng, 1):
            return Picture(f"{len(seen)}.jpg", scene, len(seen)), drawn[0]


def write(folder: Path, rng: random.Random, scale: float = 1.0, world: World = POCKET) -> int:
    """Writes the benchmark and returns the number of rows, rotations included."""
    yes_no = [kind for kind in CATEGORIES if kind in YES_OR_NO]
    fair = {True: Balance(yes_no), False: Balance([kind for kind in CATEGORIES if kind not in YES_OR_NO])}
    rows, pictures, seen = [], [], set()
    asked = dict.fromkeys(QUESTIONS, 0)
    for number, options in enumerate(plan(rng, scale)):
        picture, question = draw(options, fair[options == 2], rng, seen, world.split)
        lettered = give_options(question, rng, options, LETTERS[asked[options] % options])
        asked[options] += 1
        text, choices = option_lines(lettered)
        hint = HINT if rng.random() < HINTED else ""
        index = 241 + 3 * number
        pictures.append(Picture(f"{index}.jpg", picture.scene, picture.seed))
        image = base64.b64encode(encode_picture(picture.scene, picture.seed, ".jpg", world)).decode()
        category, group = CATEGORIES[question.kind]
        for turn, turned, letter in rotations(text, choices, LETTERS.index(lettered.answer)):
            cells = [*turned, *[""] * (4 - options)]
            rows.append(
                [index + turn * ROTATION, text, hint, *cells, letter, category, image, "pocket", group, "", "dev"]
            )
    folder.mkdir(parents=True, exist_ok=True)
    rows.sort(key=lambda row: row[0])
    with (folder / TABLE).open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, delimiter="\t", lineterminator="\n")
        table.writerow(COLUMNS)
        table.writerows(rows)
    write_scenes(folder / SCENES, pictures)
    return len(rows)
