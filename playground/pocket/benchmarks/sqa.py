"""Pocket ScienceQA: two to five options; half with an image, half about facts or about a scene told in the hint."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

from playground.pocket.balance import ANSWERS, Balance, give_options, option_lines
from playground.pocket.facts import fact
from playground.pocket.language import tell
from playground.pocket.questions import LETTERS, Question
from playground.pocket.records import IMAGE_MARK, draw_scene
from playground.pocket.scenes import Scene
from playground.pocket.store import SCENES, Picture, save_pictures, write_json, write_scenes
from playground.pocket.world import POCKET, World

FOLDER = "scienceqa"
WITH_IMAGE, FACTS, TOLD, VALIDATION = 260, 130, 130, 20
HINT = "Look at the image."
HINTED = 0.6
CHOICES = {2: 0.15, 3: 0.25, 4: 0.35, 5: 0.25}  # number of options, and how often
KINDS = {
    **dict.fromkeys(
        ("colour_of", "shape_of", "where_is", "what_at", "colour_at", "shape_at", "count_all", "count_shape"), 1.0
    ),
    **dict.fromkeys(("word_any", "word_at", "word_kind"), 1.0),
    **dict.fromkeys(("commonsense", "relation"), 0.5),
}
SUBJECTS = {
    **dict.fromkeys(("where_is", "what_at", "relation"), ("social science", "geography", "Read a map")),
    **dict.fromkeys(
        ("word_any", "word_at", "word_kind", "fact_kind", "fact_member"), ("language science", "vocabulary", "Words")
    ),
}
OTHER_SUBJECT = ("natural science", "geometry", "Identify shapes and colors")


class Exam:
    """Collects problems, and the entries of LLaVA's question file for those of the test split."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.problems: dict[str, dict[str, Any]] = {}
        self.entries: list[dict[str, Any]] = []
        self.pictures: list[Picture] = []
        self.told: list[Picture] = []  # scenes that a hint tells; nothing is drawn for them
        self.letters: Counter[tuple[int, bool]] = Counter()  # by number of options and whether there is an image

    def options(self, question: Question, image: bool) -> Question:
        """A multiple choice whose right letters take turns."""
        possible = len(ANSWERS.get(question.kind, (question.answer, *question.wrong)))
        sizes = [size for size in CHOICES if size <= possible]
        count = self.rng.choices(sizes, [CHOICES[size] for size in sizes])[0]
        letter = LETTERS[self.letters[count, image] % count]
        self.letters[count, image] += 1
        return give_options(question, self.rng, count, letter)

    def add(self, question: Question, hint: str, scene: Scene | None, split: str = "test") -> None:
        """Adds a problem, with the scene's image when there is one."""
        pid = str(len(self.problems) + 1)
        lettered = self.options(question, scene is not None)
        text, choices = option_lines(lettered)
        subject, topic, category = SUBJECTS.get(question.kind, OTHER_SUBJECT)
        self.problems[pid] = {
            "question": text,
            "choices": choices,
            "answer": LETTERS.index(lettered.answer),
            "hint": hint,
            "image": None if scene is None else "image.png",
            "task": "closed choice",
            "grade": "grade2",
            "subject": subject,
            "topic": topic,
            "category": category,
            "skill": category,
            "lecture": "",
            "solution": "",
            "split": split,
        }
        if split != "test":
            return
        mark, context = (f"{IMAGE_MARK}\n" if scene else ""), (f"Context: {hint}\n" if hint else "")
        human = {"from": "human", "value": mark + context + lettered.text}
        entry: dict[str, Any] = {"id": pid, "conversations": [human, {"from": "gpt", "value": lettered.answer}]}
        if scene is not None:
            self.pictures.append(Picture(f"{pid}/image.png", scene, int(pid)))
            entry["image"] = self.pictures[-1].path
        self.entries.append(entry)


def write(folder: Path, rng: random.Random, scale: float = 1.0, world: World = POCKET) -> int:
    """Writes the benchmark and returns the number of questions."""
    exam, seen = Exam(rng), set()
    fair, fair_in_words = Balance(KINDS), Balance(KINDS)
    counts = {"image": WITH_IMAGE, "fact": FACTS, "told": TOLD, "validation": VALIDATION}
    plan = [source for source, n in counts.items() for _ in range(round(n * scale))]
    rng.shuffle(plan)
    for source in plan:
        if source in ("fact", "validation"):
            exam.add(fact(rng), "", None, "val" if source == "validation" else "test")
            continue
        drawn: list[Question] = []
        while not drawn:
            scene = draw_scene(world.split, rng, seen)
            drawn = (fair if source == "image" else fair_in_words).draw(scene, rng, 1)
        if source == "image":
            exam.add(drawn[0], HINT if rng.random() < HINTED else "", scene)
        else:
            exam.add(drawn[0], tell(scene, rng), None)
            exam.told.append(Picture(f"{len(exam.problems)}/hint", scene))
    by_split = {
        split: [pid for pid, problem in exam.problems.items() if problem["split"] == split]
        for split in ("train", "val", "test")
    }
    by_split |= {
        "trainval": by_split["val"],
        "minitrain": [],
        "minival": by_split["val"],
        "minitest": by_split["test"][:20],
    }
    save_pictures(folder / "images" / "test", exam.pictures, world=world)
    write_scenes(folder / SCENES, exam.pictures + exam.told)
    write_json(folder / "problems.json", exam.problems)
    write_json(folder / "pid_splits.json", by_split)
    write_json(folder / "llava_test_CQM-A.json", exam.entries)
    return len(exam.entries)
