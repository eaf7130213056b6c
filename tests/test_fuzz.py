"""Damaged and odd inputs, drawn from a seed: each ends in one line of error or in the right result, within seconds.

Never a traceback, a hang, or a file that is taken for what it is not. Oracles are independent: `json`, PyYAML, Pillow.
"""

from __future__ import annotations

import gzip
import io
import json
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from llava_prumerge.data.images import decode_image
from llava_prumerge.data.recipe import read_recipe
from llava_prumerge.data.record_files import read_records
from llava_prumerge.data.records import RecordError, normalise_record
from llava_prumerge.data.rounds import MaskError, read_rounds
from llava_prumerge.evaluation.benchmark import Files, find
from llava_prumerge.ground.command import one_line
from llava_prumerge.ground.errors import InputError
from llava_prumerge.methods.resolve import read_method_file
from llava_prumerge.model.checkpoints.weights import list_model, read_json

SECONDS = 10
ODD = [
    None,
    True,
    0,
    -1,
    2.5,
    10**30,
    float("inf"),
    "",
    " ",
    "\n",
    "\ud800",
    "<image>",
    "</s>",
    "é" * 300,
    [],
    {},
    [[]],
    [1],
]
ODD += [{"a": 1}, ["x"], "x" * 5000, "../..", "\0"]


@contextmanager
def bounded() -> Iterator[None]:
    def late(*_: object) -> None:
        raise AssertionError(f"it took more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(work: Callable[[], Any]) -> Any:
    """What came out; None for an error, which must be one of ours, with something to say."""
    with bounded():
        try:
            return work()
        except InputError as error:
            text = one_line(error)
            assert text and len(text) < 3000
            return None


def spoil(content: bytes, draw: random.Random) -> bytes:
    """A file as a disk, a transfer or an editor leaves it."""
    at, length = draw.randrange(len(content) + 1), draw.randint(1, 40)
    text = content.decode("utf-8", "replace")
    return draw.choice(
        [
            lambda: content[:at],
            lambda: content[:at] + content[at + length :],
            lambda: content[:at] + bytes(draw.randrange(256) for _ in range(length)) + content[at:],
            lambda: content[:at] + bytes(length) + content[at + length :],
            lambda: content[:at] + content[at:] + content[at : at + length],
            lambda: content[:at] + bytes([draw.choice(b'[]{},:"\\0 \n&*!-')]) + content[at + 1 :],
            lambda: b"\xef\xbb\xbf" + content,
            lambda: text.encode("utf-16"),
            lambda: text.encode("utf-16-le"),
            lambda: gzip.compress(content),
            lambda: content.replace(b"\n", b"\r\n"),
            lambda: b"",
        ]
    )()


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) in a value."""
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from places(value[key])


def bend(value: Any, draw: random.Random) -> Any:
    """A JSON value with one thing in it exchanged, lost, renamed or doubled."""
    value = json.loads(json.dumps(value))
    container, key = draw.choice(list(places(value)))
    kind = draw.randrange(5)
    if kind == 0:
        del container[key]
    elif kind == 1 and isinstance(container, dict):
        container[f"{key}s"] = container.pop(key)
    elif kind == 2 and isinstance(container, list):
        container.append(container[key])
    else:
        container[key] = draw.choice(ODD)
    return value


def turns(*values: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(values)]


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
                rounds, _ = read_rounds(record, False, ("<s>", "</s>"), ("</s>",))
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
        read_json(tmp_path / "config.json")
        return {one.key: tuple(one.shape) for one in list_model(tmp_path)}

    assert look() == shapes
    for _ in range(60):
        name = draw.choice(names)
        (tmp_path / name).write_bytes(spoil(sound[name], draw))
        found = outcome(look)
        assert found is None or found.items() <= shapes.items()
        (tmp_path / name).write_bytes(sound[name])


SUFFIX = "\nAnswer the question using a single word or phrase."


def pope(folder: Path) -> dict[str, Any]:
    asked = [
        {"question_id": n, "image": f"{n // 2}.jpg", "text": f"Is there a {w}?{SUFFIX}", "category": "random"}
        for n, w in enumerate(("cat", "dog", "cow", "cup"))
    ]
    labels = [{"image": r["image"], "text": r["text"].removesuffix(SUFFIX), "label": "yes"} for r in asked]
    return {"questions": asked, "coco/coco_pope_random.json": labels, "answers": said(asked)}


def said(asked: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"question_id": one["question_id"], "prompt": one["text"], "text": "yes"} for one in asked]


def vqav2(folder: Path) -> dict[str, Any]:
    asked = [{"question_id": n, "image": f"{n}.jpg", "text": f"What {n}?{SUFFIX}"} for n in (1, 2)]
    truth = [{"question_id": n, "answer_type": "other", "answers": [{"answer": "yes"}, {"answer": 3}]} for n in (1, 2)]
    return {"questions": asked, "annotations": {"annotations": truth}, "answers": said(asked)}


def textvqa(folder: Path) -> dict[str, Any]:
    asked = [{"question_id": f"i{n}", "image": f"{n}.jpg", "text": f"what {n}?{SUFFIX}"} for n in (1, 2)]
    truth = [{"image_id": f"i{n}", "question": f"What {n}?", "answers": ["yes"] * 10} for n in (1, 2)]
    return {"questions": asked, "annotations": {"data": truth}, "answers": said(asked)}


def sqa(folder: Path) -> dict[str, Any]:
    asked = [
        {"id": str(n), "image": "a.png", "conversations": turns(f"<image>\nq{n}?\nA. x\nB. y", "A")} for n in (1, 2)
    ]
    problems = {str(n): {"choices": ["x", "y"], "answer": 0, "image": "a.png"} for n in (1, 2)}
    answers = [{"question_id": str(n), "prompt": "p", "text": "A"} for n in (1, 2)]
    return {"questions": asked, "annotations": problems, "split": {"test": ["1", "2"]}, "answers": answers}


WORLDS = {"pope": pope, "vqav2": vqav2, "textvqa": textvqa, "sqa": sqa}


def score(name: str, folder: Path, parts: dict[str, Any], raw: dict[str, bytes]) -> Any:
    """Writes a benchmark's files and scores its answers."""
    for part, content in parts.items():
        path = folder / part
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = isinstance(content, list) and part in ("questions", "answers") and name != "sqa"
        text = "".join(json.dumps(one) + "\n" for one in content) if lines else json.dumps(content)
        path.write_bytes(raw.get(part, text.encode()))
    truth = folder / ("coco" if name == "pope" else "annotations")
    split = folder / "split" if name == "sqa" else None
    files, task = Files(folder / "questions", truth, split), find(name)
    task.questions(files)
    return task.score(folder / "answers", files)


