"""A window of an image that is padded and resized, with the very pixels Pillow gives, but without the image around it.

LLaVA pads a strip of 1 x 20000 pixels to 20000 x 20000 before it makes 336 x 336 of it, and CLIP resizes it to
336 x 6,720,000 before it cuts the middle out. Here only what is asked for is computed. The arithmetic is Pillow's
(libImaging/Resample.c): weights in double precision, rounded to integers, along one axis and then along the
other, each time rounded to bytes. Sums of integers are the same in any order, so the padding's share is taken as a
whole; and what only padding reaches stays padding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from PIL import Image

_BITS = 22  # of a weight behind the point: 32 less 8 of a pixel less 2 for sums that overshoot
_BLOCK = 1 << 18  # pixels held as floating point numbers at once

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Axis:
    """What happens along one axis: an image inside a padded one, which is resized, and of which a window is wanted.

    Attributes:
        pixels: of the image.
        start: the image's first pixel in the padded image.
        length: of the padded image.
        size: of the padded image once it is resized.
        first: the window's first pixel.
        last: the one after the window's last.
        kernel: of `KERNELS`.
    """

    pixels: int
    start: int
    length: int
    size: int
    first: int
    last: int
    kernel: int = Image.Resampling.BICUBIC

    @cached_property
    def reach(self) -> tuple[np.ndarray, np.ndarray]:
        """For every pixel of the window, the first pixel of the padded image that it is made from, and the end."""
        centres = self._centres
        begins = np.maximum((centres - self._support + 0.5).astype(np.int64), 0)
        ends = np.minimum((centres + self._support + 0.5).astype(np.int64), self.length)
        return begins, ends

    @property
    def touched(self) -> range:
        """Pixels of the resized image that are in the window and have something of the image in them."""
        begins, ends = self.reach
        found = np.flatnonzero((begins < self.start + self.pixels) & (ends > self.start))
        return range(self.first + int(found[0]), self.first + int(found[-1]) + 1) if len(found) else range(0)

    def needed(self, outputs: range) -> range:
        """Pixels of the image that some outputs are made from."""
        begins, ends = self.reach
        first = int(begins[outputs[0] - self.first]) - self.start
        last = int(ends[outputs[-1] - self.first]) - self.start
        return range(max(first, 0), min(last, self.pixels))

    @cached_property
    def weights(self) -> list[np.ndarray]:
        """For every pixel of the window, the whole-number weights of what it is made from, in double precision."""
        found = []
        for centre, begin, end in zip(self._centres, *self.reach, strict=True):
            weights = KERNELS[self.kernel][1]((np.arange(begin, end) - centre + 0.5) * (1.0 / self._scale))
            weights /= weights.cumsum()[-1]  # added up one by one, as a sum by halves ends in other last bits
            found.append(np.trunc(weights * (1 << _BITS) + np.where(weights < 0, -0.5, 0.5)))
        return found

    def resize(self, lines: np.ndarray, known: range, outputs: range, padding: np.ndarray | float) -> np.ndarray:
        """Resizes lines of pixels.

        Args:
            lines: [..., pixels of `known`].
            known: the pixels of the image that the lines hold.
            outputs: what is wanted; `known` has all that they need.
            padding: [...] or one value: the colour around the image.

        Returns:
            [..., outputs], bytes.
        """
        lines = lines.astype(np.float64)
        resized = np.empty((*lines.shape[:-1], len(outputs)), np.uint8)
        for at, output in enumerate(outputs):
            weights, begin = self.weights[output - self.first], int(self.reach[0][output - self.first]) - self.start
            first, last = max(begin, 0), min(begin + len(weights), self.pixels)
            inside = weights[first - begin : last - begin]
            total = lines[..., first - known.start : last - known.start] @ inside
            total += padding * (weights.sum() - inside.sum()) + (1 << (_BITS - 1))
            resized[..., at] = np.clip(np.floor(total / (1 << _BITS)), 0, 255)
        return resized

    @property
    def _scale(self) -> float:
        return max(self.length / self.size, 1.0)

    @property
    def _support(self) -> float:
        return KERNELS[self.kernel][0] * self._scale

    @cached_property
    def _centres(self) -> np.ndarray:
        return (np.arange(self.first, self.last) + 0.5) * (self.length / self.size)


def _bicubic(distances: np.ndarray) -> np.ndarray:
    """Keys' kernel with a = -0.5, in Pillow's order of operations."""
    x, a = np.abs(distances), -0.5
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def _bilinear(distances: np.ndarray) -> np.ndarray:
    return np.maximum(1.0 - np.abs(distances), 0.0)


# How far each reaches to both sides, in the coarser of the two rasters, and what it weighs.
KERNELS = {Image.Resampling.BICUBIC: (2.0, _bicubic), Image.Resampling.BILINEAR: (1.0, _bilinear)}


def resize_window(image: Image.Image, across: Axis, down: Axis, padding: Colour) -> Image.Image:
    """Pads an image, resizes it and cuts a window out: as Pillow's `paste`, `resize`, `crop`.

    Args:
        image: in RGB.
        across: what happens along its rows.
        down: what happens along its columns.
        padding: the colour around the image.

    Returns:
        The window, in RGB.
    """
    canvas = Image.new("RGB", (across.last - across.first, down.last - down.first), padding)
    if not across.touched or not down.touched:
        return canvas
    swap = down.length - down.size > max(2 * (across.length - across.size), 0) and _can_begin_with_columns()
    one, two = (down, across) if swap else (across, down)  # the axis that is resized first, and the other
    colours = np.array(padding, np.float64)
    lines = two.needed(two.touched)
    for some in _parts(one.touched, _BLOCK // len(lines)):
        narrow = _resize_lines(image, one, some, lines, colours, swap)  # [lines, 3, some]
        block = two.resize(narrow.transpose(2, 1, 0), lines, two.touched, colours)
        block = block.transpose(0, 2, 1) if swap else block.transpose(2, 0, 1)  # [rows, columns, 3]
        corner = some.start - one.first, two.touched.start - two.first
        canvas.paste(Image.fromarray(np.ascontiguousarray(block)), corner[::-1] if swap else corner)
    return canvas


def _resize_lines(
    image: Image.Image, axis: Axis, outputs: range, lines: range, colours: np.ndarray, swap: bool
) -> np.ndarray:
    """Some lines of the image (rows, or with `swap` columns), resized along them. -> [lines, 3, outputs], bytes"""
    known, blocks = axis.needed(outputs), []
    whole = axis.length == axis.pixels == len(known) and axis.size == len(outputs)
    for some in _parts(lines, _BLOCK // len(known)):
        columns, rows = (some, known) if swap else (known, some)
        part = image.crop((columns.start, rows.start, columns.stop, rows.stop))
        if whole:  # Pillow is faster, and does this without taking more
            part = part.resize((len(some), axis.size) if swap else (axis.size, len(some)), axis.kernel)
        pixels = np.asarray(part).transpose((1, 2, 0) if swap else (0, 2, 1))  # [some, 3, known or outputs]
        blocks.append(pixels if whole else axis.resize(pixels, known, outputs, colours))
    return np.concatenate(blocks)


@cache
def _can_begin_with_columns() -> bool:
    """Whether this Pillow begins with the axis that shrinks more; Pillow 12 and older always begin with the rows."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 40), np.uint8))
    rows_first = image.resize((20, 200), Image.Resampling.BICUBIC).resize((20, 50), Image.Resampling.BICUBIC)
    return image.resize((20, 50), Image.Resampling.BICUBIC).tobytes() != rows_first.tobytes()


def _parts(whole: range, size: int) -> Iterator[range]:
    """A range in pieces of at most so many (and at least one)."""
    size = max(size, 1)
    for start in range(whole.start, whole.stop, size):
        yield range(start, min(start + size, whole.stop))
