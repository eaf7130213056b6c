"""The numbers that were published for real answer files, to the last digit."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from llava_prumerge.evaluation.benchmark import Files
from llava_prumerge.evaluation.mmbench import LETTERS, MmBench
from llava_prumerge.evaluation.mme import PERCEPTION, Mme, read_truth
from llava_prumerge.evaluation.normalise import normalise_m4c
from llava_prumerge.evaluation.pope import Pope
from llava_prumerge.evaluation.records import EvaluationError, read_json, read_records
from llava_prumerge.evaluation.sqa import ScienceQa
from llava_prumerge.evaluation.textvqa import TextVqa
from llava_prumerge.evaluation.vqav2 import VqaV2


def test_pope(real) -> None:
    files = Files(real("pope/llava_pope_test.jsonl.gz"), real("pope/coco"))
    score = Pope().score(real("pope/answers_llava-v1.5-13b.jsonl.gz"), files)
    assert round(score.headline, 3) == 85.947
    for split, f1 in {"random": 0.87136, "popular": 0.86246, "adversarial": 0.84459}.items():
        rates = score.metrics[split]
        assert (rates["tp"], rates["fn"]) == (1182, 318)
        assert round(rates["f1"] / 100, 5) == f1
    assert round(score.metrics["mean_accuracy"], 2) == 86.98
    assert score.n == 8910 and score.interval[0] < score.headline < score.interval[1]


def test_textvqa(real) -> None:
    files = Files(annotations=real("textvqa/TextVQA_0.5.1_val.reconstructed.json.gz"))
    score = TextVqa().score(real("textvqa/answers_llava-v1.5-13b.jsonl.gz"), files)
    assert score.headline == pytest.approx(61.254, abs=1e-9) and score.n == 5000


@pytest.mark.parametrize("mode", ["official", "normalised"])
def test_vqav2(real, mode: str) -> None:
    files = Files(real("vqav2/test2962_questions.json.gz"), real("vqav2/test2962_annotations.json.gz"))
    score = VqaV2().score(real("vqav2/test2962_res_human1.json.gz"), files, mode=mode)
    assert round(score.headline, 2) == 87.70 and score.n == 2962


@pytest.mark.parametrize(("mode", "capitalised"), [("official", 51.91), ("normalised", 87.70)])
def test_vqav2_modes_differ_on_other_spellings(real, write, mode: str, capitalised: float) -> None:
    files = Files(annotations=real("vqav2/test2962_annotations.json.gz"))
    results = read_records(real("vqav2/test2962_res_human1.json.gz"))
    shouted = [result | {"answer": result["answer"].capitalize() + "."} for result in results]
    assert round(VqaV2().score(write("shouted.json", shouted), files, mode=mode).headline, 2) == capitalised
    tidy = [result | {"answer": normalise_m4c(result["answer"])} for result in results]
    assert round(VqaV2().score(write("tidy.json", tidy), files, mode=mode).headline, 2) == 87.49


def test_mme_ground_truth_scores_full_marks_in_both_formats(real, write, tmp_path: Path) -> None:
    truths = read_truth(real("mme/ground_truth"))
    assert len(truths) == 2374
    questions = read_records(real("mme/llava_mme.jsonl.gz"))
    files = Files(real("mme/llava_mme.jsonl.gz"), real("mme/ground_truth"))
    task = Mme()
    answers = [
        {"question_id": q["question_id"], "prompt": q["text"]}
        | {"text": truths[task.answer_key({"question_id": q["question_id"], "prompt": q["text"]}, tmp_path)].answer}
        for q in questions
    ]
    random.Random(0).shuffle(answers)  # nothing may depend on the order of lines
    score = task.score(write("answers.jsonl", answers), files)
    assert (score.metrics["perception"], score.metrics["cognition"]) == (2000, 800)
    for path in real("mme/ground_truth").glob("*.txt"):
        rows = path.read_text("utf-8").splitlines()
        write(f"official/{path.name}", "".join(f"{row}\tYes\n" for row in rows))
    always_yes = task.score(tmp_path / "official", Files())
    assert (always_yes.metrics["perception"], always_yes.metrics["cognition"]) == (500, 200)


def test_scienceqa_counts(real, write) -> None:
    problems = read_json(real("scienceqa/problems_test_min.reconstructed.json.gz"))
    files = Files(
        annotations=real("scienceqa/problems_test_min.reconstructed.json.gz"), split=real("scienceqa/pid_splits.json")
    )
    answers = [
        {"question_id": pid, "text": "ABCDE"[(problem["answer"] + (problem["image"] is not None)) % 5]}
        for pid, problem in problems.items()
    ]
    score = ScienceQa().score(write("answers.jsonl", answers), files)
    assert score.metrics["img_correct"] == 0 and score.metrics["img_total"] == 2017
    assert score.metrics["correct"] == 4241 - 2017 and score.metrics["failed"] == 0
    with pytest.raises(EvaluationError, match="missing 1 .*'4'"):
        ScienceQa().score(write("short.jsonl", [a for a in answers if a["question_id"] != "4"]), files)


def test_scienceqa_questions_are_llavas(real) -> None:
    questions = ScienceQa().questions(Files(real("scienceqa/llava_test_CQM-A.json.gz")))
    assert len(questions) == 4241 and sum(question.has_image for question in questions) == 2017
    assert all(question.prompt.startswith("<image>\n") == question.has_image for question in questions)
    assert all("<image>" not in question.text and question.text.endswith("directly.") for question in questions)


def test_mmbench_workbook(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.active.append(["index", "question", "A", "B", "C", "D", "prediction", "answer", "split"])
    for base, wrong in ((0, None), (1, 2)):  # question 1 fails in one rotation only
        for turn in range(3):
            answer = LETTERS[turn]
            book.active.append([turn * 1_000_000 + base, "q", "None", "N/A", "nan", None, answer, answer, "dev"])
            if turn == wrong:
                book.active.cell(book.active.max_row, 7).value = None
    book.save(tmp_path / "upload.xlsx")
    score = MmBench().score(tmp_path / "upload.xlsx", Files())
    assert (score.metrics["circular"], score.metrics["vanilla"]) == (50, 100)
    assert score.metrics["incomplete_groups"] == 0 and json.dumps(score.metrics)


def test_mme_equals_the_official_walk_over_line_pairs(real, write, tmp_path: Path) -> None:
    generator = random.Random(7)
    total = {"perception": 0.0, "cognition": 0.0}
    for path in sorted(real("mme/ground_truth").glob("*.txt")):
        rows = [row.split("\t") for row in path.read_text("utf-8").splitlines()]
        said = [generator.choice(["Yes", "no", "No.", "yes, it is", "maybe", row[2]]) for row in rows]
        write(
            f"official/{path.name}",
            "".join("\t".join([*row, text]) + "\n" for row, text in zip(rows, said, strict=True)),
        )
        right = [
            row[2].lower() == ("yes" if "yes" in text[:4].lower() else "no" if "no" in text[:4].lower() else "other")
            for row, text in zip(rows, said, strict=True)
        ]
        pairs = [right[at] and right[at + 1] for at in range(0, len(right), 2)]  # consecutive lines share an image
        score = 100 * sum(right) / len(right) + 100 * sum(pairs) / len(pairs)
        total["perception" if path.stem in PERCEPTION else "cognition"] += score
    metrics = Mme().score(tmp_path / "official", Files()).metrics
    assert {name: metrics[name] for name in total} == pytest.approx(total, rel=1e-12)
