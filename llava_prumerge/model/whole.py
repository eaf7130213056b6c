"""The whole model, with its head: labels move with the tokens, `generate` gets the right cache, and the method can be asked.

Without a method everything is the stock class's own, for the caller too.
"""

from __future__ import annotations

import functools
import inspect
from dataclasses import field, make_dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from llava_prumerge.model.decoder import InitialisesMethods
from llava_prumerge.model.distillation import distilled, full_logits, learner_of, methods_of
from llava_prumerge.model.errors import ModelError
from llava_prumerge.model.packing import check_turns
from llava_prumerge.model.placement import ForwardPass
from llava_prumerge.model.region_loss import region_loss
from llava_prumerge.model.stretch import SERVED, ReducedCache, reducing_cache
from llava_prumerge.model.strict_loading import StrictLoading
from llava_prumerge.ops.layout import IGNORE_INDEX, TokenLayout, scatter_back


@functools.cache
def output_class(stock: type[ModelOutput]) -> type[ModelOutput]:
    """A stock output class with two more fields, the last ones.

    labels: [B, L'] the caller's labels, moved with their tokens: `labels[:, 1:]` are the targets of `logits[:, :-1]`, as in
        any causal language model.
    layout: the `TokenLayout` of what is left.
    """
    more = [(name, object, field(default=None)) for name in ("labels", "layout")]
    made = make_dataclass(f"Reduced{stock.__name__}", more, bases=(stock,), namespace={"__module__": __name__})
    made.__doc__ = f"{stock.__name__} of a model with a reduction: see `output_class`."
    return made


def moved_labels(layout: TokenLayout) -> Tensor | None:
    """Labels as a causal model's caller expects them, of the targets that moved with their tokens. [B, L']"""
    targets = layout.shift_labels
    if targets is None:
        return None
    return torch.cat([targets.new_full((len(targets), 1), IGNORE_INDEX), targets[:, :-1]], dim=1)


