"""Trains the pocket CLIP with open_clip on (rendered scene, caption) pairs, and exports its image tower.

Shapes and words are learnt first, on scenes of one item in groups that differ in its shape or word alone: without that, colours
and places are all that is ever read. Then come whole scenes, in groups that differ by one swap (two colours, two places, a
word, ...), so that telling them apart needs the binding of colour, shape and place. Until the last stage the patches of empty cells
are mostly left out, as in FLIP (Li et al. 2023), which is several times cheaper. Batches are functions of (seed, step): a killed run
resumes exactly.
"""

from __future__ import annotations

import json
import logging
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from playground.pocket.scenes import CELL, COLOURS, GRID, SHAPES, SIZE, WORDS, Scene, caption, render, scenes, split_of
from playground.pocket.torchvision_mend import declare_operators

logger = logging.getLogger("pocket.clip")
CONFIG = Path(__file__).with_name("pocket_clip.json")
PATCH = 8
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass
class ClipSettings:
    """What decides a training run of the CLIP."""

    items: int = 400
    few: int = 300
    steps: int = 1000
    batch: int = 128
    group: int = 4
    lr: float = 1.5e-3
    muon_lr: float = 3e-3
    weight_decay: float = 0.05
    warmup: int = 50
    decay: float = 0.25
    seed: int = 0
    checkpoint_every: int = 100


@dataclass(frozen=True)
class Stage:
    """What scenes are like at a time in training, and how many patches of each are shown (None: all)."""

    objects: tuple[int, int] = (1, 4)
    words: tuple[int, int] = (0, 2)
    patches: int | None = None
    siblings: bool = False


def stage(step: int, settings: ClipSettings) -> Stage:
    """The curriculum: one item, up to three, everything."""
    if step < settings.items:
        return Stage((1, 1), (0, 0), 24, siblings=True) if step % 2 else Stage((0, 0), (1, 1), 24, siblings=True)
    if step < settings.items + settings.few:
        return Stage((1, 2), (0, 1), 64)
    return Stage()


