"""A model that another harness asks: opened by the arguments that the harness passes on, asked conversations in batches."""

from __future__ import annotations

import functools
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

import torch

from llava_prumerge.evaluation.execution import LoadedModel, Subject
from llava_prumerge.evaluation.generate import Ranks
from llava_prumerge.evaluation.settings import parse_generation
from llava_prumerge.ground.command import FAILED, one_line, status_of
from llava_prumerge.ground.errors import CannotGoOn, InputError
from llava_prumerge.ground.hub_names import is_missing, why_missing
from llava_prumerge.ground.naming import not_known
from llava_prumerge.inference.conversations import Conversation, Conversations, Reply

P = ParamSpec("P")
T = TypeVar("T")
ARGUMENTS = ("pretrained", "reduction", "plugin", "dtype", "device", "attn", "template", "aspect", "batch_size")
"""What can be said of a model, beside single settings of its method."""
ELSEWHERE = ("method", "images", "limit", "workers", "trusted", "accept_changes", "model_label", "label", "train")
"""Settings of our own evaluation that mean nothing to another harness, which has its own."""
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p")
GENERATION = (
    "num_beams", "length_penalty", "early_stopping", "repetition_penalty", "no_repeat_ngram_size", "min_new_tokens",
)  # fmt: skip
NEW_TOKENS = 1024


class RunEnds(SystemExit):
    """The end of the process after an error, its status as that of our own commands.

    Harnesses catch every Exception: one answers "" then, another prints the error, ends with status 0, and lets the other
    ranks wait for this one. What caused it is its `__cause__`.
    """


def ends_the_run(work: Callable[P, T]) -> Callable[P, T]:
    """Let an error in a function end the process: one line for wrong input, a traceback for anything else."""

    @functools.wraps(work)
    def wrapped(*given: P.args, **named: P.kwargs) -> T:
        try:
            return work(*given, **named)
        except (InputError, CannotGoOn, OSError) as error:
            sys.stderr.write(f"error: {one_line(error)}\n")
            raise RunEnds(status_of(error)) from error
        except Exception as error:
            traceback.print_exc()
            raise RunEnds(FAILED) from error

    return wrapped


class Session:
    """One model with one method, ready to be asked.

    Args:
        arguments: by name, as text or as values: `pretrained` (a folder, or a name on the Hub), `reduction` (any form that
            `methods.resolve` reads; the checkpoint's own without it), `plugin`, `dtype`, `device`, `attn`, `template`,
            `aspect`, `batch_size`, and settings of the method such as `budget`.

    Attributes:
        model, processor: what was loaded.
        name, label: how people call the model, and its method.
        batch_size: conversations per batch.
        kept, full: visual tokens that reached the decoder so far, and those without a method.
        images: how many images that was.

    Raises:
        InputError: an argument that is not known or cannot be used, or no such model.
    """

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        values = {name: str(value) for name, value in arguments.items() if value is not None}
        if wrong := [name for name in values if name in ELSEWHERE]:
            raise InputError(not_known("model argument", wrong[0], [*ARGUMENTS, "settings of the method"]))
        path = values.pop("pretrained", "")
        if not path:
            raise InputError("pretrained= names the model: a folder, or a name on the Hub")
        if is_missing(path):
            raise InputError(f"pretrained={path}: {why_missing(path)}")
        if "reduction" in values:
            values["method"] = values.pop("reduction")
        settings = parse_generation(values)
        subject = Subject(path, settings)
        loaded = LoadedModel(subject, Ranks())
        self.name, self.label = subject.name, subject.label
        self.batch_size, self.device = settings.batch_size, loaded.device
        self.model, self.processor = loaded.model_and_processor
        self.conversations = Conversations(self.model, self.processor, settings.template, settings.aspect)
        self.model.reduction_stats()  # what was counted before is not ours
        self.kept = self.full = self.images = 0.0

    def answer(
        self, asked: Sequence[Conversation], max_new_tokens: int, until: Sequence[str] = (), **generation: Any
    ) -> list[Reply]:
        """Replies to conversations, in their order; those without images are asked apart from the others."""
        found: dict[int, Reply] = {}
        for shown in (True, False):
            places = [at for at, turns in enumerate(asked) if any(turn.images for turn in turns) == shown]
            for start in range(0, len(places), self.batch_size):
                batch = places[start : start + self.batch_size]
                replies = self.conversations.replies([asked[at] for at in batch], max_new_tokens, until, **generation)
                found.update(zip(batch, replies, strict=True))
                self._count()
        return [found[at] for at in range(len(asked))]

    def _count(self) -> None:
        counted = self.model.reduction_stats()
        self.images += counted["images"]
        self.kept += counted["images"] * counted["kept_mean"]
        self.full += counted["images"] * counted["full_mean"]

    @property
    def statistics(self) -> dict[str, float]:
        """Visual tokens of an image, with the method and without it: means over all images so far; {} before the first."""
        if not self.images:
            return {}
        return {"kept_tokens": self.kept / self.images, "full_tokens": self.full / self.images}

    def close(self) -> None:
        """Let go of the model's memory."""
        del self.model, self.processor, self.conversations
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def read_generation(given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """What a harness says of the generation, as `Session.answer` takes it, and the names of what has no meaning here.

    Greedy unless a temperature above 0, or `do_sample` without one, is given.

    Raises:
        InputError: a value that is no such setting.
    """
    given = dict(given)
    until = given.pop("until", None) or []
    until = [until] if isinstance(until, str) else until
    if not isinstance(until, list | tuple) or not all(isinstance(text, str) for text in until):
        raise InputError(f"until must be a text or a list of texts, not {until!r}")
    limit = given.pop("max_new_tokens", None) or NEW_TOKENS
    if not isinstance(limit, int) or limit < 1:
        raise InputError(f"max_new_tokens must be a whole number above 0, not {limit!r}")
    temperature = given.get("temperature")
    sampled = bool(given.pop("do_sample", temperature)) and temperature != 0
    found: dict[str, Any] = {"max_new_tokens": limit, "until": list(until), "do_sample": sampled}
    found |= {name: given[name] for name in GENERATION if given.get(name) is not None}
    if sampled:
        found |= {name: given[name] for name in SAMPLING if given.get(name) is not None}
    return found, [name for name in given if name not in (*SAMPLING, *GENERATION)]
