"""A reduction on a live stock model, off again, and the class of a family's models that have one from the start.

    attach(model, {"vision": {"name": NAME}})             model is the same object, its parameters are untouched
    detach(model)                                            and it is the stock model again

A stock class is left as it is: classes made from it go in front, on the whole model, the model without head and its language
model.
"""

from __future__ import annotations

import functools
import types
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from llava_prumerge.methods.base import VisionReducer
from llava_prumerge.methods.registry import build_pruner, build_reducer
from llava_prumerge.model.configuration import (
    check_reduction,
    own_config_class,
    stock_config_class,
)
from llava_prumerge.model.decoder import SERVED, PrunesLayers, decoder_shape
from llava_prumerge.model.errors import ModelError
from llava_prumerge.model.families import family_of, stock_type
from llava_prumerge.model.prefusion import language_shape
from llava_prumerge.model.statistics import ReductionStatistics
from llava_prumerge.model.tower_cut import can_be_cut
from llava_prumerge.model.vision_tower import TOWERS, blocks_of
from llava_prumerge.model.whole import WithReduction

OWN_PREFIX = "PruMerge"


class _Rebuilt:
    """Lets pickle and copy find classes that were made: by what they were made from."""

    def __reduce_ex__(self, protocol: int) -> tuple:
        _, _, *rest = super().__reduce_ex__(protocol)
        made = type(self)
        return _rebuild, (made.in_front, made.stock_class), *rest


def _rebuild(in_front: type, stock: type) -> Any:
    made = in_front_of(in_front, stock)
    return made.__new__(made)


@functools.cache
def in_front_of(mixin: type, stock: type) -> type:
    """A class put in front of a stock one, under the stock name: transformers looks up renaming rules and more by it."""
    body = {"__module__": stock.__module__, "__qualname__": stock.__qualname__, "__doc__": stock.__doc__}
    return type(stock.__name__, (_Rebuilt, mixin, stock), body | {"in_front": mixin, "stock_class": stock})


