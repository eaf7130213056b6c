"""MSRVTT-QA: 72,821 questions about clips from the web, as Video-ChatGPT asks them. Rules: video_qa.py."""

from __future__ import annotations

from llava_prumerge.evaluation.video_qa import VideoQa


class MsrvttQa(VideoQa):
    """Accuracy over all questions."""

    name = "msrvtt_qa"
    title = "MSRVTT-QA"
    folder = "MSRVTT_Zero_Shot_QA"
