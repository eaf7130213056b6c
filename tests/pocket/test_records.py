"""The pocket training records: LLaVA's format, true answers, train scenes alone, balanced, same for the same seed."""

from __future__ import annotations

import json
import os
import random
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from playground.pocket import records, store
from playground.pocket.balance import ANSWERS, ASKS, YES_OR_NO, Balance, give_options, hint_of, option_lines
from playground.pocket.language import CAPTION_PROMPTS
from playground.pocket.questions import LETTER_ANSWER, SHORT_ANSWER, Question, ask
from playground.pocket.records import build, draw_scene
from playground.pocket.scenes import render, split_of
from tests.pocket.oracle import answer, parse

SMALL = {"stage1": 30, "stage2": 150}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pocket")
    build(out, **SMALL, workers=1)
    return out


def load(data: Path, name: str) -> list[dict[str, Any]]:
    return json.loads((data / name).read_text())


def shown(data: Path) -> dict[str, list]:
    return json.loads((data / store.SCENES).read_text())


def turns(record: dict[str, Any]) -> list[tuple[str, str]]:
    values = [message["value"] for message in record["conversations"]]
    return list(zip(values[::2], values[1::2], strict=True))


@pytest.mark.parametrize(("name", "count"), [("stage1.json", 30), ("stage2.json", 150)])
def test_records_are_llavas(data: Path, name: str, count: int) -> None:
    made = load(data, name)
    assert len(made) == count == len({record["id"] for record in made})
    for record in made:
        assert set(record) <= {"id", "image", "conversations"}
        assert [message["from"] for message in record["conversations"]] == ["human", "gpt"] * len(turns(record))
        marks = [text.count("<image>") for text, _ in turns(record)]
        assert marks[0] == ("image" in record) and not any(marks[1:])
        assert all(said.strip() == said and said for _, said in turns(record))
        if "image" in record:
            with Image.open(data / "images" / record["image"]) as image:
                assert (image.size, image.mode, image.format) == ((96, 96), "RGB", "PNG")


def test_captions_name_everything(data: Path) -> None:
    for record in load(data, "stage1.json"):
        ((text, said),) = turns(record)
        assert text.replace("<image>", "").strip() in CAPTION_PROMPTS
        scene = parse(shown(data)[record["image"]][0])
        for item in scene.objects:
            assert item.colour in said and item.shape in said
        assert all(word.text in said for word in scene.words)


def test_images_show_train_scenes(data: Path) -> None:
    scenes = shown(data)
    files = {path.relative_to(data / "images").as_posix() for path in (data / "images").rglob("*.png")}
    assert files == set(scenes)
    for path, (key, seed) in scenes.items():
        assert split_of(parse(key)) == "train"
        if seed % 7 == 0:
            with Image.open(data / "images" / path) as image:
                assert image.tobytes() == render(parse(key), seed).tobytes()


def test_answers_are_true(data: Path) -> None:
    checked = 0
    for record in load(data, "stage2.json"):
        scene = parse(shown(data)[record["image"]][0]) if "image" in record else None
        for text, said in turns(record):
            if text.replace("<image>\n", "") in CAPTION_PROMPTS or (
                scene is None and "Context: " in turns(record)[0][0]
            ):
                continue
            assert answer(text.replace(SHORT_ANSWER, "").replace(LETTER_ANSWER, ""), scene) == said, text
            checked += 1
    assert checked > 900


def test_stage2_has_every_form(data: Path) -> None:
    made = load(data, "stage2.json")
    prompts = [text for record in made for text, _ in turns(record)]
    with_image = [record for record in made if "image" in record]
    assert 0.01 < 1 - len(with_image) / len(made) < 0.15
    assert any(SHORT_ANSWER not in text and LETTER_ANSWER not in text for text in prompts)
    assert sum(LETTER_ANSWER in text for text in prompts) > 0.15 * len(prompts)
    assert any("\nReference OCR token: " in text for text in prompts)
    assert len({text.split("\n")[0] for text in prompts}) > 300
    for record in with_image:
        texts = [text.replace("<image>\n", "") for text, _ in turns(record)]
        first = next(text for text in texts if text not in CAPTION_PROMPTS and LETTER_ANSWER not in text)
        assert first.endswith(SHORT_ANSWER)


