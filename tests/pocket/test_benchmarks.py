"""The pocket benchmarks: official files, true answers score in full, test scenes alone, nothing to be won blindly."""

from __future__ import annotations

import base64
import csv
import io
import json
import random
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import llava_prumerge.evaluation.benchmark
from llava_prumerge.evaluation.benchmark import Benchmark, Question
from playground.pocket import benchmarks, store
from playground.pocket.balance import ASKS
from playground.pocket.benchmarks.humans import ten_answers
from playground.pocket.language import CAPTION_PROMPTS, corpus
from playground.pocket.questions import LETTER_ANSWER, SHORT_ANSWER
from playground.pocket.records import draw_scene
from playground.pocket.scenes import split_of
from tests.pocket.oracle import answer, parse

PIECE = re.compile(r"▁?[A-Za-z]+|▁?[0-9]+|[^\w\s]")  # what becomes one token of the pocket tokenizer
NAMES = tuple(benchmarks.BENCHMARKS)
BEST = dict.fromkeys(NAMES, 100.0) | {"mme": 1000.0}
SIZES = {"vqav2": 520, "sqa": 520, "textvqa": 520, "pope": 612, "mme": 504, "mmbench": 522}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pocket")
    assert benchmarks.build(out)["counts"] == SIZES
    return out / "eval"


def folder(data: Path, name: str) -> Path:
    return data / benchmarks.BENCHMARKS[name].FOLDER


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def scene_key(name: str, question: Question, shown: dict[str, list]) -> str | None:
    """What the question is about, by what it shows or tells."""
    if name == "mmbench":
        return shown[f"{question.id % 1_000_000}.jpg"][0]
    found = shown.get(question.image or f"{question.id}/hint")
    return found[0] if found else None


def score(benchmark: Benchmark, data: Path, path: Path, texts: list[str]) -> Any:
    """What the evaluation says of an answer file with these texts."""
    files = benchmark.files(data)
    asked = benchmark.questions(files)
    records = [
        {"question_id": question.id, "prompt": question.prompt, "text": text, "metadata": {}, **question.extra}
        for question, text in zip(asked, texts, strict=True)
    ]
    store.write_json_lines(path, records)
    return benchmark.score(path, files)


def truths(data: Path, name: str) -> list[str]:
    """The oracle's answers."""
    benchmark = llava_prumerge.evaluation.benchmark.find(name)
    shown = read(folder(data, name) / store.SCENES)
    texts = []
    for question in benchmark.questions(benchmark.files(data)):
        key = scene_key(name, question, shown)
        prompt = question.text.replace(SHORT_ANSWER, "").replace(LETTER_ANSWER, "")
        texts.append(answer(prompt, parse(key) if key else None))
    return texts


@pytest.mark.parametrize("name", NAMES)
def test_the_truth_scores_in_full(data: Path, name: str, tmp_path: Path) -> None:
    result = score(llava_prumerge.evaluation.benchmark.find(name), data, tmp_path / "answers.jsonl", truths(data, name))
    assert result.headline == pytest.approx(BEST[name])
    assert min(result.marks) == 1.0
    if name == "mme":
        assert result.metrics["cognition"] == pytest.approx(400.0) and result.metrics["subtasks"] == 7
    if name == "sqa":
        assert (result.metrics["img_total"], result.metrics["total"]) == (260, 520)
    if name == "mmbench":
        assert (result.metrics["circular_total"], result.metrics["incomplete_groups"]) == (150, 0)


def test_a_constant_scores_no_better_than_chance(data: Path, tmp_path: Path) -> None:
    best, chance = {}, {}
    for name in NAMES:
        benchmark = llava_prumerge.evaluation.benchmark.find(name)
        said = truths(data, name)
        results = [
            score(benchmark, data, tmp_path / "a.jsonl", [text] * len(said)) for text, _ in Counter(said).most_common(3)
        ]
        best[name], chance[name] = max(result.headline for result in results), results[0].chance
    assert best["vqav2"] < 25 and best["textvqa"] < 15
    assert best["pope"] == pytest.approx(200 / 3) and best["mme"] == pytest.approx(250) and best["mmbench"] == 0
    assert best["sqa"] < chance["sqa"] + 1.5 < 34


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_balanced(data: Path, name: str) -> None:
    said = Counter(truths(data, name))
    if said["Yes"] or said["No"]:
        assert abs(said["Yes"] / (said["Yes"] + said["No"]) - 0.5) < 0.03
    if name in ("sqa", "mmbench"):
        benchmark = llava_prumerge.evaluation.benchmark.find(name)
        by_options: dict[int, Counter] = defaultdict(Counter)
        for question, letter in zip(benchmark.questions(benchmark.files(data)), truths(data, name), strict=True):
            by_options[sum(f"\n{option}. " in question.text for option in "ABCDE")][letter] += 1
        for options, counts in by_options.items():
            assert len(counts) == options
            assert max(counts.values()) - min(counts.values()) < 0.12 * counts.total() + 2


