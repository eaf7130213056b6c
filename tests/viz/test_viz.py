"""Overlays: what is drawn is what the method kept."""

from __future__ import annotations

import base64
import io
import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from llava_prumerge.ground.errors import InputError
from llava_prumerge.inference.asking import ImageTokens, inspect_image
from llava_prumerge.inference.watching import Tile
from llava_prumerge.methods.base import ReductionError
from llava_prumerge.viz.__main__ import draw, parse
from llava_prumerge.viz.clusters import REST, colour_of, owners_of, paint_clusters, rest_of
from llava_prumerge.viz.gallery import Gallery
from llava_prumerge.viz.overlay import OUTLINE, SIDE, cell_box, paint_heat, paint_patches
from llava_prumerge.viz.panels import GONE, HERE, Drawn, paint_strip, panels_of, stages_of
from llava_prumerge.viz.sheet import sheet_of, wrapped, write_sheet

GREEN = (10, 160, 20)


def green() -> Image.Image:
    return Image.new("RGB", (60, 60), GREEN)


def middle(index: int, grid: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """The pixel in the middle of a patch."""
    left, top, right, bottom = cell_box(index, grid, size)
    return (left + right) // 2, (top + bottom) // 2


def seen_of(origin: tuple[int, ...], left: dict[int, tuple[int, ...]] | None = None) -> ImageTokens:
    """Of 36 patches whose attention is even; `left` as patches by layer."""
    tile = Tile((6, 6), None, torch.full((6, 6), 1 / 36), origin)
    behind = {layer: tuple((0, unit) for unit in units) for layer, units in (left or {}).items()}
    return ImageTokens(36, len(origin), (len(origin),) * 4, tuple((0, unit) for unit in origin), behind, (tile,))


def drawn_of(seen: ImageTokens, method: str = "prumerge") -> Drawn:
    return Drawn("photo.png", "tiny", method, "what?", seen, [green() for _ in seen.tiles])


def test_kept_patches_keep_their_colour_and_others_fade() -> None:
    painted = paint_patches(green(), (6, 6), (0, 8, 8))
    centres = {i: painted.getpixel(middle(i, (6, 6), painted.size)) for i in range(36)}
    assert centres[0] == centres[8] == GREEN
    faded = {centres[i] for i in range(36) if i not in (0, 8)}
    assert len(faded) == 1 and min(faded.pop()) > 180
    assert painted.getpixel((0, 0)) == OUTLINE and painted.getpixel((SIDE - 1, SIDE - 1)) != OUTLINE


@pytest.mark.parametrize("grid", [(6, 6), (5, 8), (1, 1)])
def test_everything_kept_is_the_image_itself(grid: tuple[int, int]) -> None:
    painted = paint_patches(green(), grid, range(grid[0] * grid[1]))
    assert painted.size == (SIDE, SIDE)
    assert all(painted.getpixel(middle(at, grid, painted.size)) == GREEN for at in range(grid[0] * grid[1]))


def test_heat_is_bright_where_values_are_large() -> None:
    values = torch.arange(12.0).view(3, 4)
    painted = np.array(paint_heat(green(), values, 11.0, (120, 90)).convert("L")).astype(int)
    shown = [painted[30 * (at // 4) + 15, 30 * (at % 4) + 15] for at in range(12)]
    assert shown == sorted(shown) and shown[-1] > shown[0] + 100


def merged_tile() -> Tile:
    """Of 3 x 3 patches: tokens at 0 and 4, one for the rest; patch 8 went nowhere, 6 and 7 only into the rest."""
    weights = torch.zeros(3, 9)
    weights[0, [0, 1, 2]] = torch.tensor([1.0, 0.3, 0.2])
    weights[1, [4, 2, 3, 5, 0]] = torch.tensor([0.1, 0.4, 0.2, 0.2, 0.9])
    weights[2, [1, 2, 3, 5, 6, 7]] = 0.5
    return Tile((3, 3), None, torch.full((3, 3), 1 / 9), (0, 4, -1), weights)


def test_clusters_are_the_largest_weights_and_the_rest_has_what_nobody_else_has() -> None:
    tile = merged_tile()
    assert owners_of(tile) == (0, 0, 1, 1, 1, 1, 2, 2, -1), "a token's own patch is its own, even where 0.9 > 0.1"
    size = (90, 90)
    painted = paint_clusters(Image.new("RGB", (9, 9), (128, 128, 128)), tile, size)
    corner = [painted.getpixel((30 * (at % 3) + 4, 30 * (at // 3) + 4)) for at in range(9)]
    assert corner[0] == corner[1] and corner[2] == corner[3] == corner[4] == corner[5] and corner[6] == corner[7]
    assert len({corner[0], corner[2], corner[6], corner[8]}) == 4
    for at, colour in ((0, colour_of(0)), (2, colour_of(1)), (6, REST)):
        expected = [128 + (part - 128) * 0.62 for part in colour]
        assert corner[at] == pytest.approx(expected, abs=2)
    dots = [at for at in range(9) if painted.getpixel(middle(at, (3, 3), size)) == (255, 255, 255)]
    assert dots == [0, 4], "the patches that tokens stand for"
    torch.testing.assert_close(rest_of(tile).flatten(), tile.weights[2])
    assert rest_of(Tile((3, 3), made=(0, 4), weights=tile.weights[:2])) is None


def test_colours_of_clusters_differ() -> None:
    colours = [colour_of(number) for number in range(64)]
    assert len(set(colours)) == 64
    near = [max(abs(a - b) for a, b in zip(*pair, strict=True)) for pair in zip(colours, colours[1:], strict=False)]
    assert min(near) > 60, "tokens next to each other in number"


def test_strips_follow_the_tokens_through_the_layers() -> None:
    seen = seen_of((3, -1, 8, -1, 20), {2: (3, -1, -1, 20), 3: (-1, 20)})
    stages = stages_of(seen)
    assert [(layer, "".join("01"[one] for one in here)) for layer, here in stages] == [
        (0, "11111"), (2, "11011"), (3, "01001")
    ]  # fmt: skip
    strip = paint_strip(stages[1][1], 50, 4)
    assert [strip.getpixel((10 * at + 5, 2)) for at in range(5)] == [HERE, HERE, GONE, HERE, HERE]


def test_panels_are_what_there_is_to_see() -> None:
    plain = panels_of(drawn_of(seen_of((3, 4))))
    assert [(panel.kind, panel.caption) for panel in plain] == [
        ("kept", "kept: 2 of 36 tokens"), ("attention", "attention received, largest 0.0278")
    ]  # fmt: skip
    tile = merged_tile()
    seen = ImageTokens(9, 3, (3, 1), ((0, 0), (0, 4), (0, -1)), {1: ((0, 4),)}, (tile,))
    panels = panels_of(drawn_of(seen))
    assert [panel.kind for panel in panels] == ["kept", "attention", "clusters", "rest", "layer"]
    assert panels[2].caption.startswith("what went into what: 3 tokens") and panels[3].caption.endswith("0.5")
    assert panels[4].caption == "from layer 1 on: 1 tokens" and panels[4].tokens == ((0, 4),)
    assert [panel.tokens for panel in panels[:2]] == [seen.tokens, None]


def test_titles_and_lines_name_everything() -> None:
    drawn = drawn_of(seen_of((3, 4, -1), {2: (3, 4), 3: (4,)}), "prumerge budget=3")
    assert drawn.title == ["photo.png", "model: tiny", "method: prumerge budget=3", "question: what?"]
    assert drawn.describe() == (
        "prumerge budget=3: 3 of 36 tokens (2 patches, 1 for several or none), 2 from layer 2 on, 1 from layer 3 on"
    )
    assert drawn_of(seen_of((3, 4)), "grid").title[2] == "method: grid, default settings"
    assert drawn_of(seen_of((3, 4)), "grid").describe() == "grid: 2 of 36 tokens"


def test_long_words_are_broken_into_lines() -> None:
    class Monospaced:
        def getlength(self, text: str) -> int:
            return len(text)

    lines = wrapped("a question of eight wordswithoutanyspacebetweenthem", Monospaced(), 12)
    assert lines == ["a question", "of eight", "wordswithout", "anyspacebetw", "eenthem"]


def test_a_sheet_has_its_title_pictures_and_strips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    one, two = sheet_of(drawn_of(seen_of((1, 2)))), sheet_of(drawn_of(seen_of((1, 2), {2: (2,)})))
    assert two.height > one.height, "a picture more, and strips"
    path = write_sheet(drawn_of(seen_of((1, 2, -1))), tmp_path / "new" / "picture.png")
    with Image.open(path) as picture:
        assert picture.format == "PNG" and picture.width > picture.height
        pixels = np.array(picture)
    assert (pixels == GREEN).all(axis=-1).sum() > 2 * 50 * 50, "kept patches in their colour"
    assert (np.array(two) == HERE).all(axis=-1).sum() > 1000 and not (np.array(one) == HERE).all(axis=-1).any()


def test_command_line() -> None:
    given = parse(["a.png", "--method", "prumerge", "budget=40", "b.png", "--tower", "clip", "merge=average"])
    assert given.images == ["a.png", "b.png"] and given.settings == {"budget": 40, "merge": "average"}
    assert given.method == ["prumerge"] and str(given.out) == "runs/viz"
    several = ["a.png", "--model", "m", "method=grid", "--method", "fastv:layer=2", "out=page.html"]
    assert parse(several).method == ["grid", "fastv:layer=2"]
    for wrong in (
        ["a.png"],
        ["a.png", "--tower", "x"],
        ["budget=3", "--tower", "x", "--method", "grid"],
        [*several, "budget=3"],
        [*several[:-1], "out=kept.png"],
    ):
        with pytest.raises(InputError):
            parse(wrong)


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP folder whose class token looks sharply."""
    from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(0)
    size = {"image_size": 48, "patch_size": 8, "hidden_size": 32, "intermediate_size": 64}
    model = CLIPVisionModel(CLIPVisionConfig(**size, num_hidden_layers=3, num_attention_heads=4))
    with torch.no_grad():
        for layer in model.encoder.layers:
            layer.self_attn.q_proj.weight.mul_(40)
            layer.self_attn.k_proj.weight.mul_(40)
    path = tmp_path_factory.mktemp("clip")
    model.save_pretrained(path)
    CLIPImageProcessorPil(size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48}).save_pretrained(path)
    return path


@pytest.fixture()
def photo(tmp_path: Path) -> Path:
    """Wider than high, so that it is padded."""
    pixels = torch.randint(0, 255, (40, 64, 3), generator=torch.Generator().manual_seed(0)).byte().numpy()
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.mark.parametrize(
    "method, settings", [("prumerge_plus", []), ("pool", ["budget=9"]), ("downsample", ["rows=3", "columns=4"])]
)
def test_images_through_a_tower(
    method: str, settings: list[str], tower: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(photo), str(photo), "--method", method, "--tower", str(tower), "--out", str(tmp_path / "out")]
    files = draw(parse([*words, *settings]))
    assert [path.name for path in files] == [f"photo_{method}.png", f"photo_{method}_1.png"]
    assert all(path.stat().st_size > 5000 for path in files)
    printed = capsys.readouterr().out
    if method == "pool":
        assert "pool budget=9: 9 of 36 tokens" in printed
    if method == "downsample":
        assert ": 12 of 36 tokens" in printed


def test_wrong_settings_are_said(tower: Path, photo: Path) -> None:
    with pytest.raises(ReductionError, match="setting 'buget' is not known; did you mean 'budget'"):
        draw(parse([str(photo), "--method", "prumerge", "--tower", str(tower), "buget=3"]))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LLaVA with PruMerge in its configuration."""
    from tiny_llava import IMAGE, tiny_model
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import CLIPImageProcessorPil, LlavaProcessor, PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("llava")
    tiny_model({"vision": {"name": "prumerge", "budget": 5}}).save_pretrained(path)
    words = {**{f"w{index}": index for index in range(IMAGE)}, "<image>": IMAGE}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0", additional_special_tokens=["<image>"])
    pil = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    LlavaProcessor(pil, fast, patch_size=7, vision_feature_select_strategy="default").save_pretrained(path)
    return path


@pytest.mark.parametrize(
    "arguments, line",
    [
        ([], "prumerge budget=5: 5 of 16 tokens (4 patches, 1 for several or none)"),
        (["--method", "uniform", "budget=3", "--prompt", "w3 w4"], "uniform budget=3 sample=stride: 3 of 16 tokens"),
        (
            ["--method", "fastv:layer=1,keep_ratio=0.25"],
            "fastv keep_ratio=0.25 layer=1: 16 of 16 tokens, 4 from layer 1 on",
        ),
        (["--method", "none"], "none: 16 of 16 tokens"),
    ],
)
def test_a_checkpoint_brings_its_own_method(
    arguments: list[str], line: str, checkpoint: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw(parse([str(photo), "--model", str(checkpoint), "--out", str(tmp_path), *arguments]))
    assert line in capsys.readouterr().out


@pytest.mark.parametrize("method", ["fastv", "fastv+prumerge", "none", "trsm"])
def test_a_tower_alone_has_no_decoder_and_no_projector(method: str, tower: Path, photo: Path) -> None:
    with pytest.raises(InputError, match="give --model"):
        draw(parse([str(photo), "--tower", str(tower), "--method", method]))


class Page(HTMLParser):
    """Figures and strips of a gallery: what their attributes say, with their pictures and data."""

    def __init__(self) -> None:
        super().__init__()
        self.image = self.method = ""
        self.figures: list[dict[str, str]] = []
        self.strips: list[dict[str, str]] = []
        self.outside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = {name: value or "" for name, value in attrs}
        self.image, self.method = told.get("data-image", self.image), told.get("data-method", self.method)
        here = {"image": self.image, "method": self.method}
        if tag == "figure":
            self.figures.append(told | here)
        elif tag == "tr":
            self.strips.append(told | here)
        elif tag == "img" and "src" not in self.figures[-1]:  # strips come behind
            self.figures[-1]["src"] = told["src"]
        self.outside += [told[key] for key in ("src", "href") if not told.get(key, "data:").startswith("data:")]

    def handle_data(self, data: str) -> None:
        if data.startswith("[{"):
            self.figures[-1]["data"] = data


def test_the_page_shows_what_each_method_kept_of_each_image(checkpoint: Path, photo: Path, tmp_path: Path) -> None:
    from llava_prumerge.model.loading import load_model

    other = photo.with_name("<b>other.png")
    Image.open(photo).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(other)
    methods = {
        "prumerge budget=5": {"vision": {"name": "prumerge", "budget": 5}},
        "fastv keep_ratio=0.25 layer=1": {"decoder": {"name": "fastv", "layer": 1, "keep_ratio": 0.25}},
    }
    words = [
        str(other),
        str(photo),
        "--model",
        str(checkpoint),
        "--question",
        "w3 <i>w4</i>",
        "out=" + str(tmp_path / "p.html"),
    ]
    (file,) = draw(parse([*words, "--method", "prumerge:budget=5", "--method", "fastv:layer=1,keep_ratio=0.25"]))
    text = file.read_text("utf-8")
    assert "<b>other" not in text and "&lt;b&gt;other" in text and "<i>w4" not in text
    page = Page()
    page.feed(text)
    assert not page.outside, "it needs nothing but itself"
    model, processor = load_model(checkpoint)
    shown = {(one["image"], one["method"], one["data-kind"]): one for one in page.figures}
    acted = 0
    for path in (other, photo):
        for label, block in methods.items():
            seen = inspect_image(model, processor, path, "w3 <i>w4</i>", reduction=block, merges=True)
            stages = {"kept": seen.tokens} | ({"layer": seen.left[1]} if seen.left else {})
            for kind, tokens in stages.items():
                figure = shown[path.name, label, kind]
                assert figure["data-kept"] == " ".join(f"{tile}:{unit}" for tile, unit in tokens)
                units = {unit for _, unit in tokens}
                picture = Image.open(io.BytesIO(base64.b64decode(figure["src"].partition("base64,")[2]))).convert("RGB")
                pixels = np.array(picture.convert("L"))
                for unit in range(16):
                    left, top, right, bottom = cell_box(unit, (4, 4), picture.size)
                    brightness = pixels[top:bottom, left:right].mean()
                    assert (brightness < 180) == (unit in units), f"{unit} is faded, or kept and as dark as it was"
                acted += len(units) < 16
            if seen.left:
                strip = next(one for one in page.strips if one["image"] == path.name and one["data-layer"] == "1")
                assert strip["data-here"] == "".join("01"[token in seen.left[1]] for token in seen.tokens)
            else:
                (tile,) = json.loads(shown[path.name, label, "clusters"]["data"])
                for unit, held in enumerate(tile["weights"]):
                    expected = seen.tiles[0].weights[:, unit]
                    assert len(held) == min(4, int((expected != 0).sum()))
                    assert all(share == pytest.approx(float(expected[number]), rel=1e-2) for number, share in held)
    assert str(photo.parent) not in text, "no path of the machine that drew it"
    assert acted == 4, "each method dropped something of each image"


def test_images_of_one_name_are_told_apart() -> None:
    gallery = Gallery()
    for folder in ("a", "b", "a"):
        gallery.add(drawn_of(seen_of((1, 2))), f"{folder}/photo.png")
    assert list(gallery.of_image) == ["photo.png", "photo.png (2)"]
    assert [len(cards) for cards in gallery.of_image.values()] == [2, 1]