def test_nothing_can_be_guessed_from_the_words() -> None:
    rng, fair = random.Random(0), Balance(records.KIND_WEIGHTS, slack=2.0)
    for _ in range(1500):
        fair.draw(draw_scene("train", rng), rng, 8)
    assert set(fair.asked) == set(ASKS)
    for (kind, hint), counts in fair.answered.items():
        if kind in ANSWERS and counts.total() > 60 * len(ANSWERS[kind]) / 2:
            share = max(counts.values()) / counts.total()
            assert share < 1.25 / len(ANSWERS[kind]), (kind, hint, counts)
    yes = sum(counts["Yes"] for (kind, _), counts in fair.answered.items() if kind in YES_OR_NO)
    every = sum(counts.total() for (kind, _), counts in fair.answered.items() if kind in YES_OR_NO)
    assert abs(yes / every - 0.5) < 0.01


def test_balance_counts_and_refuses() -> None:
    fair = Balance(["is_colour"])
    yes = Question("is_colour", "Is the star red?", "Yes", ("No",))
    assert fair.admits(yes)
    fair.add(yes)
    fair.add(yes)
    assert not fair.admits(yes) and fair.admits(Question("is_colour", "Is the ring red?", "No", ("Yes",)))
    with pytest.raises(ValueError, match=r"\['is_big'\] are not among"):
        Balance(["is_big"])


def test_hints_are_what_the_words_imply() -> None:
    assert hint_of(Question("arithmetic", "Is the number of shapes plus 2 equal to 5?", "Yes")) == "3"
    assert hint_of(Question("commonsense", "Does the red shape have 12 straight sides?", "No")) == "12"
    assert hint_of(Question("commonsense", "Is the red shape round?", "No")) == "round"
    assert hint_of(Question("is_count", "Is the number of stars equal to 2?", "No")) == "some 2"
    assert hint_of(Question("exists_shape", "Is there a star in the image?", "No")) == ""


def test_options_do_not_point_to_the_middle() -> None:
    rng, ranks = random.Random(0), defaultdict(Counter)
    for _ in range(1500):
        asked = ask("count_all", draw_scene("train", rng), rng)
        for n in (2, 3):
            lettered = give_options(asked, rng, n)
            _, options = option_lines(lettered)
            ranks[asked.answer, n][sorted(options).index(asked.answer)] += 1
    assert ranks["2", 3][1] < ranks["2", 3].total() * 0.75  # 2/3 when the others are drawn from 1, 3, 4
    lettered = give_options(asked, rng, 4, "C", hint="Look at the image.")
    head, options = option_lines(lettered)
    assert lettered.answer == "C" and options[2] == asked.answer
    assert head == f"Look at the image.\n{asked.text}" and sorted(options) == ["1", "2", "3", "4"]


def test_building_twice_gives_the_same_bytes_and_skips(data: Path, tmp_path: Path) -> None:
    build(tmp_path, **SMALL, workers=2)
    for path in sorted(data.rglob("*")):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / path.relative_to(data)).read_bytes(), path
    before = os.stat(tmp_path / "stage2.json").st_mtime_ns
    build(tmp_path, **SMALL, workers=1)
    assert os.stat(tmp_path / "stage2.json").st_mtime_ns == before
    build(tmp_path, stage1=5, stage2=5, workers=1)
    assert len(load(tmp_path, "stage2.json")) == 5 and len(list((tmp_path / "images").rglob("*.png"))) <= 10


def test_a_failed_build_leaves_the_old_data(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (data / "stage1.json").read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(store, "save_pictures", fail)
    with pytest.raises(OSError, match="disk full"):
        build(data, stage1=3, stage2=3, workers=1)
    assert (data / "stage1.json").read_bytes() == before and store.is_current(data, build(data, **SMALL)["settings"])
    assert not list(data.glob(".building-*"))
