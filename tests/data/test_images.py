"""Pixels against Pillow and NumPy alone and against stored values; files that must be refused."""

from __future__ import annotations

import base64
import io
import pickle
import random
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from llava_prumerge.data.image_paths import ImageError, TrustError, trusted_folders
from llava_prumerge.data.images import (
    MAX_SIDE,
    ImagePreprocessor,
    decode_base64,
    decode_image,
    describe_file,
    load_image,
    pad_to_square,
    padded_picture,
    pil_image_processor,
    read_image,
)
from llava_prumerge.data.resize import KERNELS, Axis, resize_window

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

# A 6 x 4 image of colour ramps, padded to 6 x 6 and brought to 4 x 4: bytes as Pillow 13 alone gives them.
GOLDEN = np.array(
    [
        [[85, 71, 70], [109, 71, 84], [137, 71, 101], [161, 71, 115]],
        [[10, 49, 25], [84, 49, 69], [167, 49, 119], [240, 49, 163]],
        [[10, 191, 79], [84, 191, 122], [167, 191, 172], [240, 191, 216]],
        [[85, 163, 104], [109, 163, 118], [137, 163, 135], [161, 163, 149]],
    ],
    dtype=np.uint8,
)

SaveImage = Callable[..., Path]


def clip_processor(size: int):
    from transformers import CLIPImageProcessorPil

    return CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8))


def ramps() -> Image.Image:
    rows, columns = np.mgrid[0:4, 0:6]
    return Image.fromarray(np.stack([columns * 50, rows * 80, (rows + columns) * 30], axis=-1).astype(np.uint8))


