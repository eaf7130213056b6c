"""LLaVA-Bench (in the wild): 60 open questions about 24 images; a judge rates the answer beside GPT-4's reference.

Rules: LLaVA's review and summary. The judge reads captions of the image, the reference as Assistant 1 and the answer as
Assistant 2, and opens with two numbers. A score is 100 x mean of the second / mean of the first, both rounded to three
places first. A review without two numbers counts -1 for both in the original, which draws the ratio towards 100; here
it is asked again and then is an error. The published 72.5 is the mean of three reviews' printed ratios.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from llava_prumerge.evaluation.benchmark import Files, Question, read_questions
from llava_prumerge.evaluation.judge import Judge
from llava_prumerge.evaluation.judged import JudgedBenchmark
from llava_prumerge.evaluation.records import (
    EvaluationError,
    Key,
    Record,
    bounded_number,
    field,
    identifier,
    index_by,
    read_records,
    require_same_keys,
    shorten,
    text_field,
)
from llava_prumerge.evaluation.results import Score, bootstrap

if TYPE_CHECKING:
    import numpy as np

Pair = tuple[float, float]
UNREAD: Pair = (-1.0, -1.0)
HIGHEST = 10.0
ATTEMPTS = 3
TEMPERATURE, TOKENS = 0.2, 1024
SYSTEM = "You are a helpful and precise assistant for checking the quality of the answer."
RULE = (
    "Rate the two AI assistants' answers to the question above. The image is described by the context. Consider "
    "helpfulness, relevance, accuracy and the level of detail, and give each an overall score from 1 to 10, where more "
    "is better. First output one line that holds two numbers alone, the scores of Assistant 1 and of Assistant 2, "
    "separated by a space. Then explain the scores, without bias, whichever answer comes first."
)


@dataclass(frozen=True)
class Item:
    """One question: its text, category, the image's captions and the reference answer."""

    question: str
    category: str
    context: str
    reference: str


def read_pair(review: str) -> Pair | None:
    """The two numbers of a review's first line, by the original's reading; None where it fails."""
    parts = review.split("\n")[0].replace(",", " ").split(" ")
    if len(parts) != 2:
        return None
    try:
        pair = float(parts[0]), float(parts[1])
    except ValueError:
        return None
    return pair if all(0 <= score <= HIGHEST for score in pair) else None


def summarise(pairs: Sequence[Pair]) -> dict[str, float]:
    """The original's three numbers: the ratio, and both means times ten, each with one digit."""
    first, second = (round(fmean(column), 3) for column in zip(*pairs, strict=True))
    ratio = round(second / first * 100, 1) if first else 0.0
    return {"ratio": ratio, "reference": round(first * 10, 1), "model": round(second * 10, 1), "n": len(pairs)}


def make_messages(item: Item, answer: str) -> list[dict[str, str]]:
    """The judge's conversation about one answer."""
    parts = [("Context", item.context), ("Question", item.question)]
    told = "".join(f"[{name}]\n{text}\n\n" for name, text in parts)
    for number, text in ((1, item.reference), (2, answer)):
        told += f"[Assistant {number}]\n{text}\n\n[End of Assistant {number}]\n\n"
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": f"{told}[System]\n{RULE}\n\n"}]


