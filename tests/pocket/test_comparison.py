"""`make reproduce-methods`: its rows, its statistics, its pages, and the plan that ties them together."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from statistics import NormalDist, fmean, stdev
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from llava_prumerge.evaluation.records import EvaluationError
from llava_prumerge.evaluation.results import mean_of_means
from llava_prumerge.methods import registry
from llava_prumerge.methods.base import DecoderShape
from llava_prumerge.methods.registry import build_pruner, build_reducer, discover
from playground.photos.study import STUDY as PHOTOS
from playground.pocket import reproduce
from playground.pocket.comparison import drawing, pages, pocket_study, report
from playground.pocket.comparison.evaluate import REFERENCES
from playground.pocket.comparison.places import Places
from playground.pocket.comparison.pocket_study import BUDGETS, FOLDERS, STUDY
from playground.pocket.comparison.questions import calibration
from playground.pocket.comparison.rows import OWN_RULE, REFERENCE, TEXT_ONLY, Row, obstacle
from playground.pocket.comparison.study import Study
from playground.pocket.reproduce_methods import BASE, DOCS, Plan

NOWHERE = Path("no/such/folder")
NUMBERS = {"vqav2": 40, "textvqa": 30, "pope": 50}
SHAPE = DecoderShape(layers=6, hidden=160, heads=5, patches=144)


def test_every_registered_method_has_a_row() -> None:
    rows = STUDY.rows(NOWHERE)
    named = {part["name"] for row in rows for part in (row.block or {}).values()}
    trained = {row.model for row in rows if row.trained}
    assert named | {"atp_llava", "none"} == set(discover()) and trained == set(FOLDERS) - {"full"}
    assert len({row.label for row in rows}) == len({row.stem for row in rows}) == len(rows)
    assert {row.table for row in rows} == set(STUDY.tables)
    assert len([row for row in rows if row.name == "random" and row.table == 72]) == 3


def test_a_new_method_gets_its_rows_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the registry alone, at every budget."""

    class Newcomer(discover()["grid"]):
        name = "newcomer"

    monkeypatch.setitem(registry._REGISTRY, "newcomer", Newcomer)
    rows = [row for row in STUDY.rows(NOWHERE) if row.name == "newcomer"]
    assert [row.table for row in rows] == list(BUDGETS) and rows[0].block == {
        "vision": {"name": "newcomer", "budget": 72}
    }


@pytest.mark.parametrize("row", [row for row in STUDY.rows(NOWHERE) if row.block], ids=lambda row: row.label)
def test_rows_can_be_built_or_say_why_not(row: Row) -> None:
    """And those with a budget cost it, to half a token, by the pruner's own plan."""
    if row.why:
        (part,) = row.block.values()
        assert row.table in BUDGETS and part["name"] in row.why
        assert "decoder" in row.block or "trained first" in row.why
        return
    reducer = build_reducer(row.block.get("vision"))
    decoder = row.block.get("decoder")
    kept = 144 if reducer is None else reducer.budget
    if row.table == OWN_RULE:
        return
    if decoder is None:
        assert kept == row.table
        return
    pruner = build_pruner(decoder, DecoderShape(6, 160, 5, 144, reduced=reducer is not None))
    if decoder["name"] == "vtw":
        assert pruner.layer * 144 / 6 == row.table
        return
    plan, drops = pruner.schedule.plan(kept), pruner.schedule.drops
    layers = [([kept, *plan])[sum(drop <= layer for drop in drops)] for layer in range(6)]
    assert abs(fmean(layers) - row.table) <= 0.5
    if reducer is not None:
        assert fmean(layers) == row.table, "a pair meets it exactly"


