"""What is a folder and what a name on the Hub: nothing that could be one's own is ever looked up there."""

from __future__ import annotations

from pathlib import Path

import pytest

from llava_prumerge.ground.hub_names import is_hub_name, is_missing, why_missing

NAMES = (
    "llava-hf/llava-1.5-7b-hf",
    "lmsys/vicuna-7b-v1.5",
    "openai/clip-vit-large-patch14-336",
    "a/b",
    "Org_1/x.y-z_2",
)
PATHS = (
    *(
        "runs/my-lora",
        "Runs/x",
        "run/x",
        "checkpoints/vicuna-7b-v1.5",
        "playground/data",
        "./a/b",
        "../b",
        "/a/b",
        "~/b",
    ),
    *("model", "a/b/c", "a\\b", "", ".", "a/", "/a", "someone/merged", "x/checkpoint-500", "x/model.safetensors"),
    *("x/config.json", "x/recipe.yaml", "x/b.bin", "-a/b", "a/.b", "a/b.", "a/b..c", "a/b--c", "a b/c", "https://x/y"),
    "a/" + "b" * 95,
)


@pytest.mark.parametrize("text", NAMES)
def test_names_on_the_hub(text: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_hub_name(text) and not is_missing(text)
    Path(text).parent.mkdir()
    assert not is_hub_name(text) and is_missing(text)  # a folder of that name is one's own, and lacks it
    Path(text).mkdir()
    assert not is_hub_name(text) and not is_missing(text)


@pytest.mark.parametrize("text", PATHS)
def test_paths(text: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert not is_hub_name(text)
    assert is_missing(text) == (not Path(text).exists())
    assert "does not exist" in why_missing(text) and "\n" not in why_missing(text)