@pytest.mark.parametrize("name", NAMES)
def test_images_open_and_show_test_scenes(data: Path, name: str) -> None:
    benchmark = llava_prumerge.evaluation.benchmark.find(name)
    files = benchmark.files(data)
    shown = read(folder(data, name) / store.SCENES)
    assert {split_of(parse(key)) for key, _ in shown.values()} == {"test"}
    assert len({key for key, _ in shown.values()}) > 0.95 * len(shown)
    for question in benchmark.questions(files):
        if not question.has_image:
            continue
        source = io.BytesIO(base64.b64decode(question.embedded)) if question.embedded else files.images / question.image
        with Image.open(source) as image:
            image.load()
            assert (image.size, image.mode) == ((96, 96), "RGB")
            named = Path(question.image).suffix if question.image else ".jpg"
            assert image.format == store.FORMATS[named]


@pytest.mark.parametrize("name", NAMES)
def test_questions_have_llavas_instructions(data: Path, name: str) -> None:
    benchmark = llava_prumerge.evaluation.benchmark.find(name)
    for question in benchmark.questions(benchmark.files(data)):
        assert question.text.endswith(LETTER_ANSWER if name in ("sqa", "mmbench") else SHORT_ANSWER)


def test_every_word_is_one_the_language_model_knows(data: Path) -> None:
    def pieces(text: str) -> set[str]:
        return set(PIECE.findall(("▁" + text).replace(" ", "▁").replace("\n", " ")))

    known = {
        piece
        for text in (*corpus("train", 0, 1500), *CAPTION_PROMPTS)
        for line in text.split("\n")
        for piece in pieces(line)
    }
    for name in NAMES:
        benchmark = llava_prumerge.evaluation.benchmark.find(name)
        asked = {
            piece
            for question in benchmark.questions(benchmark.files(data))
            for line in question.text.split("\n")
            for piece in pieces(line)
        }
        assert not asked - known, name


def test_vqav2_files(data: Path) -> None:
    root = folder(data, "vqav2")
    asked, annotated = read(root / "v2_OpenEnded_questions.json"), read(root / "v2_annotations.json")
    assert set(asked) == {"info", "task_type", "data_type", "data_subtype", "license", "questions"}
    assert set(annotated) == {"info", "data_type", "data_subtype", "license", "annotations"}
    prompts = read_lines(root / "llava_vqav2_mscoco_test-dev2015.jsonl")
    for question, entry, prompt in zip(asked["questions"], annotated["annotations"], prompts, strict=True):
        assert question["question_id"] == entry["question_id"] == prompt["question_id"]
        assert question["question_id"] // 1000 == question["image_id"] == entry["image_id"]
        assert prompt["image"] == f"COCO_test2015_{question['image_id']:012d}.jpg"
        assert prompt["text"] == question["question"] + SHORT_ANSWER and prompt["category"] == "default"
        answers = Counter(human["answer"] for human in entry["answers"])
        assert [human["answer_id"] for human in entry["answers"]] == list(range(1, 11))
        assert answers.most_common(1)[0] == (entry["multiple_choice_answer"], answers[entry["multiple_choice_answer"]])
        assert len(answers) == 1 or answers[entry["multiple_choice_answer"]] > sorted(answers.values())[-2]
    kinds = Counter(entry["answer_type"] for entry in annotated["annotations"])
    assert set(kinds) == {"yes/no", "number", "other"} and min(kinds.values()) > 110
    unanimous = sum(len({human["answer"] for human in entry["answers"]}) == 1 for entry in annotated["annotations"])
    assert 0.35 < unanimous / len(annotated["annotations"]) < 0.65
    assert {entry["question_type"] for entry in annotated["annotations"]} >= {
        "how many",
        "what color is the",
        "is there a",
    }


def test_sqa_files(data: Path) -> None:
    root = folder(data, "sqa")
    problems, splits, entries = (
        read(root / name) for name in ("problems.json", "pid_splits.json", "llava_test_CQM-A.json")
    )
    assert splits["test"] == [entry["id"] for entry in entries] and set(splits["test"]) | set(splits["val"]) == set(
        problems
    )
    for entry in entries:
        problem = problems[entry["id"]]
        human, gpt = entry["conversations"]
        lines = ([f"Context: {problem['hint']}"] if problem["hint"] else []) + [problem["question"]]
        lines += [f"{letter}. {choice}" for letter, choice in zip("ABCDE", problem["choices"], strict=False)]
        assert human["value"] == "\n".join((["<image>"] if "image" in entry else []) + lines)
        assert gpt["value"] == "ABCDE"[problem["answer"]]
        assert entry.get("image") == (f"{entry['id']}/image.png" if problem["image"] else None)
        assert 2 <= len(problem["choices"]) == len(set(problem["choices"])) <= 5
    assert {len(problems[pid]["choices"]) for pid in splits["test"]} == {2, 3, 4, 5}
    assert len({problem["subject"] for problem in problems.values()}) == 3
    assert any(problem["hint"] and not problem["image"] for problem in problems.values())


