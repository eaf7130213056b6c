"""The model behind the demo: one question at a time, with any method, and a record of what the method kept meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from llava_prumerge.data.conversation import encode, prompt
from llava_prumerge.data.images import ImagePreprocessor, padded_picture
from llava_prumerge.methods.base import DecoderPruner, VisionReducer
from llava_prumerge.methods.registry import build_pruner, build_reducer
from llava_prumerge.model.configuration import PruMergeLlavaConfig
from llava_prumerge.model.modeling import PruMergeLlavaForConditionalGeneration, decoder_shape
from llava_prumerge.viz.overlay import paint_patches
from llava_prumerge.viz.selection import SIDE

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import LlavaProcessor

Methods = tuple[VisionReducer | None, DecoderPruner | None]


@dataclass
class Trace:
    """What was kept, as the modules themselves said while the answer was made.

    Attributes:
        grid: (rows, columns) of patches at the size the reducer saw.
        kept: raster index per token that reached the decoder; -1 where one stands for several patches.
        pruned: the same after each layer before which a pruner acted.
    """

    grid: tuple[int, int]
    kept: list[int] = field(default_factory=list)
    pruned: dict[int, list[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """A question's answer and what it took.

    Attributes:
        text: the answer.
        full: visual tokens of the image without a method.
        kept: visual tokens that reached the decoder.
        layers: visual tokens that each decoder layer saw.
        seconds: from the decoded image to the text.
        new_tokens: of the answer.
        pictures: (title, image) of kept patches: before the decoder and, where a pruner acted, in the last layer.
        untrained: names of methods whose parameters were not trained with this model.
    """

    text: str
    full: int
    kept: int
    layers: list[float]
    seconds: float
    new_tokens: int
    pictures: list[tuple[str, Image]]
    untrained: list[str]


class DemoModel:
    """A loaded model whose methods can be exchanged.

    Args:
        model: in evaluation mode.
        processor: tokenizer and image processor.
    """

    def __init__(self, model: PruMergeLlavaForConditionalGeneration, processor: LlavaProcessor) -> None:
        self.model, self.processor = model, processor
        self.own_block: dict[str, Any] = model.config.reduction or {}
        self.own: Methods = (model.model.reducer, model.model.language_model.pruner)
        self.preprocess = ImagePreprocessor(processor.image_processor)
        self._turn = threading.Lock()  # the methods belong to the model, so questions take turns

    def build(self, block: dict[str, Any]) -> Methods:
        """The methods of a block; the checkpoint's own, with what they learnt, for its own block.

        Raises:
            ReductionError: a method or setting is not known.
        """
        if block == self.own_block:
            return self.own
        weight = self.model.lm_head.weight
        config = PruMergeLlavaConfig.from_llava(self.model.config, block)
        reducer, pruner = build_reducer(block.get("vision")), build_pruner(block.get("decoder"), decoder_shape(config))
        for module in (reducer, pruner):
            if module is not None:
                if hasattr(module, "reset_parameters"):
                    module.reset_parameters()
                module.to(weight.device, weight.dtype).eval()
        return reducer, pruner

    @contextmanager
    def using(self, methods: Methods) -> Iterator[Trace]:
        """The model with these methods in place of its own, and a trace of what they keep."""
        inner = self.model.model
        side = int(self.model.config.image_seq_length**0.5)
        trace = Trace((side, side), list(range(side * side)))
        reducer, pruner = methods

        def saw_images(_: nn.Module, given: tuple, reduced: tuple[Tensor, Tensor, Tensor]) -> None:
            trace.grid, trace.kept = given[0].grid, reduced[2][reduced[1]].tolist()

        def pruned(_: nn.Module, given: tuple, keep: Tensor | None) -> None:
            layer, layout = given[0], given[1].layout
            stays = layout.is_image if keep is None else layout.is_image & (keep > 0.5)
            trace.pruned[layer] = layout.origin[stays].tolist()

        hooks = [
            module.register_forward_hook(hook)
            for module, hook in ((reducer, saw_images), (pruner, pruned))
            if module is not None
        ]
        inner.reducer, inner.language_model.pruner = methods
        try:
            yield trace
        finally:
            inner.reducer, inner.language_model.pruner = self.own
            for hook in hooks:
                hook.remove()

    @torch.inference_mode()
    def answer(self, image: Image, question: str, block: dict[str, Any], new_tokens: int) -> Answer:
        """Ask one question about one image.

        Args:
            image: in RGB.
            question: the user's turn, without image mark.
            block: the reduction.
            new_tokens: the longest answer.

        Raises:
            ReductionError: the method cannot do what its settings say.
            ValueError: the question holds an image mark.
        """
        text = prompt("vicuna_v1", question, images=1)
        with self._turn:
            methods = self.build(block)
            self.model.reduction_stats()  # what was counted before is not ours
            with self.using(methods) as trace:
                begun = time.perf_counter()
                new = self._generate(image, text, new_tokens)
                words = self.processor.decode(new, skip_special_tokens=True).strip()
                seconds = time.perf_counter() - begun
            counts = self.model.reduction_stats()
        return Answer(
            text=words,
            full=self.model.config.image_seq_length,
            kept=len(trace.kept),
            layers=[round(tokens, 2) for tokens in counts["layer_tokens"]],
            seconds=seconds,
            new_tokens=len(new),
            pictures=self._draw(image, trace),
            untrained=[m.name for m in methods if m is not None and m not in self.own and list(m.parameters())],
        )

    def _generate(self, image: Image, text: str, new_tokens: int) -> Tensor:
        """Greedy new token ids. [T]"""
        config, device = self.model.config, self.model.device
        ids = encode(self.processor.tokenizer, text, config.image_token_id, config.image_seq_length)
        inputs = {"input_ids": torch.tensor([ids], device=device)}
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        inputs["pixel_values"] = self.preprocess([image]).to(device, self.model.dtype)
        plain = {"do_sample": False, "num_beams": 1, "temperature": None, "top_p": None, "top_k": None}
        return self.model.generate(**inputs, max_new_tokens=new_tokens, **plain)[0, len(ids) :].cpu()

    def _draw(self, image: Image, trace: Trace) -> list[tuple[str, Image]]:
        square = padded_picture(image, SIDE, self.preprocess.padding_colour)
        stages = [("into the decoder", trace.kept)]
        if trace.pruned:
            stages.append((f"from layer {max(trace.pruned)} on", trace.pruned[max(trace.pruned)]))
        return [
            (f"{title}: {len(kept)} tokens", paint_patches(square, trace.grid, {index for index in kept if index >= 0}))
            for title, kept in stages
        ]
