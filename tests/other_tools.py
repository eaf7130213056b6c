"""What tests of other people's tools share: questions with their images, and where trained models lie."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
POCKET = Path(os.environ.get("LLAVA_PRUMERGE_POCKET") or ROOT)
"""A checkout in which `make reproduce` has run."""
TOKENS = 5


@dataclass(frozen=True)
class Asked:
    """A question, and the files of its images."""

    text: str
    images: list[str]
