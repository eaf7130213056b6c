"""lmms-eval: our models under the name `llava_prumerge`, through its entry point for models (docs/lmms_eval.md)."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils.gen_metrics import log_metrics
from loguru import logger
from PIL import Image
from tqdm import tqdm

from llava_prumerge.data.images import as_rgb, read_image
from llava_prumerge.ground.errors import InputError
from llava_prumerge.harness.session import Session, ends_the_run, read_generation
from llava_prumerge.inference.conversations import Conversation, Part, Turn

NAME = "llava_prumerge"


class LlavaPruMerge(lmms):
    """A model of any family, with its method or another, as lmms-eval asks models.

    Args:
        batch_size: questions per batch.
        device: such as "cuda:1" or "cpu"; the GPU of this process's rank if there is one.
        max_batch_size: not used; lmms-eval passes it to every model.
        **arguments: see `Session`.

    Raises:
        RunEnds: an argument that cannot be used.
    """

    is_simple = False

    @ends_the_run
    def __init__(
        self, batch_size: Any = 1, device: str | None = None, max_batch_size: Any = None, **arguments: Any
    ) -> None:
        super().__init__()
        self.accelerator = Accelerator()
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        if self._world_size > 1 and device is not None and device.split(":")[0] == "cuda":
            device = None  # each rank has its own
        self.session = Session({**arguments, "batch_size": batch_size, "device": device})
        self.device = torch.device(self.session.device)
        self.unused: set[str] = set()

    @ends_the_run
    def generate_until(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """Answers to questions, in their order.

        Raises:
            RunEnds: a question that cannot be asked, an image that cannot be read, or an error while the model answers.
        """
        begun, results = time.perf_counter(), {}
        with tqdm(total=len(requests), disable=self.rank != 0, desc="Model Responding") as progress:
            for batch in self._batches(requests):
                for at, result in self._answer(requests, batch):
                    results[at] = result
                progress.update(len(batch))
        seconds = time.perf_counter() - begun
        tokens = sum(result.token_counts.output_tokens for result in results.values())
        more = {"rank": self.rank, **self.session.statistics}
        log_metrics(seconds, tokens, tokens / seconds if seconds else 0.0, more)
        return [results[at] for at in range(len(requests))]

    def _batches(self, requests: Sequence[Instance]) -> list[list[int]]:
        """Places of requests with the same settings of generation, the longest first, so that memory fails at once."""
        groups: dict[str, list[int]] = {}
        for at, request in enumerate(requests):
            groups.setdefault(repr(sorted(request.args[2].items())), []).append(at)
        size, batches = self.session.batch_size, []
        for group in groups.values():
            group.sort(key=lambda at: -len(requests[at].args[0]))
            batches += [group[start : start + size] for start in range(0, len(group), size)]
        return batches

    def _answer(self, requests: Sequence[Instance], batch: Sequence[int]) -> list[tuple[int, GenerationResult]]:
        settings = requests[batch[0]].args[2]
        generation, unused = read_generation(settings)
        if new := set(unused) - self.unused:
            self.unused |= new
            logger.warning(f"{NAME}: generation settings that are not used: {', '.join(sorted(new))}")
        replies = self.session.answer([self._asked(requests[at]) for at in batch], **generation)
        found = []
        for at, reply in zip(batch, replies, strict=True):
            self.cache_hook.add_partial("generate_until", (requests[at].args[0], settings), reply.text)
            counts = TokenCounts(input_tokens=reply.prompt_tokens, output_tokens=reply.new_tokens)
            found.append((at, GenerationResult(reply.text, counts)))
        return found

    def _asked(self, request: Instance) -> Conversation:
        """The turns of a request's document."""
        _, messages_of, _, number, task, split = request.args
        try:
            return [read_turn(message) for message in messages_of(self.task_dict[task][split][number])]
        except InputError as error:
            raise InputError(f"{task}, document {number}: {error}") from error

    def clean(self) -> None:
        """Let go of the model's memory, when all is answered."""
        self.session.close()
        super().clean()

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Not offered: tasks of this project's benchmarks ask for text."""
        raise NotImplementedError(f"{NAME} answers generate_until; loglikelihood is not offered")

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        """Not offered."""
        raise NotImplementedError(f"{NAME} answers generate_until; tasks of several rounds are not offered")


def read_turn(message: Mapping[str, Any]) -> Turn:
    """A message of lmms-eval's chat protocol as a turn.

    Raises:
        InputError: it holds something else than text and images, or an image that cannot be read.
    """
    content = message["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return Turn(message["role"], tuple(_read_part(part) for part in parts))


def _read_part(part: Mapping[str, Any]) -> Part:
    if part["type"] == "text":
        return str(part["text"])
    if part["type"] != "image":
        raise InputError(f"a part of type {part['type']!r}; text and images can be asked about")
    source = part.get("url", part.get("image"))
    if isinstance(source, Image.Image):
        return as_rgb(source)
    if isinstance(source, str) and "://" not in source:
        return read_image(source)
    raise InputError(f"an image must be a picture or the path of a file, not {str(source)[:80]!r}")
