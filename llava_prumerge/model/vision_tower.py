"""Vision towers up to the layer whose features are used, and the attention of the block that would come next.

`hidden_states[-2]` is the input of the last block: its queries and keys are one projection away, so that block is never run, no hook
is needed and any attention backend serves. The same goes for the block before, whose input is kept until its features
are read. Where the features come from the last block there is no next one: then it is the block that made them.
Towers that are more than a list of blocks run whole, and what their blocks were given is caught.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llava_prumerge.methods.base import Earlier, VisionReducer
from llava_prumerge.model.errors import ModelError
from llava_prumerge.model.placement import Tiles
from llava_prumerge.model.tower_cut import cut_blocks

Asked = str | Earlier
"""A block: "own", "next" or one before."""
States = Mapping[Asked, Tensor]
"""Inputs of blocks, [N, S, C] each."""


@dataclass(frozen=True)
class TowerSpec:
    """Where a type of tower keeps what is asked of it; paths are within the tower.

    Attributes:
        blocks: the list of blocks.
        norm, attention: of a block: the norm before its attention, and the attention.
        prefix: tokens before the patches (a class token first), from the tower's configuration.
        class_token: the first of these is a class token, whose row is the score; without one it is the mean over patches.
        plain: the blocks take nothing but states, so that a loop over them is the tower.
        bare: its parts are told nothing beside pixels and states.
        heads: name of their number in the configuration.
        ahead: what a block does to its input [N, S, C] before that norm.
    """

    blocks: str = "encoder.layers"
    norm: str = "layer_norm1"
    attention: str = "self_attn"
    prefix: Callable[[Any], int] = lambda config: 0
    class_token: bool = False
    plain: bool = False
    bare: bool = False
    heads: str = "num_attention_heads"
    ahead: Callable[[nn.Module, Tensor], Tensor] = lambda block, states: states


def _one(config: Any) -> int:
    return 1


def _dino(prefix: Callable[[Any], int]) -> TowerSpec:
    return TowerSpec("encoder.layer", "norm1", "attention", prefix, True, plain=True, bare=True)


TOWERS = {
    "clip_vision_model": TowerSpec(prefix=_one, class_token=True, plain=True),
    "siglip_vision_model": TowerSpec(plain=True),
    "siglip2_vision_model": TowerSpec(),
    "dinov2": _dino(_one),
    "dinov2_with_registers": _dino(lambda config: 1 + config.num_register_tokens),
    "pixtral": TowerSpec("transformer.layers", "attention_norm", "attention"),
}
"""By transformers' type; a family whose tower is its own enters it with `register_tower`."""


def register_tower(model_type: str, spec: TowerSpec) -> None:
    """Enter a type of tower."""
    TOWERS[model_type] = spec


def tower_spec(tower: nn.Module) -> TowerSpec:
    """What is known of a tower.

    Raises:
        ModelError: nothing is.
    """
    kind = tower.config.model_type
    if kind not in TOWERS:
        raise ModelError(f"vision towers of type {kind!r} are not served; there are: {', '.join(sorted(TOWERS))}")
    return TOWERS[kind]


def prefix_tokens(tower: nn.Module) -> int:
    """Tokens before the patches."""
    return tower_spec(tower).prefix(tower.config)


def has_class_token(tower: nn.Module) -> bool:
    """Whether the first token is a class token (CLIP) or a patch (SigLIP)."""
    return tower_spec(tower).class_token


def resize(pixel_values: Tensor, size: tuple[int, int]) -> Tensor:
    """Bicubic, antialiased; nothing happens at the same size. [N, 3, h, w] -> [N, 3, *size]"""
    if tuple(pixel_values.shape[-2:]) == tuple(size):
        return pixel_values
    return F.interpolate(pixel_values.float(), size=size, mode="bicubic", antialias=True).to(pixel_values.dtype)


def image_ids(pixel_values: Tensor) -> Tensor:
    """A number for each image made from its pixels: the same in every batch and on every rank. [N, ...] -> [N] int64"""
    levels = (
        (pixel_values.float() * 64).round().long().flatten(1)
    )  # coarse: the same under any floating-point precision
    weights = torch.arange(1, levels.shape[1] + 1, device=levels.device) * 2654435761 % 2147483647
    return (levels * weights).sum(dim=1)


def depth_of(tower: nn.Module, feature_layer: int) -> int:
    """How many blocks make the hidden state of an index, as in LLaVA's configuration.

    Raises:
        ModelError: there is no such hidden state.
    """
    blocks = len(blocks_of(tower))
    depth = feature_layer if feature_layer >= 0 else blocks + 1 + feature_layer
    if not 0 <= depth <= blocks:
        raise ModelError(f"vision_feature_layer {feature_layer} is not there in a tower of {blocks} blocks")
    return depth


def blocks_of(tower: nn.Module) -> nn.ModuleList:
    """The blocks of a tower, in their order."""
    return inner_tower(tower).get_submodule(tower_spec(tower).blocks)


def inner_tower(tower: nn.Module) -> nn.Module:
    """Some transformers towers keep their parts one level down."""
    return getattr(tower, "vision_model", tower)


