"""What is measured in the small world: counts that go on where they stopped, and operations beside times."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from llava_prumerge.ground.errors import InputError
from playground.small import photographs, times


def test_counts_go_on_and_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """Known photographs are not counted again; one that cannot be read is told and left out."""
    records = tmp_path / "records.json"
    names = [f"{at}.jpg" for at in range(6)]
    records.write_text(json.dumps([{"id": name, "image": name} for name in [*names, names[0]]] + [{"id": "text"}]))
    asked: list[str] = []

    def count(model, paths, images, cache):
        for path in paths:
            asked.append(path)
            yield (
                {"image": path, "bad": "no"}
                if path == "5.jpg"
                else {
                    "image": path,
                    "prumerge": 30 + int(path[0]),
                    "prumerge_plus": 144,
                }
            )

    monkeypatch.setattr(photographs, "count", count)
    words = ["--records", str(records), "--images", str(tmp_path), "--out", str(tmp_path / "kept.jsonl")]
    (tmp_path / "kept.jsonl").write_text('{"image": "0.jpg", "prumerge": 30, "prumerge_plus": 144}\n')
    assert photographs.main([*words, "--plot", str(tmp_path / "kept.png")]) == 0
    told = json.loads(capsys.readouterr().out)
    assert asked == names[1:] and (told["photographs"], told["unreadable"]) == (5, 1)
    assert told["prumerge"]["mean"] == 32 and told["prumerge_plus"]["share"] == 0.25
    with Image.open(tmp_path / "kept.png") as drawn:
        assert drawn.width == 900
    assert photographs.main(words) == 0 and asked == names[1:]


def test_records_without_images_are_refused(tmp_path: Path) -> None:
    records = tmp_path / "records.json"
    records.write_text('[{"id": "text"}]')
    with pytest.raises(InputError, match="no record has an image"):
        photographs.image_paths([records])


def test_operations_fall_with_tokens() -> None:
    """From all 576 tokens to 32: the tower's stay, so that it is less than the tokens' ratio."""
    assert (
        1
        < times.operations(576, 40) / times.operations(144, 40)
        < times.operations(576, 40) / times.operations(32, 40)
        < 18
    )
