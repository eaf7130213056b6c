"""Frames of videos: which are taken, in which order, and what is refused, of folders and of files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from llava_prumerge.data import videos
from llava_prumerge.data.image_digest import digest_images
from llava_prumerge.data.image_paths import ImageError
from llava_prumerge.data.videos import VideoError, VideoFolder, is_flipped, read_video, sample_indices
from llava_prumerge.ground.errors import InputError


def grey(value: int, size: tuple[int, int] = (16, 8)) -> Image.Image:
    return Image.new("RGB", size, (value, value, value))


def shades(frames: list[Image.Image]) -> list[int]:
    """The mean of each frame."""
    return [round(float(np.asarray(frame).mean())) for frame in frames]


def write_frames(folder: Path, count: int, name: str = "{}.png") -> Path:
    folder.mkdir(parents=True)
    for number in range(count):
        grey(number * 3).save(folder / name.format(number))
    return folder


def barred(number: int) -> np.ndarray:
    """A frame that says its number: eight bars, white where its binary digit is 1."""
    bars = [255 * (number >> digit & 1) for digit in range(8)]
    return np.broadcast_to(np.repeat(np.array(bars, np.uint8), 16)[None, :, None], (32, 128, 3)).copy()


def numbers(frames: list[Image.Image]) -> list[int]:
    """What those say."""
    bars = [np.asarray(frame).reshape(32, 8, 16, 3).mean(axis=(0, 2, 3)) > 127 for frame in frames]
    return [sum(int(bar) << digit for digit, bar in enumerate(one)) for one in bars]


def write_file(path: Path, count: int, codec: str = "mpeg4") -> Path:
    av = pytest.importorskip("av", reason="PyAV is not installed: pip install av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10, options={"g": "12"})
        stream.width, stream.height = 128, 32
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(barred(number), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(("total", "count"), [(80, 8), (8, 8), (3, 8), (1, 4), (9, 1), (1000, 32)])
def test_frames_are_evenly_spaced_as_released(total: int, count: int) -> None:
    """Video-LLaVA: numpy.linspace(0, n - 1, T, dtype=int)."""
    assert sample_indices(total, count) == np.linspace(0, total - 1, count, dtype=int).tolist()


def test_a_folder_of_frames(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "clip", 12)
    (folder / "notes.txt").write_text("no frame")
    video = VideoFolder(str(tmp_path), 4).read("clip")
    assert (video.indices, video.total, video.fps) == ([0, 3, 7, 11], 12, None)
    assert shades(video.frames) == [0, 9, 21, 33], "10 comes behind 9"
    assert shades(read_video(write_frames(tmp_path / "short", 2), 4).frames) == [0, 0, 0, 3]


def test_what_is_refused_of_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = VideoFolder(str(tmp_path / "in"), 3)
    write_frames(tmp_path / "in" / "clip", 3)
    (tmp_path / "in" / "none").mkdir()
    grey(0, (9, 9)).save(write_frames(tmp_path / "in" / "sizes", 2) / "3.png")
    (write_frames(tmp_path / "in" / "cut", 3) / "1.png").write_bytes(b"none")
    write_frames(tmp_path / "out", 3)
    (tmp_path / "in" / "link").symlink_to(tmp_path / "out")
    inner = write_frames(tmp_path / "in" / "inner", 2)
    (inner / "2.png").symlink_to(tmp_path / "out" / "2.png")
    for path, kind in (
        ("none", "no frames"), ("sizes", "frames differ"), ("cut", "not an image"), ("link", "path escapes"),
        ("inner", "path escapes"), ("../out", "path escapes"), ("absent", "missing"), ("/etc", "path escapes"),
    ):  # fmt: skip
        with pytest.raises((ImageError, VideoError)) as caught:
            given.read(path)
        assert caught.value.kind == kind and len(str(caught.value).splitlines()) == 1, path
    assert len(VideoFolder(str(tmp_path / "in"), 3, trusted=(str(tmp_path / "out"),)).read("link").frames) == 3
    with pytest.raises(ImageError, match="too large: .* limit 100 pixels"):
        read_video(tmp_path / "in" / "clip", 3, max_pixels=100)
    monkeypatch.setattr(videos, "MAX_PIXELS_TOGETHER", 300)
    with pytest.raises(VideoError, match="too large: 3 frames of 16 x 8 .* take fewer frames"):
        given.read("clip")


def test_a_file_needs_pyav(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "a.mp4").write_bytes(b"...")
    with pytest.raises(InputError, match=r"video files need PyAV: pip install 'llava-prumerge\[video\]'") as caught:
        VideoFolder(str(tmp_path), 2).read("a.mp4")
    assert not isinstance(caught.value, VideoError), "the run ends, and no record is set aside for it"


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "mpeg4"), ("a.mkv", "mpeg4"), ("a.avi", "mjpeg")])
def test_frames_of_a_file_are_those_that_were_written(tmp_path: Path, name: str, codec: str) -> None:
    video = read_video(write_file(tmp_path / name, 90, codec), 8)
    assert (video.total, video.fps, video.indices) == (90, 10.0, sample_indices(90, 8))
    assert numbers(video.frames) == video.indices


def test_what_is_refused_of_files(tmp_path: Path) -> None:
    whole = write_file(tmp_path / "a.mp4", 30)
    (tmp_path / "cut.mp4").write_bytes(whole.read_bytes()[:600])
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "list.m3u8").write_text(f"#EXTM3U\n#EXTINF:1,\n{whole}\n#EXT-X-ENDLIST\n")
    (tmp_path / "list.ffconcat").write_text(f"ffconcat version 1.0\nfile '{whole}'\n")
    for name in ("cut.mp4", "empty.mp4", "text.mp4", "list.m3u8", "list.ffconcat"):
        with pytest.raises(VideoError, match=f"(broken|no frames): .*{name}") as caught:
            read_video(tmp_path / name, 2)
        assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(VideoError, match="too large"):
        read_video(whole, 2, max_pixels=100)


def test_a_changed_frame_is_noticed(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "clip", 3)
    before: dict[str, Any] = digest_images(tmp_path, ["clip"])
    assert digest_images(tmp_path, ["clip"]) == before
    grey(200).save(folder / "1.png")
    assert digest_images(tmp_path, ["clip"])["sha256"] != before["sha256"]


def test_half_of_the_videos_are_mirrored_and_always_the_same_ones(tmp_path: Path) -> None:
    flipped = [is_flipped(f"videos/{number}.mp4") for number in range(400)]
    assert 160 < sum(flipped) < 240 and flipped == [is_flipped(f"videos/{number}.mp4") for number in range(400)]
    (tmp_path / "clip").mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (6, 8, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "clip" / "0.png")
    video = VideoFolder(str(tmp_path), 2).read("clip")
    mirrored = video.mirrored()
    assert all((np.asarray(frame) == pixels[:, ::-1]).all() for frame in mirrored.frames)
    assert (mirrored.indices, mirrored.total) == (video.indices, video.total)