class ShownPatches(nn.Module):
    """Takes the place of open_clip's patch dropout: keeps the class token and chosen patches."""

    def __init__(self) -> None:
        super().__init__()
        self.chosen: Tensor | None = None

    def forward(self, tokens: Tensor) -> Tensor:
        """[N, 1 + P, C] -> [N, 1 + K, C]"""
        if self.chosen is None:
            return tokens
        index = torch.cat([torch.zeros_like(self.chosen[:, :1]), self.chosen + 1], dim=1)
        return tokens.gather(1, index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def shown_patches(batch: list[Scene], count: int, rng: random.Random) -> Tensor:
    """The patches of every cell with something in it, filled up with others at random: [N, count]."""
    side = SIZE // PATCH
    rows = []
    for scene in batch:
        full = {(item.row, item.col) for item in (*scene.objects, *scene.words)}
        inside, outside = [], []
        for patch in range(side * side):
            cell = (patch // side * PATCH // CELL, patch % side * PATCH // CELL)
            (inside if cell in full else outside).append(patch)
        rows.append(inside + rng.sample(outside, count - len(inside)))
    return torch.tensor(rows)


def siblings(scene: Scene, split: str) -> list[Scene]:
    """A scene of one item, with every other shape or eight words in its place."""
    if scene.objects:
        made = [Scene((replace(scene.objects[0], shape=shape),)) for shape in SHAPES]
    else:
        start = WORDS.index(scene.words[0].text)
        texts = [WORDS[(start + 5 * k) % len(WORDS)] for k in range(8)]
        made = [Scene((), (replace(scene.words[0], text=text),)) for text in texts]
    return [other for other in made if split_of(other) == split]


def variant(scene: Scene, rng: random.Random) -> Scene:
    """A scene that differs from this one by as little as possible: a swap, a move, another colour, shape or word."""
    objects, words = list(scene.objects), list(scene.words)
    items = [*objects, *words]
    ways = ["colour", "shape", "move"]
    ways += ["swap_colours", "swap_places"] * 2 if len(objects) > 1 else []
    ways += ["word", "word", "word"] if words else []
    way = rng.choice(ways)
    if way == "word":
        i = rng.randrange(len(words))
        words[i] = replace(words[i], text=rng.choice([w for w in WORDS if w not in {x.text for x in words}]))
    elif way == "swap_places":
        i, j = rng.sample(range(len(objects)), 2)
        a, b = objects[i], objects[j]
        objects[i], objects[j] = replace(a, row=b.row, col=b.col), replace(b, row=a.row, col=a.col)
    elif way == "swap_colours":
        i, j = rng.sample(range(len(objects)), 2)
        a, b = objects[i], objects[j]
        objects[i], objects[j] = replace(a, colour=b.colour), replace(b, colour=a.colour)
    elif way == "move":
        taken = {(item.row, item.col) for item in items}
        free = [(r, c) for r in range(GRID) for c in range(GRID) if (r, c) not in taken]
        row, col = rng.choice(free)
        i = rng.randrange(len(items))
        if i < len(objects):
            objects[i] = replace(objects[i], row=row, col=col)
        else:
            words[i - len(objects)] = replace(words[i - len(objects)], row=row, col=col)
    else:
        i = rng.randrange(len(objects))
        values = [v for v in (COLOURS if way == "colour" else SHAPES) if v != getattr(objects[i], way)]
        objects[i] = replace(objects[i], **{way: rng.choice(values)})
    return Scene(tuple(objects), tuple(words))


def group_of(scene: Scene, split: str, size: int, rng: random.Random) -> list[Scene]:
    """The scene and size - 1 different variants of it, all of its split."""
    made, tries = {scene.key: scene}, 0
    while len(made) < size and tries < 50:
        tries += 1
        other = variant(rng.choice(list(made.values())), rng)
        if split_of(other) == split:
            made.setdefault(other.key, other)
    return list(made.values())


def pixels(images: list) -> Tensor:
    """PIL images of the tower's size as CLIP wants them: [N, 3, S, S], normalised."""
    stacked = torch.from_numpy(np.stack([np.asarray(image) for image in images])).float().div_(255)
    return ((stacked - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 3, 1, 2).contiguous()


def captions(batch: list[Scene], tokenizer: PreTrainedTokenizerFast, rng: random.Random | None, length: int) -> Tensor:
    """Token ids [N, length] of the scenes' captions, ended by </s> and filled with 0."""
    ids = torch.zeros(len(batch), length, dtype=torch.long)
    for i, text in enumerate(tokenizer([caption(scene, rng) for scene in batch])["input_ids"]):
        text = [*text[: length - 1], tokenizer.eos_token_id]
        ids[i, : len(text)] = torch.tensor(text)
    return ids


def batches(
    settings: ClipSettings, tokenizer: PreTrainedTokenizerFast, length: int, start: int, split: str = "train"
) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Yields (pixels, token ids, shown patches or None) of every step from `start`, endlessly."""
    step = start
    while True:
        rng = random.Random(f"clip/{settings.seed}/{split}/{step}")
        now = stage(step, settings) if split == "train" else Stage()
        stream = scenes(split, settings.seed * 1_000_000 + step, objects=now.objects, words=now.words, repeat=0.4)
        chosen: dict[str, Scene] = {}
        while len(chosen) < settings.batch:
            scene = next(stream)
            group = siblings(scene, split) if now.siblings else group_of(scene, split, settings.group, rng)
            for member in group[: settings.batch - len(chosen)]:
                chosen.setdefault(member.key, member)
        batch = list(chosen.values())
        images = pixels([render(scene, rng.randrange(1 << 30)) for scene in batch])
        shown = shown_patches(batch, now.patches, rng) if now.patches else None
        yield images, captions(batch, tokenizer, rng, length), shown
        step += 1


def build_model(seed: int) -> nn.Module:
    """The open_clip model of `pocket_clip.json`."""
    declare_operators()
    import open_clip

    open_clip.factory.add_model_config(CONFIG)
    torch.manual_seed(seed)
    model = open_clip.create_model(CONFIG.stem)
    with torch.no_grad():
        # open_clip draws positions at random and small beside the content, and they stayed unreadable in the patches.
        model.visual.positional_embedding[1:] = position_waves(
            SIZE // PATCH, model.visual.positional_embedding.shape[1]
        )
    model.visual.patch_dropout = ShownPatches()
    return model


def encode_text(model: nn.Module, ids: Tensor) -> Tensor:
    """open_clip's text tower on a batch cut to its longest caption: [N, L] -> [N, E]"""
    ids = ids[:, : int((ids != 0).sum(1).max())]
    length = ids.shape[1]
    hidden = model.token_embedding(ids) + model.positional_embedding[:length]  # [N, L, W]
    hidden = model.ln_final(model.transformer(hidden, attn_mask=model.attn_mask[:length, :length]))
    ends = hidden[torch.arange(len(ids)), (ids == model.text_eos_id).int().argmax(1)]
    return F.normalize(ends @ model.text_projection, dim=-1)


def position_waves(side: int, width: int, scale: float = 0.25) -> Tensor:
    """Sines and cosines of row and column, as first values of learnable position embeddings: [side * side, width]."""
    steps = torch.arange(side).float()
    rates = torch.pi / side * 2.0 ** torch.linspace(0, 3, width // 4)
    waves = torch.cat([(steps[:, None] * rates).sin(), (steps[:, None] * rates).cos()], dim=1)  # [side, width / 2]
    rows, cols = waves[:, None].expand(-1, side, -1), waves[None].expand(side, -1, -1)
    return scale * torch.cat([rows, cols], dim=-1).flatten(0, 1)


def optimisers(model: nn.Module, settings: ClipSettings) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for the rest."""
    inside = [p for name, p in model.named_parameters() if p.ndim == 2 and ".resblocks." in name]
    chosen = {id(p) for p in inside}
    outside = [p for p in model.parameters() if id(p) not in chosen]
    made: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(outside, lr=settings.lr, betas=(0.9, 0.98), weight_decay=0.0),
        torch.optim.Muon(
            inside, lr=settings.muon_lr, weight_decay=settings.weight_decay, adjust_lr_fn="match_rms_adamw"
        ),
    ]
    for optimiser in made:
        for group in optimiser.param_groups:
            group["peak"] = group["lr"]
    return made


@torch.no_grad()
def retrieval(
    model: nn.Module, settings: ClipSettings, tokenizer: PreTrainedTokenizerFast, length: int, n: int = 3
) -> dict[str, float]:
    """In-batch retrieval on validation scenes, hard negatives included: the share of images that find their caption, and back."""
    model.eval()
    to_text, to_image = 0.0, 0.0
    model.visual.patch_dropout.chosen = None
    for _, (images, texts, _) in zip(range(n), batches(settings, tokenizer, length, 0, "validation"), strict=False):
        with torch.autocast("cpu", torch.bfloat16):
            a, b = model.encode_image(images, normalize=True), encode_text(model, texts)
        scores, truth = a.float() @ b.float().T, torch.arange(len(images))
        to_text += (scores.argmax(1) == truth).float().mean().item() / n
        to_image += (scores.argmax(0) == truth).float().mean().item() / n
    model.train()
    return {"image_to_text": round(to_text, 4), "text_to_image": round(to_image, 4)}


def train(settings: ClipSettings, tokenizer: PreTrainedTokenizerFast, work: Path) -> Path:
    """Trains or resumes; returns the path of the finished open_clip checkpoint under `work`."""
    declare_operators()
    from open_clip import ClipLoss

    work.mkdir(parents=True, exist_ok=True)
    length = json.loads(CONFIG.read_text())["text_cfg"]["context_length"]
    model = build_model(settings.seed)
    both, contrast = optimisers(model, settings), ClipLoss()
    checkpoint, log = work / "checkpoint.pt", work / "train_log.jsonl"
    start = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["state_dict"])
        for optimiser, saved in zip(both, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        start = state["step"]
        logger.info("resuming at step %d", start)
    model.train()
    logger.info(
        "%d parameters in the image tower, %s", sum(p.numel() for p in model.visual.parameters()), asdict(settings)
    )
    began, smooth = time.time(), None
    for step, (images, texts, shown) in zip(
        range(start, settings.steps), batches(settings, tokenizer, length, start), strict=False
    ):
        share = min(
            1.0, (step + 1) / settings.warmup, max(0.02, (settings.steps - step) / (settings.steps * settings.decay))
        )
        for optimiser in both:
            for group in optimiser.param_groups:
                group["lr"] = group["peak"] * share
        model.visual.patch_dropout.chosen = shown
        with torch.autocast("cpu", torch.bfloat16):
            a, b = model.encode_image(images, normalize=True), encode_text(model, texts)
        loss = contrast(a.float(), b.float(), model.logit_scale.exp())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in both:
            optimiser.step()
            optimiser.zero_grad()
        with torch.no_grad():
            model.logit_scale.clamp_(0, 4.6052)
        smooth = loss.item() if smooth is None else 0.95 * smooth + 0.05 * loss.item()
        done = step + 1
        if done % 20 == 0:
            spent = (time.time() - began) / (done - start)
            left = spent * (settings.steps - done) / 60
            logger.info("step %d/%d loss %.3f  %.2f s/step, %.0f min left", done, settings.steps, smooth, spent, left)
        if done % settings.checkpoint_every == 0 or done == settings.steps:
            found = retrieval(model, settings, tokenizer, length)
            logger.info("  validation %s", found)
            with log.open("a") as file:
                file.write(json.dumps({"step": done, "loss": round(smooth, 4), **found}) + "\n")
            state = {"state_dict": model.state_dict(), "optimisers": [o.state_dict() for o in both], "step": done}
            torch.save(state, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
    return checkpoint
