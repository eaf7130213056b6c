"""Images: read without trusting them, and brought to the vision tower's input exactly as LLaVA does.

There is one way from a file, a table's cell or an upload to pixels: `decode_image`. Formats are on a list, the size is
known before anything is decoded, what is broken is refused by name, and what comes out is RGB as LLaVA's
`Image.open(...).convert("RGB")` makes it, with nothing else of the file left. Preprocessing runs on Pillow and NumPy
whatever backend a checkpoint names: torchvision's resampling differs by up to 0.015 after normalisation.

Memory: decoding takes at most 8 bytes for each of at most `MAX_PIXELS` pixels. Everything after it is bounded by what
the image becomes: where padding or resizing on the way to S x S would take more than 64 MB or four times the image,
only the wanted pixels are computed (`resize.py`), in a few times S x S and 64 bytes per pixel of the longest side.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import io
import os
import re
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from PIL import Image

from llava_prumerge.data.image_paths import SUFFIXES, AnyPath, ImageError, contained_path
from llava_prumerge.data.resize import KERNELS, Axis, Colour, resize_window
from llava_prumerge.ground.errors import InputError
from llava_prumerge.ground.naming import shown

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import CLIPImageProcessorPil

# GIF is here because OCR-VQA holds some (named .jpg); of an animation the first frame is taken, as LLaVA does.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
MAX_PIXELS = 64 * 1024 * 1024
MAX_SIDE = 128 * 1024  # pixels; the square that LLaVA pads a longer image to would take more than 64 GiB
ASPECTS = ("pad", "square")

_PLENTY = 1 << 24  # pixels on the way that are made without a thought: 64 MB
_GROWTH = 4  # and no more than this many times the image's own
_DATA_ADDRESS = re.compile(r"\s*data:[^,]*,")
_PROCESSORS = ("CLIPImageProcessor", "LlavaImageProcessor", "SiglipImageProcessor", "CLIPFeatureExtractor")
_PROCESSOR_FIELDS = (
    *("do_convert_rgb", "do_resize", "size", "resample", "do_center_crop", "crop_size"),
    *("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std"),
)

# Our own limit is lower, and an error.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def load_image(
    root: AnyPath, relative: str, max_pixels: int = MAX_PIXELS, trusted: Sequence[AnyPath] = ()
) -> Image.Image:
    """Decodes an image under `root` as `decode_image` does.

    Args:
        root: the image folder.
        relative: path inside it, as a record names it.
        max_pixels: larger images are refused before they are decoded.
        trusted: folders outside `root` that links inside it may lead to.

    Raises:
        ImageError: naming the path and what is wrong.
    """
    return decode_image(contained_path(root, relative, trusted), shown(relative), max_pixels)


def read_image(path: AnyPath) -> Image.Image:
    """Decodes an image that a person names, wherever it lies, as `decode_image` does.

    Raises:
        ImageError: naming the path and what is wrong.
    """
    path = Path(path)
    if not path.is_file():
        raise ImageError(f"missing: {path} is {'not a file' if path.exists() else 'not there'}")
    return decode_image(path, str(path))


def decode_base64(text: str, name: str) -> Image.Image:
    """Decodes an image that is text in base64, with line breaks or without, also as a `data:` address.

    Args:
        text: as a table or a request has it.
        name: what errors call it.

    Raises:
        ImageError: it is not base64, or as `decode_image`.
    """
    address = _DATA_ADDRESS.match(text)
    encoded = "".join(text[address.end() if address else 0 :].split())
    try:
        content = base64.b64decode(encoded, altchars=b"-_" if "-" in encoded or "_" in encoded else None, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError(f"not an image: {name} is not base64 ({error})") from error
    return decode_image(io.BytesIO(content), name)


def decode_image(source: Path | BinaryIO, name: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decodes an image to RGB, from a file whose path was checked, or from memory.

    As in LLaVA: transparency and alpha are dropped and nothing is composed, CMYK is converted by Pillow, an animation
    gives its first frame, EXIF's rotation is not applied, of 16-bit colour the high byte is taken. Grey of 16 bits is
    LLaVA's as long as all values are below 256; of a brighter one, which LLaVA turns into white, the high byte is taken.

    Args:
        source: the file, by path or opened.
        name: what errors call it.
        max_pixels: larger images are refused before they are decoded.

    Raises:
        ImageError: naming the image and what is wrong.
    """
    try:
        with Image.open(source, formats=FORMATS) as image:
            _check_size(image, name, max_pixels)
            image.load()
            return as_rgb(image)
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError) as error:
        raise ImageError(f"too large: {name}: {error or 'there is not enough memory'}") from error
    except Image.UnidentifiedImageError as error:
        raise ImageError(f"not an image: {name} is none of {', '.join(FORMATS)}") from error
    except Exception as error:  # Pillow's decoders let out whatever a broken file makes them meet
        raise ImageError(f"broken: {name} cannot be decoded ({type(error).__name__}: {error})") from error


