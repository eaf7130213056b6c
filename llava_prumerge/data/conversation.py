"""Conversations as tokens, and the loss masks that follow from their templates.

A rendered conversation is a list of segments, each of which either carries loss or does not. Labels come from the
character spans of these segments through the tokenizer's offset mapping, so no token is ever counted by tokenising a
piece of the text again: the counting rule of the original code silently masks a whole sample when its two counts
differ. What cannot be masked is a `MaskError`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from llava_prumerge.data.errors import SampleError
from llava_prumerge.ground.errors import InputError
from llava_prumerge.text.templates import IMAGE_MARKER, Round, Segment, Template, get_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORE_INDEX = -100


class MaskError(SampleError):
    """A sample whose loss mask cannot be built."""


def image_paths(record: Mapping[str, Any]) -> list[str]:
    """The record's image paths: none, one, or several."""
    image = record.get("image")
    if image is None:
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


def prompt(template: str | Template, user_text: str, images: int = 1) -> str:
    """The text after which the model answers `user_text`, its images in front of it."""
    template = get_template(template)
    if IMAGE_MARKER in user_text:
        raise InputError(f"the question holds {IMAGE_MARKER!r} itself, remove it and say images=N: {user_text!r}")
    question = IMAGE_MARKER * images if template.captions else f"{IMAGE_MARKER}\n" * images + user_text
    return template.render([(question, None)])


def encode(tokenizer: PreTrainedTokenizerBase, text: str, image_token_id: int, image_tokens: int) -> list[int]:
    """Tokenises text as LLaVA does: each piece between image markers as a text of its own, one BOS in all.

    Args:
        tokenizer: a fast tokenizer.
        text: a rendered conversation or prompt.
        image_token_id: the placeholder's id.
        image_tokens: placeholders per image.
    """
    return _tokenise(tokenizer, text, image_token_id, image_tokens)[0]


def encode_training(
    tokenizer: PreTrainedTokenizerBase,
    record: Mapping[str, Any],
    template: str | Template,
    image_token_id: int,
    image_tokens: int,
    max_length: int | None = None,
) -> dict[str, list[int]]:
    """Turns a LLaVA record into `input_ids` and `labels` of equal length; loss falls on answers and their ends only.

    Args:
        tokenizer: a fast tokenizer.
        record: `conversations`, and if there are any `id` and `image` (a path or a list of them).
        template: name or template.
        image_token_id: the placeholder's id.
        image_tokens: placeholders per image.
        max_length: the sequence is cut here, image placeholders counted, as LLaVA cuts after splicing; None never cuts.

    Raises:
        MaskError: with the sample's id and the reason.
    """
    template = get_template(template)
    _check_end_token(tokenizer, template)
    sample_id = None if record.get("id") is None else str(record["id"])
    try:
        rounds = _rounds(record, template, _traits(tokenizer, len(tokenizer)).reserved)
        ids, labels = _mask(tokenizer, template.segments(rounds), image_token_id, image_tokens)
        ids, labels = truncate(ids, labels, image_token_id, max_length)
    except MaskError as error:
        raise MaskError(error.reason, sample_id) from None
    return {"input_ids": ids, "labels": labels}


def truncate(
    ids: list[int], labels: list[int], image_token_id: int, max_length: int | None
) -> tuple[list[int], list[int]]:
    """Cuts a sample to `max_length`, unless that would cut an image or leave nothing to learn."""
    if max_length is not None and len(ids) > max_length:
        if image_token_id in ids[max_length:]:
            raise MaskError(f"image cut: max_length {max_length} of {len(ids)} tokens falls inside or before an image")
        ids, labels = ids[:max_length], labels[:max_length]
        if all(label == IGNORE_INDEX for label in labels):
            raise MaskError(f"no supervised token: no answer starts within max_length {max_length}")
    return ids, labels


def _rounds(record: Mapping[str, Any], template: Template, reserved: tuple[str, ...]) -> list[Round]:
    """Pairs a record's turns up as (question, answer), images placed; refuses what is not such a sequence."""
    turns = list(record.get("conversations") or [])
    for turn in turns:
        if turn.get("from") not in ("human", "gpt"):
            raise MaskError(f"role: {turn.get('from')!r} is neither 'human' nor 'gpt'")
    if turns and turns[0]["from"] != "human":
        turns = turns[1:]  # LLaVA's rule; ShareGPT's records often open with an answer
    if not turns:
        raise MaskError("empty conversation: no turn from 'human'")
    if len(turns) % 2:
        raise MaskError(f"turn order: {len(turns)} turns do not pair up into questions and answers")
    for number, turn in enumerate(turns):
        _check_turn(turn, number)
    if template.captions:
        markers = sum(turn["value"].count(IMAGE_MARKER) for turn in turns[::2])
        rounds = [(IMAGE_MARKER * markers, turns[1]["value"])]
        if len(turns) != 2 or not markers:
            raise MaskError(f"caption: template {template.name!r} takes one caption of at least one image")
    else:
        rounds = [(place_images(q["value"]), a["value"]) for q, a in zip(turns[::2], turns[1::2], strict=True)]
    _check_text(rounds, len(image_paths(record)), reserved)
    return rounds


