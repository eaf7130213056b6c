"""Damaged and odd inputs, drawn from a seed: each ends in one line of error or in the right result, within seconds.

Never a traceback, a hang, or a file that is taken for what it is not. Oracles are independent: `json`, PyYAML, Pillow.
Benchmarks' files: `test_fuzz_benchmarks.py`; settings, adapters and chat templates: `test_fuzz_models.py`.
"""

from __future__ import annotations

import io
import json
import random
from pathlib import Path

import yaml
from fuzzing import bend, bounded, outcome, spoil, turns
from PIL import Image

from llava_prumerge.data.images import decode_image
from llava_prumerge.data.recipe import read_recipe
from llava_prumerge.data.record_files import read_records
from llava_prumerge.data.records import RecordError, normalise_record
from llava_prumerge.data.rounds import MaskError, read_rounds
from llava_prumerge.methods.resolve import read_method_file
from llava_prumerge.model.tensor_files import list_model
from llava_prumerge.model.weight_files import read_object

RECORDS = [
    {"id": "a", "image": "a.jpg", "conversations": turns("<image>\nWhat?", "a cat", "And <b>?", "no")},
    {"id": 7, "conversations": turns("two?", "3", "é猫", "\n1. x\n")},
    {"id": "c", "image": ["a.jpg", "b.jpg"], "conversations": turns("<image>\n<image>\ncompare", "same")},
]


def test_record_files(tmp_path: Path) -> None:
    draw = random.Random(1)
    for number in range(100):
        lines = number % 2 == 1
        text = (
            "".join(json.dumps(r) + "\n" for r in RECORDS) if lines else json.dumps(RECORDS, indent=number % 3 or None)
        )
        path = tmp_path / f"{number}.json{'l' * lines}"
        path.write_bytes(spoil(text.encode(), draw))
        found = outcome(lambda path=path: list(read_records(path)))
        if found is not None:
            content = path.read_bytes().decode("utf-8-sig")
            expected = (
                [json.loads(line) for line in content.split("\n") if line.strip()] if lines else json.loads(content)
            )
            assert found == expected


def test_records() -> None:
    """What is taken is what stands there: questions and answers in order, as many images as there are markers."""
    draw, taken = random.Random(2), 0
    for number in range(200):
        raw = bend(draw.choice(RECORDS), draw)
        with bounded():
            try:
                record = normalise_record(raw, number)
                rounds = read_rounds(record, False, ("<s>", "</s>"), ("</s>",)).rounds
            except (RecordError, MaskError) as error:
                assert error.kind and len(error.reason) < 1000
                continue
        taken += 1
        said = [turn["value"] for turn in raw["conversations"]]
        said = said[1:] if raw["conversations"][0]["from"] == "gpt" else said
        assert [answer for _, answer in rounds] == said[1::2]
        if record["image"]:
            assert sum(question.count("<image>") for question, _ in rounds) == len(record["image"])
        json.dumps(record, ensure_ascii=False).encode()
    assert 20 < taken < 180


def test_images() -> None:
    draw, decoded = random.Random(3), 0
    picture = Image.effect_noise((40, 30), 80).convert("RGB")
    modes = [
        ("PNG", "RGB"),
        ("PNG", "P"),
        ("PNG", "LA"),
        ("JPEG", "RGB"),
        ("JPEG", "CMYK"),
        ("GIF", "P"),
        ("WEBP", "RGB"),
    ]
    for number in range(100):
        form, mode = modes[number % len(modes)]
        file = io.BytesIO()
        picture.convert(mode).save(file, form)
        content = spoil(file.getvalue(), draw)
        image = outcome(lambda content=content: decode_image(io.BytesIO(content), "the image"))
        if image is not None:
            decoded += 1
            with Image.open(io.BytesIO(content)) as opened:
                opened.info.pop("transparency", None)
                assert image.tobytes() == opened.convert("RGB").tobytes()
    assert 5 < decoded < 90


RECIPE = "stage: lora\ndata: a.json\nlearning_rate: 2e-4\nworkers: 4\nreduction:\n  vision: {name: prumerge, iqr_factor: 1.5}\n"


def test_recipes(tmp_path: Path) -> None:
    draw, path = random.Random(4), tmp_path / "recipe.yaml"
    for _ in range(80):
        content = spoil(RECIPE.encode(), draw)
        path.write_bytes(content)
        found = outcome(lambda: read_recipe([str(path), "workers=2"]))
        if found is not None:
            expected = yaml.safe_load(content.decode("utf-8-sig")) or {}
            if not set(expected) <= {"vision", "decoder"}:
                assert found == {**expected, "workers": 2}


METHOD = "vision: {name: prumerge, iqr_factor: 1.5, neighbours: 32}\ndecoder:\n  name: fastv\n  layer: 3\n"


def test_method_files(tmp_path: Path) -> None:
    draw, path = random.Random(6), tmp_path / "method.yaml"
    path.write_text(METHOD)
    assert read_method_file(path)["decoder"]["layer"] == 3
    for number in range(60):
        content = yaml.safe_dump(bend(yaml.safe_load(METHOD), draw)).encode() if number % 2 else METHOD.encode()
        path.write_bytes(content if number % 2 else spoil(content, draw))
        found = outcome(lambda: read_method_file(path))
        assert found is None or set(found) <= {"vision", "decoder"}


def test_checkpoint_folders(tmp_path: Path) -> None:
    """Weight files, their index and config.json, damaged: what can be listed is what was saved."""
    import torch
    from safetensors.torch import save_file

    draw = random.Random(7)
    save_file({"a": torch.zeros(2, 3)}, tmp_path / "model-1.safetensors")
    save_file({"b": torch.ones(4)}, tmp_path / "model-2.safetensors")
    index = {"metadata": {}, "weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava", "reduction": None}))
    shapes = {"a": (2, 3), "b": (4,)}
    names = [path.name for path in tmp_path.iterdir()]
    sound = {name: (tmp_path / name).read_bytes() for name in names}

    def look() -> dict[str, tuple[int, ...]]:
        read_object(tmp_path / "config.json")
        return {one.key: tuple(one.shape) for one in list_model(tmp_path)}

    assert look() == shapes
    for _ in range(60):
        name = draw.choice(names)
        (tmp_path / name).write_bytes(spoil(sound[name], draw))
        found = outcome(look)
        assert found is None or found.items() <= shapes.items()
        (tmp_path / name).write_bytes(sound[name])