def as_rgb(image: Image.Image) -> Image.Image:
    """A copy in RGB of an image that is decoded already, as `decode_image` makes it."""
    own = image.info
    # Pillow would warn of it, and transformers' convert_to_rgb would compose the image on white.
    image.info = {key: value for key, value in own.items() if key != "transparency"}
    try:
        rgb = (_narrowed(image) if is_deep(image) else image).convert("RGB")
    finally:
        image.info = own
    rgb.info.clear()  # what is left of the file, such as an orientation, is nobody's to act on
    return rgb


def _check_size(image: Image.Image, name: str, max_pixels: int) -> None:
    size = f"{name} is {image.width} x {image.height}"
    if image.width * image.height > max_pixels:
        raise ImageError(f"too large: {size}, limit {max_pixels} pixels")
    if max(image.size) > MAX_SIDE:
        raise ImageError(f"too large: {size}, limit {MAX_SIDE} pixels a side")


def is_deep(image: Image.Image) -> bool:
    """Whether an opened image is grey with more than 8 bits, which Pillow's conversion to RGB clips to white."""
    return image.mode.startswith("I")


def _narrowed(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    return Image.fromarray((values if values.max() < 256 else values >> 8).astype(np.uint8))


def describe_file(path: AnyPath) -> list[tuple[str, str]]:
    """What is worth a note about a readable image file, from its first bytes: (kind, the rest of the sentence) each."""
    notes = []
    with Image.open(path, formats=FORMATS) as image:
        found = "JPEG" if image.format == "MPO" else image.format  # a JPEG with further pictures behind it
        if SUFFIXES.get(Path(path).suffix.lower()) != found:
            notes.append(("misnamed", f"is {found}"))
        if is_deep(image):
            notes.append(("16-bit grey", "has more than 8 bits per pixel; LLaVA would show what is above 255 white"))
        with contextlib.suppress(Exception):  # a damaged second frame is nothing to a reader of the first
            if found != "JPEG" and getattr(image, "is_animated", False):
                notes.append(("animation", "moves; its first frame is taken"))
    return notes


def pad_to_square(image: Image.Image, colour: Colour) -> Image.Image:
    """Centres the image on a square canvas of its longer side; an odd remainder falls below or to the right."""
    side = max(image.size)
    if image.size == (side, side):
        return image
    canvas = Image.new("RGB", (side, side), colour)
    canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return canvas


def padded_picture(image: Image.Image, side: int, colour: Colour) -> Image.Image:
    """The image padded to a square and resized to `side` pixels, for drawings; bounded as everything here."""
    longest = max(image.size)
    if _takes_little(image.size, (longest, longest), (side, side)):
        return pad_to_square(image, colour).resize((side, side), Image.Resampling.BICUBIC)
    across, down = (Axis(n, (longest - n) // 2, longest, side, 0, side) for n in image.size)
    return resize_window(image, across, down, colour)


def _takes_little(image: tuple[int, int], canvas: tuple[int, int], resized: tuple[int, int]) -> bool:
    """Whether an image may be padded and resized as a whole: the canvas, and what stands between it and its end."""
    largest = max(canvas[0] * canvas[1], canvas[0] * resized[1], resized[0] * canvas[1], resized[0] * resized[1])
    return largest <= min(_PLENTY, max(_PLENTY >> 4, _GROWTH * image[0] * image[1]))


def pil_image_processor(source: str | os.PathLike[str] | Any) -> CLIPImageProcessorPil:
    """CLIP's image processor on the PIL backend, from a checkpoint or from a processor of any backend.

    Args:
        source: a checkpoint, or an image processor of CLIP, of LLaVA (whose `do_pad` is left to `ImagePreprocessor`), or
            of SigLIP (which resizes to a square and crops nothing).
    """
    from transformers import CLIPImageProcessorPil

    if isinstance(source, (str, os.PathLike)):
        settings, _ = CLIPImageProcessorPil.get_image_processor_dict(os.fspath(source))
        kind = settings.get("image_processor_type") or settings.get("feature_extractor_type") or "CLIPImageProcessor"
    else:
        settings, kind = source.to_dict(), type(source).__name__
    if kind.removesuffix("Fast").removesuffix("Pil") not in _PROCESSORS:
        raise InputError(f"image processor {kind!r} is not supported; accepted: {', '.join(_PROCESSORS)}")
    fields = {key: settings[key] for key in _PROCESSOR_FIELDS if settings.get(key) is not None}
    if kind.startswith("Siglip"):
        fields["do_center_crop"] = False
    return CLIPImageProcessorPil(**fields)


class ImagePreprocessor:
    """Images to pixel values, [N, 3, S, S] in float32; `size` is S.

    Args:
        image_processor: a checkpoint or CLIP's image processor; any backend is replaced by Pillow's.
        aspect: "pad" (LLaVA-1.5's stage 2 and evaluation) pads to a square in the mean colour; "square" (its stage 1)
            does not, so that the centre crop loses the ends of the longer side.
    """

    def __init__(self, image_processor: Any, aspect: str = "pad") -> None:
        if aspect not in ASPECTS:
            raise InputError(f"aspect {aspect!r} is not known; accepted: {', '.join(ASPECTS)}")
        self.image_processor = pil_image_processor(image_processor)
        self.aspect = aspect
        if self.image_processor.resample not in KERNELS:
            accepted = ", ".join(f"{int(kernel)} ({kernel.name.lower()})" for kernel in KERNELS)
            raise InputError(f"image processor: resample={self.image_processor.resample}; accepted: {accepted}")
        final = self.image_processor.crop_size if self.image_processor.do_center_crop else self.image_processor.size
        if not final.height or final.height != final.width:
            raise InputError(f"the vision tower's input must be square, but images would become {final}")
        self.size = final.height

    @property
    def padding_colour(self) -> Colour:
        """The mean colour, cut (not rounded) to bytes: (122, 116, 104) for CLIP."""
        red, green, blue = (int(mean * 255) for mean in self.image_processor.image_mean)
        return red, green, blue

    def __call__(self, images: Iterable[Image.Image]) -> Tensor:
        """Args: images, in RGB; of an iterator one is held at a time. Returns [N, 3, S, S]."""
        import torch

        pixels = [self._pixels(image) for image in images]
        return torch.stack(pixels) if pixels else torch.empty(0, 3, self.size, self.size)

    def _pixels(self, image: Image.Image) -> Tensor:
        """[3, S, S]"""
        import torch

        longest = max(image.size)
        canvas = (longest, longest) if self.aspect == "pad" else image.size
        resized = self._resized(canvas)
        if _takes_little(image.size, canvas, resized):
            whole = pad_to_square(image, self.padding_colour) if self.aspect == "pad" else image
            made = self.image_processor(images=whole, return_tensors="pt")
        else:
            axes = []
            for pixels, length, size in zip(image.size, canvas, resized, strict=True):
                first, kernel = (size - self.size) // 2, self.image_processor.resample
                axes.append(Axis(pixels, (length - pixels) // 2, length, size, first, first + self.size, kernel))
            window = resize_window(image, axes[0], axes[1], self.padding_colour)
            made = self.image_processor(images=window, do_resize=False, do_center_crop=False, return_tensors="pt")
        return made["pixel_values"][0].to(torch.float32)

    def locate(self, size: tuple[int, int], box: Sequence[float]) -> list[float]:
        """Where a box of an image lies in what becomes of it, beyond 0 or 1 where the crop cuts it.

        Args:
            size: of the image, width and height.
            box: left, top, right and bottom as fractions of the image.

        Returns:
            The same as fractions of the S x S pixels.
        """
        canvas = (max(size), max(size)) if self.aspect == "pad" else size
        placed = []
        for side, fraction in enumerate(box):
            pixels, length, resized = size[side % 2], canvas[side % 2], self._resized(canvas)[side % 2]
            on_canvas = (fraction * pixels + (length - pixels) // 2) / length
            placed.append((on_canvas * resized - (resized - self.size) // 2) / self.size)
        return placed

    def _resized(self, canvas: tuple[int, int]) -> tuple[int, int]:
        """What the processor resizes a canvas to, (width, height)."""
        size = self.image_processor.size
        if not self.image_processor.do_resize:
            return canvas
        if not size.shortest_edge:
            return size.width, size.height
        width, height = (int(size.shortest_edge * length / min(canvas)) for length in canvas)
        return width, height
