"""Conversion takes names on the Hub wherever it takes folders, at a revision where one is given."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import pytest
import torch
from fake_hub import COMMIT, FakeHub, running
from safetensors.torch import load_file

from llava_prumerge.model.loading import load_model
from llava_prumerge.text.hub_files import HubError, fetch_model, folder_of

Convert = Callable[..., list[str]]
NAMES = {"original": "liuhaotian/tiny", "vicuna": "lmsys/tiny", "clip": "openai/tiny", "lora": "liuhaotian/tiny-lora"}


@pytest.fixture
def hub(sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """The tiny LLaVA's folders as repositories, and an empty cache."""
    with running() as hub:
        for folder, name in NAMES.items():
            hub.repositories[name] = {file.name: file.read_bytes() for file in (sources / folder).iterdir()}
        for name, value in (
            ("ENDPOINT", hub.address),
            ("HUGGINGFACE_CO_URL_TEMPLATE", hub.address + "/{repo_id}/resolve/{revision}/{filename}"),
            ("HF_HUB_OFFLINE", False),
            ("HF_HUB_CACHE", str(tmp_path / "cache")),
        ):
            monkeypatch.setattr(huggingface_hub.constants, name, value)
        yield hub


def test_every_folder_may_be_a_name(hub: FakeHub, ours: Path, convert: Convert, tmp_path: Path) -> None:
    said = convert(NAMES["original"], tmp_path / "ours", "--vision-tower", f"{NAMES['clip']}@main")
    assert said == [f"{tmp_path / 'ours'}: 80 tensors from liuhaotian/tiny, vision tower from openai/tiny@main"]
    got, expected = (load_file(folder / "model.safetensors") for folder in (tmp_path / "ours", ours))
    assert set(got) == set(expected) and all(torch.equal(got[key], expected[key]) for key in got)
    record = json.loads((tmp_path / "ours" / "conversion.json").read_text())
    assert (record["source"], record["taken"]["vision tower"]) == ("liuhaotian/tiny", "openai/tiny@main")


def test_adapters_name_their_bases_on_the_hub(hub: FakeHub, sources: Path, convert: Convert, tmp_path: Path) -> None:
    """So that they can be put on them from anywhere; at a revision, the folder in the cache is named."""
    base = ["--language-model", NAMES["vicuna"], "--vision-tower"]
    convert(NAMES["lora"], tmp_path / "named", *base, NAMES["clip"])
    convert(sources / "lora", tmp_path / "fixed", *base, f"{NAMES['clip']}@{COMMIT}")
    named, fixed = (json.loads((tmp_path / name / "base.json").read_text()) for name in ("named", "fixed"))
    assert (named["language_model"]["hub"], named["vision_tower"]["hub"]) == ("lmsys/tiny", "openai/tiny")
    assert COMMIT in fixed["vision_tower"]["path"] and Path(fixed["vision_tower"]["path"]).is_dir()
    convert(tmp_path / "named", tmp_path / "back", "--to", "original")
    values = json.loads((tmp_path / "back" / "config.json").read_text())
    assert (values["vocab_size"], values["mm_vision_tower"]) == (320, "openai/clip-vit-large-patch14-336")
    convert(tmp_path / "named", tmp_path / "merged", "--merge")
    convert(sources / "lora", tmp_path / "also", "--language-model", sources / "vicuna", "--vision-tower",
            sources / "clip", "--merge")  # fmt: skip
    left, right = (load_file(tmp_path / name / "model.safetensors") for name in ("merged", "also"))
    assert all(torch.equal(left[key], right[key]) for key in right)
    assert load_model(tmp_path / "fixed", device="cpu")[0].lm_head.weight.shape[0] == 384


def test_weights_that_are_not_read_are_not_fetched(
    hub: FakeHub, sources: Path, ours: Path, convert: Convert, tmp_path: Path
) -> None:
    """Those a repository holds twice, those of a dry run, and a tower that is only to be named."""
    hub.repositories["org/both"] = {file.name: file.read_bytes() for file in ours.iterdir() if file.is_file()}
    hub.repositories["org/both"]["pytorch_model.bin"] = b"not even weights"
    assert len(convert("org/both", "--to", "original", "--dry-run")) == 25
    cache = tmp_path / "cache" / "models--org--both" / "snapshots" / COMMIT
    assert (cache / "config.json").is_file() and not list(cache.glob("*model*.safetensors"))
    convert("org/both", tmp_path / "original", "--to", "original", "--vision-tower", "some/clip")
    assert (cache / "model.safetensors").is_file() and not (cache / "pytorch_model.bin").exists()
    assert json.loads((tmp_path / "original" / "config.json").read_text())["mm_vision_tower"] == "some/clip"


@pytest.mark.parametrize(
    "words, message",
    [
        (["org/nothing"], "org/nothing: does not exist here, and the Hub does not give it"),
        ([f"{NAMES['original']}@v9"], "liuhaotian/tiny: .*does not give it at v9"),
        ([NAMES["original"], "--vision-tower", "org/no"], "--vision-tower org/no: does not exist here"),
        (["runs/mine"], "runs/mine: does not exist.*looks like a path of your own"),
    ],
)
def test_what_the_hub_does_not_have_is_one_line(
    hub: FakeHub, convert: Convert, tmp_path: Path, words: list[str], message: str
) -> None:
    with pytest.raises(HubError, match=message) as caught:
        convert(words[0], tmp_path / "target", *words[1:])
    assert "\n" not in str(caught.value) and not (tmp_path / "target").exists()


@pytest.mark.parametrize("read", [folder_of, fetch_model])
def test_a_hub_that_nobody_answers_for_is_one_line(read, monkeypatch, tmp_path) -> None:
    """The client's own errors are no OSError."""
    import huggingface_hub.constants

    for key, value in {
        "HF_HUB_OFFLINE": False,
        "ENDPOINT": "http://127.0.0.1:9",
        "HF_HUB_CACHE": str(tmp_path),
    }.items():
        monkeypatch.setattr(huggingface_hub.constants, key, value)
    with pytest.raises(HubError, match="vendor/model: does not exist here, and the Hub does not give it"):
        read("vendor/model")
