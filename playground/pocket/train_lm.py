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
from playground.pocket.drills import drill, judgement_drill
from playground.pocket.encoding import Heaps, collate, embed, encode
from playground.pocket.facts import fact
from playground.pocket.language import (
    ASKED,
    LOOKUPS,
    STEPS,
    SYSTEM,
    Segment,
    document,
    heap,
    tell,
)
from playground.pocket.questions import KINDS, Question, with_options
from playground.pocket.scenes import Scene, scenes

logger = logging.getLogger("pocket.lm")
GATE = 0.95


@dataclass
class LanguageSettings:
    """What decides a training run of the language model."""

    width: int = 160
    layers: int = 6
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
    comparing: int = 300
    judging: int = 300
    skills: int = 200
    steps_apart: int = 300
    mixed: int = 400
    seed: int = 0
    bf16: bool = True
    evaluate_every: int = 100
    begin: str = ""  # a folder with weights to go on from; then every step is of the last phase


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


def batches(
    settings: LanguageSettings, tokenizer: PreTrainedTokenizerFast, start: int
) -> Iterator[tuple[Tensor, Tensor, Heaps]]:
    """Yields the batch of every step from `start`; 8 are drawn together and cut by length, to waste little on padding."""
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
    forms: tuple[int, ...] = (0, 0, 1, 2, 2, 3, 3, 3, 4, 4, 5)
    objects: int = 4
    formal: float = 0.3
    heaped: float = 0.0
    kinds: tuple[str, ...] = ASKED
    lettered: float = 0.25
    restated: float = 0.4


def phase(step: int, settings: LanguageSettings) -> Phase:
    """The curriculum: bare look-up on two pairs, on more, in other phrasings; then small scenes; then everything."""
    names = ("bare", "small", "lookups", "comparing", "judging", "skills", "steps_apart", "mixed")
    lengths = (getattr(settings, name) for name in names)
    ends = [0] * len(names) if settings.begin else list(itertools.accumulate(lengths))
    if step < ends[0]:
        grown = max(0, 2 * step - ends[0]) * 6 // ends[0]  # two pairs for the first half, then up to eight
        return Phase(drills=1.0, pairs=2 + grown, varied=False)
    if step < ends[1]:
        return Phase(drills=0.4, objects=2, formal=0.1, kinds=LOOKUPS, lettered=0.0)
    if step < ends[2]:
        return Phase(drills=0.15, formal=0.1, kinds=LOOKUPS, lettered=0.0)
    if step < ends[3]:
        return Phase(drills=0.8, formal=0.4, kinds=LOOKUPS, lettered=0.0, judged=0.95)
    if step < ends[4]:
        return Phase(drills=0.4, formal=0.4, judged=0.9)
    if step < ends[5]:
        return Phase(drills=0.85, formal=0.5, judged=1.0, forms=(2, 3, 3, 3, 3, 3, 4, 4, 5))
    if step < ends[6]:
        return Phase(drills=0.15, formal=0.25, judged=0.9, objects=3, kinds=STEPS, lettered=0.35, restated=0.1)
    if step < ends[7]:
        return Phase(drills=0.2, formal=0.6, heaped=0.2, judged=0.9)
    return Phase(drills=0.1, formal=0.5, heaped=0.4, judged=0.9, lettered=0.4)


def draw(rng: random.Random, stream: Iterator[Scene], plan: Phase) -> list[Segment]:
    """One document of a phase."""
    if rng.random() >= plan.drills:
        return document(rng, stream, plan.formal, plan.heaped, plan.kinds, plan.lettered, plan.restated)
    if rng.random() < plan.judged:
        return judgement_drill(rng, plan.forms)
    return drill(rng, plan.pairs, plan.varied)


def weighted_loss(
    model: LlamaForCausalLM, ids: Tensor, weights: Tensor, heaps: Heaps, noise: torch.Generator
) -> Tensor:
    """The next-token loss, weighted per token."""
    logits = model(inputs_embeds=embed(model, ids, heaps, noise), use_cache=False).logits[:, :-1].float()  # [B, L-1, V]
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
def gate(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, split: str, per_kind: int, bf16: bool = False
) -> dict[str, float]:
    """Exact-match accuracy by kind. All answer tokens being the arg max under teacher forcing is what greedy decoding gives."""
    model.eval()
    pairs = list(gate_documents(split, per_kind))
    rows = encode([segments for _, segments in pairs], tokenizer)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
    right: dict[str, list[bool]] = {}
    for start in range(0, len(order), 64):
        chosen = order[start : start + 64]
        ids, weights, heaps = collate([rows[i] for i in chosen], tokenizer.pad_token_id)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            best = model(inputs_embeds=embed(model, ids, heaps), use_cache=False).logits[:, :-1].argmax(-1)
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
    decay = settings.weight_decay
    made: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(outside, lr=settings.lr, betas=(0.9, 0.95), weight_decay=0.0),
        torch.optim.Muon(inside, lr=settings.muon_lr, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
    ]
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
    tokenizer = pocket_tokenizer.build()
    model = LlamaForCausalLM.from_pretrained(settings.begin) if settings.begin else build_model(settings, tokenizer)
    model.train()
    both = optimisers(model, settings)
    checkpoint, log = work / "checkpoint.pt", work / "train_log.jsonl"
    start = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        for optimiser, saved, peak in zip(both, state["optimisers"], (settings.lr, settings.muon_lr), strict=True):
            optimiser.load_state_dict(saved)
            for group in optimiser.param_groups:
                group["peak"] = peak
        start = state["step"]
        logger.info("resuming at step %d", start)
    n = sum(p.numel() for p in model.parameters())
    logger.info("%d parameters, %s", n, asdict(settings))
    began, smooth = time.time(), None
    for step, batch in enumerate(batches(settings, tokenizer, start), start):
        if step >= settings.steps:
            break
        noise = torch.Generator().manual_seed(step)
        value, norm = advance(model, both, batch, rate(step, settings), settings.bf16, noise)
        smooth = value if smooth is None else 0.95 * smooth + 0.05 * value
        done = step + 1
        if done % 20 == 0:
            spent = (time.time() - began) / (done - start)
            left = spent * (settings.steps - done) / 60
            counts = (done, settings.steps, smooth, norm, spent, left)
            logger.info("step %d/%d loss %.4f norm %.2f  %.2f s/step, %.0f min left", *counts)
        if done % settings.evaluate_every == 0 or done == settings.steps:
            scores = gate(model, tokenizer, "validation", 25, settings.bf16)
            worst = sorted(scores, key=scores.get)[:6]
            logger.info("  mean %.3f; %s", sum(scores.values()) / len(scores), {k: round(scores[k], 2) for k in worst})
            with log.open("a") as file:
                line = {"step": done, "loss": round(smooth, 4), **{k: round(v, 3) for k, v in scores.items()}}
                file.write(json.dumps(line) + "\n")
            saved = {"model": model.state_dict(), "optimisers": [o.state_dict() for o in both], "step": done}
            torch.save(saved, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
    return model.eval(), tokenizer


def advance(
    model: LlamaForCausalLM,
    both: list[torch.optim.Optimizer],
    batch: tuple[Tensor, Tensor, Heaps],
    share: float,
    bf16: bool,
    noise: torch.Generator,
) -> tuple[float, float]:
    """One step at a share of the peak rate; gives the loss and the gradient's norm."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = weighted_loss(model, *batch, noise)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimiser in both:
        for group in optimiser.param_groups:
            group["lr"] = group["peak"] * share
        optimiser.step()
        optimiser.zero_grad()
    return loss.item(), norm.item()
