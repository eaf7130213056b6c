"""The check and training are of one mind: on the same odd folders and records both refuse the same, for the same reason."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers import CLIPImageProcessorPil, PreTrainedTokenizerFast

from llava_prumerge.data import prepare
from llava_prumerge.data.dataset import LlavaDataset
from llava_prumerge.data.errors import SampleError
from llava_prumerge.data.images import ImagePreprocessor

PATCHES = 4
SaveImage = Callable[..., Path]


@pytest.fixture
def verdicts(
    tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[dict[int, str], dict[int, str]]]:
    """Gives what the check and what training say of each record they refuse, by its place."""
    monkeypatch.setenv("LLAVA_PRUMERGE_CACHE", str(tmp_path / "cache"))
    clip = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer_folder)
    tokenizer.add_tokens(["<image>", "<pad>"], special_tokens=True)

    def both(records: list[Any], images: Path, trusted: tuple[Path, ...] = ()) -> tuple[dict[int, str], dict[int, str]]:
        data, report = tmp_path / "records.json", tmp_path / "report.json"
        data.write_text(json.dumps(records), encoding="utf-8")
        command = ["check", str(data), "--images", str(images), "--tokenizer", str(tokenizer_folder)]
        command += ["--image-tokens", str(PATCHES), "--workers", "1", "--report", str(report)]
        assert prepare.main([*command, *(word for folder in trusted for word in ("--trusted", str(folder)))]) in (0, 1)
        checked = json.loads(report.read_text(encoding="utf-8"))["bad_records"]
        dataset = LlavaDataset(
            data,
            images,
            tokenizer,
            ImagePreprocessor(clip),
            "vicuna_v1",
            image_token_id=9000,
            image_tokens=PATCHES,
            trusted=trusted,
        )
        trained = {}
        for index in range(len(dataset)):
            try:
                dataset[index]
            except SampleError as error:
                trained[index] = error.kind
        renamed = {"wrong extension": "missing"}  # the check also says where the file is
        return {bad["index"]: renamed.get(bad["kind"], bad["kind"]) for bad in checked}, trained

    return both


def about(*paths: str) -> list[dict[str, Any]]:
    turns = [{"from": "human", "value": "<image>\nhi?"}, {"from": "gpt", "value": "red cat"}]
    return [{"id": path, "image": path, "conversations": turns} for path in paths]


@pytest.mark.parametrize("trust", [False, True])
def test_images(verdicts: Callable, save_image: SaveImage, tmp_path: Path, trust: bool) -> None:
    root, elsewhere = save_image("a.png").parent, tmp_path / "elsewhere"
    blobs = tmp_path / "hub" / "datasets--owner--name" / "blobs"
    for folder in (elsewhere, blobs, root / "sub"):
        folder.mkdir(parents=True)
    save_image("../elsewhere/b.png")
    save_image("../elsewhere/c.png")
    (root / "folder").symlink_to(elsewhere)
    (root / "file.png").symlink_to(elsewhere / "c.png")
    (root / "inside.png").symlink_to("a.png")
    (root / "circle.png").symlink_to("circle.png")
    save_image("../elsewhere/gif.gif")
    (root / "cut.png").write_bytes((root / "a.png").read_bytes()[:500])
    Image.new("1", (1, 20000)).save(root / "thin.png")
    Image.new("1", (65000, 1)).save(root / "wide.png")
    Image.new("1", (9000, 9000)).save(root / "huge.png")
    Image.new("1", (200_000, 1)).save(root / "long.png")
    save_image("deep.png", mode="I;16")
    refused = {"circle.png": "missing", "cut.png": "broken", "huge.png": "too large", "long.png": "too large"}
    refused |= {"absent.png": "missing", "sub": "missing", "http://x/y.png": "bad path", "../a.png": "path escapes"}
    refused |= {"folder/gif.jpg": "missing", "": "marker without image"}
    linked = ["folder/b.png", "file.png"]
    records = about("a.png", "inside.png", "thin.png", "wide.png", "deep.png", *linked, *refused)
    checked, trained = verdicts(records, root, (elsewhere,) if trust else ())
    expected = refused if trust else refused | dict.fromkeys(linked, "path escapes")
    assert checked == trained == {at: expected[r["id"]] for at, r in enumerate(records) if r["id"] in expected}


def test_a_hub_cache(verdicts: Callable, save_image: SaveImage, tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "datasets--owner--name"
    snapshot = repository / "snapshots" / "0123abc"
    for folder in (snapshot, repository / "blobs"):
        folder.mkdir(parents=True)
    save_image("a.png").rename(repository / "blobs" / "5f1d")
    (snapshot / "a.png").symlink_to("../../blobs/5f1d")
    assert verdicts(about("a.png"), snapshot) == ({}, {})


LOCALES = {
    "a console in Latin-1": {"PYTHONIOENCODING": "latin-1"},
    "a console in ASCII": {"PYTHONIOENCODING": "ascii"},
    "no language": {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}


@pytest.mark.parametrize("locale", LOCALES)
def test_names_that_a_console_or_locale_cannot_show(save_image: SaveImage, tmp_path: Path, locale: str) -> None:
    """The image check of a file called 图片/ü.png, in a process of its own, without the tokenizer's eight seconds."""
    root = save_image("图片/ü.png").parent.parent
    script = (
        "import sys; from llava_prumerge.data.errors import SampleError; from llava_prumerge.data.images import load_image\n"
        "from llava_prumerge.ground.command import command\n"
        "def work(words):\n"
        "    for name in ('\\u56fe\\u7247/\\u00fc.png', '\\u56fe\\u7247/no.png'):\n"
        "        try: print(name, load_image(words[0], name).size)\n"
        "        except SampleError as error: print(error)\n"
        "sys.exit(command()(work)())"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **LOCALES[locale]}
    done = subprocess.run([sys.executable, "-c", script, str(root)], env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.decode("latin-1").splitlines()
    if "LC_ALL" in LOCALES[locale]:
        assert all(line.startswith("bad path: ") and "set PYTHONUTF8=1" in line for line in (first, second))
    else:
        assert first.endswith(".png (40, 30)") and second.startswith("missing: ")
