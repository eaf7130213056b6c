"""The one layer loop: Llama's decoder with a pruner before chosen layers, and the cache whose layers hold different tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, LlamaModel
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from llava_prumerge.methods.base import DecoderPruner, DecoderShape, DecoderTokens, VisionReducer
from llava_prumerge.model.probe import LayerProbe, gate_logits
from llava_prumerge.ops.layout import TokenLayout


class InitialisesMethods:
    """Gives methods with parameters their start values, also when a checkpoint that lacks them is loaded."""

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, VisionReducer | DecoderPruner) and hasattr(module, "reset_parameters"):
            module.reset_parameters()


class ReducedCache(DynamicCache):
    """A cache that knows, for each stretch of layers that saw the same tokens, which keys are real.

    `get_seq_length()` without a layer counts the tokens the caller passed in, reduced or not: that is what `generate` slices by.

    Attributes:
        stretches: first layer of a stretch -> its key mask [B, keys so far].
        next_position: [B] rotary position of the next token.
        seen: tokens passed in so far.
        reduced, pruned: a reducer has acted on images of these tokens, a pruner has dropped some of them.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.stretches: dict[int, Tensor] = {}
        self.next_position: Tensor | None = None
        self.seen = 0
        self.reduced = self.pruned = False
        self._earlier: dict[int, Tensor] = {}

    def get_seq_length(self, layer_idx: int | None = None) -> int:
        """Tokens passed in, or the keys that one layer holds."""
        return self.seen if layer_idx is None else super().get_seq_length(layer_idx)

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Keys a layer holds before the current queries."""
        return super().get_seq_length(layer_idx)

    def begin_pass(self) -> set[int]:
        """Before new tokens: remember the masks of earlier ones. -> the layers where stretches start"""
        self._earlier = dict(self.stretches)
        return set(self.stretches)

    def extend(self, layer: int, key_mask: Tensor) -> Tensor:
        """Add the mask of new tokens to the stretch that starts at `layer`. -> [B, keys so far and new]

        A stretch that starts here for the first time holds the earlier tokens of the one it is cut from.
        """
        source = max((start for start in self._earlier if start <= layer), default=None)
        earlier = [] if source is None else [self._earlier[source]]
        self.stretches[layer] = torch.cat([*earlier, key_mask], dim=1)
        return self.stretches[layer]

    def _each(self, function: Any) -> None:
        self.stretches = {layer: function(mask) for layer, mask in self.stretches.items()}
        if self.next_position is not None:
            self.next_position = function(self.next_position)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Rows follow their beams."""
        super().reorder_cache(beam_idx)
        self._each(lambda tensor: tensor.index_select(0, beam_idx.to(tensor.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row several times."""
        super().batch_repeat_interleave(repeats)
        self._each(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows."""
        super().batch_select_indices(indices)
        self._each(lambda tensor: tensor[indices])

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.stretches, self._earlier, self.next_position, self.seen = {}, {}, None, 0
        self.reduced = self.pruned = False

    def check_turn(self, method: VisionReducer | DecoderPruner, acted: bool, images: bool) -> None:
        """Refuse a later turn where a fresh run of all turns would keep other tokens.

        Args:
            method: says in `later_turns` what it can go on with.
            acted: it has chosen among the tokens of earlier turns.
            images: the new turn brings some.
        """
        turns = method.later_turns
        if self.stretches and ((turns == "none" and (acted or images)) or (turns == "text" and acted and images)):
            raise ValueError(
                f"{method.name} chose the visual tokens of the earlier turns by what it was asked then, and "
                "would choose others for all turns together: run all of them afresh, without past_key_values"
            )

    def crop(self, tokens_to_remove: int) -> None:
        """Not defined once layers hold different tokens."""
        raise ValueError(
            "a cache of reduced tokens cannot be cropped: assisted decoding is not available with a reduction"
        )


def step_layout(
    embeddings: Tensor,
    pixel_values: Tensor | None,
    attention_mask: Tensor | None,
    cache: Cache | None,
    labels: Tensor | None,
) -> TokenLayout | None:
    """The layout of a decoding step, [B, 1, D] of text behind a cache that knows its position; None for anything else.

    It is what the model's `_layout` would find out in a dozen small calls, each of them paid per token.
    """
    if embeddings.shape[1] != 1 or pixel_values is not None or labels is not None:
        return None
    if not isinstance(cache, ReducedCache) or cache.next_position is None:
        return None
    position = cache.next_position[:, None]  # [B, 1]
    blank = torch.zeros_like(position, dtype=torch.bool)
    key_mask = ~blank if attention_mask is None else attention_mask[:, -1:].bool()
    return TokenLayout(is_image=blank, key_mask=key_mask, position_ids=position, origin=torch.full_like(position, -1))


def decoder_shape(config: Any) -> DecoderShape:
    """The numbers a pruner may need."""
    text = config.text_config
    vision = (config.reduction or {}).get("vision")
    return DecoderShape(
        text.num_hidden_layers,
        text.hidden_size,
        text.num_attention_heads,
        config.image_seq_length,
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


class PrunableLlamaModel(InitialisesMethods, LlamaModel):
    """Llama whose layer loop lets a pruner drop visual tokens before chosen layers. Without one it equals Llama."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.pruner: DecoderPruner | None = None

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        inputs_embeds: Tensor | None = None,
        layout: TokenLayout | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Decode. inputs_embeds [B, L, D] and their layout -> hidden [B, L', D].

        The output also has `layout`, the final one, and `visual` [B, layers], the visual tokens that each layer saw (or
        would have seen in inference, where a pruner in training gates them).
        """
        if layout is None:
            return super().forward(
                inputs_embeds=inputs_embeds, past_key_values=past_key_values, use_cache=use_cache, **kwargs
            )
        kwargs.pop("attention_mask", None), kwargs.pop("position_ids", None)
        hidden, cache = inputs_embeds, past_key_values
        visual = []  # visual tokens of each layer, for the statistics
        mask = rotary = previous = None
        starts = set() if cache is None else cache.begin_pass()
        acts, seen = self._acting_layers(layout, hidden, cache), layout.is_image
        for index, layer in enumerate(self.layers):
            fresh = index == 0 or index in starts
            if index in acts:
                keep = self.pruner(index, self._tokens(index, hidden, layout, previous, rotary, cache))
                if keep is not None:
                    layout, hidden, seen = self._obey(keep, layout, hidden, seen)
                    fresh = True
            if fresh:
                mask = self._mask(index, hidden, layout, cache)
                rotary = self.rotary_emb(hidden, position_ids=layout.position_ids)
            previous = hidden
            visual.append(seen)
            hidden = layer(
                hidden,
                attention_mask=mask,
                position_embeddings=rotary,
                position_ids=layout.position_ids,
                past_key_values=cache,
                use_cache=use_cache,
                **kwargs,
            )
        if acts and cache is not None:
            cache.pruned = True
        output = BaseModelOutputWithPast(last_hidden_state=self.norm(hidden), past_key_values=cache)
        output.layout, output.visual = layout, count_visual(visual)
        return output

    def _acting_layers(self, layout: TokenLayout, hidden: Tensor, cache: Cache | None) -> tuple[int, ...]:
        """A pruner acts at prefill; in training on text-only batches too, so that all ranks run the same modules.

        Raises:
            ValueError: the cache holds earlier turns, and with this pruner the outcome would not be that of a fresh
                run.
        """
        if self.pruner is None or hidden.shape[1] == 1:
            return ()
        images = bool(layout.is_image.any())
        if cache is not None:
            cache.check_turn(self.pruner, cache.pruned, images)
        return self.pruner.layers if images or self.training else ()

    def _tokens(
        self,
        index: int,
        hidden: Tensor,
        layout: TokenLayout,
        previous: Tensor | None,
        rotary: tuple[Tensor, Tensor] | None,
        cache: Cache | None,
    ) -> DecoderTokens:
        """What a pruner sees just before layer `index`; `previous` is the layer before's input, `rotary` its angles."""
        probes: dict[int, LayerProbe] = {}

        def probe(layer: int) -> LayerProbe:
            if layer not in (index, index - 1) or layer < 0:
                raise ValueError(
                    f"before layer {index} one can ask about layers {index - 1} and {index}, not about {layer}"
                )
            if layer not in probes:
                states, held = (hidden, None) if layer == index else (previous, cache)
                probes[layer] = self.probe(layer, states, layout, rotary, held)
            return probes[layer]

        return DecoderTokens(
            hidden,
            layout,
            attention=lambda layer, rows: probe(layer).attention(rows),
            queries=lambda layer: probe(layer).queries(),
            keys=lambda layer: probe(layer).keys,
            mean_query=lambda layer, weight: probe(layer).mean_query(weight),
            normed=lambda: self.norm(hidden),
        )

    def probe(
        self,
        layer: int,
        hidden: Tensor,
        layout: TokenLayout,
        rotary: tuple[Tensor, Tensor] | None = None,
        cache: Cache | None = None,
    ) -> LayerProbe:
        """A layer and its input [B, L, D], to be asked; a cache is that of a pass in which the layer has run."""
        if rotary is None:
            rotary = self.rotary_emb(hidden, position_ids=layout.position_ids)
        held = None if cache is None else cache.layers[layer].keys[:, :, -hidden.shape[1] :]
        return LayerProbe(self.layers[layer], hidden, layout, rotary, held)

    @staticmethod
    def _obey(keep: Tensor, layout: TokenLayout, hidden: Tensor, seen: Tensor) -> tuple[TokenLayout, Tensor, Tensor]:
        """Act on a pruner's answer. -> layout, hidden, and the visual tokens that inference would have from here on"""
        if keep.dtype.is_floating_point:
            return layout.gate(keep), hidden, seen & (keep > 0.5)
        layout, hidden = layout.compact(keep, hidden)
        return layout, hidden, layout.is_image

    def _mask(self, index: int, hidden: Tensor, layout: TokenLayout, cache: Cache | None) -> Tensor | None:
        """The attention mask of this layer and those after it that see the same tokens."""
        keys = layout.key_mask if cache is None else cache.extend(index, layout.key_mask)
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=hidden,
            attention_mask=keys,
            past_key_values=cache,
            position_ids=layout.position_ids,
            layer_idx=index,
            allow_is_causal_skip=layout.key_weight is None,
        )
        if layout.key_weight is None:
            return mask
        if not isinstance(mask, Tensor) or mask.dim() != 4:
            raise ValueError(
                "soft gates on keys need an additive attention mask: take attn_implementation sdpa or eager"
            )
        if mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=hidden.dtype).masked_fill(~mask, torch.finfo(hidden.dtype).min)
        return mask + gate_logits(layout.key_weight).to(hidden.dtype)[:, None, None]