def test_what_cannot_be_met_is_blank_for_its_reason() -> None:
    assert (
        "cannot be met" in obstacle(STUDY.shape, {"name": "fastv"}, 36)
        and obstacle(STUDY.shape, {"name": "fastv"}, 72) == ""
    )
    assert (
        "nearest it can cost is 48" in obstacle(STUDY.shape, {"name": "vtw"}, 36)
        and obstacle(STUDY.shape, {"name": "vtw"}, 72) == ""
    )
    assert (
        "is not rows x columns" in obstacle(STUDY.shape, {"name": "downsample"}, 37)
        and obstacle(STUDY.shape, {"name": "downsample"}, 36) == ""
    )


def test_what_the_searches_found_is_used(tmp_path: Path) -> None:
    (tmp_path / "p_sigmoid_72.yaml").write_text("decoder: {name: rank_schedule, r: 0.25, gamma: 3, depth: relative}\n")
    (tmp_path / "g_search.yaml").write_text("decoder: {name: rank_schedule, rates: [1, 1, 0.5, 0.5, 0.25, 0.25]}\n")
    found = {row.label: row.block for row in STUDY.rows(tmp_path)}
    plain = {row.label: row.block for row in STUDY.rows(NOWHERE)}
    assert (
        found["P-Sigmoid 72"]["decoder"]["r"] == 0.25 and found["PruMerge+ with P-Sigmoid 72"]["decoder"]["gamma"] == 3
    )
    assert found["P-Sigmoid 36"] == plain["P-Sigmoid 36"]
    assert found["G-Search own rule"]["decoder"] == {"name": "rank_schedule", "rates": [1, 1, 0.5, 0.5, 0.25, 0.25]}
    assert found["G-Search 72"]["decoder"]["budget"] == 72


def test_mean_of_means_is_the_textbooks() -> None:
    rng = random.Random(0)
    groups = [[rng.random() for _ in range(n)] for n in (7, 20)]
    mean, half = mean_of_means(groups)
    assert mean == pytest.approx((fmean(groups[0]) + fmean(groups[1])) / 2)
    error = math.sqrt(sum(stdev(group) ** 2 / len(group) for group in groups)) / 2
    assert half == pytest.approx(NormalDist().inv_cdf(0.975) * error)
    assert mean_of_means([[1.0, 1.0], [0.0, 0.0]]) == (0.5, 0.0)


def test_calibration_takes_short_questions_that_open_a_conversation() -> None:
    short = "What is there?\nAnswer the question using a single word or phrase."

    def record(value: str, **more: str) -> dict[str, Any]:
        return {"conversations": [{"from": "human", "value": value}, {"from": "gpt", "value": "x"}], **more}

    records = [record(f"<image>\n{short}", image="a.png"), record("<image>\nTell.", image="b.png"), record(short)]
    assert calibration(records) == [{"image": "a.png", "text": short}]


def marks_for(label: str, task: str) -> list[float]:
    """The full model is right on three of four; others lose some of that."""
    rng = random.Random(f"{label}/{task}")
    full = [float(random.Random(f"{task}/{at}").random() < 0.75) for at in range(NUMBERS[task])]
    return full if label == REFERENCE else [mark * float(rng.random() < 0.8) for mark in full]


@pytest.fixture
def places(tmp_path: Path) -> Places:
    """The files of a finished comparison, made up."""
    made = Places(STUDY, tmp_path / "runs", tmp_path / "root")
    for row in made.rows():
        if row.why:
            continue
        for task in STUDY.tasks:
            kept = {"mean": 40.0, "equivalent": 36.5} if row.images == "on" else None
            result = {
                "task": task,
                "title": task.upper(),
                "row": {"label": row.label},
                "marks": marks_for(row.label, task),
            }
            result |= {
                "n": NUMBERS[task],
                "kept": kept,
                "generation": {"questions": f"{task} {row.images}", "images": row.images},
                "revision": "abc",
            }
            path = made.results / row.stem / f"{task}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(result))
        if row.images == "on" and not row.seed:
            made.prefills.mkdir(parents=True, exist_ok=True)
            visual = [[144, 20, 20, 10, 10, 5], [144, 30, 30, 10, 10, 6]]
            timed = {"label": row.label, "prefill_ms": 3.0, "share_of_full": 0.5, "visual": visual}
            (made.prefills / f"{row.stem}.json").write_text(json.dumps(timed))
    return made


