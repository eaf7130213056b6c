"""Pixels against Pillow and NumPy alone and against stored values; files that must be refused."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from llava_prumerge.data.images import (
    ImageError,
    ImagePreprocessor,
    load_image,
    misnamed_format,
    pad_to_square,
    pil_image_processor,
)

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
    assert misnamed_format(path) is None


def test_an_animation_gives_its_first_frame(save_image: SaveImage) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    path = save_image("a.gif")
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert load_image(path.parent, "a.gif").getpixel((0, 0)) == (255, 0, 0)


def test_a_misnamed_image_is_read_and_told_of(save_image: SaveImage) -> None:
    path = save_image("a.jpg", format="GIF", mode="P")
    assert load_image(path.parent, "a.jpg").size == (40, 30)
    assert misnamed_format(path) == "GIF"


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
    assert caught.value.kind == kind


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
    save_image("deep.png", mode="I;16")
    kinds = {
        "cut.jpg": "broken",
        "cut.png": "broken",
        "text.jpg": "not an image",
        "empty.jpg": "not an image",
        "a.tiff": "not an image",
        "deep.png": "unsupported depth",
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
