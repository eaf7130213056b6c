"""POPE: does the model see objects that are not there? Yes/no questions on COCO; the number is the mean of three F1.

Rules: AoiDragon/POPE at the commit LLaVA pins (e3e39262; 2,910 + 3,000 + 3,000 questions). Answers are joined by
question_id and checked against the labels' own image and question, where the original pairs them by line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_prumerge.evaluation.benchmark import (
    Benchmark,
    Files,
    Question,
    answer_text,
    read_questions,
    without_markers,
    without_suffix,
)
from llava_prumerge.evaluation.records import (
    EvaluationError,
    Key,
    Record,
    field,
    find_file,
    identifier,
    index_by,
    name_keys,
    read_records,
    require_same_keys,
    shorten,
    text_field,
)
from llava_prumerge.evaluation.results import Score, bootstrap

if TYPE_CHECKING:
    import numpy as np

SPLITS = ("random", "popular", "adversarial")


@dataclass(frozen=True)
class Label:
    """What is there: is the object of this question in the image?"""

    split: str
    image: str
    prompt: str
    present: bool


def says_yes(text: str) -> bool:
    """The official reading: "no" when a word of the first sentence is exactly No, no or not, else "yes"."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return not {"No", "no", "not"} & set(words)


def rate_split(truth: Sequence[bool], said: Sequence[bool]) -> dict[str, float]:
    """The official figures of one split, with "yes" as the positive class; a ratio over nothing is 0."""
    pairs = list(zip(truth, said, strict=True))
    tp, fp = pairs.count((True, True)), pairs.count((False, True))
    tn, fn = pairs.count((False, False)), pairs.count((True, False))
    precision = tp / (tp + fp) if tp + fp else 0.0
    recall = tp / (tp + fn) if tp + fn else 0.0
    f1 = 2 * precision * recall / (precision + recall) if tp else 0.0
    rates = {
        "f1": f1,
        "accuracy": (tp + tn) / len(pairs),
        "precision": precision,
        "recall": recall,
        "yes_ratio": (tp + fp) / len(pairs),
    }
    return {name: 100 * rate for name, rate in rates.items()} | {
        "tp": tp,
        "fp": fp,
        "tn": tn,
        "fn": fn,
        "n": len(pairs),
    }


class Pope(Benchmark):
    """Mean F1 of the random, popular and adversarial splits."""

    name = "pope"
    title = "POPE"
    headline = "mean_f1"
    folder = "pope"

    def files(self, data: Path) -> Files:
        root = data / self.folder
        return Files(root / "llava_pope_test.jsonl", root / "coco", images=root / "val2014")

    def questions(self, files: Files) -> list[Question]:
        return read_questions(files.need("questions"))

    def references(self, files: Files) -> dict[Key, Label]:
        path, folder = files.need("questions"), files.need("annotations")
        asked = index_by(read_records(path), lambda record: identifier(record, path), path)
        splits = sorted({text_field(record, "category", path) for record in asked.values()})
        if unknown := [split for split in splits if split not in SPLITS]:
            raise EvaluationError(f"{path}: unknown category {name_keys(unknown)}; there are {', '.join(SPLITS)}")
        labels: dict[Key, bool] = {}
        for split in splits:
            labels |= self.read_labels(find_labels(folder, split), split)
        references = {
            key: Label(record["category"], text_field(record, "image", path), text_field(record, "text", path), False)
            for key, record in asked.items()
        }
        joined = {
            (label.split, label.image, without_suffix(without_markers(label.prompt, True, str(path)))): key
            for key, label in references.items()
        }
        if len(joined) < len(references):
            raise EvaluationError(
                f"{path}: {len(references) - len(joined)} questions are asked twice of the same image and split"
            )
        require_same_keys(labels, joined, path, folder)
        for triple, key in joined.items():
            references[key] = Label(*triple[:2], references[key].prompt, labels[triple])
        return references

    def read_labels(self, path: Path, split: str) -> dict[Key, bool]:
        """Labels of a split by (split, image, question)."""
        records = index_by(
            read_records(path), lambda r: (split, text_field(r, "image", path), text_field(r, "text", path)), path
        )
        wrong = [record for record in records.values() if field(record, "label", path) not in ("yes", "no")]
        if wrong:
            raise EvaluationError(f"{path}: a label must be 'yes' or 'no', found {shorten(wrong[0])}")
        return {key: record["label"] == "yes" for key, record in records.items()}

    def part_of(self, reference: Label) -> str:
        return reference.split

    def answer_key(self, record: Record, path: Path) -> Key:
        return identifier(record, path)

    def read_answers(self, path: Path, files: Files) -> dict[Key, str]:
        records = index_by(read_records(path), lambda record: self.answer_key(record, path), path)
        asked = {str(question.id): question.prompt for question in self.questions(files)}
        other = [
            key
            for key, record in records.items()
            if asked.get(key) != record.get("prompt", asked.get(key)) and key in asked
        ]
        if other:
            raise EvaluationError(
                f"{path}: other questions than {files.questions} asks under the ids {name_keys(other)}"
            )
        return {key: answer_text(record, path) for key, record in records.items()}

    def measure(self, references: Sequence[Label], texts: Sequence[str], **options: str) -> Score:
        said = [says_yes(text) for text in texts]
        splits = [split for split in SPLITS if any(label.split == split for label in references)]
        metrics: dict[str, Any] = {}
        blind = []
        for split in splits:
            chosen = [at for at, label in enumerate(references) if label.split == split]
            truth = [references[at].present for at in chosen]
            metrics[split] = rate_split(truth, [said[at] for at in chosen])
            blind.append(rate_split(truth, [True] * len(truth))["f1"])
        for mean in ("f1", "accuracy"):
            metrics[f"mean_{mean}"] = sum(metrics[split][mean] for split in splits) / len(splits)
        return Score(
            metrics=metrics,
            headline=metrics["mean_f1"],
            interval=self.bound(references, said, splits),
            interval_rule="bootstrap over images",
            n=len(references),
            chance=sum(blind) / len(blind),
            chance_rule="always yes",
            marks=[float(label.present == yes) for label, yes in zip(references, said, strict=True)],
        )

    def bound(self, references: Sequence[Label], said: Sequence[bool], splits: Sequence[str]) -> tuple[float, float]:
        """The interval of the mean F1; images are drawn, since the questions of an image stand in all splits."""
        import numpy as np

        images = {image: at for at, image in enumerate(dict.fromkeys(label.image for label in references))}
        counts = np.zeros((len(images), len(splits), 2))  # per image and split: true positives, and all errors
        for label, yes in zip(references, said, strict=True):
            if label.present or yes:
                counts[images[label.image], splits.index(label.split), int(label.present != yes)] += 1

        def mean_f1(weights: np.ndarray) -> np.ndarray:
            hits, errors = np.moveaxis(np.tensordot(weights, counts, axes=1), -1, 0)
            return 100 * (2 * hits / np.maximum(2 * hits + errors, 1)).mean(axis=1)

        return bootstrap(len(images), mean_f1)


def find_labels(folder: Path, split: str) -> Path:
    """The label file of a split, plain or gzipped."""
    name = f"coco_pope_{split}.json"
    found = find_file(folder / name)
    if found is None:
        raise EvaluationError(f"{folder}: no {name}, which the questions of category {split!r} need")
    return found