def stock_class_of(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The stock class, with its head, of a configuration of ours or a stock one."""
    config_class = stock_config_class(own_config_class(type(config)))
    return MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[config_class]


@functools.cache
def own_class(stock: type[PreTrainedModel]) -> type[WithReduction]:
    """The class of a stock class's models with a reduction: what `from_pretrained` builds, and what is saved.

    Raises:
        ModelError: the family is not served.
    """
    if issubclass(stock, WithReduction):
        return stock
    for made in WithReduction.__subclasses__():
        if made.stock_class is stock:
            return made
    config_class = own_config_class(stock.config_class)
    family = family_of(stock_type(config_class.model_type))

    def __init__(self: Any, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
        stock.__init__(self, config, *args, **kwargs)
        put_on(self, getattr(config, "reduction", None))

    body = {
        "__init__": __init__,
        "__module__": "llava_prumerge.model.modeling",
        "__doc__": f"{stock.__name__} with a reduction; see `llava_prumerge.model.whole`.",
        "config_class": config_class,
        "more_arguments": family.host.own_arguments,
    }
    own = type(OWN_PREFIX + stock.__name__, (WithReduction, stock), body)
    register_own(own)
    return own


def register_own(own: type[WithReduction]) -> None:
    """Let checkpoints of the stock class load into ours under the stock renaming rules."""
    stock = own.stock_class
    names = {own.config_class.model_type: stock_config_class(own.config_class).model_type, own.__name__: stock.__name__}
    for ours, theirs in names.items():
        mapping = get_checkpoint_conversion_mapping(theirs)
        if mapping is not None:
            register_checkpoint_conversion_mapping(ours, mapping, overwrite=True)


def plain(model: Any) -> Any:
    """The model inside PEFT's or torch.compile's wrapper, or the model itself."""
    model = getattr(model, "_orig_mod", model)
    return model.get_base_model() if hasattr(model, "peft_config") and hasattr(model, "get_base_model") else model


def attach(
    model: Any, reduction: dict[str, Any] | None = None, full_length: bool = False, tokenizer: Any = None
) -> Any:
    """Give a live model a reduction, or another one than it has; None and {} leave it without a method, ready to count.

    Args:
        model: a stock `...ForConditionalGeneration` of a served family, also inside PEFT's wrapper.
        reduction: block as in config.json: {"vision": {"name": ..., settings}, "decoder": {...}}.
        full_length: see `WithReduction`.
        tokenizer: the model's, or its processor, for methods that read the question's words. Without it the one that was given
            before holds, or that of the folder the model was loaded from.

    Returns:
        The same object. Saved, it is a checkpoint of type `prumerge_<stock type>` that knows its method.

    Raises:
        ModelError: the family is not served, the reduction is none, or the tokenizer is none.
    """
    inner, words = plain(model), getattr(tokenizer, "tokenizer", tokenizer)
    if words is not None and not (callable(words) and hasattr(words, "decode")):
        raise ModelError(f"tokenizer={type(tokenizer).__name__} is neither a tokenizer nor a processor that has one")
    block = check_reduction(reduction)
    fresh = not isinstance(inner, WithReduction)
    if fresh:
        _check(inner)
        own = own_class(type(inner))
        _become(inner, own)
        inner.config.__class__ = own.config_class
    try:
        put_on(inner, block)
    except ValueError:
        if fresh:  # what is refused leaves nothing behind
            _become(inner, _stock_of(inner))
            _stock_again(inner.config)
        raise
    inner.full_length = full_length
    if words is not None:
        inner.model.words = words
    return model


def put_on(model: WithReduction, block: dict[str, Any] | None) -> None:
    """Put the methods of a block on a model of an own class, and their classes in front of its parts.

    Raises:
        ModelError, ReductionError: the model, or a method, cannot; the model is then as before.
    """
    family, inner, blocks = family_of(stock_type(model.config.model_type)), model.model, block or {}
    reasons = [
        family.refusal(model.config) if blocks.get("vision") else None,
        _text_refusal(model.config, family.language) if blocks else None,
    ]
    for reason in filter(None, reasons):
        raise ModelError(f"no reduction on this {stock_type(model.config.model_type)} model: {reason}")
    family.built(model)
    decoder, before = getattr(inner, family.host.decoder_name), getattr(model.config, "reduction", None)
    try:
        model.config.reduction = block
        reducer = build_reducer(blocks.get("vision"))
        pruner = build_pruner(blocks.get("decoder"), decoder_shape(model.config))
        if reducer is not None and type(reducer).input_size is not VisionReducer.input_size:
            _check_size(reducer, family.host, inner)
        if reducer is not None:
            reducer.grow(language_shape(model.config))
        if reducer is not None and reducer.cuts:
            _check_cut(reducer, family.host, inner)
        if reducer is not None and reducer.joint and not family.host.joins_frames:
            _refuse_joint(reducer, inner)
    except ValueError:
        model.config.reduction = before
        raise
    _become(inner, in_front_of(family.host, _stock_of(inner)))
    _become(decoder, in_front_of(PrunesLayers, _stock_of(decoder)))
    if (
        getattr(model.config, "quantization_config", None) is not None
    ):  # methods stay as they are: they are small, and score
        parts = ("model.reducer", f"model.{family.host.decoder_name}.pruner")
        model._keep_in_fp32_modules = {*(model._keep_in_fp32_modules or ()), *parts}
    inner.use(_placed(reducer, inner))
    decoder.pruner = _placed(pruner, decoder)
    inner.statistics, inner.full_length = ReductionStatistics(), False
    inner._asked, inner._looked = None, False


def _refuse_joint(reducer: VisionReducer, inner: Any) -> None:
    kind = stock_type(inner.config.model_type)
    raise ModelError(f"{reducer.name} with frames=joint: no frames of {kind} models are reduced together; take each")


def _check_size(reducer: VisionReducer, host: type, inner: Any) -> None:
    if not host.resizes.fget(inner):  # it need not stand in front of the stock model yet
        kind = stock_type(inner.config.model_type)
        raise ModelError(f"{reducer.name} resizes the image, and of {kind} models the processor has decided its size")


def _check_cut(reducer: VisionReducer, host: type, inner: Any) -> None:
    names = host.tower_names
    tower = getattr(inner, names[0])
    one = isinstance(getattr(inner.config, "vision_feature_layer", None), int)  # not states of several, cut and uncut
    if not one or len(names) > 1 or not _cuttable(tower):
        raise ModelError(
            f"{reducer.name} cuts inside the vision tower, which is served in a single tower with a class token before its "
            "patches, blocks that take a mask and features of one layer (CLIP, DINOv2), and not in this "
            f"{stock_type(inner.config.model_type)} model's {' and '.join(names)} of type {tower.config.model_type!r}"
        )


def _cuttable(tower: nn.Module) -> bool:
    spec = TOWERS.get(tower.config.model_type)
    if spec is None or not (spec.plain and spec.class_token) or spec.prefix(tower.config) != 1:
        return False
    return can_be_cut(blocks_of(tower)[0], spec.attention)


def detach(model: Any) -> Any:
    """Take the reduction off: the model is the stock one again, the same object with the same parameters."""
    inner = plain(model)
    if not isinstance(inner, WithReduction):
        return model
    host = inner.model
    for module, names in (
        *((getattr(host, name), ("kept_blocks",)) for name in host.tower_names),
        (host.decoder, ("pruner",)),
        (
            host,
            ("reducer", "statistics", "full_length", "_asked", *(set(vars(host)) & {"words", "_looked", "_text_side"})),
        ),
        (inner, ()),
    ):
        for name in names:
            delattr(module, name)
        _become(module, _stock_of(module))
    _stock_again(inner.config)
    return model


def _stock_again(config: Any) -> None:
    vars(config).pop("reduction", None)
    config.__class__ = stock_config_class(type(config))


def _stock_of(module: nn.Module) -> type:
    return getattr(type(module), "stock_class", type(module))


def _become(module: nn.Module, cls: type) -> None:
    """Change a module's class, and with it what hooks of accelerate call."""
    if type(module) is cls:
        return
    own = vars(module)
    if "forward" in own and "_old_forward" not in own:
        raise ModelError(
            f"the forward of {type(module).__name__} is wrapped by another library: attach the reduction before it is"
        )
    module.__class__ = cls
    if "_old_forward" in own:
        module._old_forward = types.MethodType(cls.forward, module)


def _check(model: Any) -> None:
    config = getattr(model, "config", None)
    if not isinstance(model, PreTrainedModel) or not hasattr(config, "get_text_config"):
        raise ModelError(f"a {type(model).__name__} is no model of transformers with images")
    family_of(stock_type(config.model_type))
    if type(model) is not stock_class_of(config):
        wanted = stock_class_of(config).__name__
        raise ModelError(f"a reduction goes on a {wanted}, and this is a {type(model).__name__}")


def _text_refusal(config: Any, own: str | None) -> str | None:
    kind, served = config.get_text_config().model_type, [*SERVED, *([own] if own else [])]
    return (
        None if kind in served else f"language models of type {kind!r} are not served; there are: {', '.join(served)}"
    )


def _placed(method: nn.Module | None, beside: nn.Module) -> nn.Module | None:
    """A method with start values, where the parts it works with are and in their precision."""
    if method is None:
        return None
    near = next((p for p in beside.parameters() if p.is_floating_point()), None)
    if near is not None and next(method.parameters(), None) is not None:
        method = method.to(device=near.device, dtype=near.dtype)
    return method.train(beside.training)
