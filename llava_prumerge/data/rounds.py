"""A record's turns as rounds of question and answer: which shapes are trained on, which are set aside, which are noted.

docs/data.md has the table of shapes, with what LLaVA does of each and why ours is done.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llava_prumerge.data.errors import SampleError
from llava_prumerge.ground.naming import shown
from llava_prumerge.text.templates import IMAGE_MARKER, Round, is_blank

Note = tuple[str, str]


class MaskError(SampleError):
    """A sample whose loss mask cannot be built."""


def image_paths(record: Mapping[str, Any]) -> list[str]:
    """The record's image paths: none, one, or several."""
    image = record.get("image")
    if not image:
        return []
    return [image] if isinstance(image, str) else list(image)


def place_images(text: str) -> str:
    """Moves every image marker of a turn to its front, one line each.

    LLaVA puts one marker there however many there were; with one image the two are equal.
    """
    count = text.count(IMAGE_MARKER)
    if not count:
        return text
    return (f"{IMAGE_MARKER}\n" * count + text.replace(IMAGE_MARKER, "").strip()).strip()


def read_rounds(
    record: Mapping[str, Any], captions: bool, reserved: Sequence[str], ends: Sequence[str]
) -> tuple[list[Round], list[Note]]:
    """Pairs a record's turns up as (question, answer), images placed at the front of their question.

    Args:
        record: `conversations`, and if there are any `image` (a path or a list of them).
        captions: of a question only its images are left (stage 1).
        reserved: the tokenizer's control tokens as text; where a record holds one it stands for its characters.
        ends: those of them that end an answer; a record that holds one is set aside.

    Returns:
        The rounds, and notes on what was taken otherwise than it stands there: (kind, detail) each.

    Raises:
        MaskError: the turns are not such a sequence, or what they say of images does not fit the record's images.
    """
    turns = _paired_turns(record)
    questions, answers = [turn["value"] for turn in turns[::2]], [turn["value"] for turn in turns[1::2]]
    notes: list[Note] = []
    if turns[0] is not record["conversations"][0]:
        notes.append(("answer first", "the first turn is nobody's answer, and is dropped"))
    if captions:
        questions = [IMAGE_MARKER * sum(question.count(IMAGE_MARKER) for question in questions)]
        if len(turns) != 2 or not questions[0]:
            raise MaskError("caption: this template takes one caption of at least one image")
    images = len(image_paths(record))
    if images:
        questions = _place(questions, answers, images, captions, notes)
    else:
        _look_for_lost_images(questions, answers, notes)
    if not captions and all(map(is_blank, answers)):
        raise MaskError("empty turn: no answer says anything")
    if blank := sum(map(is_blank, answers)):
        notes.append(("blank answer", f"{blank} of {len(answers)} answers say nothing"))
    _look_for_control_tokens([*questions, *answers], reserved, ends, notes)
    return list(zip(questions, answers, strict=True)), notes


def _paired_turns(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    turns = list(record.get("conversations") or [])
    for turn in turns:
        if turn.get("from") not in ("human", "gpt"):
            raise MaskError(f"role: {shown(turn.get('from'))} is neither 'human' nor 'gpt'")
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
