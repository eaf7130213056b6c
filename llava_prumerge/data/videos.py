"""Videos as frames, evenly spaced: from a file, decoded by PyAV, or from a folder with an image for each frame.

Frames are those of Video-LLaVA and LLaVA-NeXT-Video: of n frames numbers 0 to n - 1, rounded down between; a video that is
shorter than what is asked for gives some of them twice. Only these are kept, and between two of them a file is read from
the nearest key frame on, so that memory and time do not grow with its length.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from llava_prumerge.data.errors import SampleError
from llava_prumerge.data.image_paths import SUFFIXES, AnyPath, contained_path
from llava_prumerge.data.images import MAX_PIXELS, MAX_SIDE, decode_image
from llava_prumerge.ground.errors import InputError
from llava_prumerge.ground.naming import shown

MAX_FRAMES = 4_000_000
"""Of a file: a day and a half at 30 a second. Their times are held in memory."""
MAX_PIXELS_TOGETHER = 512 * 1024 * 1024
"""Of all frames that are taken of a video: 1.5 GB."""
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,flv,asf,ogg,gif"
"""What is read. Play lists are not among them: they name further files and addresses."""
INSTALL = "pip install 'llava-prumerge[video]'"


class VideoError(SampleError):
    """A video that is refused, by its content."""


@dataclass(frozen=True)
class Video:
    """Frames of one video.

    Attributes:
        frames: in RGB, all of one size.
        indices: which of the video's frames they are, from 0.
        total: how many it has.
        fps: frames per second of the file; None where nobody says.
    """

    frames: list[Image.Image]
    indices: list[int]
    total: int
    fps: float | None = None

    def mirrored(self) -> Video:
        """Left and right exchanged in every frame."""
        return replace(self, frames=[ImageOps.mirror(frame) for frame in self.frames])

    @property
    def metadata(self) -> dict[str, Any]:
        """What transformers' processors are told of a video whose frames were chosen before."""
        width, height = self.frames[0].size
        duration = self.total / self.fps if self.fps else None
        told = {"total_num_frames": self.total, "fps": self.fps, "duration": duration, "width": width, "height": height}
        return told | {"frames_indices": list(self.indices)}


@dataclass(frozen=True)
class VideoFolder:
    """Where records' videos lie and how they are read; plain values only, so that it travels to worker processes.

    Args:
        folder: what the records' paths are relative to.
        frames: how many are taken of each.
        max_pixels: larger frames are refused.
        trusted: folders outside it that links inside it may lead to.
    """

    folder: str
    frames: int
    max_pixels: int = MAX_PIXELS
    trusted: tuple[str, ...] = ()

    def read(self, path: str) -> Video:
        """A video by its path as a record has it, a file or a folder of frames.

        Raises:
            ImageError: the path leads elsewhere or nowhere, or a frame of a folder cannot be decoded.
            VideoError: the video cannot be decoded, or has no frames.
        """
        found = contained_path(self.folder, path, self.trusted, folders=True)
        return read_video(found, self.frames, shown(path), self.max_pixels, self.trusted)


def is_flipped(path: str) -> bool:
    """Whether a video is one of the half that are mirrored: by a hash of its path, so that every run flips the same ones."""
    return hashlib.sha256(path.encode()).digest()[0] % 2 == 1


def read_video(
    source: AnyPath,
    count: int,
    name: str | None = None,
    max_pixels: int = MAX_PIXELS,
    trusted: Sequence[AnyPath] = (),
) -> Video:
    """Frames of a video whose path was checked.

    Args:
        source: a file, or a folder with an image for each frame.
        count: frames to take.
        name: what errors call it.
        max_pixels: of a frame.
        trusted: where links in a folder of frames may lead to.

    Raises:
        VideoError: it cannot be decoded, or has no frames.
        ImageError: an image of a folder cannot be decoded.
        InputError: PyAV is not installed, and a file is to be decoded.
    """
    source, name = Path(source), name or str(source)
    if source.is_dir():
        return _of_folder(source, count, name, max_pixels, trusted)
    return _of_file(source, count, name, max_pixels)


def sample_indices(total: int, count: int) -> list[int]:
    """Numbers of frames that are taken of so many, from the first to the last."""
    return [int(number) for number in np.linspace(0, total - 1, count)]


def frame_files(folder: Path) -> list[Path]:
    """The images in a folder, in the order of their names; numbers in names count as numbers: 2 is ahead of 10."""
    files = [path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file()]
    return sorted(files, key=lambda path: [int(part) if part.isdigit() else part for part in _parts(path.name)])