@pytest.mark.parametrize("name", WORLDS)
def test_annotations_questions_and_answers(name: str, tmp_path: Path) -> None:
    draw, scored = random.Random(name), 0
    sound = score(name, tmp_path / "sound", WORLDS[name](tmp_path), {})
    for number in range(30):
        parts, raw = WORLDS[name](tmp_path), {}
        part = draw.choice(list(parts))
        if number % 3:
            parts[part] = bend(parts[part], draw)
        else:
            raw[part] = spoil(json.dumps(parts[part]).encode(), draw)
        folder = tmp_path / str(number)
        found = outcome(lambda: score(name, folder, parts, raw))  # noqa: B023 (it runs at once)
        if found is not None:
            scored += 1
            assert 0 <= found.headline <= 100 and found.n <= sound.n
    assert scored < 30


def table(rows: list[str]) -> bytes:
    return "\n".join(["index\tquestion\tA\tB\tanswer\timage\thint", *rows]).encode()


def test_tables_and_workbooks(tmp_path: Path) -> None:
    """MMBench's table, and an upload workbook, damaged."""
    from llava_prumerge.evaluation.mmbench import write_workbook

    draw, task, picture = random.Random(5), find("mmbench"), "QUJD" * 40
    rows = [f"{n}\tq{n}?\tx\ty\tA\t{picture}\t" for n in (1, 2)]
    path, answers = tmp_path / "table.tsv", tmp_path / "answers"
    answers.write_text("".join(json.dumps({"question_id": n, "text": "A"}) + "\n" for n in (1, 2)))
    path.write_bytes(table(rows))
    assert task.score(answers, Files(path, path)).headline == 100
    book = write_workbook(tmp_path / "a.xlsx", ["index", "A", "B", "answer", "prediction"], [[1, "x", "y", "A", "A"]])
    assert task.score(book, Files()).headline == 100
    whole = book.read_bytes()
    for number in range(40):
        if number % 2:
            path.write_bytes(spoil(table(rows), draw))
            outcome(lambda: (task.questions(Files(path, path)), task.score(answers, Files(path, path))))
        else:
            spoilt = tmp_path / "spoilt.xlsx"
            spoilt.write_bytes(spoil(whole, draw))
            outcome(lambda: task.score(spoilt, Files()))  # noqa: B023
