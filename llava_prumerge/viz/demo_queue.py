"""The queue of questions before the demo's one model: each is answered in its turn, and what is said of it is kept for a while.

Answers are made by a thread of their own, which never waits for a client: a slow one takes nobody's time, and one whose
connection broke can read on from where it was. What nobody follows any more is given up after a while.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

WAITING = 16
"""Questions that may wait; each holds the bytes of its image."""
KEPT = 16
"""Questions that are kept after their end, for those whose connection broke."""
KEPT_SECONDS = 120.0
GRACE_SECONDS = 20.0
"""How long an answer goes on that nobody follows."""

logger = logging.getLogger("llava_prumerge.viz.demo")

Said = tuple[str, dict[str, Any]]
"""One thing that is said of a question: its kind, and what belongs to it."""


class Busy(Exception):
    """Too many questions wait."""


class Question:
    """A question on its way from one client to the model, and everything said of it so far.

    Args:
        work: answers it, in the model's turn, saying what there is to say.
        grace: seconds that it goes on without anybody who follows.
    """

    def __init__(self, work: Callable[[Question], None], grace: float = GRACE_SECONDS) -> None:
        self.id, self.work, self.grace = secrets.token_urlsafe(16), work, grace
        self.ended = self.stopped = False
        self._said: list[Said] = []
        self._news = threading.Condition()
        self._followers, self._left = 0, time.monotonic()

    def say(self, kind: str, **told: Any) -> None:
        """Add something for all who follow."""
        with self._news:
            self._said.append((kind, told))
            self._news.notify_all()

    def end(self) -> None:
        """Nothing more will be said."""
        with self._news:
            self.ended = True
            self._left = time.monotonic()
            self._news.notify_all()

    def stop(self) -> None:
        """Nobody wants an answer any more."""
        self.stopped = True

    def read(self, after: int, seconds: float) -> tuple[list[Said], bool]:
        """What was said after the first so many things; waits for something new. -> it, and whether that is all there will be"""
        with self._news:
            self._news.wait_for(lambda: len(self._said) > after or self.ended, seconds)
            return self._said[after:], self.ended

    @contextmanager
    def followed(self) -> Iterator[None]:
        """Somebody reads what is said while the block runs."""
        with self._news:
            self._followers += 1
        try:
            yield
        finally:
            with self._news:
                self._followers -= 1
                self._left = time.monotonic()

    def is_wanted(self) -> bool:
        """Whether somebody follows, or may come back."""
        with self._news:
            return not self.stopped and (self._followers > 0 or self.idle_seconds() < self.grace)

    def idle_seconds(self) -> float:
        """Since the last follower left, or since the end."""
        return time.monotonic() - self._left


class Queue:
    """Questions in the order they came, answered one at a time by one thread.

    Args:
        waiting: how many may wait; one more is refused.
        kept: how many are kept after their end, each for `KEPT_SECONDS` at most.
        grace: see `Question`.
    """

    def __init__(self, waiting: int = WAITING, kept: int = KEPT, grace: float = GRACE_SECONDS) -> None:
        self.most, self.kept, self.grace = waiting, kept, grace
        self._waiting: list[Question] = []
        self._now: Question | None = None
        self._done: list[Question] = []
        self._change = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None

    def ask(self, work: Callable[[Question], None]) -> Question:
        """Put a question at the end of the queue.

        Raises:
            Busy: there is no room.
        """
        question = Question(work, self.grace)
        with self._change:
            self._waiting = [other for other in self._waiting if other.is_wanted() or _give_up(other)]
            if len(self._waiting) >= self.most:
                raise Busy(f"{len(self._waiting)} questions wait already; ask again in a moment")
            self._waiting.append(question)
            if self._thread is None:
                self._thread = threading.Thread(target=self._answer_all, name="demo-answers", daemon=True)
                self._thread.start()
            self._change.notify_all()
        return question

    def find(self, name: str) -> Question | None:
        """A question that waits, is being answered, or ended a short time ago."""
        with self._change:
            self._forget()
            known = [*self._waiting, *([self._now] if self._now else []), *self._done]
        return next(
            (question for question in known if secrets.compare_digest(question.id.encode(), name.encode())), None
        )

    def before(self, question: Question) -> int:
        """How many questions are answered before this one is; 0 for the one whose turn it is."""
        with self._change:
            if question not in self._waiting:
                return 0
            return self._waiting.index(question) + (self._now is not None)

    def close(self) -> None:
        """Answer nothing more."""
        with self._change:
            self._closed = True
            for question in (*self._waiting, *([self._now] if self._now else [])):
                question.stop()
            self._change.notify_all()

    def _forget(self) -> None:
        self._done = [one for one in self._done if one.idle_seconds() < KEPT_SECONDS][-self.kept :]

    def _answer_all(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
                question = self._now = self._waiting.pop(0)
            try:
                if question.is_wanted():
                    question.work(question)
            except Exception:  # the next in the queue must have its turn
                logger.exception("an answer failed")
                question.say("error", status=500, error="this failed; the console shows why")
            question.end()
            question.work = _nothing  # with the image that it holds
            with self._change:
                self._now = None
                self._done.append(question)
                self._forget()


def _nothing(question: Question) -> None:
    """What is left to do of a question that was answered."""


def _give_up(question: Question) -> bool:
    """End a question that nobody waits for. -> False: it does not wait any more"""
    question.end()
    return False
