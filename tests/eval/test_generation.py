"""Answers of a tiny model: the command end to end, batches equal to single questions, kills and ranks without a trace."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llava_prumerge.evaluation import run
from llava_prumerge.evaluation.answers import header_path, part_path
from llava_prumerge.evaluation.benchmark import Question
from llava_prumerge.evaluation.execution import LoadedModel, prepare
from llava_prumerge.evaluation.generate import Ranks, generate, make_batches
from llava_prumerge.evaluation.prompts import make_prompter
from llava_prumerge.evaluation.records import EvaluationError, read_records
from llava_prumerge.evaluation.settings import EvaluationSettings
from llava_prumerge.model.loading import load_model

SUFFIX = "Answer the question using a single word or phrase."  # as in conftest.py
REDUCTION = {"vision": {"name": "prumerge", "iqr_factor": 0.2}}


@pytest.fixture
def command(checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict]:
    """Runs `eval.run` in this process and returns what it printed; of a command that is refused, the `error`."""

    def call(verb: str, task: str, *settings: str, status: int = 0) -> dict:
        common = ["--model", str(checkpoint), "--data", str(data), "--out", str(tmp_path / "results")]
        capsys.readouterr()
        assert run.main([verb, "--task", task, *common, "max_new_tokens=4", *settings]) == status
        said = capsys.readouterr()
        printed = said.out.splitlines()
        return json.loads(printed[-1]) if printed else {"error": said.err.splitlines()[-1]} if status else {}

    return call


def test_run_writes_answers_result_and_score(command, tmp_path: Path) -> None:
    printed = command("run", "pope", "batch_size=4", "train=lora")
    folder = tmp_path / "results" / "tiny-prumerge_iqr_factor=0.2"
    result = json.loads((folder / "pope.json").read_text())
    assert printed["mean_f1"] == result["value"] == result["metrics"]["mean_f1"] and result["n"] == 6
    assert result["row"] == {
        "model": "tiny",
        "label": "prumerge iqr_factor=0.2",
        "method": "prumerge",
        "train": "lora",
        "images": "on",
    }
    assert result["reduction"] == REDUCTION and len(result["marks"]) == 6 and result["seconds"] >= 0
    assert 0 < result["kept"]["min"] <= result["kept"]["mean"] <= result["kept"]["max"] < 16
    assert result["kept"]["share"] == pytest.approx(100 * result["kept"]["mean"] / 16) and result["kept"]["images"] == 6
    answers = read_records(folder / "answers" / "pope.jsonl")
    assert [answer["question_id"] for answer in answers] == list(range(6))
    assert answers[0]["prompt"] == f"Is there a cat?\n{SUFFIX}" and answers[0]["model_id"] == "tiny"


def test_several_tasks_text_only_questions_and_uploads(command, tmp_path: Path) -> None:
    printed = command("run", "sqa,mmbench", "method=none", "label=all tokens", "model_label=a tiny model")
    assert set(printed) == {"sqa", "mmbench"}
    assert printed["sqa"]["total"] == 5 and printed["sqa"]["img_total"] == 3
    assert printed["sqa"]["kept"]["mean"] == 16 and printed["sqa"]["kept"]["images"] == 3
    folder = tmp_path / "results" / "a_tiny_model-all_tokens"
    assert Path(printed["mmbench"]["upload"]) == folder / "upload" / "mmbench.xlsx"
    assert read_records(folder / "answers" / "mmbench.jsonl")[0]["option_char"] == ["A", "B"]
    score = ["score", "--task", "mmbench", "--answers", printed["mmbench"]["upload"]]
    assert run.main(score) == 0


def test_a_tower_cache_answers_the_same(command, tmp_path: Path) -> None:
    """With any method: what one has read of an image is there for the next."""
    kept = f"tower_cache={tmp_path / 'cache'}"
    for method in ("none", "prumerge", "fastv"):
        plain = command("run", "pope", f"method={method}", f"label={method}")
        assert command("run", "pope", f"method={method}", f"label={method} cached", kept)["kept"] == plain["kept"]
        folder = tmp_path / "results"
        first, second = (folder / f"tiny-{name}" / "answers" / "pope.jsonl" for name in (method, f"{method}_cached"))
        assert [one["text"] for one in read_records(first)] == [one["text"] for one in read_records(second)]
        files = {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").rglob("*.safetensors")}
        if method == "none":
            made = files
        assert files == made and files, "the other methods read what the first has made"
    assert "tower_cache_gb must be a whole number" in command("run", "pope", "tower_cache_gb=x", status=2)["error"]


def test_images_off_asks_the_same_without_images(command, tmp_path: Path) -> None:
    printed = command("run", "pope", "images=off", "method=none")
    assert printed["kept"] is None and printed["n"] == 6
    result = json.loads((tmp_path / "results" / "tiny-none-no_images" / "pope.json").read_text())
    assert result["row"]["images"] == "off"


def test_a_finished_run_is_scored_again_without_the_model(command, monkeypatch: pytest.MonkeyPatch) -> None:
    first = command("run", "pope")
    monkeypatch.setattr(LoadedModel, "model_and_processor", property(lambda self: pytest.fail("the model was loaded")))
    assert command("run", "pope") == first


def test_an_answer_file_is_not_continued_under_other_settings(command, tmp_path: Path) -> None:
    command("run", "pope", "label=row")
    for setting, field in (
        ("budget=3", "reduction"),
        ("template=llava_v1", "template"),
        ("limit=2", "limit"),
        ("aspect=square", "aspect"),
    ):
        error = command("run", "pope", "label=row", setting, status=2)["error"]
        assert "belongs to another run" in error and f"{field} is" in error
    header = json.loads(header_path(tmp_path / "results" / "tiny-row" / "answers" / "pope.jsonl").read_text())["header"]
    assert header["model"].startswith("2:") and len(header["questions"]) == 64 and header["decoding"] == "greedy"


def test_limit_asks_and_scores_the_first_questions(command) -> None:
    assert command("run", "pope", "limit=2")["n"] == 2
    assert command("generate", "sqa", "limit=4")["questions"] == 4


def test_budget_overrides_the_checkpoints_reduction(command) -> None:
    kept = command("run", "pope", "budget=5")["kept"]
    assert kept["min"] == kept["max"] == pytest.approx(kept["mean"]) and kept["mean"] < 16


def test_missing_files_are_one_line(command) -> None:
    assert "no such file; docs/evaluation.md" in command("run", "textvqa", status=2)["error"]
    error = command("run", "pope", "method=nothing", status=2)["error"]
    assert error.startswith("error: method 'nothing' is not known; there are: atp_llava")


@pytest.fixture(scope="module")
def loaded(checkpoint: Path):
    return load_model(checkpoint, device="cpu")


def questions_of(checkpoint: Path, data: Path, task: str) -> tuple[list[Question], Path | None]:
    (prepared,) = prepare(str(checkpoint), task, data, Path("unused"), {})
    return prepared.questions, prepared.files.images


def test_batches_answer_as_single_questions(loaded, checkpoint: Path, data: Path, tmp_path: Path) -> None:
    texts = []
    for size in (1, 5):
        questions, images = questions_of(checkpoint, data, "sqa")
        path = tmp_path / f"{size}.jsonl"
        assert generate(*loaded, questions, images, path, EvaluationSettings(batch_size=size), 6, "tiny", Ranks()) == 5
        texts.append({record["question_id"]: record["text"] for record in read_records(path)})
    assert texts[0] == texts[1] and len(set(texts[0].values())) > 1


class Interrupted:
    """A model that is killed before its third batch."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model, self.config, self.parameters, self.calls = model, model.config, model.parameters, 0
        self.reduction_stats = model.reduction_stats

    def generate(self, **inputs: object) -> torch.Tensor:
        self.calls += 1
        if self.calls == 3:
            raise KeyboardInterrupt
        return self.model.generate(**inputs)


