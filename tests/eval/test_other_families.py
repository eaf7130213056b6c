"""Checkpoints of other families through the evaluation command, with their own processors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_families import MARKS, write_family

from llava_prumerge.data.images import read_image
from llava_prumerge.evaluation.run import main
from llava_prumerge.model.loading import load_model

NAMES = ["llava_next", "llava_onevision", "internvl", "qwen2_5_vl", "video_llava", "gemma3", "idefics3", "paligemma"]
METHOD = ["method=uniform", "budget=3"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {name: write_family(root / name, name) for name in NAMES}


def run(folder: Path, data: Path, out: Path, *more: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The result file, and the answers."""
    words = ["run", "--task", "pope", "--model", str(folder), "--data", str(data), "--out", str(out)]
    main([*words, "max_new_tokens=3", "batch_size=4", "device=cpu", *more])
    (result,) = out.rglob("pope.json")
    (answers,) = out.rglob("pope.jsonl")
    return json.loads(result.read_text()), [json.loads(line) for line in answers.read_text().splitlines()]


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_those_of_the_stock_processor_and_model(
    name: str, folders: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    """Each question alone, put together by hand, against batches of four with padding."""
    result, answers = run(folders[name], data, tmp_path)
    model, processor = load_model(folders[name])
    fulls = []
    questions = [json.loads(line) for line in (data / "pope/llava_pope_test.jsonl").read_text().splitlines()]
    for question, answer in zip(questions, answers, strict=True):
        text = f"w10 {MARKS.get(name, '<image>')} {question['text']} w11"
        image = read_image(data / "pope/val2014" / question["image"])
        inputs = processor(text=[text], images=[image], return_tensors="pt")
        with torch.no_grad():
            told = model.generate(**inputs, max_new_tokens=3, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert answer["text"] == processor.tokenizer.decode(told, skip_special_tokens=True).strip()
        fulls.append(int((inputs["input_ids"] == model.config.image_token_id).sum()))
    assert result["kept"]["of"] == pytest.approx(sum(fulls) / len(fulls))
    assert result["kept"]["mean"] == result["kept"]["of"] and result["kept"]["images"] == len(questions)


@pytest.mark.parametrize("name", ["llava_next", "internvl", "idefics3"])
def test_a_method_is_counted_by_the_image(name: str, folders: dict[str, Path], data: Path, tmp_path: Path) -> None:
    result, answers = run(folders[name], data, tmp_path, *METHOD)
    kept = result["kept"]
    assert kept["mean"] < kept["of"] and kept["share"] == pytest.approx(100 * kept["mean"] / kept["of"])
    assert all(answer["metadata"]["kept"] >= 3 for answer in answers)
    again, _ = run(folders[name], data, tmp_path, *METHOD)  # scored again, nothing generated
    assert again["kept"] == kept


def test_without_a_chat_template_the_template_of_the_settings_is_taken(
    folders: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    folder = write_family(tmp_path / "bare", "qwen2_5_vl")
    (folder / "chat_template.jinja").unlink()
    _, answers = run(folder, data, tmp_path / "out")
    assert len(answers) == 6


def test_a_checkpoint_without_a_processor_is_refused_in_one_line(
    folders: dict[str, Path], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_family(tmp_path / "bare", "internvl")
    for file in folder.iterdir():
        if file.name != "config.json" and file.suffix != ".safetensors":
            file.unlink()
    words = ["run", "--task", "pope", "--model", str(folder), "--data", str(data), "--out", str(tmp_path / "out")]
    assert main([*words, "device=cpu"]) == 2
    assert "no processor" in capsys.readouterr().err.splitlines()[-1]