def test_textvqa_tokens_do_not_give_the_answer_away(data: Path) -> None:
    root = folder(data, "textvqa")
    entries = read(root / "TextVQA_0.5.1_val.json")["data"]
    prompts = read_lines(root / "llava_textvqa_val_v051_ocr.jsonl")
    assert len({entry["question_id"] for entry in entries}) == len(entries)
    listed, guesses, first = [], [], []
    for entry, prompt, right in zip(entries, prompts, truths(data, "textvqa"), strict=True):
        question, tokens, _ = prompt["text"].split("\n")
        assert entry["question"] == question.lower() and entry["image_id"] == prompt["question_id"]
        assert len(entry["answers"]) == 10 and entry["answers"].count(right.lower()) >= 5
        words = tokens.removeprefix("Reference OCR token: ").split(", ")
        listed.append(right in words)
        guesses.append((right in words) / len(words))
        first.append(words[0] == right)
    assert 0.75 < sum(listed) / len(listed) < 0.95
    assert sum(guesses) / len(guesses) < 0.25 and sum(first) / len(first) < 0.27


def test_mme_pairs(data: Path) -> None:
    root = folder(data, "mme")
    lead: dict[str, Counter] = defaultdict(Counter)
    for path in sorted((root / "ground_truth").glob("*.txt")):
        rows = [line.split("\t") for line in path.read_text().splitlines()]
        assert len(rows) == 72 and all(text.endswith(" Please answer yes or no.") for _, text, _ in rows)
        for (image, yes, right), (other, no, wrong) in zip(rows[::2], rows[1::2], strict=True):
            assert image == other and (right, wrong) == ("Yes", "No") and yes != no
            beside = (root / "MME_Benchmark_release_version" / path.stem / image).with_suffix(".txt")
            assert beside.read_text() == f"{yes}\tYes\n{no}\tNo\n"
            lead[path.stem].update(yes.split())
            lead[path.stem].subtract(no.split())
    assert set(lead) == set(benchmarks.mme.SUBTASKS)
    assert max(abs(count) for words in lead.values() for count in words.values()) <= 6  # of 36


def test_mmbench_table(data: Path) -> None:
    text = (folder(data, "mmbench") / "mmbench_dev_20230712.tsv").read_text()
    rows = list(csv.DictReader(io.StringIO(text), delimiter="\t"))
    assert text.split("\n")[0].split("\t") == [
        "index",
        "question",
        "hint",
        "A",
        "B",
        "C",
        "D",
        "answer",
        "category",
        "image",
        "source",
        "l2-category",
        "comment",
        "split",
    ]
    groups: dict[int, list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        groups[int(row["index"]) % 1_000_000].append(row)
    for group in groups.values():
        options = [row[letter] for letter in "ABCD" if (row := group[0])[letter]]
        assert len(group) == len(options) and len({row["image"] for row in group}) == 1
        assert len({row[row["answer"]] for row in group}) == 1 and len({row["answer"] for row in group}) == len(options)
        for row in group:
            turn = int(row["index"]) // 1_000_000
            assert [row[letter] for letter in "ABCD"[: len(options)]] == options[turn:] + options[:turn]
    assert len({row["category"] for row in rows}) == 6 and len({row["l2-category"] for row in rows}) == 3


def test_ten_answers_agree_on_the_right_one() -> None:
    rng = random.Random(0)
    for _ in range(300):
        question = ASKS[rng.choice(tuple(ASKS))](draw_scene("train", rng), rng)
        if question is not None:
            answers = Counter(ten_answers(question, rng))
            (best, count), *others = answers.most_common()
            assert best == question.answer.lower() and answers.total() == 10
            assert count >= 5 and all(count > other for _, other in others)


def test_building_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        benchmarks.build(tmp_path / name, scale=0.1)
    paths = [path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file()]
    assert len(paths) > 100
    for path in paths:
        assert (tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes(), path
    benchmarks.build(tmp_path / "b", seed=1, scale=0.1)
    question_file = Path("eval/vqav2/v2_OpenEnded_questions.json")
    assert (tmp_path / "a" / question_file).read_bytes() != (tmp_path / "b" / question_file).read_bytes()