class WithReduction(StrictLoading, InitialisesMethods):
    """Goes in front of a stock `...ForConditionalGeneration`.

    `forward` takes what the stock class takes, and in training `turn_of` [B, L] (see `model.packing`) or what `region_loss` takes.
    With a method the logits are [B, L', V], the rows padded on the left; the output also has `labels` (moved with their tokens, so
    that they go with the logits) and `layout`.

    Attributes:
        stock_class: the stock class it stands in front of.
        more_arguments: what `forward` takes beyond the stock arguments.
    """

    stock_class: ClassVar[type]
    more_arguments: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.stock_class = next(
            base for base in cls.__mro__ if not issubclass(base, WithReduction) and hasattr(base, "forward")
        )

        def forward(self: Any, *args: Any, **given: Any) -> Any:
            return WithReduction.forward(self, *args, **given)

        stock = inspect.signature(cls.stock_class.forward)
        named = [value for value in stock.parameters.values() if value.kind is not value.VAR_KEYWORD]
        more = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in cls.more_arguments]
        rest = [value for value in stock.parameters.values() if value.kind is value.VAR_KEYWORD]
        forward.__signature__ = stock.replace(parameters=[*named, *more, *rest])  # read by `generate` and by Trainer
        forward.__doc__ = cls.stock_class.forward.__doc__
        cls.forward = forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """See the class."""
        if args:
            names = list(inspect.signature(super().forward).parameters)
            kwargs |= dict(zip(names, args, strict=False))
        if kwargs.get("region_of") is not None:
            return region_loss(self, **kwargs)
        turns = kwargs.pop("turn_of", None)
        if turns is not None:
            check_turns(self, bool(kwargs.get("use_cache")) or kwargs.get("past_key_values") is not None)
            kwargs["use_cache"] = False
        elif not self.model.reduces:
            return super().forward(**kwargs)
        labels, count = kwargs.pop("labels", None), kwargs.pop("num_items_in_batch", None)
        as_dict = kwargs.pop("return_dict", None)
        learner = None if labels is None else learner_of(self)
        full = None if learner is None else full_logits(self, kwargs)
        told = ForwardPass(labels=labels, turns=turns)
        for method in methods_of(self):
            method.forget()
        output = super().forward(**kwargs, forward_pass=told, return_dict=True)
        if told.layout is None:  # text behind a stock cache: nothing was there to reduce
            told.layout = told.begin(
                torch.ones(output.logits.shape[:2], dtype=torch.bool, device=output.logits.device), 0
            )
        moved = labels if self.full_length else moved_labels(told.layout)
        values = dict(output) | {"layout": told.layout, "labels": moved}
        if learner is not None and full is not None:
            values["loss"] = distilled(learner, output.logits, self._targets(told, labels), full, labels, count)
        elif labels is not None:
            values["loss"] = self.loss_function(
                logits=output.logits,
                labels=None,
                vocab_size=self.config.get_text_config().vocab_size,
                shift_labels=self._targets(told, labels).contiguous(),
                num_items_in_batch=count,
            )
        result = output_class(type(output))(**values)
        return result.to_tuple() if as_dict is False else result

    def _targets(self, told: ForwardPass, labels: Tensor) -> Tensor:
        """What the logits are to predict."""
        layout = told.layout
        if not self.full_length or told.layout.columns is None:
            return layout.shift_labels
        return scatter_back(layout.shift_labels[..., None], layout, labels.shape[1], IGNORE_INDEX)[..., 0]

    @property
    def full_length(self) -> bool:
        """Whether states and logits come back at the caller's length, [B, L, D] and [B, L, V], zero where a token is gone.

        For trainers that compute a loss from logits and labels themselves. The model's own loss is the same either way.
        """
        return self.model.full_length

    @full_length.setter
    def full_length(self, wanted: bool) -> None:
        self.model.full_length = wanted

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        """The stock one; with a method a cache whose layers may hold different tokens."""
        if not self.model.reduces:
            return super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)
        wanted = generation_config.cache_implementation
        if wanted not in SERVED:
            raise ModelError(
                f"cache_implementation {wanted!r} is not available with a reduction, whose layers hold different tokens; "
                "leave it out"
            )
        if generation_config.prefill_chunk_size is not None:
            raise ModelError("prefill_chunk_size is not available with a reduction, which looks at a prompt as a whole")
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)
        cache, config = model_kwargs.get("past_key_values"), self.config.get_text_config()
        if getattr(cache, "_is_user_defined", False):
            model_kwargs["past_key_values"] = reducing_cache(cache, config)
        elif cache is not None:
            model_kwargs["past_key_values"] = ReducedCache(config=config, offloading=wanted == "offloaded")
        return None

    def _maybe_prepare_encoder_kwargs_for_generation(
        self, inputs_tensor: Tensor, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """`generate` encodes images ahead of the forward pass: methods that read the prompt get it here."""
        given = inputs_tensor if not inputs_tensor.is_floating_point() else None
        with self.model.asking(given, model_kwargs.get("attention_mask")):
            return super()._maybe_prepare_encoder_kwargs_for_generation(inputs_tensor, model_kwargs, *args, **kwargs)

    def _expand_multimodal_outputs(
        self, input_ids: Tensor, mm_encoder_output: dict[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """For beams: what is known of images goes the way of their features, by the same code run on their numbers."""
        told = {name: getattr(output, "visual_tokens", None) for name, output in mm_encoder_output.items()}
        told = {name: tokens for name, tokens in told.items() if tokens is not None}
        numbers = {
            name: SimpleNamespace(
                pooler_output=[torch.full((length,), at) for at, length in enumerate(tokens.lengths)],
            )
            for name, tokens in told.items()
        }
        numbers = super()._expand_multimodal_outputs(input_ids, numbers, *args, **kwargs)
        output = super()._expand_multimodal_outputs(input_ids, mm_encoder_output, *args, **kwargs)
        for name, tokens in told.items():
            taken = [int(part[0]) for part in numbers[name].pooler_output]
            output[name].visual_tokens = tokens.select(taken)
            if getattr(mm_encoder_output[name], "whole", None) is not None:
                output[name].whole = [mm_encoder_output[name].whole[at] for at in taken]
        return output

    def reads_prompt(self) -> bool:
        """Whether a method chooses by the prompt: then no part of it may be run, and left in a cache, beforehand."""
        reducer = self.model.reducer
        return self.model.decoder.pruner is not None or (
            reducer is not None and (reducer.reads_prompt or reducer.rewrites)
        )

    def method_loss(self) -> Tensor | None:
        """The methods' own terms for the training loss, of the last forward."""
        terms = [term for term in (method.loss() for method in methods_of(self)) if term is not None]
        return torch.stack([term.float() for term in terms]).sum() if terms else None

    def reduction_stats(self) -> dict[str, Any]:
        """Kept tokens, padding share, visual tokens of each layer and their mean since the last call; resets them."""
        return self.model.statistics.read()
