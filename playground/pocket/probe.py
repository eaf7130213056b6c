"""Measures what the pocket CLIP's patches say: linear probes on the layer the projector sees, and the sparsity of its CLS row."""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPVisionModel

from playground.pocket.scenes import CELL, COLOURS, GRID, SHAPES, SIZE, WORDS, Scene, Word, render, scenes
from playground.pocket.train_clip import pixels

NAMES = {"shape": SHAPES, "colour": tuple(COLOURS), "word": WORDS}
GATES = {"shape": 0.95, "colour": 0.95, "place": 0.95, "word": 0.90}


@torch.no_grad()
def features(tower: CLIPVisionModel, shown: list[Scene], seed: int, layer: int = -2) -> tuple[Tensor, Tensor]:
    """Hidden states [N, P, C] of the patches at a layer, and the CLS row [N, P] of the last block's one-headed attention."""
    rng = random.Random(f"probe/{seed}")
    images = pixels([render(scene, rng.randrange(1 << 30)) for scene in shown])
    found, rows = [], []
    inner = getattr(tower, "vision_model", tower)
    block = inner.encoder.layers[-1]
    for batch in images.split(64):
        hidden = tower(batch, output_hidden_states=True).hidden_states[layer]
        normed = block.layer_norm1(hidden)
        query, keys = block.self_attn.q_proj(normed[:, :1]), block.self_attn.k_proj(normed)
        row = (query @ keys.transpose(1, 2) / hidden.shape[-1] ** 0.5).softmax(-1)[:, 0, 1:]
        found.append(hidden[:, 1:])
        rows.append(row)
    return torch.cat(found), torch.cat(rows)


def outliers(row: Tensor) -> Tensor:
    """How many patches of each image exceed Q3 + 1.5 IQR of its CLS row: [N, P] -> [N]."""
    low, high = torch.quantile(row, 0.25, dim=1, keepdim=True), torch.quantile(row, 0.75, dim=1, keepdim=True)
    return (row > high + 1.5 * (high - low)).sum(1)


def pooled_cells(patches: Tensor, middle: bool) -> Tensor:
    """One vector per cell: the mean of its 4 x 4 patches, or of the 2 x 2 in its middle. [N, P, C] -> [N, 9, C]"""
    n, p, c = patches.shape
    side, per = int(p**0.5), int(p**0.5) * CELL // SIZE
    grid = patches.view(n, GRID, side // GRID, GRID, side // GRID, c).permute(0, 1, 3, 2, 4, 5)  # [N, 3, 3, 4, 4, C]
    if middle:
        grid = grid[:, :, :, per // 2 - 1 : per // 2 + 1, per // 2 - 1 : per // 2 + 1]
    return grid.flatten(3, 4).mean(3).flatten(1, 2)  # [N, 9, C]


def labelled(shown: list[Scene], cells: Tensor, what: str) -> tuple[Tensor, Tensor]:
    """The vectors of the cells that hold something of the wanted sort, and its class: ([M, C], [M])."""
    vectors, classes = [], []
    for scene, nine in zip(shown, cells, strict=True):
        for row in range(GRID):
            for col in range(GRID):
                item = scene.at(row, col)
                if what == "place":
                    vectors.append(nine[row * GRID + col])
                    classes.append(row * GRID + col)
                elif item is not None and isinstance(item, Word) == (what == "word"):
                    vectors.append(nine[row * GRID + col])
                    classes.append(NAMES[what].index(item.text if isinstance(item, Word) else getattr(item, what)))
    return torch.stack(vectors), torch.tensor(classes)


def linear_probe(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], classes: int, steps: int = 300) -> float:
    """Test accuracy of multinomial logistic regression on standardised vectors."""
    torch.manual_seed(0)
    mean, std = train[0].mean(0), train[0].std(0) + 1e-6
    x, held = (train[0] - mean) / std, (test[0] - mean) / std
    layer = torch.nn.Linear(x.shape[1], classes)
    optimiser = torch.optim.AdamW(layer.parameters(), lr=0.03, weight_decay=0.01)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = 0.03 * (1 - step / steps)
        pick = torch.randint(len(x), (1024,))
        loss = F.cross_entropy(layer(x[pick]), train[1][pick])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return (layer(held).argmax(1) == test[1]).float().mean().item()


def measure(tower: CLIPVisionModel, n_train: int = 1500, n_test: int = 400, layer: int = -2) -> dict[str, float]:
    """Every number of the CLIP's gate but retrieval."""
    tower.eval()
    sets = [
        list(scenes("train", 77, n_train, objects=(2, 4), words=(1, 2))),
        list(scenes("test", 78, n_test, objects=(2, 4), words=(1, 2))),
    ]
    (train, _), (test, row) = (features(tower, shown, seed, layer) for seed, shown in enumerate(sets))
    made: dict[str, float] = {}
    for what, classes in (("shape", len(SHAPES)), ("colour", len(COLOURS)), ("place", GRID**2), ("word", len(WORDS))):
        for form, middle in (("cell", False), ("middle", True)):
            pair = [
                labelled(shown, pooled_cells(x, middle), what) for shown, x in zip(sets, (train, test), strict=True)
            ]
            made[f"{what}_{form}"] = round(linear_probe(*pair, classes), 4)
    count = outliers(row).float()
    made |= {"outliers_mean": round(count.mean().item(), 2), "outliers_min": count.min().item()}
    made |= {"outliers_max": count.max().item(), "largest_weight": round(row.max(1).values.mean().item(), 4)}
    return made
