"""lmms-eval asks our models through its entry point: answers are those of our own evaluation (make test-tools)."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from other_tools import ROOT, TOKENS, Asked
from tiny_families import PROCESSORS

from llava_prumerge.evaluation.run import main as evaluate
from llava_prumerge.inference.asking import ask
from llava_prumerge.model.loading import load_model

pytestmark = [
    pytest.mark.tools,
    pytest.mark.skipif(
        importlib.util.find_spec("lmms_eval") is None,
        reason="lmms-eval is not here: make test-tools builds its environment",
    ),
]
PAGE = ROOT / "docs" / "lmms_eval.md"  # lmms_eval.md
ONE_IMAGE = {"paligemma", "video_llava"}
"""Families whose processors take one image a question; PaliGemma's takes none without."""
TASK = """
task: tiny
dataset_path: json
dataset_kwargs: {data_files: {test: QUESTIONS}}
test_split: test
output_type: generate_until
doc_to_visual: !function tiny_task.visual
doc_to_text: "{{text}}"
doc_to_target: ""
generation_kwargs: SETTINGS
process_results: !function tiny_task.nothing
metric_list: [{metric: said, aggregation: mean, higher_is_better: true}]
"""
CODE = """
from PIL import Image
def visual(doc): return [Image.open(path) for path in doc["images"]]
def nothing(doc, results): return {"said": 1.0}
"""


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., tuple[list[str], dict[str, Any]]]:
    """Asks questions through lmms-eval's own evaluator. -> answers in the order of the questions, and the results"""

    def answers(
        model: Path, asked: list[Asked], batch: int = 4, settings: dict[str, Any] | None = None, **arguments: Any
    ) -> tuple[list[str], dict[str, Any]]:
        from lmms_eval.evaluator import simple_evaluate
        from lmms_eval.tasks import TaskManager

        (tmp_path / "tiny_task.py").write_text(CODE)
        lines = [json.dumps({"text": one.text, "images": one.images}) for one in asked]
        (tmp_path / "questions.jsonl").write_text("\n".join(lines))
        given = {"max_new_tokens": TOKENS, "temperature": 0, "do_sample": False} if settings is None else settings
        task = TASK.replace("QUESTIONS", str(tmp_path / "questions.jsonl")).replace("SETTINGS", json.dumps(given))
        (tmp_path / "tiny.yaml").write_text(task)
        words = {"pretrained": model, "device": "cpu"} | arguments
        results = simple_evaluate(
            model="llava_prumerge",
            model_args=",".join(f"{key}={value}" for key, value in words.items()),
            tasks=["tiny"],
            task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
            batch_size=batch,
            log_samples=True,
        )
        samples = sorted(results["samples"]["tiny"], key=lambda sample: sample["doc_id"])
        return [sample["filtered_resps"][0] for sample in samples], results

    return answers


@pytest.mark.parametrize("name", PROCESSORS)
def test_every_family_answers_as_when_asked_one_by_one(
    name: str, family: Callable[[str], Path], questions: list[Asked], run: Callable[..., Any]
) -> None:
    """One image, several and none, in batches of four, with a method."""
    asked = [one for one in questions if name not in ONE_IMAGE or len(one.images) == 1]
    found, results = run(family(name), asked, reduction="uniform:budget=3")
    model, processor = load_model(family(name), reduction="uniform:budget=3", device="cpu")
    expected = [ask(model, processor, one.text, one.images, max_new_tokens=TOKENS).text for one in asked]
    assert found == expected
    assert name == "paligemma" or len(set(found)) > 4, "answers differ; that random model says one word to all"
    told = results["throughput"]
    assert told["avg_kept_tokens"] < told["avg_full_tokens"], "the method acted"


def test_settings_of_the_generation_are_followed(
    family: Callable[[str], Path], questions: list[Asked], run: Callable[..., Any]
) -> None:
    whole, _ = run(family("llava"), questions)
    stop = whole[0].split()[2]
    cut, results = run(family("llava"), questions, settings={"max_new_tokens": TOKENS, "until": [stop]})
    assert cut == [text.partition(stop)[0].strip() for text in whole] and cut != whole
    assert results["samples"]["tiny"][0]["token_counts"][0]["output_tokens"] == whole[0].split().index(stop) + 1
    short, _ = run(family("llava"), questions, settings={"max_new_tokens": 1, "until": []})
    assert short == [text.split()[0] for text in whole]
    sampled, _ = run(
        family("llava"), questions, settings={"max_new_tokens": TOKENS, "temperature": 5.0, "do_sample": True}
    )
    assert sampled != whole
    beams, _ = run(family("llava"), questions, settings={"max_new_tokens": TOKENS, "num_beams": 3})
    assert beams != whole


