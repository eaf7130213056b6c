"""VLMEvalKit asks our models through its own command: answers are those of our own evaluation (make test-tools)."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from other_tools import ROOT, TOKENS, Asked

from llava_prumerge.evaluation.run import main as evaluate
from llava_prumerge.inference.asking import ask
from llava_prumerge.model.loading import load_model

pytestmark = [
    pytest.mark.tools,
    pytest.mark.skipif(
        importlib.util.find_spec("vlmeval") is None,
        reason="VLMEvalKit is not here: make test-tools builds its environment",
    ),
]
PAGE = ROOT / "docs" / "vlmevalkit.md"  # vlmevalkit.md


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of VLMEvalKit's tables."""
    folder = tmp_path / "LMUData"
    folder.mkdir()
    monkeypatch.setenv("LMUData", str(folder))
    return folder


@pytest.fixture
def kit(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """VLMEvalKit's command line."""
    from llava_prumerge.harness.vlmevalkit import main

    def run(*words: Any) -> None:
        monkeypatch.setattr(sys, "argv", ["run.py", *map(str, words)])
        main()

    return run


def predictions(out: Path, name: str) -> dict[str, str]:
    import pandas as pd

    (file,) = out.rglob(f"*_{name}.xlsx")
    table = pd.read_excel(file, dtype=str, keep_default_na=False)
    return dict(zip(table["index"], table["prediction"], strict=True))


@pytest.mark.parametrize("name", ["llava", "llava_next", "internvl", "qwen2_5_vl", "gemma3"])
def test_families_answer_as_when_asked_one_by_one(
    name: str,
    family: Callable[[str], Path],
    questions: list[Asked],
    tables: Path,
    kit: Callable[..., None],
    tmp_path: Path,
) -> None:
    """Questions with one image and with several, with a method, by the name under which the model is registered."""
    from vlmeval.config import supported_VLM

    from llava_prumerge.harness.vlmevalkit import register

    asked = [one for one in questions if one.images]
    rows = ["index\tquestion\timage\tanswer"]
    for at, one in enumerate(asked):
        pictures = [base64.b64encode(Path(path).read_bytes()).decode() for path in one.images]
        rows.append(f"{at}\t{one.text}\t{pictures[0] if len(pictures) == 1 else pictures}\tw3")
    (tables / "TinyOpenEnded.tsv").write_text("\n".join(rows))
    register(
        f"ours_{name}", pretrained=str(family(name)), reduction="uniform:budget=3", device="cpu", max_new_tokens=TOKENS
    )
    kit("--data", "TinyOpenEnded", "--model", f"ours_{name}", "--mode", "infer", "--work-dir", tmp_path / "out")
    model, processor = load_model(family(name), reduction="uniform:budget=3", device="cpu")
    expected = [ask(model, processor, one.text, one.images, max_new_tokens=TOKENS) for one in asked]
    assert list(predictions(tmp_path / "out", "TinyOpenEnded").values()) == [answer.text for answer in expected]
    assert len({answer.text for answer in expected}) > 3 and expected[0].kept < expected[0].images[0].full
    assert supported_VLM.pop(f"ours_{name}").keywords["reduction"] == "uniform:budget=3"


def test_several_turns_and_an_error(
    family: Callable[[str], Path], questions: list[Asked], monkeypatch: pytest.MonkeyPatch
) -> None:
    from llava_prumerge.harness.vlmevalkit import LlavaPruMerge
    from llava_prumerge.model.whole import WithReduction

    model = LlavaPruMerge(pretrained=str(family("llava")), device="cpu", max_new_tokens=TOKENS)
    picture = {"type": "image", "value": questions[0].images[0]}
    turns = [
        {"role": "user", "content": [picture, {"type": "text", "value": "w3"}]},
        {"role": "assistant", "content": "w4"},
        {"role": "user", "content": "w5"},
    ]
    assert len(model.chat(turns).split()) == TOKENS
    alone = ask(model.session.model, model.session.processor, "w3", questions[0].images, max_new_tokens=TOKENS)
    assert model.generate([questions[0].images[0], "w3"]) == alone.text
    for wrong, line in (({"reduction": "visonzip"}, "did you mean"), ({"use_vllm": True}, "use_vllm")):
        with pytest.raises(SystemExit) as ended:
            LlavaPruMerge(pretrained=str(family("llava")), device="cpu", **wrong)
        assert ended.value.code == 2 and line in str(ended.value.__cause__)

    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(WithReduction, "forward", fails)
    with pytest.raises(SystemExit) as ended:
        model.chat(turns)
    assert ended.value.code == 1


def test_the_pages_table_gives_the_answers_of_our_own_evaluation(
    trained: Path, tables: Path, kit: Callable[..., None], tmp_path: Path
) -> None:
    """Every answer to pocket MMBench, one by one, by the page's config file."""
    table = tmp_path / "playground/pocket/data/eval/mmbench/mmbench_dev_20230712.tsv"
    (tables / "PocketMMBench.tsv").symlink_to(table)
    (config,) = re.findall(r"```json\n(.*?)```", PAGE.read_text("utf-8"), flags=re.DOTALL)
    content = json.loads(config)
    content["model"] = {"full": content["model"]["full"] | {"pretrained": str(trained), "device": "cpu"}}
    (tmp_path / "models.json").write_text(json.dumps(content))
    kit("--config", "models.json", "--mode", "infer", "--work-dir", "kit")
    evaluate(["run", "--task", "mmbench", "--model", str(trained), "--data", "playground/pocket/data/eval", "--out", "own", "device=cpu"])  # fmt: skip
    (file,) = (tmp_path / "own").rglob("answers/mmbench.jsonl")
    own = {str(answer["question_id"]): answer["text"] for answer in map(json.loads, file.read_text().splitlines())}
    found = predictions(tmp_path / "kit", "PocketMMBench")
    equal = sum(found[index] == own[index] for index in own)
    print(f"mmbench: {equal} of {len(own)}")
    assert equal == len(own) == len(found) > 500
    assert "HOME" not in os.environ or not (Path.home() / "LMUData" / "PocketMMBench.tsv").exists()