class LlavaBench(JudgedBenchmark):
    """100 x mean rating of the answers / mean rating of GPT-4's."""

    name = "llava_bench"
    title = "LLaVA-W"
    headline = "all"
    folder = "llava-bench-in-the-wild"
    maximum = 200.0
    max_new_tokens = 1024

    def files(self, data: Path) -> Files:
        root = data / self.folder
        there = (root / "context.jsonl").is_file() and (root / "answers_gpt4.jsonl").is_file()
        return Files(root / "questions.jsonl", root if there else None, images=root / "images")

    def questions(self, files: Files) -> list[Question]:
        return read_questions(files.need("questions"))

    def references(self, files: Files) -> dict[Key, Item]:
        folder, path = files.need("annotations"), files.need("questions")
        captions = index_by(
            read_records(folder / "context.jsonl"), lambda record: text_field(record, "image", folder), folder
        )
        given = index_by(
            read_records(folder / "answers_gpt4.jsonl"), lambda record: self.answer_key(record, folder), folder
        )
        asked = index_by(read_records(path), lambda record: self.answer_key(record, path), path)
        require_same_keys(asked, given, folder / "answers_gpt4.jsonl", path)
        items = {}
        for key, record in asked.items():
            image = text_field(record, "image", path)
            if image not in captions:
                raise EvaluationError(f"{folder / 'context.jsonl'}: no captions of {shorten(image)}")
            caption = field(captions[image], "caption", folder)
            caption = caption if isinstance(caption, list) else [caption]
            if not all(isinstance(line, str) for line in caption):
                raise EvaluationError(f"{folder / 'context.jsonl'}: captions must be text, found {shorten(caption)}")
            context, category = "\n".join(caption), text_field({"category": "all"} | record, "category", path)
            items[key] = Item(
                text_field(record, "text", path), category, context, text_field(given[key], "text", folder)
            )
        return items

    def part_of(self, reference: Item) -> str:
        return reference.category

    def answer_key(self, record: Record, path: Path) -> Key:
        return identifier(record, path)

    def grade(self, references: Sequence[Item], texts: Sequence[str], judge: Judge) -> Score:
        pairs = [self.ask(judge, item, text) for item, text in zip(references, texts, strict=True)]
        return self.add_up([item.category for item in references], [pairs])

    def ask(self, judge: Judge, item: Item, answer: str) -> Pair:
        """The judge's two numbers.

        Raises:
            EvaluationError: none of its replies begins with two numbers.
        """
        for attempt in range(ATTEMPTS):
            pair = read_pair(judge.ask(make_messages(item, answer), TEMPERATURE, TOKENS, attempt))
            if pair is not None:
                return pair
        raise EvaluationError(f"the judge gave no two numbers in {ATTEMPTS} replies about {item.question[:60]!r}")

    def read_grades(self, answers: Path, files: Files) -> Score | None:
        """The score of a review file, or of a folder of several, whose printed ratios are averaged."""
        paths = sorted(answers.glob("*.jsonl*")) if answers.is_dir() else [answers]
        reviews = [read_records(path) for path in paths]
        if not any(reviews) or not all("tuple" in record for records in reviews for record in records):
            return None
        categories = [[text_field(record, "category", answers) for record in records] for records in reviews]
        if any(found != categories[0] for found in categories):
            raise EvaluationError(f"{answers}: the review files are not of the same questions in the same order")
        return self.add_up(categories[0], [[self.read_tuple(record, answers) for record in file] for file in reviews])

    def read_tuple(self, record: Mapping[str, Any], path: Path) -> Pair:
        """The two numbers of a review that was made already, the original's -1 included."""
        pair = record["tuple"]
        if not isinstance(pair, list) or len(pair) != 2:
            raise EvaluationError(f"{path}: 'tuple' must be two numbers, found {shorten(pair)}")
        first, second = (bounded_number(one, path, "each of 'tuple'", -1, HIGHEST) for one in pair)
        return first, second

    def add_up(self, categories: Sequence[str], reviews: Sequence[Sequence[Pair]]) -> Score:
        """The summary of one review or several: the mean of their printed ratios."""
        names = ["all", *sorted(set(categories))]
        tables = []
        for pairs in reviews:
            chosen = {name: [p for p, one in zip(pairs, categories) if name in ("all", one)] for name in names}
            tables.append({name: summarise(found) for name, found in chosen.items()})
        metrics: dict[str, Any] = {name: fmean(table[name]["ratio"] for table in tables) for name in names}
        metrics |= {"reviews": tables, "unread": sum(pair == UNREAD for pairs in reviews for pair in pairs)}

        def ratio(weights: np.ndarray) -> np.ndarray:
            import numpy as np

            first, second = (np.mean([[pair[at] for pair in pairs] for pairs in reviews], axis=0) for at in (0, 1))
            return 100 * (weights @ second) / np.maximum(weights @ first, 1e-9)

        means = [fmean(pairs[at][1] for pairs in reviews) / 10 for at in range(len(categories))]
        return Score(
            metrics=metrics,
            headline=metrics["all"],
            interval=bootstrap(len(categories), ratio),
            interval_rule="bootstrap over questions",
            n=len(categories),
            chance=0.0,
            chance_rule="an empty answer",
            marks=means,
        )