@pytest.mark.parametrize(
    ("arguments", "status", "line"),
    [
        ({"reduction": "visonzip"}, 2, "did you mean 'visionzip'"),
        ({"pretrained": "nowhere/at/all"}, 2, "pretrained=nowhere/at/all"),
        ({"colour": "red"}, 2, "setting 'colour' is not known"),
        ({"dtype": "float8"}, 2, "dtype must be one of"),
        ({"batch_size": "auto"}, 2, "batch_size must be a whole number"),
    ],
)
def test_a_wrong_argument_ends_the_process_in_one_line(
    arguments: dict[str, str], status: int, line: str, family: Callable[[str], Path], questions: list[Asked],
    run: Callable[..., Any], capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    batch = arguments.pop("batch_size", 4)
    with pytest.raises(SystemExit) as ended:
        run(Path(arguments.pop("pretrained", family("llava"))), questions, batch, **arguments)
    assert ended.value.code == status
    (said,) = [text for text in capsys.readouterr().err.splitlines() if text.startswith("error: ")]
    assert line in said


def test_an_error_while_answering_is_no_empty_answer(
    family: Callable[[str], Path], questions: list[Asked], run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from llava_prumerge.model.whole import WithReduction

    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(WithReduction, "forward", fails)
    with pytest.raises(SystemExit) as ended:
        run(family("llava"), questions)
    assert ended.value.code == 1 and "CUDA out of memory" in str(ended.value.__cause__)


def commands() -> list[list[str]]:
    """The page's lines that ask lmms-eval."""
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text("utf-8"), flags=re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line.partition(" #")[0]) for line in lines if "lmms_eval" in line and "pip" not in line]


def samples(folder: Path, task: str) -> list[str]:
    (file,) = folder.rglob(f"*_samples_{task}.jsonl")
    found = sorted((json.loads(line) for line in file.read_text().splitlines()), key=lambda sample: sample["doc_id"])
    return [sample["filtered_resps"] for sample in found]


def answers(folder: Path, task: str) -> list[str]:
    (file,) = folder.rglob(f"answers/{task}.jsonl")
    return [json.loads(line)["text"] for line in file.read_text().splitlines()]


def test_the_pages_commands_give_the_answers_of_our_own_evaluation(trained: Path, tmp_path: Path) -> None:
    """Every answer to pocket POPE, MME and ScienceQA, one by one; in one process, and over two."""
    whole, two, *others = commands()
    assert whole[:3] == ["python", "-m", "lmms_eval"] and two[:2] == ["accelerate", "launch"] and not others
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    for words, out in ((whole, "one"), (two, "two")):
        launch = [sys.executable, "-m", "accelerate.commands.launch"]
        words = [sys.executable, *words[1:]] if words[0] == "python" else launch + words[2:]
        at = words.index("--model_args") + 1
        words[at] = re.sub(r"pretrained=[^,]+", f"pretrained={trained}", words[at]) + ",device=cpu"
        words[words.index("--output_path") + 1] = out
        if out == "two":
            words[3:3] = ["--cpu", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    tasks = whole[whole.index("--tasks") + 1].split(",")
    assert tasks == ["pocket_pope", "pocket_mme", "pocket_sqa"]
    evaluate(["run", "--task", "pope,mme,sqa", "--model", str(trained), "--data", "playground/pocket/data/eval", "--out", "own", "device=cpu"])  # fmt: skip
    for task in ("pope", "mme", "sqa"):
        own, theirs = answers(tmp_path / "own", task), samples(tmp_path / "one", f"pocket_{task}")
        equal = sum(one == other for one, other in zip(own, theirs, strict=True))
        print(f"{task}: {equal} of {len(own)}")
        assert equal == len(own) > 500
    evaluate(["run", "--task", "pope", "--model", str(trained), "--data", "playground/pocket/data/eval", "--out", "less", "device=cpu", *reduction(two)])  # fmt: skip
    assert samples(tmp_path / "two", "pocket_pope") == answers(tmp_path / "less", "pope")
    assert answers(tmp_path / "less", "pope") != answers(tmp_path / "own", "pope"), "the other method acted"


def reduction(words: list[str]) -> list[str]:
    """The method of a command, as our own evaluation takes it."""
    given = words[words.index("--model_args") + 1]
    return [f"method={re.search(r'reduction=([^,]+)', given)[1]}"]
