"""How far a pruner moves a model's answers on a few questions: agreement, loss or KL against the full model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from llava_prumerge.methods.base import DecoderPruner
from llava_prumerge.methods.registry import build_pruner
from llava_prumerge.model.modeling import PruMergeLlavaForConditionalGeneration, decoder_shape
from llava_prumerge.ops.layout import IGNORE_INDEX
from llava_prumerge.search.command import SCORES, SearchError


def divergence(reduced: Tensor, full: Tensor) -> Tensor:
    """KL(reduced || full) of the distributions that two sets of logits stand for, in nats. [..., V] twice -> [...]"""
    ours, theirs = reduced.double().log_softmax(dim=-1), full.double().log_softmax(dim=-1)
    return (ours.exp() * (ours - theirs)).sum(dim=-1)


@contextmanager
def pruner_in_place(model: PruMergeLlavaForConditionalGeneration, pruner: DecoderPruner | None) -> Iterator[None]:
    """The model with this pruner, or none, in place of its own."""
    decoder = model.model.decoder
    own = decoder.pruner
    try:
        decoder.pruner = pruner
        yield
    finally:
        decoder.pruner = own


def to_model(model: PruMergeLlavaForConditionalGeneration, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """A batch on the model's device, its images of the model's dtype."""
    weight = next(model.parameters())
    return {
        name: value.to(weight.device, weight.dtype if value.is_floating_point() else None)
        for name, value in batch.items()
    }


def longer(inputs: dict[str, Tensor], answer: Tensor) -> dict[str, Tensor]:
    """Prompts with an answer [B, T] behind each; marks of what each token is, which some families have, say text there."""
    ids = inputs["input_ids"]
    more = {"input_ids": answer, "attention_mask": torch.ones_like(answer)}
    return {
        name: torch.cat([value, more.get(name, torch.zeros_like(answer)).to(value.dtype)], dim=1)
        if value.shape == ids.shape
        else value
        for name, value in inputs.items()
    }


class Comparison:
    """The full model's greedy answers, and what pruners do to them.

    The answer is put behind the prompt, so that one pass tells whether greedy decoding would give the same answer: a
    token is only looked at where all before it are the full model's.

    Args:
        model: its own pruner is left out; a vision reducer belongs to the full model.
        batches: left-padded prompts with images.
        score: "agreement", "kl" or "loss", see `costs`.
        answer_tokens: T, how many tokens of the answer count; those after its end do not.

    Attributes:
        present: visual tokens per image that the decoder begins with, the mean over the questions.
        most: the largest number of them.
        text: text tokens per question, the mean.
    """

    def __init__(
        self,
        model: PruMergeLlavaForConditionalGeneration,
        batches: Sequence[dict[str, Tensor]],
        score: str = "kl",
        answer_tokens: int = 1,
    ) -> None:
        if score not in SCORES:
            raise SearchError(f"score {score!r} is not one of {', '.join(SCORES)}")
        if answer_tokens < 1:
            raise SearchError(f"{answer_tokens} answer tokens are too few; take 1 or more")
        self.model, self.score, self.answer_tokens = model, score, answer_tokens
        self.shape = decoder_shape(model.config)
        self._questions: list[tuple[dict[str, Tensor], Tensor, Tensor, Tensor]] = []
        visual, texts = [], []
        for batch in batches:
            inputs, answer = to_model(model, batch), torch.empty(len(batch["input_ids"]), 0, dtype=torch.long)
            for _ in range(answer_tokens):
                logits, seen, images = self._run(inputs, answer, None)
                answer = torch.cat([answer.to(logits.device), logits[:, -1].argmax(dim=-1, keepdim=True)], dim=1)
            self._questions.append((inputs, answer, self._counts(answer), logits))
            visual.append(seen[:, 0] / images.clamp(min=1))
            spots = model.model.placeholders(inputs["input_ids"])
            texts.append((inputs["attention_mask"].bool() & ~spots).sum(dim=1))
        per_image, text = torch.cat(visual).float(), torch.cat(texts).float()
        self.present, self.most, self.text = per_image.mean().item(), int(per_image.amax()), text.mean().item()

    def _counts(self, answer: Tensor) -> Tensor:
        """Which tokens belong to the answer: those up to the first that ends it. [B, T] -> [B, T] bool"""
        ends = self.model.generation_config.eos_token_id
        ends = self.model.config.get_text_config().eos_token_id if ends is None else ends
        listed = torch.tensor(([] if ends is None else [ends]) if not isinstance(ends, list) else ends)
        over = torch.isin(answer, listed.to(answer.device)).long()
        return over.cumsum(dim=1) - over == 0

    @torch.inference_mode()
    def _run(
        self, inputs: dict[str, Tensor], answer: Tensor, pruner: DecoderPruner | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits after the prompt and after each answer token [B, 1 + t, V], `visual` [B, layers], images [B]."""
        ids, labels = inputs["input_ids"], None
        answer = answer.to(ids.device)
        if answer.shape[1]:  # labels tell a pruner where the prompt ends
            labels = torch.cat([torch.full_like(ids, IGNORE_INDEX), answer], dim=1)
            inputs = longer(inputs, answer)
        with pruner_in_place(self.model, pruner):
            output = self.model.model(**inputs, labels=labels, use_cache=False)
        head = self.model.get_output_embeddings()
        logits = head(output.last_hidden_state[:, -1 - answer.shape[1] :])
        return logits, output.visual, output.layout.images

    @torch.inference_mode()
    def costs(self, block: dict[str, Any] | None) -> Tensor:
        """What a pruner costs each question; 0 for the full model. -> [samples]

        Args:
            block: the pruner's settings.

        Returns:
            "agreement": 1 where a token of the answer is another one, else 0. "kl": KL(reduced || full) of the next
            token's distribution, in nats, the mean over the answer's tokens. "loss": by how much the answer's negative
            log likelihood rises, in nats, the mean over its tokens.
        """
        pruner, found = build_pruner(block, self.shape), []
        if pruner is not None:
            pruner.to(next(self.model.parameters()).device).eval()
        for inputs, answer, counts, full in self._questions:
            logits, _, _ = self._run(inputs, answer[:, :-1], pruner)
            if self.score == "agreement":
                found.append(((logits.argmax(dim=-1) != answer) & counts).any(dim=1).double())
                continue
            if self.score == "kl":
                each = divergence(logits, full)
            else:
                ours, theirs = (part.double().transpose(1, 2) for part in (logits, full))
                each = F.cross_entropy(ours, answer, reduction="none") - F.cross_entropy(
                    theirs, answer, reduction="none"
                )
            found.append((each * counts).sum(dim=1) / counts.sum(dim=1))
        return torch.cat(found).cpu()

    def cost(self, block: dict[str, Any] | None) -> float:
        """The mean of `costs`; of "agreement" that is the share of questions whose answer changes."""
        return self.costs(block).mean().item()

    def tokens(self, block: dict[str, Any]) -> list[float]:
        """Visual tokens per image that each layer sees with a pruner on the questions, the mean. -> one per layer"""
        pruner = build_pruner(block, self.shape)
        layers = [
            (visual / images.clamp(min=1)[:, None]).double()
            for inputs, answer, _, _ in self._questions
            for _, visual, images in [self._run(inputs, answer[:, :-1], pruner)]
        ]
        return torch.cat(layers).mean(dim=0).tolist()
