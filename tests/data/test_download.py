"""`prepare download` from a server on loopback, and the table of real sources."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml
from data.file_server import FileServer, make_zip, picture, serve_files

from llava_prumerge.data import fetch as fetching
from llava_prumerge.data import prepare
from llava_prumerge.data.download import read_sources
from llava_prumerge.data.images import load_image

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FileServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(fetching, "_PAUSE", 0.001)
    with serve_files() as state:
        archive = make_zip(tmp_path / "made.zip", {f"{i}.jpg": picture() for i in range(20)}, "train2017/")
        state.files = {"/mix.json": b"[]", "/train2017.zip": archive.read_bytes(), "/2.gif": picture("GIF")}
        state.files["/1.jpg"] = picture()
        yield state


@pytest.fixture
def sources(server: FileServer, tmp_path: Path) -> list[str]:
    content = {
        "mix": {"group": "finetune", "what": "m", "files": [{"url": server.url("/mix.json"), "to": "mix.json"}]},
        "coco": {
            "group": "finetune",
            "what": "c",
            "files": [{"url": server.url("/train2017.zip"), "unpack_to": "coco/train2017"}],
        },
        "books": {
            "group": "covers",
            "what": "b",
            "by_hand": {"path": "books/dataset.json", "page": "https://example.org/books"},
            "listed": {"list": "books/dataset.json", "to": "books/images", "only_in": "mix.json"},
        },
    }
    path = tmp_path / "sources.yaml"
    path.write_text(yaml.safe_dump(content))
    return ["--sources", str(path), "--to", str(tmp_path / "data")]


def test_sets_are_fetched_unpacked_and_verified_later(
    server: FileServer, sources: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    server.breaks = [1, 500]
    assert prepare.main(["download", "finetune", *sources]) == 0
    out = capsys.readouterr().out
    assert f"mix: {data / 'mix.json'} is whole (SHA-256 {hashlib.sha256(b'[]').hexdigest()})" in out
    assert f"coco: {data / 'coco/train2017'} holds the 20 files of {server.url('/train2017.zip')}" in out
    assert (data / "coco" / "train2017" / "7.jpg").read_bytes() == picture()
    asked = len(server.asked)
    assert asked == 4 and prepare.main(["download", "coco", "mix", *sources]) == 0 and len(server.asked) == asked
    (archive,) = (data / ".downloads").glob("*.zip")
    archive.write_bytes(b"PK" + archive.read_bytes()[2:-1] + b"x")
    capsys.readouterr()
    assert prepare.main(["download", "coco", *sources]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "delete it to fetch it again" in error
    archive.unlink()
    assert prepare.main(["download", "coco", *sources, "--discard-archives"]) == 0, "it is unpacked, and known to be"
    assert len(server.asked) == asked and not archive.exists()


def test_an_archive_is_deleted_only_when_it_is_unpacked(server: FileServer, sources: list[str], tmp_path: Path) -> None:
    blocked = tmp_path / "data" / "coco" / "train2017" / "3.jpg"
    blocked.parent.mkdir(parents=True)
    blocked.write_text("another file")
    assert prepare.main(["download", "coco", *sources, "--discard-archives"]) == 1
    (archive,) = (tmp_path / "data" / ".downloads").glob("*.zip")
    blocked.unlink()
    assert prepare.main(["download", "coco", *sources, "--discard-archives"]) == 0
    assert not archive.exists() and len(list(blocked.parent.glob("*.jpg"))) == 20 and len(server.asked) == 1


def test_what_no_program_can_fetch_is_said(
    sources: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare.main(["download", "covers", *sources]) == 1
    out = capsys.readouterr().out
    assert out == f"books: fetch {tmp_path / 'data/books/dataset.json'} by hand from https://example.org/books\n"


def test_listed_pictures_are_saved_as_jpg_whatever_they_are(
    server: FileServer, sources: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As LLaVA's records name them; one that is gone does not stop the others, and is tried again."""
    books = tmp_path / "data" / "books"
    books.mkdir(parents=True)
    server.files["/page.jpg"] = b"<html>gone</html>"
    listed = {name: {"imageURL": server.url(f"/{path}")} for name, path in (("b1", "1.jpg"), ("b2", "2.gif"))}
    listed |= {name: {"imageURL": server.url(f"/{path}")} for name, path in (("b3", "3.jpg"), ("b4", "page.jpg"))}
    listed["unused"] = {"imageURL": server.url("/unused.jpg")}
    (books / "dataset.json").write_text(json.dumps(listed))
    turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "a"}]
    records = [{"id": i, "image": f"books/images/b{i}.jpg", "conversations": turns} for i in range(1, 6)]
    (tmp_path / "data" / "mix.json").write_text(json.dumps([*records, "broken"]))
    assert prepare.main(["download", "books", *sources]) == 1
    assert "2 fetched, 0 there before, 3 not to be had" in capsys.readouterr().out
    reasons = json.loads((books / "not_fetched.json").read_text())
    assert "404 Not Found" in reasons["b3"] and "no picture" in reasons["b4"] and len(reasons) == 3
    assert reasons["b5"].startswith("not in ")
    assert sorted(path.name for path in (books / "images").iterdir()) == ["b1.jpg", "b2.jpg"]
    assert load_image(books / "images", "b2.jpg").size == (8, 8)
    server.files |= {"/3.jpg": picture(), "/page.jpg": picture()}
    (tmp_path / "data" / "mix.json").write_text(json.dumps(records[:4]))
    assert prepare.main(["download", "books", *sources]) == 0
    assert "2 fetched, 2 there before, 0 not to be had" in capsys.readouterr().out
    assert not any("unused" in path for path, _ in server.asked)


