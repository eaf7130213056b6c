"""Images: read without trusting them, and brought to the vision tower's input exactly as LLaVA does.

Paths stay inside the image folder, formats are on a list, the size is known before anything is decoded, and what is
broken is refused by name. Preprocessing runs on Pillow and NumPy whatever backend a checkpoint names: torchvision's
resampling differs by up to 0.015 after normalisation.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any, BinaryIO

from PIL import Image

from llava_prumerge.data.errors import SampleError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import CLIPImageProcessorPil

# GIF is here because OCR-VQA holds some (named .jpg); of an animation the first frame is taken, as LLaVA does.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
_SUFFIXES = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".bmp": "BMP", ".gif": "GIF"}
MAX_PIXELS = 64 * 1024 * 1024
ASPECTS = ("pad", "square")

_PROCESSORS = ("CLIPImageProcessor", "LlavaImageProcessor", "SiglipImageProcessor", "CLIPFeatureExtractor")
_PROCESSOR_FIELDS = (
    *("do_convert_rgb", "do_resize", "size", "resample", "do_center_crop", "crop_size"),
    *("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std"),
)


class ImageError(SampleError):
    """An image file that is refused."""


def load_image(
    root: str | os.PathLike[str],
    relative: str,
    max_pixels: int = MAX_PIXELS,
    trusted: Sequence[str | os.PathLike[str]] = (),
) -> Image.Image:
    """Decodes an image under `root` to RGB; alpha is dropped and EXIF rotation not applied, as LLaVA does neither.

    Args:
        root: the image folder.
        relative: path inside it, as a record names it.
        max_pixels: larger images are refused before they are decoded.
        trusted: folders outside `root` that links inside it may lead to.

    Raises:
        ImageError: naming the path and what is wrong.
    """
    return decode_image(contained_path(root, relative, trusted), repr(relative), max_pixels)


def decode_image(source: Path | BinaryIO, name: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decodes an image to RGB under the limits of `load_image`, from a file whose path was checked, or from memory.

    Args:
        source: the file, by path or opened.
        name: what errors call it.
        max_pixels: larger images are refused before they are decoded.

    Raises:
        ImageError: naming the image and what is wrong.
    """
    try:
        with Image.open(source, formats=FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise ImageError(f"too large: {name} is {image.width} x {image.height}, limit {max_pixels} pixels")
            if image.mode.startswith(("I", "F")):  # Pillow's conversion would clip nearly all of it to white
                raise ImageError(f"unsupported depth: {name} has more than 8 bits per channel ({image.mode})")
            return image.convert("RGB")
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(f"too large: {name}: {error}") from error
    except Image.UnidentifiedImageError as error:
        raise ImageError(f"not an image: {name} is none of {', '.join(FORMATS)}") from error
    except Exception as error:  # Pillow's decoders let out whatever a broken file makes them meet
        raise ImageError(f"broken: {name} cannot be decoded ({type(error).__name__}: {error})") from error


def contained_path(root: str | os.PathLike[str], relative: str, trusted: Sequence[str | os.PathLike[str]] = ()) -> Path:
    """Resolves a record's path; refuses one that leaves `root`, by its words or by a link, or that is no file."""
    windows = PureWindowsPath(relative)
    if not relative or "\0" in relative:
        raise ImageError(f"bad path: {relative!r}")
    if PurePosixPath(relative).is_absolute() or windows.drive or windows.root or ".." in windows.parts:
        raise ImageError(f"path escapes: {relative!r} must be relative and without '..'")
    try:
        path = Path(root, relative).resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise ImageError(f"missing: {relative!r} in {os.fspath(root)!r}") from error
    if not any(path.is_relative_to(folder) for folder in _resolved(os.fspath(root), *map(os.fspath, trusted))):
        raise ImageError(f"path escapes: {relative!r} is a link out of {os.fspath(root)!r}; name its target as trusted")
    if not path.is_file():
        raise ImageError(f"missing: {relative!r} in {os.fspath(root)!r} is not a file")
    return path


@lru_cache(maxsize=32)
def _resolved(*folders: str) -> tuple[Path, ...]:
    return tuple(Path(folder).resolve() for folder in folders)


def misnamed_format(path: str | os.PathLike[str]) -> str | None:
    """The format of an image whose file name promises another one, as some of OCR-VQA's do; else None."""
    with Image.open(path, formats=FORMATS) as image:
        found = "JPEG" if image.format == "MPO" else image.format  # a JPEG with further pictures behind it
    return found if _SUFFIXES.get(Path(path).suffix.lower()) != found else None


def renamed_image(root: str | os.PathLike[str], relative: str) -> str | None:
    """A path that differs from a missing one in its extension alone and is there: OCR-VQA's scripts save `7.gif`, LLaVA's
    records say `7.jpg`. None if there is no such file, or the path would leave `root`."""
    for suffix in (*_SUFFIXES, *map(str.upper, _SUFFIXES)):
        other = os.path.splitext(relative)[0] + suffix
        try:
            contained_path(root, other)
        except ImageError:
            continue
        return other
    return None


def pad_to_square(image: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    """Centres the image on a square canvas of its longer side; an odd remainder falls below or to the right."""
    side = max(image.size)
    if image.size == (side, side):
        return image
    canvas = Image.new("RGB", (side, side), colour)
    canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return canvas


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
        raise ValueError(f"image processor {kind!r} is not supported; accepted: {', '.join(_PROCESSORS)}")
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
            raise ValueError(f"aspect {aspect!r} is not known; accepted: {', '.join(ASPECTS)}")
        self.image_processor = pil_image_processor(image_processor)
        self.aspect = aspect
        final = self.image_processor.crop_size if self.image_processor.do_center_crop else self.image_processor.size
        if not final.height or final.height != final.width:
            raise ValueError(f"the vision tower's input must be square, but images would become {final}")
        self.size = final.height

    @property
    def padding_colour(self) -> tuple[int, int, int]:
        """The mean colour, cut (not rounded) to bytes: (122, 116, 104) for CLIP."""
        red, green, blue = (int(mean * 255) for mean in self.image_processor.image_mean)
        return red, green, blue

    def __call__(self, images: Sequence[Image.Image]) -> Tensor:
        """Args: images, in RGB. Returns [N, 3, S, S]."""
        import torch

        if not images:
            return torch.empty(0, 3, self.size, self.size)
        if self.aspect == "pad":
            images = [pad_to_square(image, self.padding_colour) for image in images]
        pixels = self.image_processor(images=list(images), return_tensors="pt")["pixel_values"]  # [N, 3, S, S]
        return pixels.to(torch.float32)