def _parts(name: str) -> list[str]:
    return re.split(r"([0-9]+)", name)


def _of_folder(folder: Path, count: int, name: str, max_pixels: int, trusted: Sequence[AnyPath]) -> Video:
    files = frame_files(folder)
    if not files:
        raise VideoError(f"no frames: {name} is a folder without images ({', '.join(SUFFIXES)})")
    indices = sample_indices(len(files), count)
    decoded: dict[int, Image.Image] = {}
    for at in dict.fromkeys(indices):
        path = contained_path(folder, files[at].name, trusted)
        decoded[at] = decode_image(path, f"{name}/{files[at].name}", max_pixels)
        _check_size(decoded[at].size, len(set(indices)), name, max_pixels)
    sizes = {frame.size for frame in decoded.values()}
    if len(sizes) > 1:
        raise VideoError(
            f"frames differ: {name} holds images of {' and '.join(f'{w} x {h}' for w, h in sorted(sizes))}"
        )
    return Video([decoded[at] for at in indices], indices, len(files))


def _of_file(path: Path, count: int, name: str, max_pixels: int) -> Video:
    av = _library()
    try:
        with path.open("rb") as file, _opened(av, file) as container:
            streams = container.streams.video
            if not streams:
                raise VideoError(f"no frames: {name} holds no video")
            stream = streams[0]
            times, keys = _times(container, stream, name)
            indices = sample_indices(len(times), count)
            size = stream.codec_context.width, stream.codec_context.height
            _check_size(size, len(set(indices)), name, max_pixels)
            wanted = {at: times[at] for at in indices}
            decoded = dict(zip(wanted, _frames(av, container, stream, list(wanted.values()), keys), strict=False))
            fps = stream.average_rate
    except VideoError:
        raise
    except MemoryError as error:
        raise VideoError(f"too large: {name}: there is not enough memory") from error
    except Exception as error:  # a broken file makes the decoders raise whatever they meet
        reason = " ".join(str(error).split())[:160]
        raise VideoError(f"broken: {name} cannot be decoded ({type(error).__name__}: {reason})") from error
    if missing := [at for at in indices if at not in decoded]:
        raise VideoError(f"broken: {name} ends before frame {missing[0]} of {len(times)}")
    return Video([decoded[at] for at in indices], indices, len(times), None if not fps else float(fps))


def _check_size(size: tuple[int, int], count: int, name: str, max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels or max(size) > MAX_SIDE:
        raise VideoError(f"too large: {name} is {width} x {height}, limit {max_pixels} pixels")
    if count * width * height > MAX_PIXELS_TOGETHER:
        told = f"{count} frames of {width} x {height}"
        raise VideoError(f"too large: {told} of {name}, limit {MAX_PIXELS_TOGETHER} pixels together; take fewer frames")


def _library() -> Any:
    try:
        import av
    except ImportError as error:
        raise InputError(f"video files need PyAV: {INSTALL}; folders of frames do not") from error
    return av


def _opened(av: Any, file: Any) -> Any:
    """A container that reads this file alone, whatever it says of others."""
    options = {"protocol_whitelist": "", "format_whitelist": CONTAINERS}
    return contextlib.closing(av.open(file, options=options))


def _times(container: Any, stream: Any, name: str) -> tuple[list[int], list[int]]:
    """When frames are shown, in the stream's unit, and which of these are key frames; read without decoding."""
    times, keys = [], []
    for packet in container.demux(stream):
        if packet.pts is None or not packet.size:
            continue
        times.append(packet.pts)
        if packet.is_keyframe:
            keys.append(packet.pts)
        if len(times) > MAX_FRAMES:
            raise VideoError(f"too long: {name} has more than {MAX_FRAMES:,} frames")
    if not times:
        raise VideoError(f"no frames: {name} holds none that has a time")
    return sorted(times), sorted(keys)


def _frames(av: Any, container: Any, stream: Any, wanted: Sequence[int], keys: Sequence[int]) -> Iterator[Image.Image]:
    """Frames at ascending times, each the first that is shown then or later."""
    container.seek(keys[0] if keys else wanted[0], stream=stream, backward=True)
    running, frame = container.decode(stream), None
    for time in wanted:
        if frame is None or frame.pts < time:
            at = bisect_right(keys, time) - 1
            if at >= 0 and frame is not None and keys[at] > frame.pts:
                container.seek(keys[at], stream=stream, backward=True)
                running = container.decode(stream)
            frame = next((one for one in running if one.pts is not None and one.pts >= time), None)
            if frame is None:
                return
        yield Image.fromarray(frame.to_ndarray(format="rgb24"))
