"""VLMEvalKit: our models in its list of models, and its command with them (docs/vlmevalkit.md). It has no plug-ins, so import this.

from llava_prumerge.harness.vlmevalkit import main, register

register("ours", pretrained="llava-hf/llava-1.5-7b-hf", reduction="visionzip:budget=64")
main()    # VLMEvalKit's own command line, which knows --model ours now
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import pandas as pd
import torch
import vlmeval.vlm
from vlmeval.config import supported_VLM
from vlmeval.dataset import DATASET_TYPE
from vlmeval.smp import cn_string, load_env
from vlmeval.vlm.base import BaseModel

from llava_prumerge.data.images import read_image
from llava_prumerge.evaluation.mmbench import LETTERS, MmBench
from llava_prumerge.evaluation.mmbench_cn import MmBenchCn
from llava_prumerge.ground.errors import InputError
from llava_prumerge.harness.session import GENERATION, SAMPLING, Session, ends_the_run, read_generation
from llava_prumerge.inference.conversations import ASSISTANT, Conversation, Part, Turn
from llava_prumerge.model.devices import asked_for_cpu

Message = Sequence[Mapping[str, Any]]
OWN_IMAGES = "MMMU"
"""Benchmarks whose questions say where their images stand, so that their own prompt is needed."""


class LlavaPruMerge(BaseModel):
    """A model of any family, with its method or another, as VLMEvalKit asks models: one question at a time.

    Args:
        **arguments: see `Session`; and settings of the generation, such as `max_new_tokens` (1024) and `temperature`.

    Raises:
        RunEnds: an argument that cannot be used.
    """

    INSTALL_REQ = False
    INTERLEAVE = True

    @ends_the_run
    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        named = ("max_new_tokens", "until", "do_sample", *SAMPLING, *GENERATION)
        self.generation, _ = read_generation({name: arguments.pop(name) for name in named if name in arguments})
        if arguments.get("device") is None and asked_for_cpu() is None and torch.cuda.is_available():
            arguments["device"] = "cuda"  # VLMEvalKit shows each process the GPUs that are its own
        self.session = Session(arguments)

    def use_custom_prompt(self, dataset: str) -> bool:
        """Whether LLaVA's own prompt is taken: with LLaVA-1.5 and its kin, for multiple choice."""
        templated = self.session.conversations.places is not None
        return templated and OWN_IMAGES not in dataset and DATASET_TYPE(dataset) == "MCQ"

    def build_prompt(self, line: Any, dataset: str | None = None) -> list[dict[str, str]]:
        """A row of a table of multiple choice as LLaVA asks it, in Chinese where the question is."""
        shown = "image" in line or "image_path" in line
        told = [line[name] for name in ("hint", "question") if name in line and not pd.isna(line[name])]
        options = [f"{letter}. {line[letter]}" for letter in LETTERS if letter in line and not pd.isna(line[letter])]
        text = "\n".join([*told, *options])
        suffix = MmBenchCn.suffix if cn_string(text) else MmBench.suffix
        images = self.dump_image(line, dataset) if shown else []
        return [*({"type": "image", "value": path} for path in images), {"type": "text", "value": f"{text}\n{suffix}"}]

    @ends_the_run
    def generate_inner(self, message: Message, dataset: str | None = None) -> str:
        """The answer to a message of texts and images.

        Raises:
            RunEnds: an image that cannot be read, a video, or an error while the model answers.
        """
        return self._answer([Turn("user", tuple(_read_part(part) for part in message))])

    @ends_the_run
    def chat_inner(self, message: Sequence[Mapping[str, Any]], dataset: str | None = None) -> str:
        """The same of several turns, the user's last."""
        return self._answer([_read_turn(turn) for turn in message])

    def _answer(self, conversation: Conversation) -> str:
        return self.session.answer([conversation], **self.generation)[0].text


def _read_turn(turn: Mapping[str, Any]) -> Turn:
    role = ASSISTANT if turn["role"] in ("assistant", "model") else turn["role"]
    return Turn(role, tuple(_read_part(part) for part in turn["content"]))


def _read_part(part: Mapping[str, Any]) -> Part:
    if part["type"] == "text":
        return str(part["value"])
    if part["type"] != "image":
        raise InputError(f"a part of type {part['type']!r}; text and images can be asked about")
    return read_image(part["value"])


def register(name: str, **arguments: Any) -> None:
    """Put a model into VLMEvalKit's list, to be loaded when it is asked for.

    Args:
        name: for `--model`, and for the files of its answers.
        **arguments: see `LlavaPruMerge`.
    """
    supported_VLM[name] = partial(LlavaPruMerge, **arguments)


def main() -> None:
    """VLMEvalKit's command line, for which `"class": "LlavaPruMerge"` in a `--config` file is a model of ours."""
    from vlmeval.run import main as run

    vlmeval.vlm.LlavaPruMerge = LlavaPruMerge
    load_env()
    run()


if __name__ == "__main__":
    main()
