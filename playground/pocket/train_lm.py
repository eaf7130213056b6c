"""Trains the pocket language model on text alone, and measures its gate: every kind of question, on scenes it never saw.

Muon moves the matrices and AdamW the rest: with AdamW alone look-ups emerge several times later. The rate is constant after
a warm-up and falls linearly over the last part. Batches are functions of (seed, step), so a killed run resumes exactly.
"""

from __future__ import annotations

import itertools
import json
import logging
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from playground.pocket import tokenizer as pocket_tokenizer
from playground.pocket.language import (
    CAPTION_PROMPTS,
    SYSTEM,
    Segment,
    corpus,
    document,
    drill,
    heap,
    judgement_drill,
    tell,
)
from playground.pocket.questions import KINDS, Question, fact, with_options
from playground.pocket.scenes import Scene, scenes

logger = logging.getLogger("pocket.lm")
GATE = 0.95


@dataclass
class LanguageSettings:
    """What decides a training run of the language model."""

    width: int = 160
    layers: int = 4
    head_width: int = 32
    intermediate: int = 448
    steps: int = 3000
    batch: int = 64
    lr: float = 3e-3
    muon_lr: float = 6e-3
    weight_decay: float = 0.05
    warmup: int = 60
    decay: float = 0.35
    bare: int = 400
    small: int = 150
    lookups: int = 600
    judging: int = 400
    mixed: int = 400
    seed: int = 0
    bf16: bool = True
    evaluate_every: int = 100


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer, trained on a fixed part of the corpus."""
    return pocket_tokenizer.train([*corpus("train", 0, 4000), *CAPTION_PROMPTS * 5])


def build_model(settings: LanguageSettings, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A small Llama with untied embeddings."""
    torch.manual_seed(settings.seed)
    config = LlamaConfig(
        vocab_size=pocket_tokenizer.VOCABULARY,
        hidden_size=settings.width,
        intermediate_size=settings.intermediate,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.width // settings.head_width,
        num_key_value_heads=settings.width // settings.head_width,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=tokenizer.pad_token_id,
        rms_norm_eps=1e-5,
    )
    return LlamaForCausalLM(config)


@dataclass
class Row:
    """An encoded document: ids, loss weights, and the further words of positions that hold a heap."""

    ids: list[int]
    weights: list[float]
    heaps: dict[int, list[int]]


HEAP_WORDS = 4  # colour, shape and a place of two words


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
            for ids in tokenizer(list(segment.heaps), add_special_tokens=False)["input_ids"]:
                row.heaps[len(row.ids)] = ids
                row.ids.append(ids[0])
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


