"""The check of one record, by the code that training reads it with: format, turns, loss mask, length, images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from llava_prumerge.data.conversation import IGNORE_INDEX, MaskError, describe_record, encode_training, truncate
from llava_prumerge.data.image_paths import ImageError, contained_path, renamed_image
from llava_prumerge.data.images import decode_image, describe_file
from llava_prumerge.data.records import RecordError
from llava_prumerge.ground.errors import InputError
from llava_prumerge.ground.naming import shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from llava_prumerge.text.chat_templates import ChatTemplate
    from llava_prumerge.text.templates import Template

# Any id outside the vocabulary will do, as no model sees it.
_PLACEHOLDER = -200


class CheckError(InputError):
    """A check that cannot be made; the message is one line."""


@dataclass(frozen=True)
class Finding:
    """One thing to say about a record; `bad` makes the check fail."""

    kind: str
    sample_id: str
    index: int
    detail: str
    bad: bool = True


@dataclass(frozen=True)
class Checked:
    """What became of one record."""

    findings: tuple[Finding, ...]
    images: int = 0
    tokens: int = 0
    supervised: int = 0

    @property
    def bad(self) -> bool:
        return any(finding.bad for finding in self.findings)


@dataclass(frozen=True)
class Checker:
    """Checks single records; plain values only, so that it travels to worker processes.

    Args:
        images: the image folder.
        tokenizer_path: folder of a tokenizer.
        template: the conversation template's name.
        image_tokens: placeholders per image.
        max_length: longer samples are cut, which is noted.
        trusted: folders that links in the image folder may lead to.
    """

    images: str
    tokenizer_path: str
    template: str
    image_tokens: int
    max_length: int
    trusted: tuple[str, ...] = ()

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        from llava_prumerge.text.tokenizers import TokenizerError, add_image_tokens, load_tokenizer

        try:
            tokenizer = load_tokenizer(self.tokenizer_path)
        except TokenizerError as error:
            raise CheckError(str(error)) from None
        add_image_tokens(
            tokenizer
        )  # as a model has it that is put together from its parts: text that holds one is refused
        return tokenizer

    @cached_property
    def written_in(self) -> Template | ChatTemplate:
        """The template itself."""
        from llava_prumerge.text.chat_templates import resolve_template

        try:
            return resolve_template(self.template, self.tokenizer)
        except InputError as error:
            raise CheckError(f"template={self.template}: {error}") from None

    def __call__(self, index: int, row: Mapping[str, Any]) -> Checked:
        """Args: a record's place in its file, and its row of `open_records`."""
        if row["fault"] is not None:
            return Checked((Finding(RecordError(row["fault"]).kind, row["id"], index, row["fault"]),))
        found, tokens, supervised = self._check_text(row, index)
        found += [Finding(note.split(":", 1)[0], row["id"], index, note, bad=False) for note in row["notes"]]
        for path in row["image"]:
            found += self._check_image(path, row["id"], index)
        return Checked(tuple(found), len(row["image"]), tokens, supervised)

    def _check_text(self, row: Mapping[str, Any], index: int) -> tuple[list[Finding], int, int]:
        try:
            encoded = encode_training(self.tokenizer, row, self.written_in, _PLACEHOLDER, self.image_tokens)
            ids, labels = truncate(encoded["input_ids"], encoded["labels"], _PLACEHOLDER, self.max_length)
        except MaskError as error:
            return [Finding(error.kind, row["id"], index, error.reason)], 0, 0
        notes = describe_record(self.tokenizer, row, self.written_in)
        found = [Finding(kind, row["id"], index, f"{kind}: {words}", bad=False) for kind, words in notes]
        full = len(encoded["input_ids"])
        if len(ids) < full:
            detail = f"cut to length: {full} tokens, max_length {self.max_length}"
            found.append(Finding("cut to length", row["id"], index, detail, bad=False))
        return found, len(ids), sum(label != IGNORE_INDEX for label in labels)

    def _check_image(self, path: str, sample_id: str, index: int) -> list[Finding]:
        try:
            file = contained_path(self.images, path, self.trusted)
            decode_image(file, shown(path))
        except ImageError as error:
            if error.kind == "missing" and (other := renamed_image(self.images, path, self.trusted)):
                detail = f"wrong extension: {path!r} is missing, {other!r} is there; rename it"
                return [Finding("wrong extension", sample_id, index, detail)]
            return [Finding(error.kind, sample_id, index, error.reason)]
        return [
            Finding(kind, sample_id, index, f"{kind}: {path!r} {words}", bad=False)
            for kind, words in describe_file(file)
        ]
