"""Fingerprints: every byte of what trains counts, a hundredth of the rest cannot change unseen, and the cache never misleads."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from llava_prumerge.ground import caching
from llava_prumerge.model import fingerprint as module
from llava_prumerge.model.fingerprint import BLOCK, BLOCKS, file_fingerprint, fingerprint, sampled_places, whole_ranges

GB = 10**9


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLAVA_PRUMERGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files count as large from a few kilobytes on."""
    monkeypatch.setattr(module, "WHOLE", 1000)


def write_model(file: Path, rows: int = 300) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    weights = {
        "model.language_model.layers.0.weight": torch.randn(rows, 1000),
        "model.multi_modal_projector.linear_1.weight": torch.randn(50, 100),
        "model.reducer.scale": torch.randn(7),
    }
    save_file(weights, file, {"format": "pt"})
    return weights


def change_byte(file: Path, at: int) -> None:
    with file.open("r+b") as opened:
        opened.seek(at)
        old = opened.read(1)
        opened.seek(at)
        opened.write(bytes([old[0] ^ 1]))


def test_every_byte_of_what_trains_counts(tmp_path: Path, large: None) -> None:
    file = tmp_path / "model.safetensors"
    write_model(file)
    before = file_fingerprint(file)
    ranges = whole_ranges(file)
    assert sum(length for _, length in ranges[1:]) == (50 * 100 + 7) * 4 and ranges[0][0] == 0
    for start, length in ranges:
        for at in {start, start + length - 1, *random.Random(0).choices(range(start, start + length), k=10)}:
            change_byte(file, at)
            assert file_fingerprint(file) != before, at
            change_byte(file, at)
    assert file_fingerprint(file) == before


@pytest.mark.parametrize("name", ["mm_projector.bin", "adapter_model.safetensors", "method.safetensors"])
def test_files_of_trained_parts_are_read_whole(tmp_path: Path, large: None, name: str) -> None:
    file = tmp_path / name
    file.write_bytes(random.Random(1).randbytes(20_000_000))
    places = np.fromiter(sampled_places(20_000_000), np.int64)
    unseen = next(at for at in range(100_000, 20_000_000) if not ((places <= at) & (at < places + BLOCK)).any())
    before = file_fingerprint(file)
    change_byte(file, unseen)
    assert file_fingerprint(file) != before
    renamed = file.rename(tmp_path / "pytorch_model.bin")
    sampled = file_fingerprint(renamed)
    change_byte(renamed, unseen)
    assert file_fingerprint(renamed) == sampled, "else this test could not fail"


