"""What makes evaluation fast changes no answer, and the comparison with the stock loop counts what it says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llava_prumerge.evaluation import prompts, throughput
from llava_prumerge.evaluation.benchmark import Question
from llava_prumerge.evaluation.execution import prepare
from llava_prumerge.evaluation.generate import Ranks, answer_batch, generate, make_batches
from llava_prumerge.evaluation.prefix_cache import PrefixCache, common_prefix, make_prefix_cache
from llava_prumerge.evaluation.prompts import make_prompter
from llava_prumerge.evaluation.records import read_records
from llava_prumerge.evaluation.settings import EvaluationSettings
from llava_prumerge.methods.registry import build_reducer
from llava_prumerge.model.loading import load_model

SENSITIVE = [{}, {"vision": {"name": "prumerge_plus", "iqr_factor": 0.2, "positions": "original"}}]


def load(checkpoint: Path, reduction: dict[str, Any] | None = None) -> tuple:
    return load_model(checkpoint, reduction, device="cpu")


def asked(checkpoint: Path, data: Path, task: str) -> tuple[list[Question], Path | None]:
    (prepared,) = prepare(str(checkpoint), task, data, Path("unused"), {})
    return prepared.questions, prepared.files.images


def test_the_common_start_ends_before_images_and_before_any_row_does() -> None:
    assert common_prefix([[1, 2, 3, 9, 4], [1, 2, 3, 9, 5]], image=9) == [1, 2, 3]
    assert common_prefix([[1, 2, 3, 4], [1, 2, 5, 4], [1, 2, 3]], image=9) == [1, 2]
    assert common_prefix([[1, 2], [1, 2, 3]], image=9) == [1], "a row needs a token of its own"
    assert common_prefix([[7, 7]], image=9) == [7]


@pytest.mark.parametrize("reduction", SENSITIVE, ids=["all tokens", "prumerge_plus"])
def test_a_prefix_cache_leaves_logits_and_answers_alone(checkpoint: Path, data: Path, reduction: dict) -> None:
    model, processor = load(checkpoint, reduction)
    questions, images = asked(checkpoint, data, "sqa")
    prompter = make_prompter(processor, model.config, EvaluationSettings(), images)
    start = make_prefix_cache(model, [prompter.encode(question) for question in questions])
    assert start is not None and len(start.ids) > 2
    batch = [question for question in questions if question.has_image]
    pictures = prompter.pictures(batch)
    rows = [prompter.whole(question) for question in batch]
    with torch.inference_mode():
        whole = model(**prompter.collate(rows), pixel_values=pictures.pixels).logits[:, -1]
        given = prompter.collate(rows, start.ids)
        rest = given["input_ids"][:, len(start.ids) :]
        places = given["attention_mask"].cumsum(dim=1)[:, len(start.ids) :] - 1  # as `generate` counts them
        cache = start.cache(len(batch))
        behind = model(
            input_ids=rest,
            attention_mask=given["attention_mask"],
            pixel_values=pictures.pixels,
            position_ids=places,
            past_key_values=cache,
            use_cache=True,
        )
    assert behind.logits.shape[1] < rest.shape[1] + len(start.ids)
    torch.testing.assert_close(behind.logits[:, -1], whole, atol=1e-5, rtol=1e-4)
    with_start = answer_batch(model, prompter, batch, pictures, 6, start)
    assert with_start == answer_batch(model, prompter, batch, pictures, 6)
    assert answer_batch(model, prompter, batch, pictures, 6, start) == with_start, "a start serves many batches"


@pytest.mark.parametrize("reduction", [{"decoder": {"name": "fastv", "layer": 1}}, {"vision": {"name": "trsm"}}])
def test_what_reads_the_prompt_gets_it_whole(checkpoint: Path, reduction: dict) -> None:
    assert make_prefix_cache(load(checkpoint, reduction)[0], [[1, 5, 6, 7], [1, 5, 6, 8]]) is None


def test_one_image_goes_through_the_tower_once(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    model, processor = load(checkpoint)
    questions, images = asked(checkpoint, data, "pope")  # two questions about each of three images
    seen: list[int] = []
    model.model.vision_tower.embeddings.register_forward_pre_hook(lambda _m, given: seen.append(len(given[0])))
    texts = []
    for size in (6, 1):
        path = tmp_path / f"{size}.jsonl"
        generate(model, processor, questions, images, path, EvaluationSettings(batch_size=size), 6, "tiny", Ranks())
        texts.append({record["question_id"]: record["text"] for record in read_records(path)})
    assert seen == [3, 1, 1, 1, 1, 1, 1]
    assert texts[0] == texts[1]


def test_questions_about_one_image_stand_together_where_lengths_allow() -> None:
    questions = [Question(at, "p", "t", image) for at, image in enumerate("abab")]
    alike = make_batches(questions, [9, 8, 10, 11], 2)
    assert [[question.image for question in batch] for batch in alike] == [["a", "a"], ["b", "b"]]
    apart = make_batches(questions, [8, 8, 40, 40], 2)
    assert [[question.image for question in batch] for batch in apart] == [["a", "b"], ["a", "b"]]


def test_prompts_are_tokenised_once(checkpoint: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = load(checkpoint)
    questions, images = asked(checkpoint, data, "sqa")
    prompter = make_prompter(processor, model.config, EvaluationSettings(), images)
    calls: list[str] = []
    plain = prompts.encode
    monkeypatch.setattr(prompts, "encode", lambda *given: calls.append(given[1]) or plain(*given))
    for question in questions:
        short, whole = prompter.encode(question), prompter.whole(question)
        places = model.config.image_seq_length if question.has_image else 0
        assert whole.count(model.config.image_token_id) == places
        assert len(whole) == len(short) + max(places - 1, 0)
    assert len(calls) == len(questions)


@pytest.fixture
def comparison(checkpoint: Path, data: Path) -> tuple[throughput.Contestants, throughput.Run]:
    questions, images = asked(checkpoint, data, "pope")
    return throughput.Contestants(*load(checkpoint, {})), throughput.Run(
        questions, images, EvaluationSettings(batch_size=4), 5
    )


def test_throughput_compares_equal_answers(comparison: tuple) -> None:
    contestants, run = comparison
    methods = {"all tokens": {}, "prumerge": {"vision": {"name": "prumerge", "iqr_factor": 0.2}}}
    result = throughput.compare(contestants, run, methods, rounds=2)
    loop, whole, reduced = result["rows"]
    assert (loop["name"], whole["flips"], reduced["flips"]) == (throughput.LOOP, 0, 0)
    assert loop["times_the_loop"] == {"q1": 1.0, "median": 1.0, "q3": 1.0, "n": 2}
    assert whole["compared_with"] == throughput.LOOP and reduced["compared_with"] == "itself, batch 1"
    assert result["questions"] == 6 and reduced["images_per_second"]["median"] > 0


def test_flips_are_found(comparison: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that answers differently is counted, so that zero means something."""
    contestants, run = comparison
    honest = contestants.ours

    def wrong_in_batches(run: Any, block: dict, batch_size: int) -> dict:
        texts = honest(run, block, batch_size)
        first = next(iter(texts))
        return texts | ({first: "something else"} if batch_size > 1 else {})

    monkeypatch.setattr(contestants, "ours", wrong_in_batches)
    rows = throughput.compare(contestants, run, {"all tokens": {}, "none": {"vision": {"name": "none"}}}, 1)["rows"]
    assert [row["flips"] for row in rows[1:]] == [1, 1]