def png(values: np.ndarray, colour: int, transparent: bytes = b"") -> bytes:
    """A PNG of 16 bits per sample, [rows, columns, samples], of which Pillow writes grey alone."""
    height, width = values.shape[:2]

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = chunk(b"IHDR", header) + (chunk(b"tRNS", transparent) if transparent else b"")
    return b"\x89PNG\r\n\x1a\n" + chunks + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def reference_pixels(image: Image.Image, size: int, aspect: str) -> np.ndarray:
    """LLaVA's steps one by one. Returns [3, S, S]."""
    if aspect == "pad":
        side = max(image.size)
        canvas = Image.new("RGB", (side, side), (122, 116, 104))
        canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        image = canvas
    short = min(image.size)
    image = image.resize((int(size * image.width / short), int(size * image.height / short)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    pixels = np.asarray(image.crop((left, top, left + size, top + size)), dtype=np.float64) / 255
    return ((pixels - MEAN) / STD).transpose(2, 0, 1)


@pytest.mark.parametrize("aspect", ["pad", "square"])
@pytest.mark.parametrize("size", [336, 96])
@pytest.mark.parametrize("shape", [(500, 333), (63, 200), (96, 96), (31, 30), (1, 7)])
def test_pixels_equal_pillow_and_numpy(aspect: str, size: int, shape: tuple[int, int]) -> None:
    image = noise(*shape)
    pixels = ImagePreprocessor(clip_processor(size), aspect)([image])
    assert pixels.shape == (1, 3, size, size) and pixels.dtype == torch.float32
    np.testing.assert_allclose(pixels[0].numpy(), reference_pixels(image, size, aspect), atol=2e-6)


def test_pixels_equal_stored_values() -> None:
    pixels = ImagePreprocessor(clip_processor(4), "pad")([ramps()])[0].permute(1, 2, 0).numpy()  # [S, S, 3]
    np.testing.assert_allclose(pixels, (GOLDEN / 255 - MEAN) / STD, atol=2e-6)


def test_images_of_many_sizes_keep_their_order() -> None:
    preprocessor = ImagePreprocessor(clip_processor(32))
    images = [noise(40, 30), noise(10, 60), noise(40, 30).rotate(180)]
    together = preprocessor(images)
    assert torch.equal(together, torch.cat([preprocessor([image]) for image in images]))
    assert preprocessor([]).shape == (0, 3, 32, 32)


def test_padding_sits_where_llava_puts_it() -> None:
    padded = np.asarray(pad_to_square(Image.new("RGB", (3, 6), (255, 0, 0)), (122, 116, 104)))
    assert padded.shape == (6, 6, 3)
    assert (padded[:, 1:4] == (255, 0, 0)).all()  # (6 - 3) // 2 = 1 column before, 2 after
    assert (padded[:, [0, 4, 5]] == (122, 116, 104)).all()


def test_every_backend_ends_up_on_pillow(tmp_path: Path) -> None:
    from transformers import CLIPImageProcessor, CLIPImageProcessorPil, LlavaImageProcessorPil

    settings = {"size": {"shortest_edge": 96}, "crop_size": {"height": 96, "width": 96}, "image_mean": [0.5, 0.25, 0.0]}
    CLIPImageProcessor(**settings).save_pretrained(tmp_path)
    for source in (CLIPImageProcessor(**settings), LlavaImageProcessorPil(**settings), tmp_path, str(tmp_path)):
        processor = pil_image_processor(source)
        assert type(processor) is CLIPImageProcessorPil
        assert ImagePreprocessor(source).size == 96
        assert ImagePreprocessor(source).padding_colour == (127, 63, 0)


def test_siglip_resizes_to_a_square_and_crops_nothing() -> None:
    from transformers import SiglipImageProcessorPil

    preprocessor = ImagePreprocessor(SiglipImageProcessorPil(size={"height": 48, "width": 48}), "square")
    image = noise(60, 30)
    expected = np.asarray(image.resize((48, 48), Image.Resampling.BICUBIC), dtype=np.float64).transpose(2, 0, 1)
    assert preprocessor.size == 48
    np.testing.assert_allclose(preprocessor([image])[0].numpy(), expected / 127.5 - 1, atol=2e-6)


def test_settings_that_cannot_be_llavas_are_errors() -> None:
    from transformers import CLIPImageProcessorPil, ViTImageProcessorPil

    with pytest.raises(ValueError, match="aspect 'crop' is not known; accepted: pad, square"):
        ImagePreprocessor(clip_processor(32), "crop")
    with pytest.raises(ValueError, match="'ViTImageProcessorPil' is not supported; accepted: CLIPImageProcessor"):
        pil_image_processor(ViTImageProcessorPil())
    with pytest.raises(ValueError, match="must be square"):
        ImagePreprocessor(CLIPImageProcessorPil(crop_size={"height": 32, "width": 16}))
    with pytest.raises(ValueError, match="must be square"):
        ImagePreprocessor(CLIPImageProcessorPil(do_center_crop=False))


@pytest.mark.parametrize(
    ("name", "mode"),
    [("a.jpg", "RGB"), ("a.jpg", "L"), ("a.jpg", "CMYK"), ("a.png", "RGBA"), ("a.png", "P"), ("a.png", "LA")]
    + [("a.gif", "P"), ("a.webp", "RGB"), ("a.bmp", "RGB"), ("a.png", "1")],
)
def test_accepted_formats_become_rgb(save_image: SaveImage, name: str, mode: str) -> None:
    path = save_image(name, mode=mode)
    image = load_image(path.parent, name)
    assert (image.mode, image.size) == ("RGB", (40, 30))
    assert image.tobytes() == Image.open(path).convert("RGB").tobytes()
    assert describe_file(path) == []


def test_an_animation_gives_its_first_frame(save_image: SaveImage) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    path = save_image("a.gif")
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert load_image(path.parent, "a.gif").getpixel((0, 0)) == (255, 0, 0)
    assert describe_file(path) == [("animation", "moves; its first frame is taken")]


def test_a_misnamed_image_is_read_and_told_of(save_image: SaveImage) -> None:
    path = save_image("a.jpg", format="GIF", mode="P")
    assert load_image(path.parent, "a.jpg").size == (40, 30)
    assert describe_file(path) == [("misnamed", "is GIF")]


@pytest.mark.parametrize(
    ("relative", "kind"),
    [
        ("", "bad path"),
        ("a\0.jpg", "bad path"),
        ("/etc/passwd", "path escapes"),
        ("../secret.jpg", "path escapes"),
        ("sub/../../secret.jpg", "path escapes"),
        ("..\\secret.jpg", "path escapes"),
        ("C:\\secret.jpg", "path escapes"),
        ("http://x/y.jpg", "bad path"),
        ("data:image/png;base64," + "A" * 9000, "bad path"),
        ("link.jpg", "path escapes"),
        ("linked/secret.jpg", "path escapes"),
        ("absent.jpg", "missing"),
        ("dangling.jpg", "missing"),
        ("loop.jpg", "missing"),
        ("sub", "missing"),
        ("a.jpg/b.jpg", "missing"),
    ],
)
def test_paths_that_are_refused(save_image: SaveImage, tmp_path: Path, relative: str, kind: str) -> None:
    root = save_image("a.jpg").parent
    save_image("../secret.jpg")
    save_image("../elsewhere/secret.jpg")
    (root / "sub").mkdir()
    (root / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "dangling.jpg").symlink_to(root / "nothing.jpg")
    (root / "loop.jpg").symlink_to(root / "loop.jpg")
    with pytest.raises(ImageError) as caught:
        load_image(root, relative)
    assert caught.value.kind == kind and len(str(caught.value)) < 800


def test_links_inside_the_folder_and_to_trusted_folders_are_followed(save_image: SaveImage, tmp_path: Path) -> None:
    root = save_image("a.jpg").parent
    save_image("../elsewhere/b.jpg")
    (root / "again.jpg").symlink_to(root / "a.jpg")
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    assert load_image(root, "again.jpg").size == (40, 30)
    assert load_image(root, "linked/b.jpg", trusted=[tmp_path / "elsewhere"]).size == (40, 30)


def test_files_that_are_refused(save_image: SaveImage) -> None:
    whole = save_image("a.jpg", size=(200, 200))
    root = whole.parent
    (root / "cut.jpg").write_bytes(whole.read_bytes()[:2000])
    (root / "cut.png").write_bytes(save_image("b.png", size=(200, 200)).read_bytes()[:2000])
    (root / "text.jpg").write_text("not an image")
    (root / "empty.jpg").write_bytes(b"")
    save_image("a.tiff")
    (root / "long.png").write_bytes(png(np.zeros((1, MAX_SIDE + 1), np.uint16), 0))
    kinds = {
        "cut.jpg": "broken",
        "cut.png": "broken",
        "text.jpg": "not an image",
        "empty.jpg": "not an image",
        "a.tiff": "not an image",
        "long.png": "too large",
    }
    for name, kind in kinds.items():
        with pytest.raises(ImageError, match=name) as caught:
            load_image(root, name)
        assert caught.value.kind == kind


def test_the_pixel_limit_holds_before_decoding(save_image: SaveImage, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_image("a.png", size=(100, 50))
    assert load_image(path.parent, "a.png", max_pixels=5000).size == (100, 50)
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("decoded"))
    with pytest.raises(ImageError, match="too large: 'a.png' is 100 x 50, limit 4999 pixels"):
        load_image(path.parent, "a.png", max_pixels=4999)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ImageError, match="too large: 'a.png'"):
        load_image(path.parent, "a.png")


def test_errors_survive_the_way_out_of_a_worker() -> None:
    error = ImageError("missing: 'a.jpg'", "x1")
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.kind, copy.sample_id) == ("sample x1: missing: 'a.jpg'", "missing", "x1")
    assert isinstance(ImageError(str(error)), ImageError)


