"""The records a pocket LLaVA is trained on, in LLaVA's JSON format: captions for stage 1, conversations for stage 2.

Stage 2 is a small mix665k: many questions per image, the short-answer instruction on the first or on every one,
lettered options, OCR tokens in the prompt as TextVQA has them, some captions, and a share of records without image so
that the language model keeps what it knew.
"""

from __future__ import annotations

import logging
import random
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from playground.pocket import balance, facts, language, questions, scenes, store
from playground.pocket import world as worlds
from playground.pocket.balance import ASKS, YES_OR_NO, Balance, give_options
from playground.pocket.facts import fact
from playground.pocket.language import CAPTION_PROMPTS, tell
from playground.pocket.questions import LETTERS, Question, ocr_line
from playground.pocket.scenes import GRID, WORDS, Object, Scene, Word, caption, describe, join, place_name, split_of
from playground.pocket.store import Picture
from playground.pocket.world import POCKET, World

logger = logging.getLogger("pocket.records")
Record = dict[str, Any]

IMAGE_MARK = "<image>"
HINTS = ("Context: Look at the image.", "Look at the image.")
STAGE1, STAGE2, REGIONS = "stage1.json", "stage2.json", "regions.json"
TURNS = (6, 10)
TEXT_ONLY = 0.06  # mix665k has 40,688 of 665,298 records without image
CAPTIONED = 0.15
LETTERED = 0.3
WITH_OCR = 0.4  # of the questions about words
KIND_WEIGHTS = {kind: 0.8 if kind in YES_OR_NO else 1.0 for kind in ASKS}


def draw_scene(split: str, rng: random.Random, seen: set[str] | None = None) -> Scene:
    """A scene of a split, with colours and shapes repeated often enough for counts above one, and often a word."""
    while True:
        words = rng.choices((0, 1, 2), (0.25, 0.4, 0.35))[0]
        scene = scenes.sample_scene(rng, words=(words, words), repeat=rng.choice((0.3, 0.8)))
        if split_of(scene) == split and (seen is None or scene.key not in seen):
            if seen is not None:
                seen.add(scene.key)
            return scene


def survey(scene: Scene, rng: random.Random) -> str:
    """Tells everything a scene shows; half of the time in reading order, which is easier to foresee than a free one."""
    if rng.random() < 0.5:
        return caption(scene, rng)
    items: list[Object | Word] = sorted((*scene.objects, *scene.words), key=lambda item: (item.row, item.col))
    form = rng.randrange(4)
    if form == 0:
        return join([f"{describe(item)} at the {item.place}" for item in items]) + "."
    if form == 1:
        return "the image shows " + join([f"{describe(item)} at the {item.place}" for item in items]) + "."
    if form == 2:
        return " ".join(f"{item.place}: {name_barely(item)}." for item in items)
    cells = [(row, col) for row in range(GRID) for col in range(GRID)]
    return " ".join(f"{place_name(*cell)}: {name_barely(scene.at(*cell))}." for cell in cells)


def name_barely(item: Object | Word | None) -> str:
    """What is in a cell, in as few words as name it."""
    if item is None:
        return "empty"
    return f"word {item.text}" if isinstance(item, Word) else item.name


def read_words(scene: Scene, rng: random.Random) -> list[str]:
    """What a poor OCR system reports: most words, some misread or missed, some that are not there; in no order."""
    tokens = []
    for word in scene.words:
        chance = rng.random()
        if chance < 0.85:
            tokens.append(word.text)
        elif chance < 0.95:
            tokens.append(misread(word.text, rng))
    absent = [word for word in WORDS if word not in tokens and all(word != item.text for item in scene.words)]
    tokens += rng.sample(absent, rng.randint(2, 4))
    rng.shuffle(tokens)
    return list(dict.fromkeys(tokens))


def misread(text: str, rng: random.Random) -> str:
    """One of the words that share most letters with a word."""
    others = [word for word in WORDS if word != text]
    alike = {word: sum(a == b for a, b in zip(word, text, strict=True)) for word in others}
    return rng.choice([word for word in others if alike[word] == max(alike.values())])


def phrase(asked: Question, scene: Scene | None, rng: random.Random) -> Question:
    """Gives a question one of the benchmarks' forms: short answer, short answer beside OCR tokens, lettered options."""
    if asked.letters:
        return asked
    if scene is not None and asked.kind in ("word_any", "word_at") and rng.random() < WITH_OCR:
        return replace(asked, text=asked.text + ocr_line(read_words(scene, rng)))
    if rng.random() >= LETTERED:
        return asked
    hint = rng.choice(HINTS) if scene is not None and rng.random() < 0.3 else ""
    possible = balance.ANSWERS.get(asked.kind, (asked.answer, *asked.wrong))
    return give_options(asked, rng, rng.randint(2, min(len(LETTERS), len(possible))), hint=hint)


def converse(turns: list[tuple[str, str]], image: bool) -> list[dict[str, str]]:
    """LLaVA's list of alternating messages; the image stands before the first."""
    messages = []
    for index, (text, answer) in enumerate(turns):
        start = f"{IMAGE_MARK}\n" if image and index == 0 else ""
        messages += [{"from": "human", "value": start + text}, {"from": "gpt", "value": answer}]
    return messages


