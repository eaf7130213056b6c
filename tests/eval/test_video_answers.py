"""Questions about videos through the evaluation command: families' own processors, frames, and what a method keeps of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_families import write_family
from train.family_world import give_videos, write_checkpoint

from llava_prumerge.evaluation.run import main
from llava_prumerge.model.loading import load_model

NAMES = ["video_llava", "llava_next_video", "llava_onevision", "qwen2_5_vl", "internvl"]
TAKEN = [0, 1, 3, 5]
TEXTS = ["What moves here", "Say the word"]


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The four files' layout with two clips of six frames, folders of images."""
    root = tmp_path_factory.mktemp("films")
    folder = root / "MSVD_Zero_Shot_QA"
    questions = []
    for number, text in enumerate(TEXTS):
        clip = folder / "videos" / f"clip{number}"
        clip.mkdir(parents=True)
        for at in range(6):
            noise = Image.effect_noise((72, 40), 40).convert("RGB")
            Image.blend(noise, Image.new("RGB", (72, 40), (40 * at, 200, 90 * number)), 0.6).save(clip / f"{at}.png")
        questions.append({"video_name": f"clip{number}", "question_id": f"q{number}", "question": text})
    (folder / "test_q.json").write_text(json.dumps(questions))
    truths = [{"question_id": one["question_id"], "answer": "red"} for one in questions]
    (folder / "test_a.json").write_text(json.dumps(truths))
    return root


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {name: give_videos(write_checkpoint(root / name, name), name) for name in NAMES}


def run(folder: Path, data: Path, out: Path, *more: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The result file, and the answers."""
    words = ["run", "--task", "msvd_qa", "--model", str(folder), "--data", str(data), "--out", str(out)]
    assert main([*words, "max_new_tokens=3", "batch_size=2", "device=cpu", "frames=4", *more]) in (0, None)
    (result,), (answers,) = out.rglob("msvd_qa.json"), out.rglob("answers/msvd_qa.jsonl")
    return json.loads(result.read_text()), [json.loads(line) for line in answers.read_text().splitlines()]


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_those_of_the_stock_processor_and_model(name, folders, films, tmp_path) -> None:
    """Each question alone, put together by hand, against a batch of both with padding."""
    result, answers = run(folders[name], films, tmp_path)
    model, processor = load_model(folders[name])
    for number, answer in enumerate(answers):
        clip = films / "MSVD_Zero_Shot_QA" / "videos" / f"clip{number}"
        frames = [np.asarray(Image.open(clip / f"{at}.png").convert("RGB")) for at in TAKEN]
        parts = [{"type": "video"}, {"type": "text", "text": TEXTS[number]}]
        turns = [{"role": "user", "content": parts}]
        text = processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        told = {
            "total_num_frames": 6,
            "fps": None,
            "duration": None,
            "frames_indices": TAKEN,
            "width": 72,
            "height": 40,
        }
        inputs = processor(
            text=[text], videos=[frames], video_metadata=[told], do_sample_frames=False, return_tensors="pt"
        )
        with torch.no_grad():
            said = model.generate(**inputs, max_new_tokens=3, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert answer["text"] == processor.tokenizer.decode(said, skip_special_tokens=True).strip()
    assert result["kept"]["mean"] == result["kept"]["of"] > 0


@pytest.mark.parametrize("name", ["video_llava", "qwen2_5_vl"])
def test_a_method_acts_on_every_frame(name, folders, films, tmp_path) -> None:
    result, _ = run(folders[name], films, tmp_path, "method=uniform", "budget=2")
    assert 0 < result["kept"]["mean"] < result["kept"]["of"]


def test_frames_belong_to_an_answer_file(folders, films, tmp_path, capsys) -> None:
    """Other frames are another run; so are other files in a clip's folder."""
    run(folders["video_llava"], films, tmp_path)
    words = [
        "run",
        "--task",
        "msvd_qa",
        "--model",
        str(folders["video_llava"]),
        "--data",
        str(films),
        "--out",
        str(tmp_path),
    ]
    assert main([*words, "max_new_tokens=3", "device=cpu", "frames=3"]) == 2
    assert "frames is 4, not 3" in capsys.readouterr().err


def test_a_model_that_takes_no_videos_says_so(films, tmp_path, capsys) -> None:
    folder = write_family(tmp_path / "images_alone", "llava_next")
    words = ["run", "--task", "msvd_qa", "--model", str(folder), "--data", str(films), "--out", str(tmp_path / "out")]
    assert main([*words, "device=cpu"]) == 2
    assert "takes no videos" in capsys.readouterr().err.splitlines()[-1]


def test_a_video_that_is_missing_names_its_question(folders, films, tmp_path, capsys) -> None:
    data = tmp_path / "data" / "MSVD_Zero_Shot_QA"
    (data / "videos").mkdir(parents=True)
    for name in ("test_q.json", "test_a.json"):
        (data / name).write_bytes((films / "MSVD_Zero_Shot_QA" / name).read_bytes())
    words = ["run", "--task", "msvd_qa", "--model", str(folders["video_llava"]), "--data", str(tmp_path / "data")]
    assert main([*words, "--out", str(tmp_path / "out"), "device=cpu"]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert "question q" in told and "clip" in told


def test_mirrored_videos_are_asked_for_and_written_down(folders, films, tmp_path, monkeypatch) -> None:
    from llava_prumerge.data.videos import Video

    seen: list[str] = []
    mirror = Video.mirrored
    monkeypatch.setattr(Video, "mirrored", lambda self: seen.append("mirrored") or mirror(self))
    monkeypatch.setattr("llava_prumerge.evaluation.prompts.is_flipped", lambda path: path == "clip1")
    run(folders["video_llava"], films, tmp_path / "plain")
    assert not seen
    run(folders["video_llava"], films, tmp_path / "flipped", "flip=random")
    assert seen == ["mirrored"]
    headers = [json.loads(next((tmp_path / name).rglob("*.meta.json")).read_text()) for name in ("plain", "flipped")]
    assert "flip" not in json.dumps(headers[0]) and '"flip": "random"' in json.dumps(headers[1])