def saved(image: Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def palette() -> Image.Image:
    return noise(20, 16).quantize(16)


def alpha(mode: str) -> Image.Image:
    return Image.merge("RGBA", [*noise(20, 16).split(), noise(20, 17).convert("L").crop((0, 0, 20, 16))]).convert(mode)


ORIENTED = Image.Exif()
ORIENTED[0x0112] = 6  # shown turned by a quarter
KINDS: dict[str, Callable[[], bytes]] = {
    "palette, one transparent": lambda: saved(palette(), "PNG", transparency=3),
    "palette, an alpha for each": lambda: saved(palette(), "PNG", transparency=bytes(range(0, 256, 16))),
    "grey, one transparent": lambda: saved(noise(20, 16).convert("L"), "PNG", transparency=7),
    "colour, one transparent": lambda: saved(Image.new("RGB", (9, 9), (1, 2, 3)), "PNG", transparency=(1, 2, 3)),
    "black and white, transparent": lambda: saved(noise(20, 16).convert("1"), "PNG", transparency=0),
    "GIF, transparent": lambda: saved(palette(), "GIF", transparency=3),
    "GIF, moving": lambda: saved(
        palette(), "GIF", save_all=True, append_images=[palette().rotate(180)], transparency=1
    ),
    "PNG, moving": lambda: saved(noise(20, 16), "PNG", save_all=True, append_images=[noise(20, 16).rotate(180)]),
    "WEBP, moving": lambda: saved(alpha("RGBA"), "WEBP", save_all=True, append_images=[noise(20, 16)], lossless=True),
    "grey with alpha": lambda: saved(alpha("LA"), "PNG"),
    "colour with alpha": lambda: saved(alpha("RGBA"), "PNG"),
    "WEBP with alpha": lambda: saved(alpha("RGBA"), "WEBP", lossless=True),
    "CMYK": lambda: saved(noise(20, 16).convert("CMYK"), "JPEG"),
    "turned by EXIF": lambda: saved(noise(20, 16), "JPEG", exif=ORIENTED),
    "16-bit colour": lambda: png(np.random.default_rng(0).integers(0, 65536, (16, 20, 3)), 2),
    "16-bit grey with alpha": lambda: png(np.random.default_rng(0).integers(0, 65536, (16, 20, 2)), 4),
    "16-bit colour with alpha": lambda: png(np.random.default_rng(0).integers(0, 65536, (16, 20, 4)), 6),
    "16-bit grey, dark": lambda: png(np.random.default_rng(0).integers(0, 256, (16, 20)), 0, b"\0\7"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("error")
def test_pixels_are_those_of_llavas_conversion_however_an_image_comes(kind: str, tmp_path: Path) -> None:
    content = KINDS[kind]()
    (tmp_path / "a.png").write_bytes(content)
    with Image.open(io.BytesIO(content)) as opened:
        opened.info.pop("transparency", None)  # for this line alone: Pillow warns of an alpha per palette entry
        expected = opened.convert("RGB")
    text = base64.b64encode(content).decode()
    wrapped = "\n".join(text[at : at + 76] for at in range(0, len(text), 76))
    ways = {
        "folder": load_image(tmp_path, "a.png"),
        "path": read_image(tmp_path / "a.png"),
        "upload": decode_image(io.BytesIO(content), "a"),
        "table": decode_base64(text, "a"),
        "table with line breaks": decode_base64(f"{wrapped}\r\n", "a"),
        "address": decode_base64(f"data:image/png;base64,{text}", "a"),
        "for addresses": decode_base64(base64.urlsafe_b64encode(content).decode(), "a"),
    }
    preprocessor = ImagePreprocessor(clip_processor(24))
    for way, image in ways.items():
        assert (image.mode, image.tobytes()) == ("RGB", expected.tobytes()), way
        assert not image.info, way
        # What transformers makes of it: it composes on white what still says that it is transparent.
        np.testing.assert_allclose(preprocessor([image])[0].numpy(), reference_pixels(expected, 24, "pad"), atol=2e-6)


def test_grey_of_16_bits_keeps_its_picture(tmp_path: Path) -> None:
    ramp = np.arange(0, 65536, 64).reshape(32, 32)
    (tmp_path / "deep.png").write_bytes(png(ramp, 0))
    image = read_image(tmp_path / "deep.png")
    assert np.array_equal(np.asarray(image)[..., 1], ramp >> 8), "white, if it were clipped"
    assert [kind for kind, _ in describe_file(tmp_path / "deep.png")] == ["16-bit grey"]


@pytest.mark.parametrize("text", ["", "AAA", "%%%%", "data:image/png;base64,", "é", "data:image/png,AAAA=A", "QUJD"])
def test_text_that_is_no_image(text: str) -> None:
    with pytest.raises(ImageError, match="not an image: row 7"):
        decode_base64(text, "row 7")


def naive(image: Image.Image, size: int, aspect: str, kernel: int = Image.Resampling.BICUBIC) -> Image.Image:
    """LLaVA's steps on the whole image: pad, resize, cut the middle out."""
    image = pad_to_square(image, (122, 116, 104)) if aspect == "pad" else image
    short = size if aspect == "squash" else min(image.size)
    resized = (size, size) if aspect == "squash" else tuple(int(size * length / short) for length in image.size)
    image = image.resize(resized, kernel)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def bounded(image: Image.Image, size: int, aspect: str, kernel: int = Image.Resampling.BICUBIC) -> Image.Image:
    """The same without the whole image."""
    axes = []
    for pixels in image.size:
        length = max(image.size) if aspect == "pad" else pixels
        resized = size if aspect != "square" else int(size * length / min(image.size))
        first = (resized - size) // 2
        axes.append(Axis(pixels, (length - pixels) // 2, length, resized, first, first + size, kernel))
    return resize_window(image, axes[0], axes[1], (122, 116, 104))


@pytest.mark.parametrize("aspect", ["pad", "square", "squash"])
@pytest.mark.parametrize("size", [336, 96, 5])
def test_a_window_has_the_pixels_of_the_whole(aspect: str, size: int) -> None:
    draw = random.Random(size)
    shapes = [(1, 1), (1, 900), (900, 1), (2, 3), (337, 1200), (1200, 337), (size, 700), (700, size), (1000, 1000)]
    shapes += [(draw.choice([draw.randint(1, 9), draw.randint(10, 800)]), draw.randint(1, 800)) for _ in range(12)]
    for shape in shapes:
        if aspect == "square" and max(shape) > 40 * min(shape):
            continue  # the whole would take long
        image = noise(*shape)
        image = image.point(lambda value: 255 * (value > 128)) if shape[0] % 2 else image  # overshoots, and is cut
        for kernel in KERNELS:
            assert bounded(image, size, aspect, kernel).tobytes() == naive(image, size, aspect, kernel).tobytes(), shape


@pytest.mark.parametrize("aspect", ["pad", "square"])
@pytest.mark.parametrize("shape", [(1, 20000), (65000, 1), (3, 9000), (1, MAX_SIDE), (MAX_SIDE, 2)])
def test_thin_images_take_no_more_than_they_become(
    aspect: str, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """LLaVA's square of the first takes 1.6 GB, its resized form 9 GB."""
    sizes = []
    for owner, name in ((Image, "new"), (Image.Image, "resize"), (Image.Image, "crop")):
        whole = getattr(owner, name)

        def watched(*given: object, whole: Callable = whole, **options: object) -> Image.Image:
            made = whole(*given, **options)
            sizes.append(made.width * made.height)
            return made

        monkeypatch.setattr(owner, name, watched)
    preprocessor = ImagePreprocessor(clip_processor(336), aspect)
    image = Image.new("RGB", shape, (200, 30, 30))
    sizes.clear()
    tracemalloc.start()
    pixels = preprocessor([image])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert pixels.shape == (1, 3, 336, 336)
    if aspect == "square":
        colour = (np.array([200, 30, 30]) / 255 - MEAN) / STD
        assert (pixels[0].numpy() - colour[:, None, None]).max() < 1e-5
    assert max(sizes) <= 1 << 20 and peak < 12 * 336 * 336 * 3 * 4 + 64 * max(shape)


def test_a_drawing_of_a_strip_is_as_small_as_any(monkeypatch: pytest.MonkeyPatch) -> None:
    strip = noise(12, 1500)
    assert padded_picture(strip, 60, (1, 2, 3)).tobytes() == pad_to_square(strip, (1, 2, 3)).resize((60, 60)).tobytes()
    monkeypatch.setattr(Image.Image, "paste", lambda *given: None)
    assert padded_picture(Image.new("RGB", (60000, 2)), 60, (1, 2, 3)).size == (60, 60)


def test_other_kernels_than_those_that_are_bounded_are_refused() -> None:
    from transformers import CLIPImageProcessorPil

    with pytest.raises(ValueError, match="resample=1; accepted: 3 .bicubic., 2 .bilinear."):
        ImagePreprocessor(CLIPImageProcessorPil(resample=1))


def test_a_hub_cache_is_read_without_a_setting(save_image: SaveImage, tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "datasets--owner--name"
    snapshot, blobs = repository / "snapshots" / "0123abc", repository / "blobs"
    (snapshot / "images").mkdir(parents=True)
    blobs.mkdir()
    save_image("a.png").rename(blobs / "5f1d")
    secret = save_image("secret.png")
    (snapshot / "images" / "a.png").symlink_to("../../../blobs/5f1d")
    (snapshot / "images" / "other.png").symlink_to(secret)
    for root in (snapshot, snapshot / "images"):
        assert load_image(root, "a.png" if root.name == "images" else "images/a.png").size == (40, 30)
    linked = tmp_path / "linked"
    linked.symlink_to(snapshot)
    assert load_image(linked, "images/a.png").size == (40, 30)
    with pytest.raises(ImageError, match="path escapes.*trusted="):
        load_image(snapshot, "images/other.png")
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "theirs").symlink_to(snapshot)
    with pytest.raises(ImageError, match="path escapes"):
        load_image(folder, "theirs/images/a.png")
    assert load_image(folder, "theirs/images/a.png", trusted=[snapshot]).size == (40, 30)


def test_only_folders_can_be_trusted(tmp_path: Path) -> None:
    assert trusted_folders([tmp_path]) == (str(tmp_path),)
    with pytest.raises(TrustError, match="trusted=.*absent: no such folder"):
        trusted_folders([tmp_path / "absent"])
