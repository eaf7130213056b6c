"""Conversations as tokens, and the loss masks that follow from their templates.

A rendered conversation is a list of segments, each of which either carries loss or does not. Labels come from the
character spans of these segments through the tokenizer's offset mapping, so no token is ever counted by tokenising a
piece of the text again: the counting rule of the original code silently masks a whole sample when its two counts
differ. What cannot be masked is a `MaskError`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from llava_prumerge.data.rounds import MaskError, Note, Talk, read_rounds
from llava_prumerge.ground.errors import InputError
from llava_prumerge.text.chat_templates import ChatTemplate, ChatTemplateError, begins_with_bos, resolve_template
from llava_prumerge.text.templates import IMAGE_MARKER, NoPlaceError, Segment, Template, get_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORE_INDEX = -100
Places = int | Mapping[str, Sequence[str]]
"""Placeholders: so many for each image; or by marker what a processor writes for each image, and each video, in turn."""


def prompt(template: str | Template | ChatTemplate, user_text: str, images: int = 1) -> str:
    """The text after which the model answers `user_text`, its images in front of it."""
    return dialogue(template, [(user_text, images, None)])


def dialogue(template: str | Template | ChatTemplate, turns: Sequence[tuple[str, int, str | None]]) -> str:
    """The text after which the model answers the last of several questions.

    Args:
        template: a name, or one of them.
        turns: each question, how many images stand in front of it, and its answer, which the last one has not.

    Raises:
        InputError: a question or an answer holds an image's marker itself.
    """
    template = template if isinstance(template, ChatTemplate) else get_template(template)
    rounds = []
    for text, images, answer in turns:
        if IMAGE_MARKER in text:
            raise InputError(f"the question holds {IMAGE_MARKER!r} itself, remove it and say images=N: {text!r}")
        if answer is not None and IMAGE_MARKER in answer:
            raise InputError(f"an answer holds {IMAGE_MARKER!r} itself, so that nothing can follow it: {answer!r}")
        rounds.append((IMAGE_MARKER * images if template.captions else f"{IMAGE_MARKER}\n" * images + text, answer))
    return template.render(rounds)


def encode(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    image_token_id: int,
    image_tokens: int,
) -> list[int]:
    """Tokenises text as LLaVA does: each piece between image markers as a text of its own, one BOS in all.

    Args:
        tokenizer: a fast tokenizer.
        text: a rendered conversation or prompt.
        image_token_id: the placeholder's id.
        image_tokens: placeholders per image.
    """
    return _tokenise(tokenizer, text, _Images(IMAGE_MARKER, image_token_id, image_tokens))[0]


def encode_training(
    tokenizer: PreTrainedTokenizerBase,
    record: Mapping[str, Any],
    template: str | Template | ChatTemplate,
    image_token_id: int,
    image_tokens: Places,
    max_length: int | None = None,
    video_token_id: int | None = None,
) -> dict[str, list[int]]:
    """Turns a LLaVA record into `input_ids` and `labels` of equal length; loss falls on answers and their ends only.

    Args:
        tokenizer: a fast tokenizer.
        record: `conversations`, and if there are any `id`, `image` and `video` (a path or a list of them).
        template: name or template.
        image_token_id: the placeholder's id.
        image_tokens: placeholders of the images, and of videos.
        max_length: the sequence is cut here, image placeholders counted, as LLaVA cuts after splicing; None never cuts.
        video_token_id: a video's placeholder, where it is another.

    Raises:
        MaskError: with the sample's id and the reason.
    """
    template = resolve_template(template, tokenizer) if isinstance(template, str) else template
    _check_end_token(tokenizer, template)
    sample_id = None if record.get("id") is None else str(record["id"])
    try:
        talk = _read_rounds(tokenizer, record, template)
        segments = template.segments(talk.rounds, talk.system)
        places = image_tokens if isinstance(image_tokens, int) else None
        if not isinstance(image_tokens, int):
            segments = _expand(segments, image_tokens)
        ids, labels = _mask(tokenizer, segments, _Images(template.marker, image_token_id, places))
        ids, labels = truncate(ids, labels, (image_token_id, video_token_id), max_length)
    except MaskError as error:
        raise MaskError(error.reason, sample_id) from None
    except NoPlaceError as error:
        raise MaskError(f"system text: {error}", sample_id) from None
    except ChatTemplateError as error:
        raise MaskError(f"chat template: {error}", sample_id) from None
    return {"input_ids": ids, "labels": labels}


def describe_record(
    tokenizer: PreTrainedTokenizerBase, record: Mapping[str, Any], template: str | Template | ChatTemplate
) -> list[Note]:
    """What is worth a note about a record that `encode_training` takes: (kind, detail) each.

    Raises:
        MaskError: it does not take it.
    """
    template = resolve_template(template, tokenizer) if isinstance(template, str) else template
    return _read_rounds(tokenizer, record, template).notes


def _read_rounds(
    tokenizer: PreTrainedTokenizerBase, record: Mapping[str, Any], template: Template | ChatTemplate
) -> Talk:
    reserved = _traits(tokenizer, len(tokenizer), template.marker).reserved
    ends = [token for token in reserved if token in (template.end.strip(), tokenizer.eos_token)]
    return read_rounds(record, template.captions, reserved, ends)


def _expand(segments: Sequence[Segment], texts: Mapping[str, Sequence[str]]) -> list[Segment]:
    """The same with what a processor writes for each image and video in the place of the template's markers."""
    left, found = {marker: iter(each) for marker, each in texts.items()}, []
    markers = re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or r"(?!)")
    for segment in segments:
        if not segment.written:
            segment = replace(segment, text=markers.sub(lambda marker: next(left[marker[0]]), segment.text))
        found.append(segment)
    return found