def prepare(tower: nn.Module, reducer: VisionReducer | None) -> None:
    """Let a tower's passes keep the inputs of blocks that `projections` will be asked about, and be cut by a reducer."""
    tower.kept_blocks = () if reducer is None else tuple(reducer.earlier)
    cutters: Any = (
        () if reducer is None or not reducer.cuts else (reducer,)
    )  # bare, it would become a part of the tower
    tower.cutters = cutters


def kept_blocks(tower: nn.Module, depth: int) -> dict[Earlier, int]:
    """The blocks below features of that depth that are kept, and their numbers."""
    return {earlier: earlier.index(depth - 1) for earlier in getattr(tower, "kept_blocks", ()) if depth}


def encode(
    tower: nn.Module,
    pixel_values: Tensor,
    feature_layer: int = -2,
    units: Tensor | None = None,
    last: bool = False,
    **more: Any,
) -> Tiles:
    """Tiles of one size.

    Args:
        tower: one of TOWERS that takes such pixels.
        pixel_values: [N, 3, h, w], sides multiples of the patch size; other than the trained size interpolates the positions.
        feature_layer: index into the tower's hidden states, as in LLaVA's configuration.
        units: [U, F] the patches that make a unit, side by side in its features; None: each is one.
        last: features are the tower's `last_hidden_state`, behind its final norm, in place of a hidden state.
        **more: that the tower takes, where it runs whole.

    Raises:
        ModelError: there is no such hidden state, or the sides do not fit.
    """
    spec, prefix, depth = tower_spec(tower), prefix_tokens(tower), depth_of(tower, feature_layer)
    grid = patch_grid(tower, pixel_values)
    trains = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in tower.parameters())
    with torch.set_grad_enabled(trains):
        left = None
        if spec.plain and not last and (cutters := getattr(tower, "cutters", ())) and depth:
            blocks = blocks_of(tower)[:depth]
            begun, heads = _run_blocks(tower, pixel_values, 0)["next"], getattr(tower.config, spec.heads)
            hidden, before, left = cut_blocks(blocks, begun, heads, *cutters, spec.attention)
            states: States = {"own": before, "next": hidden}
        elif spec.plain and not last:
            states = _read_states(tower, pixel_values, depth) or _run_blocks(tower, pixel_values, depth)
            hidden = states["next"]
        else:
            hidden, states = _run_whole(tower, pixel_values, depth, last, more)
    patches = hidden[:, prefix:]
    if units is not None:
        fold = int(units.shape[1] ** 0.5)
        patches, grid = patches[:, units].flatten(2), (grid[0] // fold, grid[1] // fold)
    ask = make_projections(tower, states, depth, trains, units=units)
    ahead = hidden[:, :prefix] if prefix else None
    return Tiles(patches, grid, ask, getattr(tower.config, spec.heads), ahead, spec.class_token, left)


def patch_grid(tower: nn.Module, pixel_values: Tensor) -> tuple[int, int]:
    """Rows and columns of patches."""
    size = tower.config.patch_size
    rows, columns = (size, size) if isinstance(size, int) else size
    height, width = pixel_values.shape[-2:]
    if height % rows or width % columns:
        patch = rows if rows == columns else f"{rows} x {columns}"
        raise ModelError(f"image sides {height} x {width} are not multiples of the patch size {patch}")
    return height // rows, width // columns


def _read_states(tower: nn.Module, pixel_values: Tensor, depth: int) -> States | None:
    """What a cache on disk holds of these images, or will (`model/tower_cache.py`); None where there is none to ask."""
    cache = getattr(tower, "cache", None)
    if cache is None or tower.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return None
    numbers = {"own": max(depth - 1, 0), "next": depth, **kept_blocks(tower, depth)}
    return cache.states(tower, pixel_values, numbers, lambda images: _run_blocks(tower, images, depth))


def _run_blocks(tower: nn.Module, pixel_values: Tensor, depth: int) -> States:
    """Embeddings and just the blocks below the wanted hidden state, which is the input of the "next"."""
    inner, config, bare = inner_tower(tower), tower.config, tower_spec(tower).bare
    interpolate = tuple(pixel_values.shape[-2:]) != (config.image_size, config.image_size)
    told = {} if bare else {"interpolate_pos_encoding": interpolate}
    hidden = inner.embeddings(pixel_values.to(dtype=tower.dtype), **told)
    if hasattr(inner, "pre_layrnorm"):
        hidden = inner.pre_layrnorm(hidden)
    inputs, wanted = [], kept_blocks(tower, depth)
    for number, block in enumerate(blocks_of(tower)[:depth]):
        inputs.append(hidden if number == depth - 1 or number in wanted.values() else None)
        hidden = block(hidden) if bare else block(hidden, attention_mask=None)  # [N, S, C]
    below = {earlier: inputs[number] for earlier, number in wanted.items()}
    return {"own": inputs[-1] if inputs else hidden, "next": hidden, **below}


def _run_whole(
    tower: nn.Module, pixel_values: Tensor, depth: int, last: bool, more: dict[str, Any]
) -> tuple[Tensor, States]:
    """The tower's own forward pass, its blocks' inputs caught."""
    with caught_inputs(tower, depth) as caught:
        output = tower(pixel_values, output_hidden_states=True, return_dict=True, **more)
    hidden = output.last_hidden_state if last else output.hidden_states[depth]
    return hidden, {which: given[0] for which, given in caught.items()}


@contextmanager
def caught_inputs(tower: nn.Module, depth: int) -> Iterator[dict[Asked, tuple[Tensor, dict[str, Any]]]]:
    """States and keyword arguments given to the block below ("own") and above ("next") a hidden state during a pass.

    Those of earlier blocks, which `prepare` asked for, too.
    """
    caught: dict[Asked, tuple[Tensor, dict[str, Any]]] = {}
    blocks, handles = blocks_of(tower), []
    for which, at in (*kept_blocks(tower, depth).items(), ("own", depth - 1), ("next", depth)):
        if 0 <= at < len(blocks):

            def keep(_: nn.Module, args: tuple, kwargs: dict[str, Any], which: Asked = which) -> None:
                caught[which] = (args[0] if args else kwargs["hidden_states"], kwargs)

            handles.append(blocks[at].register_forward_pre_hook(keep, with_kwargs=True))
    try:
        yield caught
    finally:
        for handle in handles:
            handle.remove()


def make_projections(
    tower: nn.Module,
    states: States,
    depth: int,
    trains: bool,
    rotary: tuple[Tensor, Tensor] | None = None,
    units: Tensor | None = None,
) -> Callable[..., tuple[Tensor, Tensor]]:
    """The projections of `Tiles`; each block is asked once, for all tiles: under ZeRO-3 ranks must make the same calls.

    Args:
        tower: the tower.
        states: inputs of the blocks, [N, S, C].
        depth: of the features.
        trains: the tower takes part in training.
        rotary: cosines and sines [S, R] of the patches, where the tower turns queries and keys.
        units: [U, F] patches of each unit, whose queries and keys are averaged.
    """
    spec, prefix, blocks = tower_spec(tower), prefix_tokens(tower), blocks_of(tower)
    asked: dict[Asked, tuple[Tensor, Tensor]] = {}
    below = kept_blocks(tower, depth)

    def pooled(projected: Tensor) -> Tensor:
        return projected[:, prefix:] if units is None else projected[:, prefix:][:, units].mean(dim=2)

    def ask(which: Asked) -> tuple[Tensor, Tensor]:
        block = blocks[below[which] if isinstance(which, Earlier) else depth - 1 if which == "own" else depth]
        attention = block.get_submodule(spec.attention)
        with torch.set_grad_enabled(trains):
            normed = getattr(block, spec.norm)(spec.ahead(block, states[which]))
            bare = rotary is None and not hasattr(attention, "qkv") and getattr(attention, "q_norm", None) is None
            if spec.class_token and bare:  # one row is all that is looked at
                query, key = _query_and_key(attention)
                queries, keys = query(normed[:, :1]), key(normed)
            else:
                queries, keys = query_key(attention, normed, rotary)
            looks = queries[:, :1] if spec.class_token else pooled(queries)
            return looks, torch.cat([keys[:, :prefix], pooled(keys)], dim=1) if prefix else pooled(keys)

    def projections(own: bool | Earlier = False) -> tuple[Tensor, Tensor]:
        if own and depth == 0:
            raise ModelError("vision_feature_layer 0 takes the embeddings: no block made them")
        which: Asked = "own" if own or depth == len(blocks) else "next"
        if isinstance(own, Earlier):
            if own not in states:
                raise ModelError(f"the tower kept no inputs of the block at {own.part} of its way: see `prepare`")
            which = own
        if which not in asked:
            asked[which] = ask(which)
        return asked[which]

    return projections


def _query_and_key(attention: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The two projections; DINOv2's of transformers 5.17 lie one module deeper, under other names."""
    if hasattr(attention, "q_proj"):
        return attention.q_proj, attention.k_proj
    inner = attention.get_submodule("attention")
    return inner.get_submodule("query"), inner.get_submodule("key")


def query_key(attention: nn.Module, normed: Tensor, rotary: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
    """A block's queries and keys [..., S, C] as its attention uses them, whatever its projections are called."""
    if hasattr(attention, "qkv"):
        queries, keys, _ = attention.qkv(normed).chunk(3, dim=-1)
    else:
        query, key = _query_and_key(attention)
        queries, keys = query(normed), key(normed)
    if getattr(attention, "q_norm", None) is not None:
        queries, keys = attention.q_norm(queries), attention.k_norm(keys)
    if rotary is None:
        return queries, keys
    cos, sin = (part.float()[:, None] for part in rotary)  # [S, 1, C/H]
    half = cos.shape[-1] // 2

    def turned(states: Tensor) -> Tensor:
        heads = states.unflatten(-1, (-1, cos.shape[-1])).float()
        crossed = torch.cat([-heads[..., half:], heads[..., :half]], dim=-1)
        return (heads * cos + crossed * sin).flatten(-2).to(states.dtype)

    return turned(queries), turned(keys)
