"""Pictures of images in tiles: what is drawn are the pixels the tower saw, and the units that were kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_families import VID, stock_model, write_family

from llava_prumerge.inference.asking import ImageTokens, inspect_image, prepare
from llava_prumerge.inference.watching import watching
from llava_prumerge.model.attach import attach
from llava_prumerge.model.loading import load_model
from llava_prumerge.viz.__main__ import draw, parse
from llava_prumerge.viz.demo_json import grids, picture_addresses, stages
from llava_prumerge.viz.demo_model import DemoModel
from llava_prumerge.viz.overlay import OUTLINE
from llava_prumerge.viz.panels import Drawn, panels_of
from llava_prumerge.viz.tiles import colours, pictures_of

NAMES = ["llava_next", "internvl", "qwen2_5_vl"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {name: write_family(root / name, name) for name in NAMES}


@pytest.fixture()
def photo(tmp_path: Path) -> Path:
    """A red half beside a blue one, wider than high."""
    pixels = np.zeros((40, 72, 3), dtype=np.uint8)
    pixels[:, :36, 0], pixels[:, 36:, 2] = 250, 250
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.mark.parametrize("name", NAMES)
def test_tiles_are_the_pixels_that_the_tower_saw(name: str, folders: dict[str, Path], photo: Path) -> None:
    model, processor = load_model(folders[name], {"vision": {"name": "uniform", "budget": 3}})
    image = Image.open(photo)
    seen = inspect_image(model, processor, image, "w5")
    pixels = prepare(model, processor, "w5", image)[0]["pixel_values"]
    if name == "qwen2_5_vl":  # cut the picture up again: units row by row, their patches row by row, each patch twice
        (tile,) = seen.tiles
        rows, columns = tile.grid
        found = [
            tile.pixels[:, 8 * r + 4 * i : 8 * r + 4 * i + 4, 8 * c + 4 * j : 8 * c + 4 * j + 4]
            for r in range(rows) for c in range(columns) for i in range(2) for j in range(2)
        ]  # fmt: skip
        again = torch.stack([torch.stack([patch, patch], dim=1).flatten() for patch in found])
        torch.testing.assert_close(again, pixels)
    else:
        shown = torch.stack([tile.pixels for tile in seen.tiles])
        torch.testing.assert_close(shown, pixels.flatten(0, -4))
    each = [sum(owner == tile and unit >= 0 for owner, unit in seen.tokens) for tile in range(len(seen.tiles))]
    assert each == [3] * len(each) or (name == "llava_next" and max(each) == 3 > min(each) > 0)  # borders are cut away
    assert seen.kept < seen.full
    assert all(tile.attention.shape == tile.grid for tile in seen.tiles)
    whole = colours(seen.tiles[-1 if name == "internvl" else 0].pixels, processor.image_processor)
    at = [whole.getpixel((whole.width * part // 8, whole.height // 2)) for part in (2, 6)]
    assert at[0][0] > 200 > 60 > at[0][2] and at[1][2] > 200 > 60 > at[1][0], "red on the left, blue on the right"


@pytest.mark.parametrize("name", NAMES)
def test_the_command_and_the_demo_draw_them(
    name: str, folders: dict[str, Path], photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(photo), "--model", str(folders[name]), "--method", "uniform", "budget=3", "--out", str(tmp_path)]
    (file,) = draw(parse(words))
    assert file.stat().st_size > 5000 and "uniform budget=3" in capsys.readouterr().out
    demo = DemoModel(*load_model(folders[name]))
    block = {"vision": {"name": "uniform", "budget": 4}, "decoder": {"name": "fastv", "layer": 1}}
    image = Image.open(photo).convert("RGB")
    for reduction, pictures in (({}, 1), ({"decoder": {"name": "fastv", "layer": 1}}, 2), (block, 2)):
        answer = demo.answer(image, "w5 w6", reduction, 3)
        seen, told = answer.seen, stages(answer.seen)
        assert len(told) == pictures and seen.layers[0] == seen.kept
        assert seen.kept == seen.full or reduction is block
    tiles = demo.pictures(image, seen)
    assert [tile.size for tile in tiles] == [(tile.pixels.shape[2], tile.pixels.shape[1]) for tile in seen.tiles]
    assert grids(seen) == [tile.grid for tile in seen.tiles] and len(picture_addresses(tiles)) == len(tiles)
    for stage, count in zip(told, (seen.kept, int(seen.layers[-1])), strict=True):
        marked = sum(map(len, stage["units"]))
        assert stage["tokens"] == count == marked + stage["others"] and marked > 0
        assert all(
            0 <= unit < rows * columns for units, (rows, columns) in zip(stage["units"], grids(seen)) for unit in units
        )
    (panel,) = demo.look(image, "w5 w6", block, "attention")
    assert panel.kind == "attention" and len(set(panel.picture.getdata())) > 2


def test_frames_of_a_video_are_tiles() -> None:
    model = attach(stock_model("llava_next_video"), {
        "vision": {"name": "uniform", "budget": 2}, "decoder": {"name": "fastv", "layer": 1, "keep_ratio": 0.5}
    })  # fmt: skip
    video = torch.randn(1, 3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[5, *[VID] * 12, 6, 7]])  # three frames of 2 x 2 pooled units
    with torch.no_grad(), watching(model, attention=True, pictures=True, merges=True) as watched:
        model(input_ids=ids, pixel_values_videos=video)
    (full,), (kept,), (tiles,) = watched.full, watched.kept, watched.tiles
    assert full == 12 and [tile for tile, _ in kept] == [0, 0, 1, 1, 2, 2]
    assert len(watched.pruned[1][0]) == 3 and set(watched.pruned[1][0]) < set(kept)
    for number, tile in enumerate(tiles):
        assert torch.equal(tile.pixels, video[0, number]) and tile.grid == tile.attention.shape == (2, 2)
        assert tile.made == tuple(unit for owner, unit in kept if owner == number)
    seen = ImageTokens(full, 6, (6, 3, 3, 3), tuple(kept), {1: tuple(watched.pruned[1][0])}, tuple(tiles))
    drawn = Drawn("clip", "tiny", "uniform", "", seen, pictures_of(seen, Image.new("RGB", (32, 32)), None))
    panels = {panel.kind: panel for panel in panels_of(drawn)}
    assert len(drawn.pictures) == 3 and panels["kept"].tokens == tuple(kept) and panels["layer"].tokens == seen.left[1]
    pixels = np.array(panels["kept"].picture)
    frames = [pixels[:, left : left + 192] for left in (0, 198, 396)]
    assert all((part == OUTLINE).all(axis=-1).any() for part in frames), "each frame has outlined units"
