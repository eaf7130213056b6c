"""One question about one image or several: the answer, the tokens kept of each image, and the time of each part of the model."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from llava_prumerge.data.conversation import dialogue, encode
from llava_prumerge.data.images import ImagePreprocessor, as_rgb, read_image
from llava_prumerge.ground.errors import InputError
from llava_prumerge.inference.watching import STAGES, Tile, Token, Watched, watching
from llava_prumerge.model.attach import attach, plain
from llava_prumerge.model.chat import ChatProcessor, check_processor, fixed_places
from llava_prumerge.model.configuration import check_reduction
from llava_prumerge.model.whole import WithReduction
from llava_prumerge.text.chat_templates import asked_with, messages_of

if TYPE_CHECKING:
    from PIL.Image import Image

    from llava_prumerge.model.chat import Clip

    Picture = Image | Clip | str | os.PathLike[str]
    Turn = tuple[str, Sequence[Picture], str]

TEMPLATE = "vicuna_v1"
NEW_TOKENS = 64
GREEDY: dict[str, Any] = {"do_sample": False, "num_beams": 1, "temperature": None, "top_p": None, "top_k": None}
"""Arguments of `generate` for the most probable token each time."""
QUESTION = "What is in this picture?"
"""What images are inspected with where nobody asks."""


@dataclass(frozen=True)
class ImageTokens:
    """What a method leaves of one image.

    Attributes:
        full: visual tokens of the image without a method.
        kept: visual tokens that reach the decoder.
        layers: visual tokens that each decoder layer sees.
        tokens: of each kept token its tile, and the patch in it that it stands for, in raster order of the grid's rows; -1
            for a token that stands for several patches, or for none (a line break). LLaVA-1.5 has one tile.
        left: the same after each layer before which a pruner acted, by layer.
        tiles: the parts that the tower saw; none where nobody looked.
    """

    full: int
    kept: int
    layers: tuple[int, ...]
    tokens: tuple[Token, ...] = field(repr=False)
    left: dict[int, tuple[Token, ...]] = field(repr=False)
    tiles: tuple[Tile, ...] = field(default=(), repr=False)

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of the patches of the first tile, at the size the method saw; a single row where nobody looked."""
        side = math.isqrt(self.full)
        return self.tiles[0].grid if self.tiles else (side, side) if side * side == self.full else (1, self.full)

    @property
    def indices(self) -> tuple[int, ...]:
        """The patch, within its tile, that each kept token stands for."""
        return tuple(unit for _, unit in self.tokens)

    @property
    def pruned(self) -> dict[int, tuple[int, ...]]:
        """The same after each layer before which a pruner acted, by layer."""
        return {layer: tuple(unit for _, unit in tokens) for layer, tokens in self.left.items()}

    @property
    def attention(self) -> Tensor | None:
        """What the first tile's patches receive; see `Tile`."""
        return self.tiles[0].attention if self.tiles else None

    @property
    def equivalent(self) -> float:
        """Visual tokens averaged over the decoder's layers."""
        return sum(self.layers) / len(self.layers)

    @property
    def patches(self) -> tuple[int, ...]:
        """The patches of the first tile that tokens stand for, each once, in raster order."""
        return tuple(sorted({unit for tile, unit in self.tokens if tile == 0 and unit >= 0}))


@dataclass(frozen=True)
class Answer:
    """An answer and what it took.

    Attributes:
        text: the answer.
        images: what was kept of each image, in the order they were given.
        seconds: by part: pixels (decoding and preprocessing of the images), tower, reducer, projector, prefill (up to the
            first token), decode (all further tokens).
        prompt_tokens: of the prompt as the caller passes it in, with every placeholder.
        new_tokens: of the answer.
    """

    text: str
    images: tuple[ImageTokens, ...]
    seconds: dict[str, float]
    prompt_tokens: int
    new_tokens: int

    @property
    def kept(self) -> int:
        """Visual tokens of all images that reach the decoder."""
        return sum(image.kept for image in self.images)

    @property
    def total_seconds(self) -> float:
        """From the images to the text."""
        return sum(self.seconds.values())

    def __str__(self) -> str:
        return self.text


@torch.inference_mode()
def ask(
    model: Any,
    processor: Any,
    question: str,
    images: Picture | Sequence[Picture] = (),
    *,
    earlier: Sequence[Turn] = (),
    reduction: Any = None,
    max_new_tokens: int = NEW_TOKENS,
    template: str = TEMPLATE,
    attention: bool = False,
    pictures: bool = False,
    merges: bool = False,
    **generation: Any,
) -> Answer:
    """Ask one question about one image, several, or none.

        model, processor = llava_prumerge.load_model("llava-hf/llava-1.5-7b-hf", reduction="visionzip")
        answer = llava_prumerge.ask(model, processor, "What is on the table?", "photo.jpg")
        print(answer.text, answer.images[0].kept, answer.seconds)

    Args:
        model, processor: of `load_model`, or a stock model of a served family with its processor.
        question: the user's turn, without image marks; the images come first, in their order.
        images: paths, PIL images, or videos (`data.videos.read_video`), not both in one conversation.
        earlier: turns before this question: each question with its images and its answer. All of them are run again.
        reduction: another method for this question alone, in any form that `load_model` takes; {} for none; None is the
            model's own.
        max_new_tokens: the longest answer.
        template: conversation template of LLaVA-1.5 and its kin; other families bring their own.
        attention: also note the attention that patches receive.
        pictures: also note the tiles as the tower saw them.
        merges: also note the weight of each patch in each token of a tile, see `Tile`.
        **generation: for `model.generate`; greedy without any.

    Raises:
        InputError: an image cannot be read, or a word means nothing here.
        ReductionError: the method cannot do what its settings say.
    """
    inputs, pixel_seconds = prepare(model, processor, question, images, template, earlier)
    with method_of(model, reduction), watching(plain(model), attention, pictures, merges) as watched:
        sequence = model.generate(**inputs, max_new_tokens=max_new_tokens, **(generation or GREEDY))[0]
    length = inputs["input_ids"].shape[1]
    tokenizer = getattr(processor, "tokenizer", processor)
    return Answer(
        text=tokenizer.decode(sequence[length:], skip_special_tokens=True).strip(),
        images=_image_tokens(plain(model), watched),
        seconds={"pixels": pixel_seconds} | {stage: watched.seconds[stage] for stage in STAGES},
        prompt_tokens=length,
        new_tokens=len(sequence) - length,
    )


