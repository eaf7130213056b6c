"""The one layer loop of all language models: what a reducer left goes in, and a pruner drops more before chosen layers.

Without a method the stock `forward` runs. With one the same modules run in the same order; what differs is that each stretch
of layers between two drops has its own mask, positions and cached keys.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from llava_prumerge.methods.base import DecoderPruner, DecoderShape, DecoderTokens, VisionReducer
from llava_prumerge.model.errors import ModelError
from llava_prumerge.model.families import family_of, stock_type
from llava_prumerge.model.layer_projections import LayerProjections
from llava_prumerge.model.placement import ForwardPass
from llava_prumerge.model.stretch import FULL, ReducedCache, Stretch, layer_kind, reducing_cache, window_of
from llava_prumerge.ops.layout import TokenLayout

SERVED = ("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma", "gemma2", "gemma3_text")
"""Types of language models whose `forward` has been compared with this loop; a family may have one of its own beside."""


class InitialisesMethods:
    """Gives methods with parameters their start values, also when a checkpoint that lacks them is loaded."""

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, VisionReducer | DecoderPruner) and hasattr(module, "reset_parameters"):
            module.reset_parameters()

    def _initialize_weights(self, module: nn.Module, *custom: bool) -> None:
        """As transformers has it, which takes a module of code that is not its own as started where no weight is directly in it."""
        method = isinstance(module, VisionReducer | DecoderPruner)
        lacks = method and not all(getattr(weight, "_is_hf_initialized", False) for weight in module.parameters())
        super()._initialize_weights(module, *(() if lacks else custom))


def decoder_shape(config: Any) -> DecoderShape:
    """The numbers a pruner may need."""
    text = config.get_text_config()
    vision = (getattr(config, "reduction", None) or {}).get("vision")
    return DecoderShape(
        text.num_hidden_layers,
        text.hidden_size,
        text.num_attention_heads,
        family_of(stock_type(config.model_type)).places(config),
        reduced=vision is not None and vision["name"] != "none",
    )


def count_visual(layers: list[Tensor]) -> Tensor:
    """Visual tokens of each sequence in each layer; neighbours share their mask [B, L]. -> [B, layers]"""
    counts: list[Tensor] = []
    for before, mask in zip([None, *layers], layers, strict=False):
        counts.append(counts[-1] if mask is before else mask.sum(dim=1))
    if all(mask is layers[0] for mask in layers):
        return counts[0][:, None].expand(-1, len(layers))
    return torch.stack(counts, dim=1)


class PrunesLayers(InitialisesMethods):
    """Goes in front of a stock language model: its `forward` serves a `ForwardPass`, and is the stock one without.

    Attributes:
        pruner: the `DecoderPruner`, or None.
    """

    pruner: DecoderPruner | None

    def forward(self, *args: Any, forward_pass: ForwardPass | None = None, **kwargs: Any) -> BaseModelOutputWithPast:
        """The stock `forward`; with a `ForwardPass` that reduces, hidden [B, L', D] of what is left."""
        if forward_pass is not None and forward_pass.touch is not None:
            kwargs["inputs_embeds"] = kwargs["inputs_embeds"] + forward_pass.touch
        if forward_pass is None or not forward_pass.reduces:
            return super().forward(*args, **kwargs)
        return self._decode(*args, forward_pass=forward_pass, **kwargs)

    @merge_with_config_defaults
    @capture_outputs
    def _decode(
        self,
        inputs_embeds: Tensor,
        forward_pass: ForwardPass,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        visual_pos_masks: Tensor | None = None,
        deepstack_visual_embeds: list[Tensor] | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """The loop. Tells the pass its final layout and the visual tokens of each layer."""
        kwargs.pop("input_ids", None)
        if forward_pass.carries_mask:
            attention_mask = forward_pass.attention_mask
        cache = reducing_cache(past_key_values, self.config) if use_cache or past_key_values is not None else None
        stretch, earlier = self._arrive(forward_pass, inputs_embeds, attention_mask, position_ids, cache)
        deep = deepstack_visual_embeds or []
        if deep:
            stretch.rows = torch.where(
                visual_pos_masks, visual_pos_masks.flatten().cumsum(0).view_as(visual_pos_masks) - 1, -1
            )
        stretch.calibration = forward_pass.calibration
        if cache is not None:
            cache.calibration = stretch.calibration = stretch.calibration or cache.calibration
        if forward_pass.source is not None:
            start = None if forward_pass.positions == "original" else _start(earlier.get(0))
            stretch.drop(forward_pass.source >= 0, start)
            if cache is not None:
                cache.reduced = True
        if forward_pass.rewrite is not None:
            stretch.hidden = forward_pass.rewrite(stretch.hidden, stretch.layout)
        acts, renumbers = self._acting_layers(stretch), getattr(self.pruner, "positions", "original") == "renumbered"
        previous, visual = None, []
        for index, layer in enumerate(self.layers[: self.config.num_hidden_layers]):
            stretch.follow()
            keep = self.pruner(index, self._tokens(index, stretch, previous)) if index in acts else None
            if keep is not None:
                held = None if cache is None else cache.before(index, earlier)
                stretch.obey(keep, _start(held) if renumbers else None)
            elif renumbers and index in earlier and index > 0:
                stretch.layout = stretch.layout.renumbered(_start(earlier[index]))
            if keep is not None or index == 0 or index in earlier:
                stretch.begin(index)
            visual.append(stretch.seen)
            previous = stretch.hidden
            stretch.hidden = layer(
                stretch.hidden,
                attention_mask=stretch.mask(index),
                position_embeddings=stretch.angles(index),
                position_ids=None,  # read by FlashAttention alone, which would take gaps for packed sequences
                past_key_values=cache,
                use_cache=use_cache,
                **kwargs,
            )
            if index < len(deep):
                stretch.add(deep[index])
        if acts and cache is not None:
            cache.pruned = True
        forward_pass.layout, forward_pass.visual = stretch.layout, count_visual(visual)
        return BaseModelOutputWithPast(last_hidden_state=self.norm(stretch.hidden), past_key_values=cache)

    def _arrive(
        self,
        forward_pass: ForwardPass,
        hidden: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        cache: ReducedCache | None,
    ) -> tuple[Stretch, dict[int, Tensor]]:
        """The tokens passed in, and the positions at which the stretches of earlier turns go on."""
        if attention_mask is not None and (not isinstance(attention_mask, Tensor) or attention_mask.dim() != 2):
            raise ModelError("with a reduction the attention mask must be [B, L], True or 1 for tokens that are real")
        batch, length = hidden.shape[:2]
        earlier = {} if cache is None else cache.begin_pass(length)
        if length == 1 and earlier and forward_pass.labels is None and forward_pass.is_image is None:
            layout = step_layout(earlier[0], attention_mask)
        else:
            if attention_mask is None:
                key_mask = torch.ones(batch, length, dtype=torch.bool, device=hidden.device)
            else:
                key_mask = attention_mask[:, -length:].bool()  # generate passes the mask of all tokens so far
            layout = forward_pass.begin(key_mask, _start(earlier.get(0)))
        rope = None
        if hasattr(self.rotary_emb, "mrope_section"):  # positions in three parts: time, row, column
            rope = layout.position_ids if position_ids is None else position_ids
            rope = (rope[None] if rope.dim() == 2 else rope[-3:]).expand(3, batch, length)
            if forward_pass.source is not None and position_ids is not None:
                rope = rope.gather(2, forward_pass.source.clamp(min=0).expand_as(rope))
            rope = rope.movedim(0, 2)
        stretch = Stretch(self, layout, hidden, cache, rope, blocks=forward_pass.blocks)
        stretch.blocks_pass_windows = forward_pass.blocks_pass_windows
        return stretch, earlier

    def _acting_layers(self, stretch: Stretch) -> tuple[int, ...]:
        """A pruner acts at prefill; in training on text-only batches too, so that all ranks run the same modules.

        Raises:
            ModelError: the cache holds earlier turns, and with this pruner the outcome would not be that of a fresh
                run.
        """
        if self.pruner is None or stretch.hidden.shape[1] == 1:
            return ()
        images = bool(stretch.layout.is_image.any())
        if stretch.cache is not None:
            stretch.cache.check_turn(self.pruner, stretch.cache.pruned, images)
        return self.pruner.layers if images or self.training else ()

    def _tokens(self, index: int, stretch: Stretch, previous: Tensor | None) -> DecoderTokens:
        """What a pruner sees just before layer `index`; `previous` is the layer before's input."""
        known: dict[int, LayerProjections] = {}

        def ask(layer: int) -> LayerProjections:
            if layer not in (index, index - 1) or layer < 0:
                raise ModelError(
                    f"before layer {index} one can ask about layers {index - 1} and {index}, not about {layer}"
                )
            if layer not in known:
                states, held = (stretch.hidden, None) if layer == index else (previous, stretch.cache)
                asked = self.layer_projections(layer, states, stretch.layout, stretch.angles(layer), held)
                asked.calibration = stretch.calibration
                if stretch.blocks is not None:
                    asked.open_blocks(stretch.blocks.to(asked.device), stretch.blocks_pass_windows)
                known[layer] = asked
            return known[layer]

        here = stretch.hidden.device  # which need not be the asked layer's
        return DecoderTokens(
            stretch.hidden,
            stretch.layout,
            attention=lambda layer, rows: (asked := ask(layer)).attention(rows.to(asked.device)).to(here),
            queries=lambda layer: ask(layer).queries().to(here),
            keys=lambda layer: ask(layer).keys.to(here),
            mean_query=lambda layer, weight: (asked := ask(layer)).mean_query(weight.to(asked.device)).to(here),
            normed=lambda: self.norm(stretch.hidden),
            nearness=lambda layer, rows: (asked := ask(layer)).nearness(rows.to(asked.device)).to(here),
        )

    def layer_projections(
        self,
        layer: int,
        hidden: Tensor,
        layout: TokenLayout,
        rotary: tuple[Tensor, Tensor] | None = None,
        cache: Cache | None = None,
    ) -> LayerProjections:
        """A layer and its input [B, L, D], to be asked; a cache is that of a pass in which the layer has run."""
        if rotary is None:
            rotary = Stretch(self, layout, hidden, None).angles(layer)
        held = None
        if cache is not None and layer_kind(self.config, layer) == FULL:  # a window's layer holds the last keys alone
            held = cache.layers[layer].keys[:, :, -hidden.shape[1] :]
        device = next(self.layers[layer].parameters()).device
        if (
            held is not None and held.device != device
        ):  # an offloading cache has sent them to the host, not yet all, maybe
            if device.type == "cuda":
                torch.cuda.current_stream(device).synchronize()
            held = held.to(device)
        if device.type != "meta" and device != hidden.device:
            hidden, layout, rotary = hidden.to(device), layout.to(device), tuple(part.to(device) for part in rotary)
        return LayerProjections(self.layers[layer], hidden, layout, rotary, held, window_of(self.config, layer))


def _start(following: Tensor | None) -> Tensor | int:
    """Where positions go on: behind those of earlier turns [B], or at zero. -> [B, 1] or 0"""
    return 0 if following is None else following[:, None]


def step_layout(position: Tensor, attention_mask: Tensor | None) -> TokenLayout:
    """The layout of a decoding step: one token of text in each row, at its position [B].

    It is what `ForwardPass.begin` would find out in a dozen small calls, each of them paid per token.
    """
    places = position[:, None]  # [B, 1]
    blank = torch.zeros_like(places, dtype=torch.bool)
    key_mask = ~blank if attention_mask is None else attention_mask[:, -1:].bool()
    return TokenLayout(is_image=blank, key_mask=key_mask, position_ids=places, origin=torch.full_like(places, -1))