def test_an_interrupted_run_goes_on_where_it_stopped(loaded, checkpoint: Path, data: Path, tmp_path: Path) -> None:
    questions, images = questions_of(checkpoint, data, "pope")
    straight, broken = tmp_path / "straight.jsonl", tmp_path / "broken.jsonl"
    settings = EvaluationSettings(batch_size=2)
    generate(*loaded, questions, images, straight, settings, 4, "tiny", Ranks())
    model, processor = loaded
    with pytest.raises(KeyboardInterrupt):
        generate(Interrupted(model), processor, questions, images, broken, settings, 4, "tiny", Ranks())
    assert len(read_records(broken)) == 4
    assert generate(*loaded, questions, images, broken, settings, 4, "tiny", Ranks()) == 2
    assert broken.read_bytes() == straight.read_bytes()


def test_ranks_share_the_questions(loaded, checkpoint: Path, data: Path, tmp_path: Path) -> None:
    questions, images = questions_of(checkpoint, data, "pope")
    path = tmp_path / "answers.jsonl"
    done = [
        generate(*loaded, questions, images, path, EvaluationSettings(), 4, "tiny", Ranks(rank, 4)) for rank in range(4)
    ]
    assert done == [2, 2, 1, 1]
    keys = [record["question_id"] for rank in range(4) for record in read_records(part_path(path, rank, 4))]
    assert sorted(keys) == list(range(6))