def test_the_stock_model_shares_our_weights(comparison: tuple) -> None:
    contestants, run = comparison
    ours, theirs = contestants.model, contestants.stock
    assert ours.lm_head.weight.data_ptr() == theirs.lm_head.weight.data_ptr()
    contestants.model.model.reducer = build_reducer({"name": "prumerge", "budget": 3})
    loop = contestants.loop(run)
    assert loop == contestants.ours(replace(run), {}, 1), "the reducer of an earlier turn is gone"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--task", "pope"], "give --model, or both"),
        (["--task", "nothing", "--model", "."], "unknown task"),
        (["--task", "textvqa", "--model", "."], "no such file"),
        (["--task", "pope", "--model", "/nowhere/at/all"], "does not exist"),
        (["--task", "pope", "--model", ".", "--rounds", "0"], "at least 1"),
        (["--task", "pope", "--model", ".", "--methods", "nothing"], "method 'nothing' is not known"),
        (["--task", "pope", "--model", ".", "speed=9"], "setting 'speed' is not known"),
    ],
)
def test_bad_input_is_one_line(words: list[str], told: str, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert throughput.main([*words, "--data", str(data)]) == 2
    assert told in capsys.readouterr().err


def test_the_command_writes_what_it_prints(
    checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "result.json"
    words = [
        "--task",
        "pope",
        "--data",
        str(data),
        "--model",
        str(checkpoint),
        "--rounds",
        "1",
        "--methods",
        "prumerge",
    ]
    assert throughput.main([*words, "--out", str(out), "limit=4", "max_new_tokens=3", "batch_size=2"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert json.loads(printed[-1]) == json.loads(out.read_text())
    assert "0 flips against stock, batch 1" in printed[2]


def test_prefix_cache_runs_nothing_for_a_batch_of_its_own(checkpoint: Path) -> None:
    model, _ = load(checkpoint, {})
    start = PrefixCache(model, [1, 5, 6])
    cache = start.cache(3)
    assert cache.get_seq_length() == 3 and cache.layers[0].keys.shape[0] == 3
    assert start.cache(2).layers[0].keys.shape[0] == 2, "an earlier batch left nothing behind"
