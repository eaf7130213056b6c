"""TGIF-QA: 25,751 questions about animated images (the frames task), as Video-ChatGPT asks them. Rules: video_qa.py."""

from __future__ import annotations

from llava_prumerge.evaluation.video_qa import VideoQa


class TgifQa(VideoQa):
    """Accuracy over all questions."""

    name = "tgif_qa"
    title = "TGIF-QA"
    folder = "TGIF_Zero_Shot_QA"