def instruct(asked: list[Question], rng: random.Random) -> list[tuple[str, str]]:
    """Questions with instructions: for letters always; for short answers on the first or, in half the records, all."""
    always, told = rng.random() < 0.5, False
    turns = []
    for question in asked:
        said = question.letters or always or not told
        told = told or not question.letters
        turns.append((question.prompt if said else question.text, question.answer))
    return turns


def caption_record(index: int, scene: Scene, rng: random.Random) -> tuple[Record, Picture]:
    """One record of stage 1, as LLaVA-Pretrain has them."""
    picture = Picture(f"stage1/{index // 1000:03d}/{index:06d}.png", scene, index)
    instruction = rng.choice(CAPTION_PROMPTS)
    value = f"{IMAGE_MARK}\n{instruction}" if rng.random() < 0.5 else f"{instruction}\n{IMAGE_MARK}"
    messages = [{"from": "human", "value": value}, {"from": "gpt", "value": survey(scene, rng)}]
    return {"id": f"{index:06d}", "image": picture.path, "conversations": messages}, picture


def image_record(index: int, scene: Scene, rng: random.Random, fair: Balance) -> tuple[Record, Picture]:
    """One record of stage 2 with an image."""
    picture = Picture(f"stage2/{index // 1000:03d}/{index:06d}.png", scene, 1_000_000 + index)
    asked = [phrase(question, scene, rng) for question in fair.draw(scene, rng, rng.randint(*TURNS))]
    turns = instruct(asked, rng)
    if rng.random() < CAPTIONED:
        turns.insert(0, (rng.choice(CAPTION_PROMPTS), survey(scene, rng)))
    return {"id": f"pocket_{index:06d}", "image": picture.path, "conversations": converse(turns, image=True)}, picture


def text_record(index: int, rng: random.Random, fair: Balance) -> Record:
    """One record of stage 2 without image: plain facts, or questions about a scene in words."""
    n = rng.randint(*TURNS)
    if rng.random() < 0.5:
        turns = instruct([phrase(fact_question(rng), None, rng) for _ in range(n)], rng)
    else:
        scene = draw_scene("train", rng)
        asked = [phrase(question, scene, rng) for question in fair.draw(scene, rng, n)]
        turns = instruct(asked, rng)
        turns[0] = (f"Context: {tell(scene, rng)}\n{turns[0][0]}", turns[0][1])
    return {"id": f"pocket_{index:06d}", "conversations": converse(turns, image=False)}


def fact_question(rng: random.Random) -> Question:
    """A plain fact; with lettered options where only they make it answerable."""
    asked = fact(rng)
    return give_options(asked, rng, rng.randint(2, 5)) if asked.kind == "fact_member" else asked


def caption_records(n: int, seed: int) -> Iterator[tuple[Record, Picture]]:
    """The records of stage 1 with their pictures."""
    rng = random.Random(f"stage1/{seed}")
    for index in range(n):
        yield caption_record(index, draw_scene("train", rng), rng)


def instruction_records(n: int, seed: int) -> Iterator[tuple[Record, Picture | None]]:
    """The records of stage 2 with their pictures; those without image are spread evenly at random."""
    rng = random.Random(f"stage2/{seed}")
    fair, fair_in_words = Balance(KIND_WEIGHTS, slack=2.0), Balance(KIND_WEIGHTS, slack=2.0)
    for index in range(n):
        if rng.random() < TEXT_ONLY:
            yield text_record(index, rng, fair_in_words), None
        else:
            yield image_record(index, draw_scene("train", rng), rng, fair)


def build(
    out: Path,
    *,
    stage1: int = 12800,
    stage2: int = 6400,
    seed: int = 0,
    workers: int = 2,
    force: bool = False,
    world: World = POCKET,
) -> dict[str, Any]:
    """Writes stage1.json, stage2.json, images/ and scenes.json to a folder; does nothing where they are up to date.

    A world that knows where its items are gets regions.json, too: the records of stage 2 with an image, and its regions.

    Args:
        out: the folder.
        stage1, stage2: number of records.
        seed: of everything.
        workers: processes that draw the images.
        force: write anew in any case.
        world: how scenes become pictures.

    Returns:
        What is in the manifest: settings and counts.
    """
    code = store.digest(scenes, questions, facts, language, balance, store, worlds, sys.modules[__name__])
    settings = {"stage1": stage1, "stage2": stage2, "seed": seed, "code": code, **world.settings}
    manifest: dict[str, Any] = {"settings": settings}
    if not force and store.is_current(out, settings):
        logger.info("the records in %s are up to date", out)
        return manifest
    with store.staged(out) as staging:
        pictures: list[Picture] = []
        counts = {}
        for name, made in (
            (STAGE1, list(caption_records(stage1, seed))),
            (STAGE2, list(instruction_records(stage2, seed))),
        ):
            if not made:
                continue
            store.write_json(staging / name, [record for record, _ in made])
            pictures += [picture for _, picture in made if picture is not None]
            counts[name] = len(made)
            if name == STAGE2 and world.regions is not None:
                shown = [(record, picture) for record, picture in made if picture is not None]
                told = [{**record, "regions": world.regions(one.scene, one.seed)} for record, one in shown]
                store.write_json(staging / REGIONS, told)
        logger.info("drawing %d images for %s", len(pictures), counts)
        store.save_pictures(staging / "images", pictures, workers, world)
        store.write_scenes(staging / store.SCENES, pictures)
        manifest["counts"] = {**counts, "images": len(pictures)}
        store.write_json(staging / store.MANIFEST, manifest)
    return manifest
