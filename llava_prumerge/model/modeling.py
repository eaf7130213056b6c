"""The model: encode -> reduce -> project -> splice into the text -> decode -> loss, derived from transformers' Llava."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, AutoModelForImageTextToText, LlavaForConditionalGeneration, LlavaModel
from transformers.cache_utils import Cache
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.models.llava.modeling_llava import (
    LlavaCausalLMOutputWithPast,
    LlavaModelOutputWithPast,
    LlavaMultiModalProjector,
    LlavaPreTrainedModel,
)

from llava_prumerge.methods.base import VisionTokens
from llava_prumerge.methods.registry import build_pruner, build_reducer
from llava_prumerge.model.configuration import PruMergeLlavaConfig
from llava_prumerge.model.decoder import (
    InitialisesMethods,
    PrunableLlamaModel,
    ReducedCache,
    decoder_shape,
    step_layout,
)
from llava_prumerge.model.splice import ReducedImages, splice
from llava_prumerge.model.statistics import ReductionStatistics
from llava_prumerge.model.strict_loading import StrictLoading
from llava_prumerge.model.vision_tower import TowerOutput, encode, has_class_token, image_ids, resize
from llava_prumerge.ops.layout import IGNORE_INDEX, TokenLayout, shift_labels


class PruMergeLlavaModel(InitialisesMethods, LlavaModel):
    """Tower, reducer, projector and decoder."""

    config_class = PruMergeLlavaConfig

    def __init__(self, config: PruMergeLlavaConfig) -> None:
        LlavaPreTrainedModel.__init__(self, config)  # not Llava's own: it would build a second language model
        if config.text_config.model_type != "llama":
            raise ValueError(
                f"text_config.model_type is {config.text_config.model_type!r}; the decoder loop is Llama's"
            )
        if not isinstance(config.vision_feature_layer, int):
            raise ValueError(f"vision_feature_layer {config.vision_feature_layer!r} must be one layer")
        self.vision_tower = AutoModel.from_config(config.vision_config)
        if config.vision_feature_select_strategy != ("default" if has_class_token(self.vision_tower) else "full"):
            raise ValueError(
                f"vision_feature_select_strategy {config.vision_feature_select_strategy!r} does not fit the tower: take "
                "'default' for a tower with a class token and 'full' for one without"
            )
        self.multi_modal_projector = LlavaMultiModalProjector(config)
        self.language_model = PrunableLlamaModel(config.text_config)
        blocks = config.reduction or {}
        self.reducer = build_reducer(blocks.get("vision"))
        self.language_model.pruner = build_pruner(blocks.get("decoder"), decoder_shape(config))
        self.statistics = ReductionStatistics()
        self.post_init()

    def encode_images(self, pixel_values: Tensor) -> TowerOutput:
        """Tower features at the size the reducer asks for. [N, 3, h, w] -> [N, P, C]"""
        if self.reducer is not None:
            height, width = pixel_values.shape[-2:]
            size = self.reducer.input_size(height, width, self.config.vision_config.patch_size)
            pixel_values = resize(pixel_values, size)
        return encode(self.vision_tower, pixel_values, self.config.vision_feature_layer)

    def reduce_images(self, pixel_values: Tensor, prompt: Any = None, index: Tensor | None = None) -> ReducedImages:
        """Encode, reduce and project. [N, 3, h, w], or fewer with an index [N] into them -> [N, K, D]"""
        tower = self.encode_images(pixel_values)
        tower = tower if index is None else tower.select(index)
        features, site = tower.features, "tower" if self.reducer is None else self.reducer.site
        if site == "projected":
            features = self.project(features)
        if self.reducer is None:
            origin = torch.arange(features.shape[1], device=features.device).expand(features.shape[:2])
            valid = torch.ones_like(origin, dtype=torch.bool)
        else:
            ids = image_ids(pixel_values, index) if self.reducer.needs_ids else None
            token = tower.class_token if site == "tower" else None
            tokens = VisionTokens(features, tower.grid, tower.probe, tower.heads, prompt, ids, class_token=token)
            features, valid, origin = self.reducer(tokens)
        features = self.project(features) if site == "tower" else features
        return ReducedImages(features, valid, origin, whole=self.reducer is None)

    def project(self, features: Tensor) -> Tensor:
        """[N, K, C] -> [N, K, D]"""
        return self.multi_modal_projector(features.to(self.multi_modal_projector.linear_1.weight.dtype))

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        image_index: Tensor | None = None,
        **kwargs: Any,
    ) -> LlavaModelOutputWithPast:
        """-> hidden [B, L', D], with `layout`, the final one, and `visual` [B, layers], each layer's visual tokens.

        Positions follow from the mask; `position_ids` is not used.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        embeddings = self.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds
        use_cache = self.config.text_config.use_cache if use_cache is None else use_cache
        if use_cache and past_key_values is None:
            past_key_values = ReducedCache(config=self.config.text_config)
        if past_key_values is not None and not isinstance(past_key_values, ReducedCache):
            raise ValueError(f"past_key_values is a {type(past_key_values).__name__}; this model needs a ReducedCache")
        layout, start = step_layout(embeddings, pixel_values, attention_mask, past_key_values, labels), None
        if layout is None:
            layout, start = self._layout(input_ids, embeddings, attention_mask, past_key_values, labels)
        given, images = layout, None
        if past_key_values is not None and self.reducer is not None and given.key_mask.shape[1] > 1:
            past_key_values.check_turn(self.reducer, past_key_values.reduced, pixel_values is not None)
            past_key_values.reduced |= pixel_values is not None
        if pixel_values is not None:
            if input_ids is None:
                raise ValueError("pixel_values need input_ids: placeholders cannot be told from embeddings")
            images = self.reduce_images(pixel_values, lambda: self._prompts(embeddings, given), image_index)
            layout, embeddings = splice(
                embeddings,
                layout,
                images,
                self.config.image_seq_length,
                start,
                positions="contiguous" if self.reducer is None else self.reducer.positions,
            )
        elif self.training:
            embeddings = embeddings + self._touch_vision_modules(embeddings)
        if past_key_values is not None:
            past_key_values.seen += given.key_mask.shape[1]
            past_key_values.next_position = layout.next_position()
        output = self.language_model(
            inputs_embeds=embeddings, layout=layout, past_key_values=past_key_values, use_cache=use_cache, **kwargs
        )
        if images is not None:
            self.statistics.add(images.valid, output.layout.key_mask, output.visual, layout.images)
        result = LlavaModelOutputWithPast(
            last_hidden_state=output.last_hidden_state,
            past_key_values=output.past_key_values,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
            image_hidden_states=None if images is None else images.features,
        )
        result.layout, result.visual = output.layout, output.visual
        return result

    def _layout(
        self,
        input_ids: Tensor | None,
        embeddings: Tensor,
        attention_mask: Tensor | None,
        cache: ReducedCache | None,
        labels: Tensor | None,
    ) -> tuple[TokenLayout, Tensor | int]:
        """The layout of the tokens passed in, and the position of the first."""
        batch, length = embeddings.shape[:2]
        if attention_mask is None:
            key_mask = torch.ones(batch, length, dtype=torch.bool, device=embeddings.device)
        else:
            key_mask = attention_mask[:, -length:].bool()  # generate passes the mask of all tokens so far
        is_image = (
            torch.zeros_like(key_mask) if input_ids is None else (input_ids == self.config.image_token_id) & key_mask
        )
        start = 0 if cache is None or cache.next_position is None else cache.next_position[:, None]
        layout = TokenLayout(
            is_image=is_image,
            key_mask=key_mask,
            position_ids=torch.zeros_like(key_mask, dtype=torch.long),
            origin=torch.full_like(key_mask, -1, dtype=torch.long),
            shift_labels=None if labels is None else shift_labels(labels),
            images=is_image.sum(dim=1) // self.config.image_seq_length,
        )
        return layout.renumbered(start), start

    def _prompts(self, embeddings: Tensor, layout: TokenLayout) -> tuple[Tensor, Tensor]:
        """For each image the text embeddings of its sequence, without what is to be predicted. -> [N, T, D], [N, T]"""
        is_text = layout.key_mask & ~layout.is_image
        if layout.shift_labels is not None:  # a method that saw the answer in training would miss it in use
            is_text &= F.pad(layout.shift_labels[:, :-1] == IGNORE_INDEX, (1, 0), value=True)
        text, (rows,) = layout, (embeddings,)
        text, rows = text.compact(is_text, rows)
        per_row = layout.is_image.sum(dim=1) // self.config.image_seq_length
        owner = torch.repeat_interleave(torch.arange(len(per_row), device=per_row.device), per_row)  # [N]
        return rows[owner], text.key_mask[owner]

    def _touch_vision_modules(self, embeddings: Tensor) -> Tensor:
        """Zero, by way of every trained vision module: ranks whose batch has no image must still take part in their reductions."""
        config = self.config.vision_config
        blank = embeddings.new_zeros(1, config.num_channels, config.image_size, config.image_size)
        prompt = (embeddings[:1], torch.ones_like(embeddings[:1, :, 0], dtype=torch.bool))
        return 0.0 * self.reduce_images(blank, lambda: prompt).features.sum()


class PruMergeLlavaForConditionalGeneration(StrictLoading, InitialisesMethods, LlavaForConditionalGeneration):
    """LLaVA-1.5 with a language-modelling head. Without a reduction it equals transformers' Llava.

    `forward` takes what Llava's takes: input_ids [B, L] with image_seq_length placeholders per image, pixel_values [N, 3, h, w] in order
    of appearance, attention_mask [B, L], labels [B, L]; and image_index [N] where pixel_values holds each of several
    equal images once. With a reduction the logits are [B, L', V], the rows padded on the left.
    """

    config_class = PruMergeLlavaConfig

    def __init__(self, config: PruMergeLlavaConfig) -> None:
        LlavaPreTrainedModel.__init__(self, config)
        self.model = PruMergeLlavaModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        use_cache: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        return_dict: bool | None = None,
        image_index: Tensor | None = None,
        **kwargs: Any,
    ) -> LlavaCausalLMOutputWithPast | tuple:
        """See the class."""
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            labels=labels,
            use_cache=use_cache,
            image_index=image_index,
            **kwargs,
        )
        hidden = outputs.last_hidden_state
        if not isinstance(logits_to_keep, int) or logits_to_keep > 0:
            wanted = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            hidden = hidden[:, wanted]
        logits = self.lm_head(hidden)
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits,
                labels=None,
                vocab_size=self.config.text_config.vocab_size,
                shift_labels=outputs.layout.shift_labels.contiguous(),
                num_items_in_batch=num_items_in_batch,
            )
        result = LlavaCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=outputs.image_hidden_states,
        )
        return result if return_dict is not False else result.to_tuple()

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """transformers' `generate`, with the cache that layers of different length need."""
        uses_cache = kwargs.get("use_cache")
        if uses_cache is None:
            settings = kwargs.get("generation_config") or self.generation_config
            uses_cache = settings.use_cache is not False
        if uses_cache and kwargs.get("past_key_values") is None:
            kwargs["past_key_values"] = ReducedCache(config=self.config.text_config)
        return super().generate(*args, **kwargs)

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor | None, dict[str, Any]]:
        """Each row several times, and with it all of its images in their order (not each image several times)."""
        pixel_values = kwargs.pop("pixel_values", None)
        if pixel_values is not None and expand_size > 1:
            index = kwargs.pop("image_index", None)
            pixel_values = pixel_values if index is None else pixel_values[index]
            per_row = (input_ids == self.config.image_token_id).sum(dim=1) // self.config.image_seq_length
            rows = pixel_values.split(per_row.tolist())
            pixel_values = torch.cat([images for images in rows for _ in range(expand_size)])
        input_ids, kwargs = super()._expand_inputs_for_generation(expand_size, is_encoder_decoder, input_ids, **kwargs)
        return input_ids, kwargs | ({} if pixel_values is None else {"pixel_values": pixel_values})

    def reads_prompt(self) -> bool:
        """Whether a method chooses by the prompt: then no part of it may be run, and left in a cache, beforehand."""
        reducer = self.model.reducer
        return self.model.language_model.pruner is not None or (reducer is not None and reducer.reads_prompt)

    def method_loss(self) -> Tensor | None:
        """The pruner's own term for the training loss, of the last forward."""
        pruner = self.model.language_model.pruner
        return None if pruner is None else pruner.loss()

    def reduction_stats(self) -> dict[str, Any]:
        """Kept tokens, padding share, visual tokens of each layer and their mean since the last call; resets them."""
        return self.model.statistics.read()


STOCK_NAMES = {
    PruMergeLlavaConfig.model_type: "llava",
    PruMergeLlavaModel.__name__: LlavaModel.__name__,
    PruMergeLlavaForConditionalGeneration.__name__: LlavaForConditionalGeneration.__name__,
}


def register() -> None:
    """Make the Auto class build our model, and let checkpoints of stock Llava load into it under the stock renaming rules."""
    AutoModelForImageTextToText.register(PruMergeLlavaConfig, PruMergeLlavaForConditionalGeneration, exist_ok=True)
    for ours, stock in STOCK_NAMES.items():
        mapping = get_checkpoint_conversion_mapping(stock)
        if mapping is not None:
            register_checkpoint_conversion_mapping(ours, mapping, overwrite=True)


register()
