"""A record's turns as rounds of question and answer: which shapes are trained on, which are set aside, which are noted.

docs/data.md has the table of shapes, with what LLaVA does of each and why ours is done.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llava_prumerge.data.errors import SampleError
from llava_prumerge.ground.naming import shown
from llava_prumerge.text.templates import IMAGE_MARKER, VIDEO_MARKER, Round, is_blank, media_kinds

Note = tuple[str, str]


class MaskError(SampleError):
    """A sample whose loss mask cannot be built."""


@dataclass(frozen=True)
class Talk:
    """A record's conversation.

    Attributes:
        rounds: (question, answer) each, what a question shows in front of it.
        system: the record's own system text.
        notes: what was taken otherwise than it stands there, (kind, detail) each.
    """

    rounds: list[Round]
    system: str | None
    notes: list[Note]


def image_paths(record: Mapping[str, Any], key: str = "image") -> list[str]:
    """The record's image paths, or with key "video" those of its videos: none, one, or several."""
    image = record.get(key)
    if not image:
        return []
    return [image] if isinstance(image, str) else list(image)


def media_order(record: Mapping[str, Any]) -> list[str]:
    """ "image" or "video" for each that the record holds, in the order in which its turns show them."""
    images, videos = len(image_paths(record)), len(image_paths(record, "video"))
    shown = [kind for text in _questions(record) for kind in media_kinds(_as_videos(text, images, videos))]
    fits = shown.count("image") == images and shown.count("video") == videos
    return shown if fits else ["image"] * images + ["video"] * videos


def _questions(record: Mapping[str, Any]) -> list[str]:
    return [turn["value"] for turn in record["conversations"] if turn["from"] == "human"]


def _as_videos(text: str, images: int, videos: int) -> str:
    """LLaVA-Video's records say <image> where they show a video."""
    return text.replace(IMAGE_MARKER, VIDEO_MARKER) if videos and not images and VIDEO_MARKER not in text else text


def place_images(text: str, markers: Sequence[str] = (IMAGE_MARKER,)) -> str:
    """Moves every marker of a turn to its front, one line each.

    LLaVA puts one marker there however many there were; with one image the two are equal.
    """
    found = re.findall("|".join(map(re.escape, markers)), text)
    if not found:
        return text
    return ("".join(f"{marker}\n" for marker in found) + _without(text, markers)).strip()


def _without(text: str, markers: Sequence[str]) -> str:
    for marker in markers:
        text = text.replace(marker, "")
    return text.strip()


def read_rounds(record: Mapping[str, Any], captions: bool, reserved: Sequence[str], ends: Sequence[str]) -> Talk:
    """Pairs a record's turns up as (question, answer), images and videos placed at the front of their question.

    Args:
        record: `conversations`, and if there are any `image` and `video` (a path or a list of them).
        captions: of a question only its images are left (stage 1).
        reserved: the tokenizer's control tokens as text; where a record holds one it stands for its characters.
        ends: those of them that end an answer; a record that holds one is set aside.

    Raises:
        MaskError: the turns are not such a sequence, or what they say of images does not fit the record's images.
    """
    notes: list[Note] = []
    system, told = _system_turn(record, notes)
    turns = _paired_turns(told)
    questions, answers = [turn["value"] for turn in turns[::2]], [turn["value"] for turn in turns[1::2]]
    if turns[0] is not told[0]:
        notes.append(("answer first", "the first turn is nobody's answer, and is dropped"))
    images, videos = len(image_paths(record)), len(image_paths(record, "video"))
    if videos and not captions:
        questions = _place_videos(questions, answers, images, videos)
    elif captions:
        questions = [IMAGE_MARKER * sum(question.count(IMAGE_MARKER) for question in questions)]
        if len(turns) != 2 or not questions[0]:
            raise MaskError("caption: this template takes one caption of at least one image")
    if not videos:
        _look_for_lost_videos(questions)
    if videos and captions:
        raise MaskError("caption: this template takes images alone, and the record has a video")
    if images and not videos:
        questions = _place(questions, answers, images, captions, notes)
    elif not videos:
        _look_for_lost_images(questions, answers, notes)
    if not captions and all(map(is_blank, answers)):
        raise MaskError("empty turn: no answer says anything")
    if blank := sum(map(is_blank, answers)):
        notes.append(("blank answer", f"{blank} of {len(answers)} answers say nothing"))
    _look_for_control_tokens([*([system] if system else []), *questions, *answers], reserved, ends, notes)
    return Talk(list(zip(questions, answers, strict=True)), system, notes)


def _system_turn(record: Mapping[str, Any], notes: list[Note]) -> tuple[str | None, list[Mapping[str, Any]]]:
    """The text of a first turn from 'system', None where there is none or it says nothing; and the turns behind it."""
    turns = list(record.get("conversations") or [])
    if not turns or turns[0].get("from") != "system":
        return None, turns
    text = turns[0].get("value")
    if not isinstance(text, str) or is_blank(text):
        notes.append(
            ("blank system text", "the first turn is from 'system' and says nothing; the template's own is taken")
        )
        return None, turns[1:]
    if IMAGE_MARKER in text or VIDEO_MARKER in text:
        raise MaskError(
            f"image in system text: the first turn, which is from 'system', holds {IMAGE_MARKER} or {VIDEO_MARKER}"
        )
    return text, turns[1:]