@torch.inference_mode()
def inspect_image(
    model: Any,
    processor: Any,
    image: Picture,
    question: str = QUESTION,
    *,
    reduction: Any = None,
    template: str = TEMPLATE,
    attention: bool = True,
    merges: bool = False,
) -> ImageTokens:
    """What a method keeps of one image, without an answer: one pass over the prompt. See `ask` for the arguments.

    The question decides too, with methods that read it, and with pruners.
    """
    inputs, _ = prepare(model, processor, question, image, template)
    with method_of(model, reduction), watching(plain(model), attention, pictures=True, merges=merges) as watched:
        model(**inputs, use_cache=False)
    return _image_tokens(plain(model), watched)[0]


def prepare(
    model: Any,
    processor: Any,
    question: str,
    images: Picture | Sequence[Picture],
    template: str = TEMPLATE,
    earlier: Sequence[Turn] = (),
) -> tuple[dict[str, Any], float]:
    """A question as the model takes it, on its device. -> input_ids [1, L], attention_mask, pixels; seconds for the pixels

    A LLaVA-1.5 gets the ids and pixels of training and evaluation; models of other families what their processor makes of
    the question with their own chat template.
    """
    config, begun = plain(model).config, time.perf_counter()
    before = [(asked, _opened(shown), answer) for asked, shown, answer in earlier]
    rounds: list[tuple[str, list[Any], str | None]] = [*before, (question, _opened(images), None)]
    whole = [picture for _, shown, _ in rounds for picture in shown]
    check_processor(processor, config)
    places, clips = fixed_places(config), [_is_clip(picture) for picture in whole]
    if any(clips) and (places is not None or not all(clips)):
        raise InputError("this model takes images alone" if places is not None else "images and videos cannot be mixed")
    if places is not None:
        pixels = ImagePreprocessor(processor.image_processor)(whole) if whole else None
        seconds = time.perf_counter() - begun
        text = dialogue(asked_with(template, processor), [(asked, len(shown), said) for asked, shown, said in rounds])
        ids = torch.tensor([encode(processor.tokenizer, text, config.image_token_id, places)])
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        inputs |= {} if pixels is None else {"pixel_values": pixels}
    else:
        asking = ChatProcessor(processor, config, template)
        kind = "video" if any(clips) else "image"
        turns = messages_of(((kind,) * len(shown), asked, said) for asked, shown, said in rounds)
        inputs = asking.batch([asking.text_of(turns)], [whole])
        seconds = time.perf_counter() - begun
    dtype = model.dtype
    moved = {
        name: value.to(model.device, dtype) if torch.is_tensor(value) and value.is_floating_point() else value
        for name, value in inputs.items()
    }
    return {k: v.to(model.device) if torch.is_tensor(v) else v for k, v in moved.items()}, seconds


def _opened(images: Picture | Sequence[Picture]) -> list[Any]:
    """Pictures in RGB, of one or several; videos as they are."""
    given: list[Any] = (
        [images] if isinstance(images, str | os.PathLike) or not isinstance(images, Sequence) else [*images]
    )
    opened = [read_image(image) if isinstance(image, str | os.PathLike) else image for image in given]
    return [image if _is_clip(image) else as_rgb(image) for image in opened]


def _is_clip(image: Any) -> bool:
    return hasattr(image, "frames")


@contextmanager
def method_of(model: Any, reduction: Any) -> Iterator[None]:
    """The model with another method while the block runs; with its own for None. What its own has learnt stays its own.

    One question at a time: the methods belong to the model.
    """
    inner = plain(model)
    if not isinstance(inner, WithReduction):
        attach(model)
    host, block = inner.model, inner.config.reduction
    if reduction is None or check_reduction(reduction) == block:
        yield
        return
    before = host.reducer, host.decoder.pruner, host.statistics
    try:
        attach(model, reduction, inner.full_length)
        yield
    finally:
        host.reducer, host.decoder.pruner, host.statistics = before
        inner.config.reduction = block


def _image_tokens(model: Any, watched: Watched) -> tuple[ImageTokens, ...]:
    depth, found = model.config.get_text_config().num_hidden_layers, []
    for at, (full, kept, tiles) in enumerate(zip(watched.full, watched.kept, watched.tiles, strict=True)):
        pruned = {layer: tuple(images[at]) for layer, images in watched.pruned.items() if at < len(images)}
        layers, count = [], len(kept)
        for layer in range(depth):
            count = len(pruned[layer]) if layer in pruned else count
            layers.append(count)
        found.append(ImageTokens(full, len(kept), tuple(layers), tuple(kept), pruned, tuple(tiles)))
    return tuple(found)
