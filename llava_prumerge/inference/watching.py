"""Watches one run of a model: how long each part of it takes, and what its methods keep of each image.

For the time of the run `get_image_features` and the `forward` of reducer, projector, pruner and head are wrapped; then the
model is as it was.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from llava_prumerge.methods.base import DecoderTokens, VisionTokens

STAGES = ("tower", "reducer", "projector", "prefill", "decode")
_PROJECTORS = ("multi_modal_projector", "projector", "connector")


@dataclass
class Watched:
    """What was seen of one run.

    Attributes:
        seconds: of each of STAGES; together they are the whole run.
        grid: (rows, columns) of patches at the size the reducer saw.
        kept: for each image the patch of each token that reached the decoder; -1 for a token of several patches.
        pruned: the same after each layer before which a pruner acted.
        attention: for each image [rows, columns] the attention its patches receive, where it was asked for.
    """

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    grid: tuple[int, int] = (0, 0)
    kept: list[list[int]] = field(default_factory=list)
    pruned: dict[int, list[list[int]]] = field(default_factory=dict)
    attention: list[Tensor] = field(default_factory=list)


@contextmanager
def watching(model: Any, attention: bool = False) -> Iterator[Watched]:
    """Watch what happens within the block: one forward pass, or one call of `generate` without beams.

    Args:
        model: of `load_model`, or one that `attach` was called on.
        attention: note the attention that patches receive, too.
    """
    watched = Watched()
    with ExitStack() as stack:
        watch = _Watch(model, watched, attention, stack)
        begun = watch.now()
        yield watched
        watch.finish(begun)


class _Watch:
    """What is wrapped during one run, until its stack is closed."""

    def __init__(self, model: Any, watched: Watched, attention: bool, stack: ExitStack) -> None:
        self.watched, self.host, self.device = watched, model.model, model.device
        self.wants_attention, self.stack = attention, stack
        self.vision, self.looked = 0.0, 0.0
        self.first_token: float | None = None
        self.input_ids: Tensor | None = None
        self.lengths: list[int] = []
        host = self.host
        self._wrap(host, "get_image_features", self._encode)
        self._wrap(host, "forward", self._begin)
        self._wrap(model.get_output_embeddings(), "forward", self._speak)
        self._wrap(host.reducer, "forward", self._reduce)
        self._wrap(host.decoder.pruner, "forward", self._prune)
        projector = next((getattr(host, name) for name in _PROJECTORS if hasattr(host, name)), None)
        self._wrap(projector, "forward", self._project)

    def now(self) -> float:
        """The time, once all is done that was asked of a GPU before."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def finish(self, begun: float) -> None:
        """Say how long the parts took."""
        seconds, end = self.watched.seconds, self.now()
        spoke = end if self.first_token is None else self.first_token
        seconds["tower"] = self.vision - seconds["reducer"] - seconds["projector"]
        seconds["prefill"] = spoke - begun - self.vision - self.looked
        seconds["decode"] = end - spoke

    def _wrap(self, owner: Any, name: str, around: Callable[..., Any]) -> None:
        """Call `around(original, *args, **kwargs)` in the place of a method, whose signature stays readable."""
        if owner is None:
            return
        before = vars(owner).get(name)
        original = getattr(owner, name)
        setattr(owner, name, functools.wraps(original)(functools.partial(around, original)))
        self.stack.callback(delattr if before is None else functools.partial(_put_back, before), owner, name)

    # ------------------------------------------------------------------ what is wrapped

    def _begin(self, forward: Callable[..., Any], *args: Any, **given: Any) -> Any:
        ids = given.get("input_ids", args[0] if args else None)
        if self.input_ids is None and ids is not None:
            self.input_ids = ids
        return forward(*args, **given)

    def _encode(self, encode: Callable[..., Any], *args: Any, **given: Any) -> Any:
        begun = self.now()
        output = encode(*args, **given)
        self.vision += self.now() - begun - self.looked
        visual = getattr(output, "visual_tokens", None) or self.host.whole(output)
        self.lengths += visual.lengths
        sources = [None] * len(visual.lengths) if visual.source is None else visual.source.split(visual.lengths)
        for origin, source in zip(visual.origin.split(visual.lengths), sources, strict=True):
            self.watched.kept.append((origin if source is None else origin[source >= 0]).tolist())
        if self.host.reducer is None:
            self._look_without_reducer(given.get("pixel_values", args[0] if args else None))
        return output

    def _reduce(self, reduce: Callable[..., Any], tokens: VisionTokens, *args: Any, **given: Any) -> Any:
        if self.wants_attention:
            self._look(tokens, self.host.reducer.attention)
        self.watched.grid = tokens.grid
        return self._timed("reducer", reduce, tokens, *args, **given)

    def _project(self, project: Callable[..., Any], *args: Any, **given: Any) -> Any:
        return self._timed("projector", project, *args, **given)

    def _prune(self, prune: Callable[..., Any], layer: int, tokens: DecoderTokens) -> Any:
        keep = prune(layer, tokens)
        layout, columns = tokens.layout, tokens.layout.columns
        if columns is None:  # a loop of somebody else's
            return keep
        stays = layout.is_image if keep is None else layout.is_image & (keep > 0.5)
        self.watched.pruned[layer] = [
            layout.origin[row][stays[row] & (columns[row] >= first) & (columns[row] <= last)].tolist()
            for row, first, last in self._spans()
        ]
        return keep

    def _speak(self, speak: Callable[..., Any], *args: Any, **given: Any) -> Any:
        output = speak(*args, **given)
        if self.first_token is None:
            self.first_token = self.now()
        return output

    # ------------------------------------------------------------------ helpers

    def _timed(self, stage: str, work: Callable[..., Any], *args: Any, **given: Any) -> Any:
        begun = self.now()
        output = work(*args, **given)
        self.watched.seconds[stage] += self.now() - begun
        return output

    def _look(self, tokens: VisionTokens, attention: Callable[[VisionTokens], Tensor]) -> None:
        """Note the attention; its time is nobody's."""
        begun = self.now()
        received = attention(tokens).detach().float().cpu()
        self.watched.attention += [image.view(tokens.grid) for image in received]
        self.looked += self.now() - begun

    def _look_without_reducer(self, pixel_values: Tensor | None) -> None:
        """The grid, and the attention where it is asked for: from another pass through the tower."""
        if not hasattr(self.host, "encode_images") or pixel_values is None:
            return
        begun, before = self.now(), self.looked
        if self.wants_attention:
            with torch.inference_mode():
                tiles = self.host.encode_images(pixel_values)
            self._look(VisionTokens(tiles.features, tiles.grid, tiles.projections, tiles.heads), VisionTokens.attention)
            self.watched.grid = tiles.grid
        else:
            size, patch = pixel_values.shape[-2:], self.host.config.vision_config.patch_size
            self.watched.grid = (size[0] // patch, size[1] // patch)
        self.looked = before + self.now() - begun

    def _spans(self) -> list[tuple[int, int, int]]:
        """For each image its row, and the first and last column of its placeholders."""
        if self.input_ids is None:
            return []
        rows, columns = self.host.placeholders(self.input_ids).nonzero(as_tuple=True)
        spans, begin = [], 0
        for length in self.lengths:
            end = begin + length
            spans.append((int(rows[begin]), int(columns[begin]), int(columns[end - 1])))
            begin = end
        return spans


def _put_back(before: Any, owner: Any, name: str) -> None:
    setattr(owner, name, before)