def _check_turn(turn: Mapping[str, Any], number: int) -> None:
    expected, value = ("human", "gpt")[number % 2], turn.get("value")
    if turn["from"] != expected:
        raise MaskError(f"turn order: turn {number + 1} is from {turn['from']!r}, expected {expected!r}")
    if not isinstance(value, str) or not value.strip():
        raise MaskError(f"empty turn: turn {number + 1} says {value!r}")
    if expected == "gpt" and IMAGE_MARKER in value:
        raise MaskError(f"image in answer: turn {number + 1} holds {IMAGE_MARKER}")


def _check_text(rounds: Sequence[Round], images: int, reserved: tuple[str, ...]) -> None:
    """Looks at the text as it will be tokenised: moving a marker out of a turn may put a new one together."""
    markers = sum(question.count(IMAGE_MARKER) for question, _ in rounds)
    if images != markers:
        raise MaskError(f"image markers: {markers} {IMAGE_MARKER} in the text, {images} images in the record")
    # Such text would become a control token: an end of answer in the middle of one, or a row that padding masks drop.
    for number, text in enumerate(text for pair in rounds for text in pair):
        for token in reserved:
            if token in text:
                raise MaskError(f"special token in text: turn {number + 1} holds {token!r}")


def _mask(
    tokenizer: PreTrainedTokenizerBase, segments: Sequence[Segment], image_token_id: int, image_tokens: int
) -> tuple[list[int], list[int]]:
    text = "".join(segment.text for segment in segments)
    carries_loss = b"".join((b"\1" if segment.supervised else b"\0") * len(segment.text) for segment in segments)
    ids, spans = _tokenise(tokenizer, text, image_token_id, image_tokens)
    labels = []
    for token, (start, end) in zip(ids, spans, strict=True):
        flags = set(carries_loss[start : max(end, start + 1)])
        if len(flags) > 1:
            raise MaskError(f"straddling token: {text[start:end]!r} lies across an instruction and an answer")
        labels.append(token if flags == {1} and token != image_token_id else IGNORE_INDEX)
    if all(label == IGNORE_INDEX for label in labels):
        raise MaskError("no supervised token: the answers have no tokens")
    return ids, labels


def _tokenise(
    tokenizer: PreTrainedTokenizerBase, text: str, image_token_id: int, image_tokens: int
) -> tuple[list[int], list[tuple[int, int]]]:
    """Token ids, and the characters of `text` each stands for; a BOS stands for none, which the slice [-1:0] is."""
    if not tokenizer.is_fast:
        raise InputError(f"{type(tokenizer).__name__} is a slow tokenizer; loss masks need a fast one's offsets")
    bos = _traits(tokenizer, len(tokenizer)).bos
    ids, spans = ([], []) if bos is None else ([bos], [(-1, -1)])
    position = 0
    for number, chunk in enumerate(text.split(IMAGE_MARKER)):
        if number:
            ids += [image_token_id] * image_tokens
            spans += [(position, position + len(IMAGE_MARKER))] * image_tokens
            position += len(IMAGE_MARKER)
        if chunk:
            encoding = tokenizer(chunk, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
            ids += encoding["input_ids"]
            spans += [(position + start, position + end) for start, end in encoding["offset_mapping"]]
            position += len(chunk)
    return ids, spans


@dataclass(frozen=True)
class _Traits:
    """What is asked of a tokenizer once, not for every sample."""

    bos: int | None
    reserved: tuple[str, ...]


@lru_cache(maxsize=8)
def _traits(tokenizer: PreTrainedTokenizerBase, size: int) -> _Traits:
    """Args: size is the vocabulary's, so that a tokenizer that gains a token is asked anew."""
    first = tokenizer("a")["input_ids"][:1]
    special = (str(token) for token in tokenizer.added_tokens_decoder.values() if token.special)
    return _Traits(
        bos=tokenizer.bos_token_id if first == [tokenizer.bos_token_id] else None,
        reserved=tuple(sorted(set(special) - {IMAGE_MARKER})),
    )


def _check_end_token(tokenizer: PreTrainedTokenizerBase, template: Template) -> None:
    """Without it answers would end in the characters '<', '/', 's', '>' and generation never stop."""
    end = template.end.strip()
    if end and tokenizer.convert_tokens_to_ids(end) in (None, tokenizer.unk_token_id):
        raise InputError(
            f"template {template.name!r} ends answers with {end!r}, which is no token of this tokenizer "
            f"(its end of sequence is {tokenizer.eos_token!r})"
        )
