"""What the tests of damaged and odd inputs share: how files and values are spoilt, and what may come of it."""

from __future__ import annotations

import gzip
import json
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from llava_prumerge.ground.command import one_line
from llava_prumerge.ground.errors import FileError, InputError

SECONDS = 10
ODD = [
    None,
    True,
    0,
    -1,
    2.5,
    10**30,
    float("inf"),
    "",
    " ",
    "\n",
    "\ud800",
    "<image>",
    "</s>",
    "é" * 300,
    [],
    {},
    [[]],
    [1],
]
ODD += [{"a": 1}, ["x"], "x" * 5000, "../..", "\0"]


@contextmanager
def bounded() -> Iterator[None]:
    def late(*_: object) -> None:
        raise AssertionError(f"it took more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(work: Callable[[], Any]) -> Any:
    """What came out; None for an error, which must be one of ours, with something to say."""
    with bounded():
        try:
            return work()
        except (InputError, FileError) as error:
            text = one_line(error)
            assert text and len(text) < 3000
            return None


def spoil(content: bytes, draw: random.Random) -> bytes:
    """A file as a disk, a transfer or an editor leaves it."""
    at, length = draw.randrange(len(content) + 1), draw.randint(1, 40)
    text = content.decode("utf-8", "replace")
    return draw.choice(
        [
            lambda: content[:at],
            lambda: content[:at] + content[at + length :],
            lambda: content[:at] + bytes(draw.randrange(256) for _ in range(length)) + content[at:],
            lambda: content[:at] + bytes(length) + content[at + length :],
            lambda: content[:at] + content[at:] + content[at : at + length],
            lambda: content[:at] + bytes([draw.choice(b'[]{},:"\\0 \n&*!-')]) + content[at + 1 :],
            lambda: b"\xef\xbb\xbf" + content,
            lambda: text.encode("utf-16"),
            lambda: text.encode("utf-16-le"),
            lambda: gzip.compress(content),
            lambda: content.replace(b"\n", b"\r\n"),
            lambda: b"",
        ]
    )()


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) in a value."""
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from places(value[key])


def bend(value: Any, draw: random.Random) -> Any:
    """A JSON value with one thing in it exchanged, lost, renamed or doubled."""
    value = json.loads(json.dumps(value))
    container, key = draw.choice(list(places(value)))
    kind = draw.randrange(5)
    if kind == 0:
        del container[key]
    elif kind == 1 and isinstance(container, dict):
        container[f"{key}s"] = container.pop(key)
    elif kind == 2 and isinstance(container, list):
        container.append(container[key])
    else:
        container[key] = draw.choice(ODD)
    return value


def turns(*values: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(values)]