def _paired_turns(turns: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    for turn in turns:
        if turn.get("from") not in ("human", "gpt"):
            hint = ", and only the first turn may be from 'system'" if turn.get("from") == "system" else ""
            raise MaskError(f"role: {shown(turn.get('from'))} is neither 'human' nor 'gpt'{hint}")
    if turns and turns[0]["from"] != "human":
        turns = turns[1:]  # LLaVA's rule; ShareGPT's records often open with an answer
    if not turns:
        raise MaskError("empty conversation: no turn from 'human'")
    if len(turns) % 2:
        raise MaskError(f"turn order: {len(turns)} turns do not pair up into questions and answers")
    for number, turn in enumerate(turns, start=1):
        expected, value = ("gpt", "human")[number % 2], turn.get("value")
        if turn["from"] != expected:
            raise MaskError(f"turn order: turn {number} is from {turn['from']!r}, expected {expected!r}")
        if not isinstance(value, str) or (expected == "human" and is_blank(value)):
            raise MaskError(f"empty turn: turn {number} says {shown(value)}")
    return turns


def _place(questions: list[str], answers: Sequence[str], images: int, captions: bool, notes: list[Note]) -> list[str]:
    """The questions of a record with images, each image's marker in front."""
    if any(IMAGE_MARKER in answer for answer in answers):
        raise MaskError(f"image in answer: an answer holds {IMAGE_MARKER}")
    counts = [question.count(IMAGE_MARKER) for question in questions]
    if any(IMAGE_MARKER in question.replace(IMAGE_MARKER, "").strip() for question in questions):
        raise MaskError(f"image markers: without its {IMAGE_MARKER} a turn's text makes another one")
    if not any(counts):
        raise MaskError(f"image without marker: no turn says {IMAGE_MARKER}, so the image would never be shown")
    if sum(counts) != images:
        if images > 1 or sum(map(bool, counts)) > 1:
            raise MaskError(f"image markers: {sum(counts)} {IMAGE_MARKER} in the text, {images} images in the record")
        notes.append(("repeated marker", f"{sum(counts)} {IMAGE_MARKER} in one turn for one image; one is kept"))
        rest = [question.replace(IMAGE_MARKER, "").strip() for question in questions]
        front = IMAGE_MARKER if captions else f"{IMAGE_MARKER}\n"
        return [(front + rest[at]).strip() if counts[at] else question for at, question in enumerate(questions)]
    return questions if captions else [place_images(question) for question in questions]


def _place_videos(questions: list[str], answers: Sequence[str], images: int, videos: int) -> list[str]:
    """The questions of a record with videos, and images beside them or not, each marker in front."""
    both = (IMAGE_MARKER, VIDEO_MARKER)
    if any(marker in answer for answer in answers for marker in both):
        raise MaskError(f"video in answer: an answer holds {' or '.join(both)}")
    texts = [_as_videos(question, images, videos) for question in questions]
    for marker, kind, count in ((VIDEO_MARKER, "video", videos), (IMAGE_MARKER, "image", images)):
        found = [text.count(marker) for text in texts]
        if sum(found) == count:
            continue
        if kind == "video" and not sum(found):
            raise MaskError(f"video without marker: no turn says {marker}, so the video would never be shown")
        if not (count == 1 and sum(map(bool, found)) == 1):  # one that is named often in one turn is one
            raise MaskError(f"{kind} markers: {sum(found)} {marker} in the text, {count} {kind}s in the record")
        texts = [
            marker + "\n" + _without(text, [marker]) if here else text for text, here in zip(texts, found, strict=True)
        ]
    if any(marker in _without(text, both) for text in texts for marker in both):
        raise MaskError("video markers: without its markers a turn's text makes another one")
    return [place_images(text, both) for text in texts]


def _look_for_lost_videos(questions: Sequence[str]) -> None:
    """As of images: a marker where one is put for a video has lost it."""
    for number, question in enumerate(questions):
        text = _without(question, [IMAGE_MARKER])
        if text.startswith(VIDEO_MARKER) or text.endswith(VIDEO_MARKER):
            raise MaskError(
                f"marker without video: turn {2 * number + 1} shows {VIDEO_MARKER}, the record has no video"
            )


def _look_for_lost_images(questions: Sequence[str], answers: Sequence[str], notes: list[Note]) -> None:
    """A marker where one is put for an image has lost it; elsewhere it is a word of the text, such as a tag of HTML."""
    for number, question in enumerate(map(str.strip, questions)):
        if question.startswith(IMAGE_MARKER) or question.endswith(IMAGE_MARKER):
            raise MaskError(
                f"marker without image: turn {2 * number + 1} shows {IMAGE_MARKER}, the record has no image"
            )
    if count := sum(text.count(IMAGE_MARKER) for text in (*questions, *answers)):
        notes.append(("marker as text", f"{count} {IMAGE_MARKER} within the text of a record without image"))


def _look_for_control_tokens(
    texts: Sequence[str], reserved: Sequence[str], ends: Sequence[str], notes: list[Note]
) -> None:
    for text in texts:
        for token in ends:
            if token in text:
                raise MaskError(
                    f"end of answer in text: {token!r} stands in a turn; is it a template's, left in the data?"
                )
    found = [token for token in reserved if any(token in text for text in texts)]
    if found:
        notes.append(("token as text", f"{', '.join(map(repr, found))} in the text, taken as its characters"))