@pytest.fixture
def targets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints of ATP-LLaVA that have nothing but a pruner with a target."""

    def load(path: Path, reduction: dict[str, Any] | None, device: str) -> tuple[SimpleNamespace, None]:
        assert device == "cpu" and reduction is None and "atp" in path.parent.name, path
        decoder = SimpleNamespace(pruner=SimpleNamespace(target=36.0))
        return SimpleNamespace(model=SimpleNamespace(language_model=decoder)), None

    monkeypatch.setattr(pocket_study, "load_model", load)


def test_report_pairs_questions_and_averages_seeds(places: Places, targets: None) -> None:
    content = report.collect(places, "the command")
    lines = {(line["name"], line["table"], line["trained"]): line for line in content["rows"]}
    full = lines[REFERENCE, "", False]
    assert full["difference"] == 0 and full["difference_half"] == 0
    grid = lines["grid", 36, False]
    gaps, scores = [], []
    for task in STUDY.tasks:
        own, reference = marks_for("grid 36", task), marks_for(REFERENCE, task)
        gaps.append([a - b for a, b in zip(own, reference, strict=True)])
        scores.append(100 * fmean(own))
        assert grid["tasks"][task] == pytest.approx(scores[-1])
    assert grid["score"] == pytest.approx(fmean(scores)) and grid["difference"] == pytest.approx(
        100 * mean_of_means(gaps)[0]
    )
    assert grid["difference"] == pytest.approx(grid["score"] - full["score"])
    assert 0 < grid["difference_half"] == pytest.approx(100 * mean_of_means(gaps)[1])
    drawn = lines["random", 36, False]
    each = [fmean(100 * fmean(marks_for(f"random 36 seed {seed}", task)) for task in STUDY.tasks) for seed in (0, 1, 2)]
    assert drawn["seeds"] == pytest.approx(each) and drawn["score"] == pytest.approx(fmean(each))
    blank = lines["FastV", 36, False]
    assert blank["score"] is None and "cannot be met" in blank["why"]
    atp = content["adaptive"][0]
    assert (atp["target"], atp["different"], atp["images"]) == (36.0, 2, 2) and atp["layer_most"] == [
        144,
        30,
        30,
        10,
        10,
        6,
    ]
    assert json.loads(json.dumps(content)) == content


def test_pages_show_every_row_once_and_what_made_them(places: Places, targets: None, tmp_path: Path) -> None:
    content = report.collect(places, "python the_command.py")
    text = pages.page(content, STUDY)
    assert "`python the_command.py`" in text and content["revision"] in text and "random baseline 0, 1, 2" in text
    sections = dict(zip(STUDY.tables[1:], text.split("\n## ")[1:], strict=False))
    names = [(f"{one['name']} (trained)" if one["trained"] else one["name"], one["table"]) for one in content["rows"]]
    for name, _ in names:
        for table, section in sections.items():
            wanted = sum((name, of) in names for of in ("", table))
            assert section.count(f"\n| {name} |") == wanted <= 1, (name, table)
    assert sections[36].count("Blank:") == 1 and "FastV, DART" not in sections[72]
    widths = {row.count("|") for row in text.splitlines() if row.startswith("| ") and "method" not in row[:9]}
    assert len(widths) == 2, "the tables have one width, ATP-LLaVA's another"
    drawing.draw(tmp_path / "methods.png", content, BUDGETS)
    from PIL import Image

    with Image.open(tmp_path / "methods.png") as picture:
        assert content["revision"] in picture.text["Description"] and "the_command" in picture.text["Description"]


def test_the_report_refuses_what_is_missing_or_not_comparable(places: Places, targets: None) -> None:
    path = places.results / "grid_36" / "pope.json"
    result = json.loads(path.read_text())
    path.write_text(json.dumps(result | {"generation": {"questions": "others", "images": "on"}}))
    with pytest.raises(EvaluationError, match="'grid 36' was asked other questions of pope"):
        report.collect(places, "")
    path.unlink()
    with pytest.raises(EvaluationError, match="no result for 'grid 36' on pope"):
        report.collect(places, "")
    rows = {(row["name"], row["table"]): row for row in report.collect(places, "", partial=True)["rows"]}
    assert rows["grid", 36]["why"] == "grid: not evaluated yet" and rows["grid", 36]["score"] is None
    assert rows["grid", 72]["score"] is not None


def test_plan_begins_with_reproduces_own_steps() -> None:
    """Not copies of them, so that what `make reproduce` has done is not done again."""
    known = {step.name: step for step in reproduce.steps()}
    trainings = Plan(0.3, trial=False).trainings()
    assert [step for step in trainings if step.name in BASE] == [known[name] for name in BASE]
    own = [step for step in trainings if step.name not in BASE]
    assert all(step.name not in known and step.command[0] == "bash" for step in own)
    made = [word for step in own for word in step.command if word.startswith("output_dir=")]
    assert len(set(made)) == len(made)
    assert set(made) - {"output_dir=runs/pocket-pretrain-llava_mini-36"} == {
        f"output_dir=runs/{folder}" for key, folder in FOLDERS.items() if key not in ("full", "prumerge_plus_72")
    }
    for key in ("full", "prumerge_plus_72"):
        assert any(
            str(Places(STUDY, Path("runs"), Path()).model(key)) in " ".join(step.command) for step in reproduce.steps()
        )


@pytest.mark.parametrize("trial", [False, True])
def test_plan_is_whole_and_in_order(trial: bool) -> None:
    plan = Plan(0.02 if trial else 0.3, trial)
    steps = plan.steps("command")
    names = [step.name for step in steps]
    assert all(names.index(before) < names.index(step.name) for step in steps for before in step.after)
    asked = [step.command[step.command.index("--table") + 1] for step in steps if "--table" in step.command]
    assert asked == [str(table or REFERENCES) for table in STUDY.tables]
    for step in plan.trainings():
        for before in step.after:
            assert before in {other.name for other in plan.trainings()}
    if trial:
        words = [word for step in plan.trainings() if step.name != "data" for word in step.command]
        assert words.count("max_steps=4") == len(plan.trainings()) - 1
        assert all("runs/trial/" in word for word in words if word.startswith(("output_dir=", "projector=")))
    assert (plan.out == DOCS) == (not trial)
    assert Plan(0.5, trial=False).out != DOCS


def test_text_only_and_settings_are_told() -> None:
    rows = {row.label: row for row in STUDY.rows(NOWHERE)}
    assert rows[TEXT_ONLY].images == "off" and rows[REFERENCE].block == {}
    assert rows["PruMerge+ with FastV, K = 1 36"].settings == "share 0.4, neighbours 8, budget 56; layer 1"
    assert yaml.safe_load(yaml.safe_dump(dict(rows["grid 36"].block))) == {"vision": {"name": "grid", "budget": 36}}


@pytest.mark.parametrize("study", [STUDY, PHOTOS], ids=lambda study: study.name)
def test_a_pair_costs_its_budget(study: Study, tmp_path: Path) -> None:
    pairs = [row for row in study.rows(tmp_path) if row.block and len(row.block) == 2 and not row.why]
    assert {row.table for row in pairs} == set(study.budgets)
    layers = study.shape.language.layers
    for row in pairs:
        handed = row.block["vision"]["budget"]
        course = build_pruner(row.block["decoder"], DecoderShape(layers, 160, 5, 144, reduced=True)).course(handed)
        assert sum(course.visual) / layers == pytest.approx(row.table, abs=0.5), row.label
