"""Greedy answers from a model: batched by length, left-padded, written as they come, over one process or several."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import GenerationConfig

from llava_prumerge.evaluation.answers import AnswerWriter, answer_record, pending
from llava_prumerge.evaluation.benchmark import Question
from llava_prumerge.evaluation.prefix_cache import PrefixCache, make_prefix_cache
from llava_prumerge.evaluation.prompts import Prompter, make_prompter, on_device, picture_of
from llava_prumerge.evaluation.settings import EvaluationSettings
from llava_prumerge.ground import ranks
from llava_prumerge.model.chat import fixed_places

logger = logging.getLogger("eval")

TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
HARMLESS = (
    "transformers_version",
    "max_length",
    "max_new_tokens",
    "do_sample",
    "temperature",
    "top_p",
    "top_k",
    "use_cache",
)
HARMLESS += ("_from_model_config", "cache_implementation", "num_beams")
"""Settings of a checkpoint's generation_config.json that this module sets itself, or that do nothing in greedy decoding."""
PREPARED = 3
"""Batches whose images are read ahead while the model works."""
ALIKE = 4
"""Prompts whose lengths differ by less than this may change places so that questions about one image come together."""


@dataclass(frozen=True)
class Ranks:
    """This process among those that the launcher started."""

    rank: int = 0
    world: int = 1

    @classmethod
    def from_environment(cls) -> Ranks:
        """What the launcher says; one process without it."""
        return cls(ranks.rank(), ranks.world_size())

    def wait(self) -> None:
        """Until all processes are here. A rank may finish hours before another."""
        if self.world == 1:
            return
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group("gloo", timeout=timedelta(days=2))
        torch.distributed.barrier()


def make_batches(questions: Sequence[Question], lengths: Sequence[int], size: int) -> list[list[Question]]:
    """Batches of similar length, with and without images apart; the longest first, so that memory fails at once.

    Among those of nearly the same length, questions about one image stand together: the tower then sees it once.
    """

    def place(at: int) -> tuple[bool, int, str, int, int]:
        question = questions[at]
        return not question.has_image, -(lengths[at] // ALIKE), picture_of(question) or "", -lengths[at], at

    order = sorted(range(len(questions)), key=place)
    batches: list[list[Question]] = []
    for at in order:
        question = questions[at]
        if batches and len(batches[-1]) < size and batches[-1][0].has_image == question.has_image:
            batches[-1].append(question)
        else:
            batches.append([question])
    return batches


def read_ahead(
    batches: Sequence[list[Question]], prompter: Prompter, workers: int
) -> Iterator[tuple[list[Question], Any]]:
    """Batches with their images, read in threads a few batches before they are needed."""
    with ThreadPoolExecutor(workers) as pool:
        waiting: list[tuple[list[Question], Future[Any]]] = []
        remaining = iter(batches)
        while True:
            waiting += [
                (batch, pool.submit(prompter.pictures, batch)) for batch in islice(remaining, PREPARED - len(waiting))
            ]
            if not waiting:
                return
            batch, future = waiting.pop(0)
            try:
                yield batch, future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def decode_plainly(model: Any) -> str:
    """Take from a model's own generation settings whatever would change a greedy answer. -> those that did, for people

    Token ids stay. Settings of sampling do nothing in greedy decoding, and other packages' checkpoints are full of them.
    """
    before = getattr(model, "generation_config", None)
    if before is None:
        return ""
    ids = {name: getattr(before, name, None) for name in TOKEN_IDS}
    model.generation_config = GenerationConfig(**{name: value for name, value in ids.items() if value is not None})
    changed = before.to_diff_dict().items()
    return ", ".join(
        f"{name}={value}"
        for name, value in changed
        if name not in (*TOKEN_IDS, *HARMLESS) and not name.startswith("output_")
    )


def answer_batch(
    model: Any,
    prompter: Prompter,
    batch: Sequence[Question],
    pictures: Any,
    max_new_tokens: int,
    start: PrefixCache | None = None,
) -> list[str]:
    """Greedy answers to a batch, without special tokens and surrounding space.

    Args:
        model: anything with transformers' `generate`; equal images come once where it is ours.
        prompter: makes ids and pixels.
        batch: the questions.
        pictures: their images.
        max_new_tokens: limit of an answer.
        start: what all prompts begin with, where it has been run beforehand.
    """
    inputs = on_device(prompter.inputs(batch, pictures, () if start is None else start.ids), model)
    if start is not None:
        inputs["past_key_values"] = start.cache(len(batch))
    with torch.inference_mode():
        sequences = model.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            use_cache=True,
            pad_token_id=prompter.padding,
            temperature=None,  # checkpoints of Vicuna carry sampling settings, which greedy decoding warns about
            top_p=None,
            top_k=None,
        )
    new = sequences[:, inputs["input_ids"].shape[1] :]  # [B, T]
    return [text.strip() for text in prompter.tokenizer.batch_decode(new, skip_special_tokens=True)]


def count_kept(model: Any, batch: Sequence[Question]) -> dict[str, float]:
    """What a batch's images were reduced to, for the metadata of its answers (each of which is about one image)."""
    statistics = model.reduction_stats()
    if not batch[0].has_image or not statistics.get("images"):
        return {}
    names = {"kept": "kept_mean", "kept_min": "kept_min", "kept_max": "kept_max", "equivalent": "equivalent_tokens"}
    if fixed_places(model.config) is None:  # each image has its own
        names["full"] = "full_mean"
    return {name: round(float(statistics[key]), 4) for name, key in names.items()}


def generate(
    model: Any,
    processor: Any,
    questions: Sequence[Question],
    images: Path | None,
    answers: Path,
    settings: EvaluationSettings,
    max_new_tokens: int,
    model_id: str,
    ranks: Ranks,
) -> int:
    """Answer what has no answer yet, and return how many questions that was for this rank.

    Args:
        model: anything with transformers' `generate` and our `reduction_stats`.
        processor: tokenizer and image processor of the checkpoint.
        questions: all questions of the run, the same on every rank.
        images: the folder of the images.
        answers: the answer file, already claimed.
        settings: batch size, template, aspect and threads.
        max_new_tokens: limit of an answer.
        model_id: as written to the answers.
        ranks: this process among all.
    """
    prompter = make_prompter(processor, model.config, settings, images)
    lengths = {question.key: len(prompter.encode(question)) for question in questions}
    # Questions are dealt before any are taken as done, so that ranks agree whatever they find on disk.
    order = sorted(range(len(questions)), key=lambda at: (not questions[at].has_image, -lengths[questions[at].key], at))
    mine = {questions[at].key for at in order[ranks.rank :: ranks.world]}
    waiting = [question for question in pending(answers, questions) if question.key in mine]
    batches = make_batches(waiting, [lengths[question.key] for question in waiting], settings.batch_size)
    start = make_prefix_cache(model, prompter.begun())
    model.reduction_stats()  # what was counted before is not ours
    done = len(mine) - len(waiting)
    progress = tqdm(total=len(mine), initial=done, desc=answers.stem, unit="q", disable=ranks.rank != 0)
    with AnswerWriter(answers, ranks.rank, ranks.world) as writer, progress:
        for batch, pictures in read_ahead(batches, prompter, settings.workers):
            texts = answer_batch(model, prompter, batch, pictures, max_new_tokens, start)
            kept = count_kept(model, batch)
            writer.append(
                answer_record(question, text, model_id, kept) for question, text in zip(batch, texts, strict=True)
            )
            progress.update(len(batch))
    return len(waiting)