def test_a_broken_image_is_named(loaded, data: Path, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_text("not an image")
    for image, message in (
        ("x.png", "question 7: not an image: 'x.png'"),
        ("../x.png", "path escapes"),
        ("y.png", "missing"),
    ):
        with pytest.raises(EvaluationError, match=message):
            generate(
                *loaded,
                [Question(7, "p", "t", image)],
                tmp_path,
                tmp_path / "a.jsonl",
                EvaluationSettings(),
                4,
                "tiny",
                Ranks(),
            )
    with pytest.raises(EvaluationError, match="question 7: not an image"):
        generate(
            *loaded,
            [Question(7, "p", "t", None, "AAAA")],
            None,
            tmp_path / "a.jsonl",
            EvaluationSettings(),
            4,
            "tiny",
            Ranks(),
        )


def test_prompts_are_llavas(loaded) -> None:
    model, processor = loaded
    prompter = make_prompter(processor, model.config, EvaluationSettings(), None)
    with_image = prompter.whole(Question(1, "p", "Is there a cat?", "x.png"))
    without = prompter.whole(Question(1, "p", "Is there a cat?"))
    assert with_image.count(model.config.image_token_id) == 16 and without.count(model.config.image_token_id) == 0
    assert [token for token in with_image if token != model.config.image_token_id] == without
    inputs = prompter.collate([[5, 6], [7]])
    assert inputs["input_ids"].tolist() == [[5, 6], [0, 7]] and inputs["attention_mask"].tolist() == [[1, 1], [0, 1]]


def test_batches_are_sorted_and_never_mix_modalities() -> None:
    questions = [Question(at, "p", "t", "i" if at % 2 else None) for at in range(7)]
    batches = make_batches(questions, [5, 1, 9, 3, 2, 8, 7], 2)
    assert [[question.id for question in batch] for batch in batches] == [[5, 3], [1], [2, 6], [0, 4]]


@pytest.mark.slow
def test_two_processes_under_torchrun(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "eval.run"]
    common = [
        "run",
        "--task",
        "pope",
        "--model",
        str(checkpoint),
        "--data",
        str(data),
        "device=cpu",
        "max_new_tokens=4",
    ]
    outputs = []
    for launcher, out in ((launch, "two"), ([sys.executable, "-m", "eval.run"], "one")):
        line = [*launcher, *common, "--out", str(tmp_path / out)]
        done = subprocess.run(
            line, cwd=root, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
        )
        assert done.returncode == 0, done.stderr
        outputs.append(json.loads(done.stdout.splitlines()[-1]))
    answers = [Path(output.pop("answers")).read_bytes() for output in outputs]
    assert answers[0] == answers[1] and outputs[0] == outputs[1]


def test_settings_of_a_checkpoint_that_change_greedy_answers_are_named_and_left_out() -> None:
    """The header says greedy: a repetition penalty in generation_config.json would make that a lie."""
    from transformers import GenerationConfig

    from llava_prumerge.evaluation.generate import decode_plainly

    class Model:
        generation_config = GenerationConfig(
            eos_token_id=[2, 7],
            temperature=0.2,
            do_sample=True,
            max_length=4096,
            repetition_penalty=1.3,
            no_repeat_ngram_size=2,
        )

    model = Model()
    assert decode_plainly(model) == "repetition_penalty=1.3, no_repeat_ngram_size=2"
    assert model.generation_config.to_diff_dict().keys() <= {"eos_token_id", "transformers_version"}
    assert model.generation_config.eos_token_id == [2, 7] and decode_plainly(model) == ""
