"""Overlays: what is drawn is what the method kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from llava_prumerge.ground.errors import InputError
from llava_prumerge.methods.base import ReductionError
from llava_prumerge.viz.__main__ import draw, parse
from llava_prumerge.viz.overlay import OUTLINE, SIDE, describe, paint_kept, write_overlay
from llava_prumerge.viz.selection import Selection


def selection(origin: tuple[int, ...], grid: tuple[int, int] = (6, 6)) -> Selection:
    """A green image whose attention is even."""
    image = Image.new("RGB", (60, 60), (10, 160, 20))
    attention = torch.full(grid, 1 / (grid[0] * grid[1]))
    return Selection(image, grid, origin, attention, full=36, class_token=True)


def test_kept_patches_keep_their_colour_and_others_fade() -> None:
    painted = paint_kept(selection((0, 8, 8, -1)))
    cell = SIDE // 6
    centres = {i: painted.getpixel((i % 6 * cell + cell // 2, i // 6 * cell + cell // 2)) for i in range(36)}
    assert centres[0] == centres[8] == (10, 160, 20)
    faded = {centres[i] for i in range(36) if i not in (0, 8)}
    assert len(faded) == 1 and min(faded.pop()) > 180
    assert painted.getpixel((0, 0)) == OUTLINE and painted.getpixel((SIDE - 1, SIDE - 1)) != OUTLINE


@pytest.mark.parametrize("grid", [(6, 6), (5, 8), (1, 1)])
def test_everything_kept_is_the_image_itself(grid: tuple[int, int]) -> None:
    painted = paint_kept(selection(tuple(range(grid[0] * grid[1])), grid))
    assert painted.size == (SIDE, SIDE)
    middle = (SIDE // 2 + SIDE // (4 * grid[1]), SIDE // 2 + SIDE // (4 * grid[0]))
    assert painted.getpixel(middle) == (10, 160, 20)


def test_title_counts_tokens_and_patches() -> None:
    assert describe(selection((3, 4)), "grid") == "grid: 2 of 36 tokens"
    assert describe(selection((3, 4, -1)), "prumerge") == "prumerge: 3 of 36 tokens (2 patches, 1 for the rest)"


def test_png_is_written_without_a_display(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    path = write_overlay(selection((1, 2, -1)), "prumerge", tmp_path / "new" / "picture.png")
    with Image.open(path) as picture:
        assert picture.format == "PNG" and picture.width > picture.height


def test_command_line() -> None:
    given = parse(["a.png", "--method", "prumerge", "budget=40", "b.png", "--tower", "clip", "merge=average"])
    assert given.images == ["a.png", "b.png"] and given.settings == {"budget": 40, "merge": "average"}
    for wrong in (["a.png"], ["a.png", "--tower", "x"], ["budget=3", "--tower", "x", "--method", "grid"]):
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
        assert "pool: 9 of 36 tokens" in printed
    if method == "downsample":
        assert "downsample: 12 of 36 tokens" in printed


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
        ([], "prumerge: 5 of 16 tokens (4 patches, 1 for the rest)"),
        (["--method", "uniform", "budget=3", "--prompt", "w3 w4"], "uniform: 3 of 16 tokens"),
    ],
)
def test_a_checkpoint_brings_its_own_method(
    arguments: list[str], line: str, checkpoint: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw(parse([str(photo), "--model", str(checkpoint), "--out", str(tmp_path), *arguments]))
    assert line in capsys.readouterr().out


def test_a_viewer_serves_methods_after_the_projector(
    monkeypatch: pytest.MonkeyPatch, checkpoint: Path, photo: Path
) -> None:
    """They see projected features and the prompt's embeddings."""
    from llava_prumerge.methods.vision.none import KeepAll
    from llava_prumerge.model.loading import load_model
    from llava_prumerge.viz.selection import viewer_of_model

    monkeypatch.setattr(KeepAll, "site", "projected")
    viewer = viewer_of_model(*load_model(checkpoint, {"vision": {"name": "none"}}), "w3 w4")
    seen = []
    viewer.reducer.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with Image.open(photo) as image:
        pictures = [image.convert("RGB")] * 2
    (one, two) = viewer.look(pictures)
    assert one.tokens == two.tokens == 16
    assert seen[0].features.shape == (2, 16, 32) and seen[0].text.shape == (2, 2, 32) and seen[0].text_mask.all()
