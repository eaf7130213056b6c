"""The one layer loop: Llama's decoder with a pruner before chosen layers, and the cache whose layers hold different tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, LlamaModel
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, repeat_kv
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from llava_prumerge.methods.base import DecoderPruner, DecoderTokens, VisionReducer
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
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.stretches: dict[int, Tensor] = {}
        self.next_position: Tensor | None = None
        self.seen = 0

    def get_seq_length(self, layer_idx: int | None = None) -> int:
        """Tokens passed in, or the keys that one layer holds."""
        return self.seen if layer_idx is None else super().get_seq_length(layer_idx)

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Keys a layer holds before the current queries."""
        return super().get_seq_length(layer_idx)

    def extend(self, layer: int, key_mask: Tensor) -> Tensor:
        """Add the mask of new tokens to the stretch that starts at `layer`. -> [B, keys so far and new]"""
        before = self.stretches.get(layer)
        self.stretches[layer] = key_mask if before is None else torch.cat([before, key_mask], dim=1)
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
        self.stretches, self.next_position, self.seen = {}, None, 0

    def crop(self, tokens_to_remove: int) -> None:
        """Not defined once layers hold different tokens."""
        raise ValueError(
            "a cache of reduced tokens cannot be cropped: assisted decoding is not available with a reduction"
        )


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
        """Decode. inputs_embeds [B, L, D] and their layout -> hidden [B, L', D]; the final layout is on the output as `layout`."""
        if layout is None:
            return super().forward(
                inputs_embeds=inputs_embeds, past_key_values=past_key_values, use_cache=use_cache, **kwargs
            )
        kwargs.pop("attention_mask", None), kwargs.pop("position_ids", None)
        hidden, prefill = inputs_embeds, inputs_embeds.shape[1] > 1
        cache = past_key_values
        visual = []  # visual tokens of each layer, for the statistics
        mask = rotary = previous = None
        starts = set() if cache is None else set(cache.stretches)
        acts = self._acting_layers(layout, prefill)
        for index, layer in enumerate(self.layers):
            fresh = index == 0 or index in starts
            if index in acts:
                layout, hidden = self._prune(index, hidden, layout, previous)
                fresh = True
            if fresh:
                mask = self._mask(index, hidden, layout, cache)
                rotary = self.rotary_emb(hidden, position_ids=layout.position_ids)
            previous = hidden
            visual.append(layout.is_image)
            hidden = layer(
                hidden,
                attention_mask=mask,
                position_embeddings=rotary,
                position_ids=layout.position_ids,
                past_key_values=cache,
                use_cache=use_cache,
                **kwargs,
            )
        output = BaseModelOutputWithPast(last_hidden_state=self.norm(hidden), past_key_values=cache)
        output.layout, output.visual = layout, visual
        return output

    def _acting_layers(self, layout: TokenLayout, prefill: bool) -> tuple[int, ...]:
        """A pruner acts at prefill; in training on text-only batches too, so that all ranks run the same modules."""
        if self.pruner is None or not prefill or not (self.training or bool(layout.is_image.any())):
            return ()
        return self.pruner.layers

    def _prune(
        self, index: int, hidden: Tensor, layout: TokenLayout, previous: Tensor | None
    ) -> tuple[TokenLayout, Tensor]:
        """Ask the pruner and act on its answer."""

        def attention(layer: int, rows: Tensor) -> Tensor:
            if layer == index:
                return self.attention_rows(layer, hidden, layout, rows)
            if layer == index - 1 and previous is not None:
                return self.attention_rows(layer, previous, layout, rows)
            raise ValueError(
                f"before layer {index} attention of layers {index - 1} and {index} can be asked for, not of {layer}"
            )

        keep = self.pruner(index, DecoderTokens(hidden, layout, attention))
        if keep.dtype.is_floating_point:
            return layout.gate(keep), hidden
        return layout.compact(keep, hidden)

    def attention_rows(self, layer: int, hidden: Tensor, layout: TokenLayout, rows: Tensor) -> Tensor:
        """Softmax attention of the query rows [B, R] of a layer given its input. -> [B, H, R, L]"""
        block = self.layers[layer]
        attention = block.self_attn
        normed = block.input_layernorm(hidden)
        batch, length, width = normed.shape
        picked = normed.gather(1, rows[..., None].expand(-1, -1, width))  # [B, R, D]
        queries = attention.q_proj(picked).view(batch, rows.shape[1], -1, attention.head_dim).transpose(1, 2)
        keys = attention.k_proj(normed).view(batch, length, -1, attention.head_dim).transpose(1, 2)
        cos, sin = self.rotary_emb(hidden, position_ids=layout.position_ids)
        _, keys = apply_rotary_pos_emb(keys, keys, cos, sin)
        row_cos, row_sin = (
            part.gather(1, rows[..., None].expand(-1, -1, part.shape[-1]))
            for part in (cos.expand(batch, -1, -1), sin.expand(batch, -1, -1))
        )
        queries, _ = apply_rotary_pos_emb(queries, queries, row_cos, row_sin)
        logits = (
            queries @ repeat_kv(keys, attention.num_key_value_groups).transpose(2, 3) * attention.scaling
        )  # [B, H, R, L]
        places = torch.arange(length, device=hidden.device)
        seen = layout.key_mask[:, None] & (places <= rows[..., None])  # [B, R, L]
        return logits.float().masked_fill(~seen[:, None], torch.finfo(torch.float32).min).softmax(dim=-1)

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
        return mask + layout.key_weight.clamp(min=1e-6).log().to(hidden.dtype)[:, None, None]