def test_a_hundredth_changed_in_pages_is_always_seen() -> None:
    """100 files of 1 to 14 GB, each with a hundredth of its pages changed: (1 - s)^2048 = 1.2e-9 for each."""
    chance = np.random.default_rng(0)
    for _ in range(100):
        size = int(chance.integers(GB, 14 * GB))
        pages = size // 4096
        changed = np.sort(chance.choice(pages, pages // 100, replace=False)) * 4096
        assert count_hits(size, changed, changed + 4096) > 5
    assert 1.1e-9 < 0.99**BLOCKS < 1.2e-9


def test_the_stated_odds_hold_for_small_changes() -> None:
    """A thousandth in changes of single bytes, the worst case, is missed no more often than (1 - s)^2048 says."""
    chance, missed = np.random.default_rng(1), 0
    for _ in range(300):
        size = int(chance.integers(GB, 14 * GB))
        start = int(chance.integers(0, size // BLOCKS))
        at = np.arange(BLOCKS) * (size // BLOCKS) + start  # a thousandth of each 2048th, all in one place
        missed += not count_hits(size, at, at + size // BLOCKS // 1000)
    assert missed <= 300 * 0.999**BLOCKS * 1.6


def count_hits(size: int, starts: np.ndarray, ends: np.ndarray) -> int:
    """How many of the sampled blocks meet one of some sorted changes."""
    places = np.fromiter(sampled_places(size), np.int64)
    first = np.searchsorted(ends, places, side="right")  # the first change that ends behind the block's beginning
    inside = first < len(starts)
    return int((starts[first[inside]] < places[inside] + BLOCK).sum())


def test_a_projectors_size_replaced_in_one_piece_is_seen_wherever_it_is() -> None:
    """40 MB of 4.9 GB; a 7B projector is 42 MB."""
    for size in (4_900_000_000, 9_976_000_000, 40_000_000_000):
        places = np.fromiter(sampled_places(size), np.int64)
        gaps = np.diff(np.concatenate([[0], places, [size]]))
        assert gaps.max() < min(size / 1000, 40_000_000), size


def test_a_real_change_in_a_large_file_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "pytorch_model.bin"
    with file.open("wb") as opened:
        opened.truncate(4_900_000_000)
    before = file_fingerprint(file)
    with file.open("r+b") as opened:
        opened.seek(2_718_281_828)
        opened.write(b"\1" * 4_900_000)  # a thousandth
    assert file_fingerprint(file) != before


def test_the_cache_answers_until_the_file_changes(tmp_path: Path, own_cache: Path, large: None, monkeypatch) -> None:
    file, read = tmp_path / "model.safetensors", []
    write_model(file)
    whole = module._read_file
    monkeypatch.setattr(module, "_read_file", lambda path: read.append(path) or whole(path))
    monkeypatch.setattr(caching, "_FRESH_SECONDS", -1.0)
    first = file_fingerprint(file)
    assert file_fingerprint(file) == first and len(read) == 1
    (tmp_path / "link").symlink_to(file)
    assert file_fingerprint(tmp_path / "link") == first and len(read) == 1
    times = file.stat()
    change_byte(file, file.stat().st_size - 1)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))  # as `cp -p` and `rsync -t` do
    assert file_fingerprint(file) != first and len(read) == 2
    copy = tmp_path / "copy"
    copy.write_bytes(file.read_bytes())
    copy.replace(file)
    file_fingerprint(file)
    assert len(read) == 3
    for content in (b"", b"{", b"\xff\xfe\x00", b"[]", json.dumps({os.path.realpath(file): [1, 2]}).encode()):
        (own_cache / "fingerprints-2.json").write_bytes(content)
        file_fingerprint(file)
    assert len(read) == 8


def test_a_file_that_has_just_changed_is_not_remembered(tmp_path: Path, own_cache: Path, large: None) -> None:
    write_model(tmp_path / "model.safetensors")
    file_fingerprint(tmp_path / "model.safetensors")
    assert not own_cache.exists()


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path, large: None, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LLAVA_PRUMERGE_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(caching, "_FRESH_SECONDS", -1.0)
    file = tmp_path / "model.safetensors"
    write_model(file)
    assert file_fingerprint(file) == file_fingerprint(file)


def test_the_cache_stays_small(tmp_path: Path, own_cache: Path, monkeypatch) -> None:
    monkeypatch.setattr(caching, "_FRESH_SECONDS", -1.0)
    monkeypatch.setattr(caching, "MOST_ENTRIES", 3)
    for number in range(5):
        file = tmp_path / f"{number}"
        file.write_text("")
        caching.remember("kind", file, lambda path: path.name)
    assert [Path(name).name for name in json.loads((own_cache / "kind.json").read_text())] == ["2", "3", "4"]


def test_a_fingerprint_follows_bases_by_path_and_by_name(tmp_path: Path) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    for folder in (base, adapter):
        folder.mkdir()
    (base / "config.json").write_text("{}")
    write_model(base / "model.safetensors")
    entry = {"path": str(base), "from_here": "../base"}
    (adapter / "base.json").write_text(json.dumps({"model": entry, "language_model": None, "seed": 3}))
    before = fingerprint(adapter)
    assert before.startswith("2:") and fingerprint(tmp_path / "base" / "model.safetensors").startswith("2:")
    change_byte(base / "model.safetensors", 999_999)
    assert fingerprint(adapter) != before
    (adapter / "finished.json").write_text("{}")
    with_base = fingerprint(adapter)
    (adapter / "finished.json").unlink()
    assert fingerprint(adapter) == with_base
    (adapter / "base.json").write_text(json.dumps({"model": {"hub": "org/model"}}))
    named = fingerprint(adapter)
    assert fingerprint("org/model") == "hub:org/model"
    (adapter / "base.json").write_text(json.dumps({"model": {"hub": "org/other"}}))
    assert fingerprint(adapter) != named


def test_a_name_on_the_hub_stands_for_a_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def cached(name: str, file: str) -> str:
        return str(tmp_path / "models--org--model" / "snapshots" / "0a1b2c" / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", cached)
    assert fingerprint("org/model") == "hub:org/model@0a1b2c"
