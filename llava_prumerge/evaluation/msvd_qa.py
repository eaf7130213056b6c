"""MSVD-QA: 13,157 questions about short clips from the web, as Video-ChatGPT asks them. Rules: video_qa.py."""

from __future__ import annotations

from llava_prumerge.evaluation.video_qa import VideoQa


class MsvdQa(VideoQa):
    """Accuracy over all questions."""

    name = "msvd_qa"
    title = "MSVD-QA"
    folder = "MSVD_Zero_Shot_QA"
