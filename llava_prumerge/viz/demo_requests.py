"""What the demo is asked, read from an address and checked: fields, each at most once, and the image in the body."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from email.message import Message
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs, urlsplit

from llava_prumerge.viz.method_list import MethodList, with_budget

MAX_BYTES = 20 * 1024 * 1024
DISCARDED = 4 * MAX_BYTES
MAX_QUESTION = 2000  # characters
MAX_NEW_TOKENS = 512
NEW_TOKENS = 64
ASK_FIELDS = ("question", "method", "budget", "new_tokens", "beside")
LOOK_FIELDS = ("question", "method", "budget", "show")


class RequestError(ValueError):
    """A request that is refused, with its status.

    Attributes:
        status: of the answer.
        unread: bytes of the body to read and forget, so that the client sees the answer.
    """

    def __init__(self, status: HTTPStatus, message: str, unread: int = 0) -> None:
        super().__init__(message)
        self.status, self.unread = status, unread


@dataclass(frozen=True)
class Asked:
    """A question about an image.

    Attributes:
        question: in words.
        sides: (name, block) of the method, and of the one to compare it with where there is one.
        new_tokens: the longest answer.
        image: the file.
    """

    question: str
    sides: list[tuple[str, dict[str, Any]]]
    new_tokens: int
    image: bytes


def read_fields(address: str, names: Iterable[str]) -> dict[str, str]:
    """The fields of an address by name, empty where they are not given.

    Raises:
        RequestError: another field, or one that comes twice.
    """
    names = tuple(names)
    given = parse_qs(urlsplit(address).query, keep_blank_values=True)
    if set(given) - set(names) or any(len(values) > 1 for values in given.values()):
        raise RequestError(
            HTTPStatus.BAD_REQUEST, f"fields are {', '.join(names)}, each once; not {', '.join(given)[:80]}"
        )
    return {name: given.get(name, [""])[0].strip() for name in names}


def read_method(fields: dict[str, str], methods: MethodList, chosen: str, most: int) -> tuple[str, dict[str, Any]]:
    """The name and block of the method of a request, with its budget.

    Raises:
        ReductionError: there is no such method, or it cannot have that budget.
        RequestError: the budget is no number of tokens.
    """
    name = fields["method"] or chosen
    block = methods.find(name)
    return name, with_budget(block, whole_number("budget", fields["budget"], most)) if fields["budget"] else block


def read_question(fields: dict[str, str]) -> str:
    """The question of a request.

    Raises:
        RequestError: it is empty or too long.
    """
    if not fields["question"] or len(fields["question"]) > MAX_QUESTION:
        raise RequestError(HTTPStatus.BAD_REQUEST, f"a question has 1 to {MAX_QUESTION} characters")
    return fields["question"]


def whole_number(name: str, text: str, most: int, least: int = 1) -> int:
    """A field between two limits.

    Raises:
        RequestError: it is something else.
    """
    if not (text.isascii() and text.isdecimal()) or len(text) > 9 or not least <= int(text) <= most:
        raise RequestError(
            HTTPStatus.BAD_REQUEST, f"{name} is a whole number from {least} to {most}, not {text[:20]!r}"
        )
    return int(text)


def body_length(headers: Message) -> int:
    """Bytes of an image in a request's body, known and few enough before any of it is read.

    Raises:
        RequestError: it is no image, has no length, or is too large.
    """
    kind = headers.get_content_type()
    if not kind.startswith("image/"):  # a type that another site's form cannot send
        raise RequestError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"the body is {kind}; send an image as image/...")
    length = headers.get("Content-Length", "")
    if not (length.isascii() and length.isdecimal()):
        raise RequestError(HTTPStatus.LENGTH_REQUIRED, "the size of the image has to be said (Content-Length)")
    if len(length) > 15 or int(length) > MAX_BYTES:
        raise RequestError(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"the image has {length[:20]} bytes; at most {MAX_BYTES} are accepted",
            min(int(length[:15]), DISCARDED),
        )
    return int(length)
