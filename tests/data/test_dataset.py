"""Records from JSON to Arrow to samples, and the real stage-1 records where they are at hand."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil, PreTrainedTokenizerFast

from llava_prumerge.data.collator import Collator
from llava_prumerge.data.conversation import IGNORE_INDEX, MaskError
from llava_prumerge.data.dataset import LlavaDataset
from llava_prumerge.data.images import ImageError, ImagePreprocessor
from llava_prumerge.data.record_files import read_records
from llava_prumerge.data.records import RecordError, default_cache_dir, normalise_record, open_records
from llava_prumerge.ground.errors import FileError

IMAGE_ID, PATCHES, SIZE = 9000, 4, 32
SHARED = Path(__file__).resolve().parents[2] / ".." / "shared" / "llava_pretrain_sample"


def turns(*values: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(values)]


RECORDS = [
    {"id": "a", "image": "a.jpg", "conversations": turns("<image>\nhi?", "red cat"), "model": "x"},
    {"id": 7, "conversations": turns("hi?", "two", "naïve 猫?", "yes")},
    {"image": ["b.png", "a.jpg"], "conversations": turns("<image> and <image>?", "dog")},
]


@pytest.fixture
def make_dataset(tmp_path: Path, word_tokenizer: PreTrainedTokenizerFast) -> Callable[..., LlavaDataset]:
    def make(records: list[Any], name: str = "records.json", **settings: Any) -> LlavaDataset:
        lines = "\n".join(json.dumps(record, ensure_ascii=False) for record in records)
        path = tmp_path / name
        path.write_text(lines if path.suffix == ".jsonl" else json.dumps(records), encoding="utf-8")
        clip = CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
        settings = {"image_token_id": IMAGE_ID, "image_tokens": PATCHES, "cache_dir": tmp_path / "cache"} | settings
        preprocessor = ImagePreprocessor(clip)
        return LlavaDataset(path, tmp_path / "images", word_tokenizer, preprocessor, "vicuna_v1", **settings)

    return make


@pytest.mark.parametrize("name", ["records.json", "records.jsonl"])
def test_items_hold_tokens_labels_pixels_and_id(make_dataset: Callable, save_image: Callable, name: str) -> None:
    for file in ("a.jpg", "b.png"):
        save_image(file, size=(50, 20))
    dataset = make_dataset(RECORDS, name)
    items = [dataset[i] for i in range(len(dataset))]
    assert [item["id"] for item in items] == ["a", "7", "#2"]
    assert [tuple(item["pixel_values"].shape) if "pixel_values" in item else None for item in items] == [
        (1, 3, SIZE, SIZE),
        None,
        (2, 3, SIZE, SIZE),
    ]
    assert torch.equal(items[0]["pixel_values"][0], items[2]["pixel_values"][1])
    batch = Collator(pad_id=0)(items)
    assert (batch["input_ids"] == IMAGE_ID).sum(1).tolist() == [PATCHES, 0, 2 * PATCHES]
    assert (batch["labels"] != IGNORE_INDEX).any(1).all()
    assert len(batch["pixel_values"]) == 3


def test_lengths_are_signed_and_count_images(make_dataset: Callable) -> None:
    lengths = make_dataset(RECORDS, image_tokens=576).lengths
    sizes = [sum(len(turn["value"].encode()) for turn in record["conversations"]) for record in RECORDS]
    assert lengths == [sizes[0] // 4 + 577, -(sizes[1] // 4 + 1), sizes[2] // 4 + 1 + 2 * 576]
    assert all(type(length) is int for length in lengths)


def test_a_bad_sample_is_named(make_dataset: Callable, save_image: Callable) -> None:
    path = save_image("a.jpg", size=(200, 200))
    path.write_bytes(path.read_bytes()[:900])
    dataset = make_dataset([*RECORDS, {"id": "q", "conversations": turns("hi", " ")}])
    with pytest.raises(ImageError, match=r"sample a: broken: 'a\.jpg'"):
        dataset[0]
    with pytest.raises(ImageError, match=r"sample #2: missing: 'b\.png'"):
        dataset[2]
    with pytest.raises(MaskError, match="sample q: empty turn"):
        dataset[3]
    loader = torch.utils.data.DataLoader(dataset, batch_size=1, num_workers=1, collate_fn=Collator(0))
    with pytest.raises(ImageError, match="sample a: broken"):
        next(iter(loader))


def test_a_dataset_travels_to_worker_processes(make_dataset: Callable, save_image: Callable) -> None:
    save_image("a.jpg")
    dataset = make_dataset(RECORDS[:2])
    copy = pickle.loads(pickle.dumps(dataset))
    assert all(torch.equal(copy[0][key], dataset[0][key]) for key in ("input_ids", "labels", "pixel_values"))


def test_the_arrow_file_follows_the_content(make_dataset: Callable, tmp_path: Path) -> None:
    make_dataset(RECORDS)
    (first,) = (tmp_path / "cache").glob("*.arrow")
    written = first.stat().st_mtime_ns
    make_dataset(RECORDS)
    assert first.stat().st_mtime_ns == written
    assert len(make_dataset(RECORDS[:1])) == 1
    assert len(list((tmp_path / "cache").glob("*.arrow"))) == 2


def _open_and_count(arguments: tuple[Path, Path]) -> int:
    return len(open_records(*arguments))


def test_ranks_that_start_at_once_share_one_file(tmp_path: Path) -> None:
    path, cache = tmp_path / "records.json", tmp_path / "cache"
    path.write_text(json.dumps([{"id": i, "conversations": turns("hi", "yes")} for i in range(2500)]))
    with multiprocessing.get_context("fork").Pool(4) as pool:
        assert pool.map(_open_and_count, [(path, cache)] * 4) == [2500] * 4
    assert len(list(cache.glob("*.arrow"))) == 1 and not list(cache.glob(".*"))
    assert open_records(path, cache)[2499]["id"] == "2499"


@pytest.mark.parametrize("content", [b"", b"ARROW1", b"\0" * 99])
def test_a_cached_file_that_a_disk_has_damaged_is_written_anew(tmp_path: Path, content: bytes, caplog) -> None:
    path, cache = tmp_path / "records.json", tmp_path / "cache"
    path.write_text(json.dumps([{"id": "a", "conversations": turns("hi", "yes")}]))
    assert len(open_records(path, cache)) == 1
    (file,) = cache.glob("*.arrow")
    file.write_bytes(content)
    assert open_records(path, cache)[0]["id"] == "a"
    assert f"{file}: cannot be read: " in caplog.text and "it is written anew" in caplog.text


def test_a_cache_that_cannot_be_written_is_named_with_its_variable(tmp_path: Path) -> None:
    path, cache = tmp_path / "records.json", tmp_path / "cache"
    path.write_text(json.dumps([{"id": "a", "conversations": turns("hi", "yes")}]))
    cache.write_text("a file")
    with pytest.raises(
        FileError,
        match=rf"^{cache}: cannot be written: it is a file, not a folder; \$LLAVA_PRUMERGE_CACHE names another cache$",
    ):
        open_records(path, cache)


def test_a_file_system_without_locks_holds_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    def refuse(*words: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)
    path = tmp_path / "records.json"
    path.write_text(json.dumps([{"id": "a", "conversations": turns("hi", "yes")}]))
    assert len(open_records(path, tmp_path / "cache")) == 1


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "records.json"
    path.write_text(json.dumps([RECORDS[0]])[:-1] + ", {")
    with pytest.raises(ValueError, match="records.json: line 1: not JSON"):
        open_records(path, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.arrow*tmp")) and not list((tmp_path / "cache").glob("*.arrow"))


def test_a_malformed_record_is_a_row_that_says_so(make_dataset: Callable, save_image: Callable) -> None:
    save_image("a.jpg")
    dataset = make_dataset([{"id": "bad"}, RECORDS[0], "text", {"id": "\ud800", "conversations": []}])
    assert [fault is None for fault in dataset.rows["fault"]] == [False, True, False, True]
    assert dataset.rows[3]["id"] == "\\ud800"
    with pytest.raises(RecordError, match="sample bad: format: 'conversations' must be"):
        dataset[0]
    with pytest.raises(RecordError, match="sample #2: format: a record must be an object, not str"):
        dataset[2]
    assert dataset[1]["id"] == "a" and dataset.lengths[0] < 0 < dataset.lengths[1]


def test_the_cache_folder_can_be_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("LLAVA_PRUMERGE_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "llava_prumerge" / "records"
    monkeypatch.setenv("LLAVA_PRUMERGE_CACHE", str(tmp_path / "mine"))
    assert default_cache_dir() == tmp_path / "mine"


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ("text", "sample #3: format: a record must be an object, not str"),
        ({"id": "a"}, "sample a: format: 'conversations' must be a list"),
        ({"id": "a", "conversations": [{"from": "human"}]}, "'conversations' must be a list"),
        ({"id": "a", "conversations": [{"from": "human", "value": 3}]}, "'conversations' must be a list"),
        ({"id": "a", "conversations": ["hi"]}, "'conversations' must be a list"),
        ({"id": "a", "conversations": [], "image": 3}, "'image' must be a path or a list of paths, not 3"),
        ({"id": "a", "conversations": [], "image": [None]}, "'image' must be a path or a list of paths"),
        ({"id": "a", "conversations": turns("\ud800", "b")}, "not valid Unicode"),
        ({"id": "a", "conversations": [], "image": "\udfff.jpg"}, "not valid Unicode"),
    ],
)
def test_records_that_are_refused(raw: Any, message: str) -> None:
    with pytest.raises(RecordError, match=message):
        normalise_record(raw, 3)


def test_files_that_are_refused(tmp_path: Path, make_dataset: Callable) -> None:
    contents = {
        "a.json": ('{"id": 1}', "it holds an object; a list of records is expected"),
        "b.json": ("[{]", "b.json: line 1: not JSON"),
        "c.jsonl": ('{"id": 1}\n{', "c.jsonl: line 2, column 2: not JSON"),
        "d.csv": ("", "must end in .json .a list of records. or .jsonl"),
    }
    for name, (text, message) in contents.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=message):
            list(read_records(tmp_path / name))
    with pytest.raises(ValueError, match="holds no records"):
        make_dataset([])


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real stage-1 records are not here")
@pytest.mark.parametrize(("template", "aspect"), [("plain", "square"), ("vicuna_v1", "pad")])
def test_real_records_load_tokenise_mask_and_batch(
    word_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, template: str, aspect: str
) -> None:
    clip = CLIPImageProcessorPil(size={"shortest_edge": 96}, crop_size={"height": 96, "width": 96})
    dataset = LlavaDataset(
        SHARED / "blip_laion_cc_sbu_256.json",
        SHARED / "images",
        word_tokenizer,
        ImagePreprocessor(clip, aspect),
        template,
        image_token_id=IMAGE_ID,
        image_tokens=144,
        cache_dir=tmp_path,
    )
    assert len(dataset) == 256 == sum(length > 144 for length in dataset.lengths)
    raw = list(read_records(SHARED / "blip_laion_cc_sbu_256.json"))
    for i, item in enumerate(map(dataset.__getitem__, range(256))):
        assert item["id"] == str(raw[i]["id"])
        assert item["pixel_values"].shape == (1, 3, 96, 96) and item["pixel_values"].isfinite().all()
        assert (item["input_ids"] == IMAGE_ID).sum() == 144
        answer = word_tokenizer.decode(item["labels"][item["labels"] != IGNORE_INDEX], skip_special_tokens=True)
        assert answer.strip() == raw[i]["conversations"][1]["value"].strip()
    batch = Collator(pad_id=0)([dataset[i] for i in range(4)])
    assert batch["pixel_values"].shape == (4, 3, 96, 96)
    assert Image.open(SHARED / "images" / raw[0]["image"]).size != (96, 96)  # the preprocessor had something to do
