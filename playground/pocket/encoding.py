"""Turns documents into the language model's input: ids, loss weights, and heaps of words that share one position."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from playground.pocket import tokenizer as pocket_tokenizer
from playground.pocket.language import Segment

HEAP_WORDS = 4  # colour, shape and a place of two words


@dataclass
class Row:
    """An encoded document: ids, loss weights, the words of positions that hold a heap, and the noise on those."""

    ids: list[int]
    weights: list[float]
    heaps: dict[int, list[int]]
    blur: float = 0.0


@dataclass
class Heaps:
    """The positions of a batch that hold a heap.

    Attributes:
        where: [M] in B * L.
        words: [M, 4] ids, -1 for none.
        blur: [M] noise, as a share of a word embedding's length.
    """

    where: Tensor
    words: Tensor
    blur: Tensor


def encode(documents: list[list[Segment]], tokenizer: PreTrainedTokenizerFast) -> list[Row]:
    """Encodes documents; a token has the weight of the segment its last character is in."""
    plain = [segments for segments in documents if not any(segment.heaps for segment in segments)]
    rows = iter(_encode_plain(plain, tokenizer))
    return [
        _encode_heaped(segments, tokenizer) if any(segment.heaps for segment in segments) else next(rows)
        for segments in documents
    ]


def _encode_heaped(segments: list[Segment], tokenizer: PreTrainedTokenizerFast) -> Row:
    """Encodes a document with heaps: the text before, each heap as one position, the text after."""
    row = Row([tokenizer.bos_token_id], [0.0], {})
    pending: list[Segment] = []

    def flush() -> None:
        if pending:
            part = _encode_plain([pending], tokenizer)[0]
            row.ids.extend(part.ids[1:])
            row.weights.extend(part.weights[1:])
            pending.clear()

    for segment in segments:
        if segment.heaps:
            flush()
            row.blur = segment.blur
            for ids in tokenizer(list(segment.heaps), add_special_tokens=False)["input_ids"]:
                row.heaps[len(row.ids)] = ids
                row.ids.append(ids[0] if ids else tokenizer.unk_token_id)
                row.weights.append(0.0)
        elif segment.text:
            pending.append(segment)
    flush()
    return row


def _encode_plain(documents: list[list[Segment]], tokenizer: PreTrainedTokenizerFast) -> list[Row]:
    """Encodes documents without heaps, all in one call."""
    if not documents:
        return []
    texts = ["".join(segment.text for segment in segments) for segments in documents]
    batch = tokenizer(texts, return_offsets_mapping=True)
    made = []
    for segments, ids, offsets in zip(documents, batch["input_ids"], batch["offset_mapping"], strict=True):
        weights, index, end = [], 0, len(segments[0].text)
        for _, stop in offsets:
            while stop > end:
                index += 1
                end += len(segments[index].text)
            weights.append(segments[index].weight)
        made.append(Row(ids, weights, {}))
    return made


def collate(rows: list[Row], pad: int) -> tuple[Tensor, Tensor, Heaps]:
    """Pads rows on the right.

    Returns:
        ids [B, L]; weights [B, L], zero on padding; the heaps.
    """
    longest = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), longest), pad)
    weights = torch.zeros(len(rows), longest)
    where, words, blur = [], [], []
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)] = torch.tensor(row.ids)
        weights[i, : len(row.ids)] = torch.tensor(row.weights)
        for position, ids_there in row.heaps.items():
            where.append(i * longest + position)
            words.append(ids_there + [-1] * (HEAP_WORDS - len(ids_there)))
            blur.append(row.blur)
    words_of = torch.tensor(words, dtype=torch.long).view(-1, HEAP_WORDS)
    return ids, weights, Heaps(torch.tensor(where, dtype=torch.long), words_of, torch.tensor(blur))


def embed(model: LlamaForCausalLM, ids: Tensor, heaps: Heaps, noise: torch.Generator | None = None) -> Tensor:
    """Token embeddings [B, L, D], with the mean of its words' embeddings at each heap.

    Args:
        model: whose embeddings.
        ids: [B, L]
        heaps: of the batch.
        noise: draws the heaps' blur: a vector of each heap's own, and one that all of a row's heaps share; None for no blur.
    """
    table = model.get_input_embeddings()
    embeds = table(ids)
    if len(heaps.where) == 0:
        return embeds
    there = (heaps.words >= 0).unsqueeze(-1).to(embeds.dtype)  # [M, 4, 1]
    held = (table(heaps.words.clamp(min=0)) * there).sum(1) / there.sum(1).clamp(min=1)  # [M, D]
    if noise is not None:
        size = (
            table.weight.detach()[pocket_tokenizer.FIRST_WORD :].square().mean().sqrt()
        )  # of a word embedding, per dimension
        row = heaps.where // ids.shape[1]
        own, shared = (torch.randn(n, embeds.shape[2], generator=noise) for n in (len(held), len(ids)))
        held = held + size * heaps.blur[:, None] * (own + shared[row]) / 2**0.5
    return embeds.flatten(0, 1).index_copy(0, heaps.where, held).view_as(embeds)