def truncate(
    ids: list[int], labels: list[int], placeholders: Collection[int | None], max_length: int | None
) -> tuple[list[int], list[int]]:
    """Cuts a sample to `max_length`, unless that would cut an image or a video or leave nothing to learn."""
    if max_length is not None and len(ids) > max_length:
        if not set(placeholders).isdisjoint(ids[max_length:]):
            raise MaskError(f"image cut: max_length {max_length} of {len(ids)} tokens falls inside or before an image")
        ids, labels = ids[:max_length], labels[:max_length]
        if all(label == IGNORE_INDEX for label in labels):
            raise MaskError(f"no supervised token: no answer starts within max_length {max_length}")
    return ids, labels


def _mask(
    tokenizer: PreTrainedTokenizerBase, segments: Sequence[Segment], images: _Images
) -> tuple[list[int], list[int]]:
    text = "".join(segment.text for segment in segments)
    carries_loss = b"".join((b"\1" if segment.supervised else b"\0") * len(segment.text) for segment in segments)
    written = b"".join((b"\1" if segment.written else b"\0") * len(segment.text) for segment in segments)
    ids, spans = _tokenise(tokenizer, text, images, written)
    labels = []
    for token, (start, end) in zip(ids, spans, strict=True):
        flags = set(carries_loss[start : max(end, start + 1)])
        if len(flags) > 1:
            raise MaskError(f"straddling token: {text[start:end]!r} lies across an instruction and an answer")
        labels.append(token if flags == {1} and token != images.token_id else IGNORE_INDEX)
    if all(label == IGNORE_INDEX for label in labels):
        raise MaskError("no supervised token: the answers have no tokens")
    return ids, labels


def _tokenise(
    tokenizer: PreTrainedTokenizerBase, text: str, images: _Images, written: bytes = b""
) -> tuple[list[int], list[tuple[int, int]]]:
    """Token ids, and the characters of `text` each stands for; a BOS stands for none, which the slice [-1:0] is.

    Args:
        written: a byte per character, 1 where it comes from a record: a control token's name that begins there is text.
    """
    if not tokenizer.is_fast:
        raise InputError(f"{type(tokenizer).__name__} is a slow tokenizer; loss masks need a fast one's offsets")
    traits = _traits(tokenizer, len(tokenizer), images.marker)
    ids, spans = ([], []) if traits.bos is None else ([traits.bos], [(-1, -1)])
    tokens = list(traits.control.finditer(text))
    named = any(written[token.start() : token.end()].count(1) for token in tokens) if written else False
    # The tokenizer finds control tokens itself, but only all of them or none.
    cuts = [token for token in tokens if named or (token[0] == images.marker and images.places is not None)]
    position = 0
    for cut in [cut for cut in cuts if not written[cut.start() : cut.end()].count(1)] + [None]:
        chunk = text[position : cut.start() if cut else len(text)]
        if chunk:
            encoding = tokenizer(
                chunk, add_special_tokens=False, return_offsets_mapping=True, verbose=False, split_special_tokens=named
            )
            ids += encoding["input_ids"]
            spans += [(position + start, position + end) for start, end in encoding["offset_mapping"]]
        if cut:
            count = images.places if cut[0] == images.marker and images.places is not None else 1
            ids += [images.token_id if cut[0] == images.marker else tokenizer.convert_tokens_to_ids(cut[0])] * count
            spans += [cut.span()] * count
            position = cut.end()
    return ids, spans


@dataclass(frozen=True)
class _Images:
    """How images stand in a text, and in ids: a marker for each with so many places, or for None each place by itself."""

    marker: str
    token_id: int
    places: int | None


@dataclass(frozen=True)
class _Traits:
    """What is asked of a tokenizer once, not for every sample."""

    bos: int | None
    reserved: tuple[str, ...]
    marker: str

    @cached_property
    def control(self) -> re.Pattern[str]:
        """Finds the image marker and the control tokens, of those that begin alike the longest."""
        return re.compile("|".join(map(re.escape, sorted({self.marker, *self.reserved}, key=len, reverse=True))))


@lru_cache(maxsize=8)
def _traits(tokenizer: PreTrainedTokenizerBase, size: int, marker: str) -> _Traits:
    """Args: size is the vocabulary's, so that a tokenizer that gains a token is asked anew."""
    special = (str(token) for token in tokenizer.added_tokens_decoder.values() if token.special)
    return _Traits(
        bos=tokenizer.bos_token_id if begins_with_bos(tokenizer) else None,
        reserved=tuple(sorted(set(special) - {IMAGE_MARKER})),
        marker=marker,
    )


def _check_end_token(tokenizer: PreTrainedTokenizerBase, template: Template | ChatTemplate) -> None:
    """Without it answers would end in the characters '<', '/', 's', '>' and generation never stop."""
    end = template.end.strip()
    if end and tokenizer.convert_tokens_to_ids(end) in (None, tokenizer.unk_token_id):
        raise InputError(
            f"template {template.name!r} ends answers with {end!r}, which is no token of this tokenizer "
            f"(its end of sequence is {tokenizer.eos_token!r}); template 'own' is the model's own"
        )
