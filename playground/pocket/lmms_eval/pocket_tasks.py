"""Pocket questions as tasks of lmms-eval: how a line of LLaVA's question files is shown, asked and marked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

DATA = Path("playground/pocket/data/eval")
LETTER = "Answer with the option's letter from the given choices directly."


def picture(path: Path) -> list[Image.Image]:
    """The image of a document, as lmms-eval hands it on."""
    with Image.open(path) as image:
        return [image.copy()]


def pope_visual(doc: dict[str, Any]) -> list[Image.Image]:
    """POPE's image."""
    return picture(DATA / "pope" / "val2014" / doc["image"])


def mme_visual(doc: dict[str, Any]) -> list[Image.Image]:
    """MME's image."""
    return picture(DATA / "MME" / "MME_Benchmark_release_version" / doc["image"])


def sqa_visual(doc: dict[str, Any]) -> list[Image.Image]:
    """ScienceQA's image; some of its questions have none."""
    return picture(DATA / "scienceqa" / "images" / "test" / doc["image"]) if doc.get("image") else []


def sqa_text(doc: dict[str, Any]) -> str:
    """ScienceQA's question with its options."""
    return doc["conversations"][0]["value"].replace("<image>", "").strip() + "\n" + LETTER


def sqa_target(doc: dict[str, Any]) -> str:
    """ScienceQA's right letter."""
    return doc["conversations"][1]["value"]


def as_said(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Whether a yes or a no is what the first word of the answer says: POPE's reading, without its F1."""
    said = "no" if any(word in ("no", "not") for word in results[0].split(".")[0].lower().split()) else "yes"
    return {"says_yes": float(said == "yes")}


def right_letter(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Whether the answer is the right letter."""
    return {"accuracy": float(results[0].strip().rstrip(".") == sqa_target(doc))}
