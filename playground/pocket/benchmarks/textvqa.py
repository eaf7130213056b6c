"""Pocket TextVQA: which word is printed where, with the tokens of an imperfect OCR system in LLaVA's prompt.

The tokens come in no order, with words that are not there and without some that are: they help to spell, but do not
say what is where.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from playground.pocket.benchmarks.humans import ten_answers
from playground.pocket.questions import SHORT_ANSWER, Question, ask, ocr_line
from playground.pocket.records import read_words
from playground.pocket.scenes import Scene, scenes
from playground.pocket.store import SCENES, Picture, save_pictures, write_json, write_json_lines, write_scenes
from playground.pocket.world import POCKET, World

FOLDER = "textvqa"
ONE_WORD, TWO_WORDS = 120, 200  # images; one and two questions each
FIRST_ID = 34602  # of the official validation set


def ask_all(scene: Scene, rng: random.Random) -> list[Question]:
    """The word of a scene with one, or the word at each place of a scene with two."""
    if len(scene.words) == 1:
        return [ask("word_any", scene, rng)]
    asked: dict[str, Question] = {}
    while len(asked) < len(scene.words):
        question = ask("word_at", scene, rng)
        asked.setdefault(question.text, question)
    return list(asked.values())


def annotate(question: Question, image_id: str, question_id: int, rng: random.Random, size: int) -> dict[str, Any]:
    """An entry of the annotation file."""
    text = question.text.lower()
    return {
        "question": text,
        "image_id": image_id,
        "image_classes": ["Poster"],
        "flickr_original_url": "",
        "flickr_300k_url": "",
        "image_width": size,
        "image_height": size,
        "answers": ten_answers(question, rng),
        "question_tokens": text.rstrip("?").split(),
        "question_id": question_id,
        "set_name": "val",
    }


def write(folder: Path, rng: random.Random, scale: float = 1.0, world: World = POCKET) -> int:
    """Writes the benchmark and returns the number of questions."""
    one, two = (
        list(
            scenes(
                world.split, rng.randrange(2**32), round(n * scale), objects=(1, 3), words=(words, words), unique=True
            )
        )
        for words, n in ((1, ONE_WORD), (2, TWO_WORDS))
    )
    shown = one + two
    rng.shuffle(shown)
    pictures, data, prompts = [], [], []
    for number, scene in enumerate(shown):
        image_id = f"{rng.getrandbits(64):016x}"
        picture = Picture(f"{image_id}.jpg", scene, number)
        pictures.append(picture)
        tokens = ocr_line(read_words(scene, rng))
        for question in ask_all(scene, rng):
            data.append(annotate(question, image_id, FIRST_ID + len(data), rng, world.size))
            text = question.text + tokens + SHORT_ANSWER
            prompts.append({"question_id": image_id, "image": picture.path, "text": text, "category": "default"})
    save_pictures(folder / "train_images", pictures, world=world)
    write_scenes(folder / SCENES, pictures)
    head = {"dataset_type": "val", "dataset_name": "textvqa", "dataset_version": "0.5.1"}
    write_json(folder / "TextVQA_0.5.1_val.json", {**head, "data": data})
    write_json_lines(folder / "llava_textvqa_val_v051_ocr.jsonl", prompts)
    return len(data)
