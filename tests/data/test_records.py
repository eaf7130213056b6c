"""Record files are read piece by piece: the same records as `json.loads` finds, and the same files refused."""

from __future__ import annotations

import json
import random
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from llava_prumerge.data.record_files import read_records
from llava_prumerge.ground import encodings

LISTS: list[list[Any]] = [
    [],
    [1],
    [12345, -1.5e10, 0, None, True, "a"],
    [{"id": "a,]", "conversations": [{"from": "human", "value": 'say "[" \\ and é猫\U0001f600'}]}, [], {}, [[1], "]"]],
    [{"id": i, "text": "x" * (i % 40)} for i in range(200)],
]


@pytest.mark.parametrize("window", [1, 2, 3, 7, 64, 1 << 20])
@pytest.mark.parametrize("indent", [None, 1])
def test_elements_are_those_of_the_whole_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: int, indent: int | None
) -> None:
    monkeypatch.setattr(encodings, "BLOCK", window)
    path = tmp_path / "records.json"
    for content in LISTS:
        for text in (json.dumps(content, indent=indent, ensure_ascii=False), f"\n {json.dumps(content)} \t\n"):
            path.write_text(text, encoding="utf-8")
            assert list(read_records(path)) == content


@pytest.mark.parametrize("window", [1, 5, 1 << 20])
def test_damaged_files_are_refused_whenever_json_refuses_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    monkeypatch.setattr(encodings, "BLOCK", window)
    path, draw = tmp_path / "records.json", random.Random(0)
    whole = json.dumps([{"id": 1, "image": "a.jpg"}, [2.5, None], "x"])
    damaged = [whole[:end] for end in range(len(whole))] + [whole + extra for extra in ("]", ",", "1", " [")]
    for _ in range(200):
        at = draw.randrange(len(whole))
        damaged.append(whole[:at] + draw.choice('[]{},:"0 x') + whole[at + 1 :])
    refused = 0
    for text in damaged:
        path.write_text(text)
        try:
            expected = json.loads(text)
        except json.JSONDecodeError:
            with pytest.raises(ValueError, match=r"records\.json: (line 1|it is empty|it holds)"):
                list(read_records(path))
            refused += 1
            continue
        if isinstance(expected, list):
            assert list(read_records(path)) == expected
    assert 150 < refused < len(damaged)


def test_a_large_file_is_never_held_whole(tmp_path: Path) -> None:
    path = tmp_path / "records.json"
    with path.open("w") as file:
        file.write("[" + ",\n".join(json.dumps({"id": i, "text": "x" * 1000}) for i in range(20_000)) + "]")
    tracemalloc.start()
    count = sum(1 for _ in read_records(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 20_000 and peak < path.stat().st_size / 2
