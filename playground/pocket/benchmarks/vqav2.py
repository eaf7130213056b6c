"""Pocket VQAv2: open questions with ten human answers, in the files of visualqa.org and LLaVA's question file."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from playground.pocket.balance import YES_OR_NO, Balance
from playground.pocket.benchmarks.humans import ten_answers
from playground.pocket.questions import SHORT_ANSWER, Question
from playground.pocket.records import draw_scene
from playground.pocket.store import SCENES, Picture, save_pictures, write_json, write_json_lines, write_scenes
from playground.pocket.world import POCKET, World

FOLDER = "vqav2"
QUESTIONS = 520
WEIGHTS = {
    **dict.fromkeys(
        ("exists_shape", "exists_colour", "exists_object", "relation", "position", "is_colour", "exists_word"), 0.9
    ),
    **dict.fromkeys(("count_all", "count_colour", "count_shape"), 1.8),
    **dict.fromkeys(("colour_of", "shape_of", "where_is", "what_at", "colour_at", "shape_at"), 1.1),
}
TYPES = (
    "how many",
    "what color is the",
    "what is the",
    "what is",
    "what shape is the",
    "where is the",
    "is there a",
    "is the",
    "none of the above",
)
INFO = {"description": "Pocket scenes in the format of VQA v2.0", "version": "2.0", "contributor": "pocket world"}


def answer_type(question: Question) -> str:
    """One of the official three."""
    if question.kind in YES_OR_NO:
        return "yes/no"
    return "number" if question.answer.isdigit() else "other"


def question_type(text: str) -> str:
    """The longest of the usual beginnings that a question has."""
    fitting = [start for start in TYPES if text.lower().startswith(start)]
    return max(fitting, key=len, default=TYPES[-1])


def annotate(question: Question, image_id: int, question_id: int, rng: random.Random) -> dict[str, Any]:
    """An entry of the annotation file."""
    answers = [
        {
            "answer": answer,
            "answer_confidence": rng.choices(("yes", "maybe", "no"), (0.85, 0.12, 0.03))[0],
            "answer_id": number,
        }
        for number, answer in enumerate(ten_answers(question, rng), 1)
    ]
    return {
        "question_type": question_type(question.text),
        "multiple_choice_answer": question.answer.lower(),
        "answers": answers,
        "image_id": image_id,
        "answer_type": answer_type(question),
        "question_id": question_id,
    }


def write(folder: Path, rng: random.Random, scale: float = 1.0, world: World = POCKET) -> int:
    """Writes the benchmark and returns the number of questions."""
    fair, seen = Balance(WEIGHTS), set()
    pictures, asked, annotations, prompts = [], [], [], []
    while len(asked) < round(QUESTIONS * scale):
        scene = draw_scene(world.split, rng, seen)
        image_id = 1 + 7 * len(pictures)
        picture = Picture(f"COCO_test2015_{image_id:012d}.jpg", scene, len(pictures))
        pictures.append(picture)
        for number, question in enumerate(fair.draw(scene, rng, world.per_image)):
            question_id = image_id * 1000 + number
            asked.append({"image_id": image_id, "question": question.text, "question_id": question_id})
            annotations.append(annotate(question, image_id, question_id, rng))
            text = question.text + SHORT_ANSWER
            prompts.append({"question_id": question_id, "image": picture.path, "text": text, "category": "default"})
    head = {"info": INFO, "license": {"name": "none needed"}, "data_type": "mscoco", "data_subtype": "test-dev2015"}
    save_pictures(folder / "images", pictures, world=world)
    write_scenes(folder / SCENES, pictures)
    write_json(folder / "v2_OpenEnded_questions.json", {**head, "task_type": "Open-Ended", "questions": asked})
    write_json(folder / "v2_annotations.json", {**head, "annotations": annotations})
    write_json_lines(folder / "llava_vqav2_mscoco_test-dev2015.jsonl", prompts)
    return len(asked)
