"""The parts of a model as actions to time: tower, reducer, projector, prefill, decoding, and all of it in `generate`.

Every part gets what it would get from the one before it, made once. Decoding goes on from one and the same prefill each
time: caches grow by concatenation, so what a fork of a cache adds leaves the original as it was.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llava_prumerge.efficiency.errors import EfficiencyError
from llava_prumerge.efficiency.shapes import ModelShape
from llava_prumerge.methods.base import VisionReducer, VisionTokens
from llava_prumerge.profiling.random_model import ShapedKeys, find_logits, random_model, shape_attention, stock_twin
from llava_prumerge.profiling.timing import Action

STOCK, ALL = "stock", "all tokens"
"""Two systems without a reduction: transformers' Llava, and ours."""


@dataclass(frozen=True)
class Workload:
    """What is asked of a model at once: one cell of the matrix.

    Attributes:
        batch: sequences, an image in each.
        prompt, answer: tokens of text before and after.
        dtype, attn: of the whole model.
    """

    batch: int = 1
    prompt: int = 40
    answer: int = 16
    dtype: str = "float32"
    attn: str = "sdpa"


@dataclass(frozen=True)
class System:
    """A way to run the model.

    Attributes:
        name: of it.
        tokens: visual tokens of each image.
        reducer: None for all tokens.
        logits: class attention with which an adaptive reducer leaves these tokens, [1 + P]; None for no reducer.
    """

    name: str
    tokens: int
    reducer: VisionReducer | None = None
    logits: Tensor | None = None


def make_systems(methods: Sequence[tuple[Mapping[str, Any], int | None]], side: int) -> list[System]:
    """All tokens, and each (block, tokens or None) asked for, whose class attention is found here.

    Raises:
        EfficiencyError: a method cannot leave that many tokens, or two would have one name.
    """
    found = [System(ALL, side * side)]
    for block, tokens in methods:
        reducer, logits, kept = find_logits(block, tokens, side)
        found.append(System(f"{reducer.name} {kept}", kept, reducer, logits))
    names = [system.name for system in found]
    if twice := {name for name in names if names.count(name) > 1}:
        raise EfficiencyError(f"{', '.join(sorted(twice))}: named twice, so that the results could not be told apart")
    return found


def fork(cache: Any) -> Any:
    """A cache that starts as this one is and grows on its own; no key or value is copied."""
    twin = copy.copy(cache)
    for name, value in vars(cache).items():
        if isinstance(value, dict | list):
            setattr(twin, name, copy.copy(value))
    twin.layers = [copy.copy(layer) for layer in cache.layers]
    return twin


