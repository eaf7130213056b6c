"""ActivityNet-QA: 8,000 questions about long videos of nine types, as Video-ChatGPT asks them. Rules: video_qa.py.

Its own evaluator compares strings and prints the share of all that are equal; its line "Free" takes the types in the order in
which it meets them, so that it is wrong. Here "free" are types 3 to 8, as its paper means.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llava_prumerge.evaluation.video_qa import Item, VideoQa, percent

FREE = frozenset("345678")


class ActivitynetQa(VideoQa):
    """Accuracy over all questions, and over each type."""

    name = "activitynet_qa"
    title = "ActivityNet-QA"
    folder = "Activitynet_Zero_Shot_QA"
    prefix = "v_"
    kinds = {
        "0": "motion",
        "1": "spatial relation",
        "2": "temporal relation",
        "3": "yes/no",
        "4": "color",
        "5": "object",
        "6": "location",
        "7": "number",
        "8": "other",
    }

    def match(self, references: Sequence[Item], texts: Sequence[str]) -> tuple[dict[str, Any], list[float]]:
        """The share of equal strings among the free questions beside the others."""
        metrics, marks = super().match(references, texts)
        free = [float(text == item.answer) for text, item in zip(texts, references, strict=True) if item.kind in FREE]
        return metrics | ({"exact_match, free": percent(free)} if free else {}), marks