def test_without_a_network_the_first_picture_tells(
    sources: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    books = tmp_path / "data" / "books"
    books.mkdir(parents=True)
    listed = {f"b{i}": {"imageURL": f"http://127.0.0.1:9/{i}.jpg"} for i in range(50)}
    (books / "dataset.json").write_text(json.dumps(listed))
    assert prepare.main(["download", "books", *sources]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: http://127.0.0.1:9/0.jpg: no answer from 127.0.0.1") and error.count("\n") == 1


def test_a_list_cannot_write_elsewhere(sources: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    books = tmp_path / "data" / "books"
    books.mkdir(parents=True)
    for content in ({"../x": {"imageURL": "http://127.0.0.1/x"}}, {"a": {"imageURL": 3}}, {"a": {}}, [], "x"):
        (books / "dataset.json").write_text(json.dumps(content))
        assert prepare.main(["download", "books", *sources]) == 1
        assert capsys.readouterr().err.count("\n") == 1


def test_failures_are_one_line(
    server: FileServer, sources: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare.main(["download", "coco", "nix", *sources]) == 2 and not server.asked
    assert (
        "data set 'nix' is not known; did you mean 'mix'? There are: covers, finetune, books, coco, mix"
        in capsys.readouterr().err
    )
    del server.files["/train2017.zip"]
    assert prepare.main(["download", "coco", *sources]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "404 Not Found" in error
    for text in (
        "a: 1",
        "a: {group: g, what: w, files: [{url: u, to: ../x}]}",
        "a: {group: g}",
        "[",
        "a: {files: [{}]}",
    ):
        (tmp_path / "sources.yaml").write_text(text)
        assert prepare.main(["download", *sources]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_the_hub_may_be_another(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The real table, with a fake Hub."""
    monkeypatch.setenv("HF_ENDPOINT", server.url("/hub/"))
    server.files["/hub/datasets/liuhaotian/LLaVA-Instruct-150K/resolve/main/llava_v1_5_mix665k.json"] = b"[1]"
    assert prepare.main(["download", "mix665k", "--to", str(tmp_path / "data")]) == 0
    assert (tmp_path / "data" / "llava_v1_5_mix665k.json").read_bytes() == b"[1]"
    assert prepare.main(["download"]) == 0 and "ocr_vqa " in capsys.readouterr().out


def test_the_recipes_find_what_is_downloaded() -> None:
    sets = read_sources()
    places = {f"playground/data/{file.to or file.unpack_to}" for one in sets.values() for file in one.files}
    for name in ("pretrain", "finetune"):
        recipe = yaml.safe_load((ROOT / "configs" / "train" / f"{name}.yaml").read_text())
        assert recipe["data"] in places and (recipe["images"] in places or recipe["images"] == "playground/data")
    for one in sets.values():
        assert one.files or one.by_hand
        for file in one.files:
            assert urlsplit(file.url).scheme in ("http", "https") and urlsplit(file.url).hostname
            assert (file.unpack_to is not None) == file.url.endswith(".zip")