class Subject:
    """A random model with its stock twin on a device, and the actions that time it.

    Args:
        shape: of the model.
        dtype: of all its weights.
        attn: attention implementation.
        device: where it is.
    """

    def __init__(self, shape: ModelShape, dtype: torch.dtype, attn: str, device: torch.device) -> None:
        self.shape, self.dtype, self.device = shape, dtype, device
        self.model: nn.Module = random_model(shape, dtype, device, attn)
        self.keys: ShapedKeys = shape_attention(self.model)
        self.stock: nn.Module = stock_twin(self.model, shape, attn)
        self.generator = torch.Generator().manual_seed(0)

    def draw(self, *sizes: int) -> Tensor:
        """Normal numbers of the model's type."""
        return torch.randn(*sizes, generator=self.generator).to(self.device, self.dtype)

    def adopt(self, system: System) -> nn.Module:
        """The model made to run as a system."""
        if system.name == STOCK:
            return self.stock
        self.model.model.use(system.reducer)
        self.keys.logits = None if system.logits is None else system.logits.to(self.device, self.dtype)
        return self.model

    def actions(self, setting: Workload, systems: Sequence[System]) -> dict[str, Action]:
        """Every part of every system by "part|system"; parts that depend on the number of tokens alone come once."""
        pixels = self.draw(setting.batch, 3, self.shape.vision.image, self.shape.vision.image)
        tower = self.model.model.encode_images(pixels)
        found = {f"tower|{ALL}": Action(lambda _: self.model.model.encode_images(pixels))}
        found[f"tower|{STOCK}"] = Action(
            lambda _: self.model.model.vision_tower(pixel_values=pixels, output_hidden_states=True)
        )
        seen: set[int] = set()
        stock = System(STOCK, self.shape.vision.patches)
        for system in systems:
            if system.reducer is not None:
                if system.reducer.earlier:  # the tower keeps what it asks about
                    tower = self.adopt(system).model.encode_images(pixels)
                found[f"reducer|{system.name}"] = self._reduction(system, tower, setting)
            if system.tokens not in seen:
                seen.add(system.tokens)
                found |= self._by_tokens(system, setting)
        for system in (stock, *systems):
            found[f"end to end|{system.name}"] = self.generation(system, setting, pixels)
        return found

    def _reduction(self, system: System, tower: Any, setting: Workload) -> Action:
        prompt = self.draw(setting.batch, setting.prompt, self.shape.language.hidden)
        given = prompt, torch.ones(prompt.shape[:2], dtype=torch.bool, device=self.device)
        features, projected = tower.features, None
        if system.reducer.site == "projected" or system.reducer.reads_projected:
            projected = self.model.model.project(features)
        seen = projected if system.reducer.site == "projected" else features
        ids = torch.arange(setting.batch, device=self.device)

        def fresh() -> VisionTokens:
            self.adopt(system)
            return VisionTokens(
                seen,
                tower.grid,
                tower.projections,
                tower.heads,
                lambda: given,
                ids,
                unprojected=features,
                projected=projected,
            )

        return Action(lambda tokens: system.reducer(tokens), fresh)

    def _by_tokens(self, system: System, setting: Workload) -> dict[str, Action]:
        """Projector, prefill and decoding at a system's number of visual tokens; prefill and decoding of the stock model too."""
        batch, tokens = setting.batch, system.tokens
        features = self.draw(batch, tokens, self.shape.vision.width)
        embeddings = self.draw(batch, tokens + setting.prompt, self.shape.language.hidden)
        found = {f"projector|{system.name}": Action(lambda _: self.model.model.project(features))}
        for model, label in ((self.model, system.name), (self.stock, f"{STOCK}, {system.name}")):
            found[f"prefill|{label}"] = Action(lambda _, model=model: _prefill(model, embeddings))
            found[f"decode|{label}"] = self._decoding(model, embeddings, setting.answer)
        return found

    def _decoding(self, model: nn.Module, embeddings: Tensor, answer: int) -> Action:
        cache = _prefill(model, embeddings).past_key_values
        batch, length = embeddings.shape[:2]
        token = torch.ones(batch, 1, dtype=torch.long, device=self.device)
        mask = torch.ones(batch, length + answer, dtype=torch.long, device=self.device)

        def decode(held: Any) -> None:
            for written in range(1, answer + 1):
                seen = mask[:, : length + written]
                model(input_ids=token, attention_mask=seen, past_key_values=held, use_cache=True, logits_to_keep=1)

        return Action(decode, lambda: fork(cache), answer)

    def generation(self, system: System, setting: Workload, pixels: Tensor) -> Action:
        """The whole way from pixels to the answer's last token."""
        placeholder = self.model.config.image_token_id
        text = torch.randint(1, placeholder, (setting.batch, setting.prompt), generator=self.generator)
        images = torch.full((setting.batch, self.shape.vision.patches), placeholder)
        ids = torch.cat([text[:, :1], images, text[:, 1:]], dim=1).to(self.device)
        mask = torch.ones_like(ids)

        def generate(model: nn.Module) -> None:
            model.generate(
                input_ids=ids,
                attention_mask=mask,
                pixel_values=pixels,
                max_new_tokens=setting.answer,
                do_sample=False,
                use_cache=True,
            )

        return Action(generate, lambda: self.adopt(system))


def _prefill(model: nn.Module, embeddings: Tensor) -> Any:
    return model(inputs_embeds=embeddings, use_cache=True, logits_to_keep=1)