def collate(rows: list[Row], pad: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Right-padded ids [B, L] and weights [B, L], zero on padding; where heaps are [M] (flat) and their words [M, 4], -1 for none."""
    longest = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), longest), pad)
    weights = torch.zeros(len(rows), longest)
    where, words = [], []
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)] = torch.tensor(row.ids)
        weights[i, : len(row.ids)] = torch.tensor(row.weights)
        for position, ids_there in row.heaps.items():
            where.append(i * longest + position)
            words.append(ids_there + [-1] * (HEAP_WORDS - len(ids_there)))
    return ids, weights, torch.tensor(where, dtype=torch.long), torch.tensor(words, dtype=torch.long).view(-1, HEAP_WORDS)


def batches(settings: LanguageSettings, tokenizer: PreTrainedTokenizerFast, start: int) -> Iterator[tuple[Tensor, ...]]:
    """Yields the batch of every step from `start`; 8 batches are drawn together and cut by length to waste little padding."""
    group = 8
    for block in range(start // group, settings.steps // group + 1):
        rng = random.Random(f"lm/{settings.seed}/{block}")
        step = block * group
        plan = phase(step, settings)
        stream = scenes("train", settings.seed * 100_000 + block, objects=(1, plan.objects), words=(0, 2))
        documents = [draw(rng, stream, plan) for _ in range(settings.batch * group)]
        rows = encode(documents, tokenizer)
        rows.sort(key=lambda row: len(row.ids))
        cuts = [rows[i : i + settings.batch] for i in range(0, len(rows), settings.batch)]
        rng.shuffle(cuts)
        for offset, cut in enumerate(cuts):
            if step + offset >= start:
                yield collate(cut, tokenizer.pad_token_id)


@dataclass(frozen=True)
class Phase:
    """What documents are made of at a time in training."""

    drills: float = 0.0
    pairs: int = 8
    varied: bool = True
    judged: float = 0.0
    objects: int = 4
    formal: float = 0.3
    heaped: float = 0.0
    lookups: bool = False


def phase(step: int, settings: LanguageSettings) -> Phase:
    """The curriculum: bare look-up on two pairs, on more, in other phrasings; then small scenes; then everything."""
    ends = list(itertools.accumulate((settings.bare, settings.small, settings.lookups, settings.judging, settings.mixed)))
    if step < ends[0]:
        grown = max(0, 2 * step - ends[0]) * 6 // ends[0]  # two pairs for the first half, then up to eight
        return Phase(drills=1.0, pairs=2 + grown, varied=False)
    if step < ends[1]:
        return Phase(drills=0.4, objects=2, formal=0.1, lookups=True)
    if step < ends[2]:
        return Phase(drills=0.15, formal=0.1, lookups=True)
    if step < ends[3]:
        return Phase(drills=0.45, formal=0.4, judged=0.8)
    if step < ends[4]:
        return Phase(drills=0.1, formal=0.5, judged=0.6)
    return Phase(drills=0.03, formal=0.65, heaped=0.3, judged=0.6)


def draw(rng: random.Random, stream: Iterator[Scene], plan: Phase) -> list[Segment]:
    """One document of a phase."""
    if rng.random() >= plan.drills:
        return document(rng, stream, plan.formal, plan.heaped, plan.lookups)
    if rng.random() < plan.judged:
        return judgement_drill(rng)
    return drill(rng, plan.pairs, plan.varied)


def embed(model: LlamaForCausalLM, ids: Tensor, where: Tensor, words: Tensor) -> Tensor:
    """Token embeddings [B, L, D], with the mean of its words' embeddings at each heap."""
    table = model.get_input_embeddings()
    embeds = table(ids)
    if len(where) == 0:
        return embeds
    there = (words >= 0).unsqueeze(-1).to(embeds.dtype)  # [M, 4, 1]
    mean = (table(words.clamp(min=0)) * there).sum(1) / there.sum(1)  # [M, D]
    return embeds.flatten(0, 1).index_copy(0, where, mean).view_as(embeds)


def weighted_loss(model: LlamaForCausalLM, ids: Tensor, weights: Tensor, where: Tensor, words: Tensor) -> Tensor:
    """The next-token loss, weighted per token."""
    logits = model(inputs_embeds=embed(model, ids, where, words), use_cache=False).logits[:, :-1].float()  # [B, L-1, V]
    loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    weight = weights[:, 1:].flatten()
    return (loss * weight).sum() / weight.sum()


def gate_documents(split: str, per_kind: int, seed: int = 1) -> Iterator[tuple[str, list[Segment]]]:
    """Yields (kind, one-question conversation) pairs: every kind, lettered options, plain facts."""
    rng = random.Random(f"gate/{split}/{seed}")
    stream = scenes(split, seed)
    for kind in (*KINDS, "letters", "heaped"):
        made = 0
        while made < per_kind:
            scene = next(stream)
            wanted = kind if kind in KINDS else rng.choice(tuple(KINDS))
            asked = KINDS[wanted](scene, rng)
            if asked is None:
                continue
            if kind == "letters":
                asked = with_options(asked, rng, min(4, len(asked.wrong) + 1))
            made += 1
            told = Segment("", 0.0, heap(scene, rng)) if kind == "heaped" else Segment(tell(scene, rng), 0.0)
            yield kind, _one_turn(told, asked)
    for _ in range(per_kind):
        asked = fact(rng)
        lettered = asked.kind == "fact_member" or rng.random() < 0.5
        yield "facts", _one_turn(None, with_options(asked, rng, min(4, len(asked.wrong) + 1)) if lettered else asked)


def _one_turn(told: Segment | None, asked: Question) -> list[Segment]:
    """A conversation of one question, with the loss weight 1 on its answer alone."""
    lead, said = Segment(f"{SYSTEM} USER: ", 0.0), Segment(f" {asked.answer}</s>", 1.0)
    if told is None:
        return [replace(lead, text=f"{lead.text}{asked.prompt} ASSISTANT:"), said]
    return [lead, told, Segment(f"\n{asked.prompt} ASSISTANT:", 0.0), said]


@torch.no_grad()
def gate(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, split: str, per_kind: int, bf16: bool = False) -> dict[str, float]:
    """Exact-match accuracy by kind. All answer tokens being the arg max under teacher forcing is what greedy decoding gives."""
    model.eval()
    pairs = list(gate_documents(split, per_kind))
    rows = encode([segments for _, segments in pairs], tokenizer)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
    right: dict[str, list[bool]] = {}
    for start in range(0, len(order), 64):
        chosen = order[start : start + 64]
        ids, weights, where, words = collate([rows[i] for i in chosen], tokenizer.pad_token_id)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            best = model(inputs_embeds=embed(model, ids, where, words), use_cache=False).logits[:, :-1].argmax(-1)
        good = ((best == ids[:, 1:]) | (weights[:, 1:] == 0)).all(1)
        for i, ok in zip(chosen, good.tolist(), strict=True):
            right.setdefault(pairs[i][0], []).append(ok)
    model.train()
    return {kind: sum(oks) / len(oks) for kind, oks in right.items()}


def optimisers(model: LlamaForCausalLM, settings: LanguageSettings) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for embeddings, head and norms."""
    inside = [p for name, p in model.named_parameters() if p.ndim == 2 and ".layers." in name]
    chosen = {id(p) for p in inside}
    outside = [p for p in model.parameters() if id(p) not in chosen]
    made: list[torch.optim.Optimizer] = [torch.optim.AdamW(outside, lr=settings.lr, betas=(0.9, 0.95), weight_decay=0.0)]
    if settings.muon_lr > 0:
        made.append(torch.optim.Muon(inside, lr=settings.muon_lr, weight_decay=settings.weight_decay, adjust_lr_fn="match_rms_adamw"))
    else:
        made.append(torch.optim.AdamW(inside, lr=settings.lr, betas=(0.9, 0.95), weight_decay=settings.weight_decay))
    for optimiser in made:
        for group in optimiser.param_groups:
            group["peak"] = group["lr"]
    return made


def rate(step: int, settings: LanguageSettings) -> float:
    """Share of the peak rate: a warm-up, a plateau, a linear fall to 2%."""
    fall = settings.steps * settings.decay
    return min(1.0, (step + 1) / settings.warmup, max(0.02, (settings.steps - step) / fall))


def train(settings: LanguageSettings, work: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Trains, or resumes what lies under `work`; returns the model in evaluation mode, and its tokenizer."""
    work.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    model = build_model(settings, tokenizer)
    both = optimisers(model, settings)
    checkpoint, log = work / "checkpoint.pt", work / "train_log.jsonl"
    start = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        for optimiser, saved in zip(both, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        start = state["step"]
        logger.info("resuming at step %d", start)
    n = sum(p.numel() for p in model.parameters())
    logger.info("%d parameters, %s", n, asdict(settings))
    began, smooth = time.time(), None
    for step, batch in enumerate(batches(settings, tokenizer, start), start):
        if step >= settings.steps:
            break
        for optimiser in both:
            for group in optimiser.param_groups:
                group["lr"] = group["peak"] * rate(step, settings)
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.bf16):
            loss = weighted_loss(model, *batch)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in both:
            optimiser.step()
            optimiser.zero_grad()
        value = loss.item()
        smooth = value if smooth is None else 0.95 * smooth + 0.05 * value
        if (step + 1) % 20 == 0:
            spent = (time.time() - began) / (step + 1 - start)
            logger.info(
                "step %d/%d loss %.4f norm %.2f  %.2f s/step, %.0f min left",
                step + 1, settings.steps, smooth, norm, spent, spent * (settings.steps - step - 1) / 60,
            )  # fmt: skip
        if (step + 1) % settings.evaluate_every == 0 or step + 1 == settings.steps:
            scores = gate(model, tokenizer, "validation", 40, settings.bf16)
            worst = sorted(scores, key=scores.get)[:6]
            logger.info("  mean %.3f; %s", sum(scores.values()) / len(scores), {k: round(scores[k], 2) for k in worst})
            with log.open("a") as file:
                line = {"step": step + 1, "loss": round(smooth, 4), **{k: round(v, 3) for k, v in scores.items()}}
                file.write(json.dumps(line) + "\n")
            saved = {"model": model.state_dict(), "optimisers": [o.state_dict() for o in both], "step": step + 1}
            torch.save(saved, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
    return model.eval(), tokenizer
