"""Pocket MME: for every image one question to answer with yes and one with no, in seven of the official subtasks.

Five belong to perception and two to cognition; the others (celebrities, landmarks, code...) mean nothing in the pocket
world and are absent, so that perception is at most 1000 and cognition at most 400.
"""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

from playground.pocket.balance import ASKS, hint_of
from playground.pocket.questions import NO, SHORT_ANSWER, YES, Question
from playground.pocket.records import draw_scene
from playground.pocket.scenes import Scene
from playground.pocket.store import SCENES, Picture, save_pictures, write_json_lines, write_scenes
from playground.pocket.world import POCKET, World

FOLDER = "MME"
IMAGES = 36  # per subtask
SUBTASKS = {
    "existence": ("exists_shape", "exists_object"),
    "count": ("is_count",),
    "position": ("position", "relation"),
    "color": ("is_colour",),
    "OCR": ("exists_word",),
    "commonsense_reasoning": ("commonsense",),
    "numerical_calculation": ("arithmetic",),
}
YES_OR_NO = " Please answer yes or no."
ATTEMPTS = 40


def file_name(subtask: str, number: int) -> str:
    """As in the release: COCO ids for what is from COCO, else a running number."""
    if subtask in ("existence", "count", "position", "color"):
        return f"{6000 + 41 * number:012d}.jpg"
    return f"{number + 1:04d}.{'jpg' if subtask == 'OCR' else 'png'}"


class Parity:
    """Chooses pairs such that no word, and no implied number, is more often in a question with yes than with no."""

    def __init__(self) -> None:
        self.lead: Counter[str] = Counter()  # by how many yes-questions more than no-questions have a word

    def shift(self, yes: Question, no: Question) -> Counter[str]:
        """What a pair would add to the lead of each word."""
        change: Counter[str] = Counter()
        for question, sign in ((yes, 1), (no, -1)):
            for word in {*question.text.split(), f"hint {hint_of(question)}"}:
                change[word] += sign
        return change

    def cost(self, yes: Question, no: Question) -> int:
        """By how much a pair would worsen the sum of squared leads."""
        return sum((self.lead[word] + sign) ** 2 - self.lead[word] ** 2 for word, sign in self.shift(yes, no).items())

    def choose(self, kind: str, scene: Scene, rng: random.Random) -> tuple[Question, Question] | None:
        """The best pair about a scene; None where it carries no yes or no no of this kind."""
        found: dict[str, Question] = {}
        for _ in range(ATTEMPTS):
            question = ASKS[kind](scene, rng)
            if question is None:
                return None
            found.setdefault(question.text, question)
        yes, no = ([question for question in found.values() if question.answer == answer] for answer in (YES, NO))
        pairs = [(a, b) for a in yes for b in no]
        if not pairs:
            return None
        pair = min(pairs, key=lambda pair: self.cost(*pair))
        self.lead.update(self.shift(*pair))
        return pair


def write(folder: Path, rng: random.Random, scale: float = 1.0, world: World = POCKET) -> int:
    """Writes the benchmark and returns the number of questions."""
    release, truth = folder / "MME_Benchmark_release_version", folder / "ground_truth"
    truth.mkdir(parents=True)
    pictures, prompts = [], []
    for subtask, kinds in SUBTASKS.items():
        (release / subtask).mkdir(parents=True)
        parity, seen, rows = Parity(), set(), []
        number = 0
        while number < round(IMAGES * scale):
            scene = draw_scene(world.split, rng, seen)
            pair = parity.choose(kinds[number % len(kinds)], scene, rng)
            if pair is None:
                continue
            name = file_name(subtask, number)
            pictures.append(Picture(f"{subtask}/{name}", scene, len(pictures)))
            number += 1
            lines = [(f"{question.text}{YES_OR_NO}", question.answer) for question in pair]
            rows += [f"{name}\t{text}\t{answer}\n" for text, answer in lines]
            (release / subtask / name).with_suffix(".txt").write_text(
                "".join(f"{text}\t{answer}\n" for text, answer in lines), "utf-8"
            )
            for question in pair:
                key = f"{subtask}/{name}"
                prompts.append(
                    {"question_id": key, "image": key, "text": question.text + SHORT_ANSWER, "category": subtask}
                )
        (truth / f"{subtask}.txt").write_text("".join(rows), "utf-8")
    save_pictures(release, pictures, world=world)
    write_scenes(folder / SCENES, pictures)
    write_json_lines(folder / "llava_mme.jsonl", prompts)
    return len(prompts)
