"""G-Search, P-Sigmoid and stability: the rules against slow references, and the commands from checkpoint to method file."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
import yaml
from tiny_llava import pixels, rows_of, sample_rows, tiny_model

from llava_prumerge.efficiency.conventions import prefill_flops
from llava_prumerge.efficiency.shapes import language_shape
from llava_prumerge.methods.base import DecoderShape
from llava_prumerge.methods.registry import build_pruner
from llava_prumerge.search import g_search, p_sigmoid, rank_agreement, stability
from llava_prumerge.search.command import SearchError
from llava_prumerge.search.comparison import Comparison

SHAPE = DecoderShape(4, 32, 4, 16)
DROPS_MUCH = {"name": "rank_schedule", "rates": [1, 0, 0, 0]}


def batch() -> dict[str, torch.Tensor]:
    return rows_of(*sample_rows()[:2]) | {"pixel_values": pixels(2)}


def command(pocket: Path, out: Path, *more: str) -> list[str]:
    given = {"model": pocket / "model", "questions": pocket / "questions.jsonl", "images": pocket, "out": out}
    return [part for key, value in given.items() for part in (f"--{key}", str(value))] + ["--device", "cpu", *more]


def test_tau_is_the_double_loop() -> None:
    scores = torch.tensor([[0.3, 0.1, 0.2, 0.9, 0.5], [1.0, 3.0, 2.0, 5.0, 4.0], [0.0, 0.0, 1.0, 2.0, 3.0]])
    found = rank_agreement.kendall_tau(scores)

    def tau(x: list[float], y: list[float]) -> float:
        pairs = list(itertools.combinations(range(len(x)), 2))
        agree = sum(((x[i] - x[j]) * (y[i] - y[j]) > 0) - ((x[i] - x[j]) * (y[i] - y[j]) < 0) for i, j in pairs)
        free = [sum(z[i] != z[j] for i, j in pairs) for z in (x, y)]
        return agree / (free[0] * free[1]) ** 0.5

    for i, j in itertools.product(range(3), repeat=2):
        assert found[i, j].item() == pytest.approx(tau(scores[i].tolist(), scores[j].tolist()))
    assert rank_agreement.kendall_tau(torch.stack([scores[0], -scores[0]]))[0, 1] == -1


def test_layers_are_watched_in_the_full_model() -> None:
    model = tiny_model({"decoder": {"name": "fastv"}})
    own = model.model.language_model.pruner
    matrix = rank_agreement.layer_agreement(model, [batch()])
    assert matrix.shape == (2, 4, 4) and model.model.language_model.pruner is own
    assert torch.allclose(matrix.diagonal(dim1=1, dim2=2), torch.ones(2, 4, dtype=torch.double))
    assert torch.equal(matrix, matrix.mT) and matrix[:, 0, 1:].abs().max() < 1
    assert not torch.equal(matrix, rank_agreement.layer_agreement(model, [batch()], "text"))


@pytest.mark.parametrize("tolerance", [0.0, 0.3, 1.1, 9.0])
def test_bisection_is_the_exhaustive_greedy_search(tolerance: float) -> None:
    weights, steps = (0.0, 1.0, 0.4, 0.7), 8

    def acceptable(rates: list[float]) -> bool:
        return sum(weight * (1 - rate) for weight, rate in zip(weights, rates, strict=True)) <= tolerance

    expected = [1.0] * 4
    for layer in range(1, 4):
        curves = [expected[:layer] + [step / steps] * (4 - layer) for step in range(steps + 1)]
        expected = next(curve for curve in curves if curve[layer] <= expected[layer] and acceptable(curve))
    assert g_search.least_steps(4, 1, steps, acceptable) == expected


def test_costs_are_zero_without_a_pruner_and_answers_are_greedy_ones() -> None:
    model = tiny_model()
    for score in ("agreement", "kl", "loss"):
        comparison = Comparison(model, [batch()], score, answer_tokens=3)
        assert comparison.costs(None).abs().max() < 1e-6
        assert comparison.costs(DROPS_MUCH).abs().max() > 1e-4 or score == "agreement"
    ids = batch()["input_ids"]
    expected = model.generate(**batch(), max_new_tokens=3, do_sample=False)[:, ids.shape[1] :]
    answer, counts = comparison._questions[0][1:3]
    assert torch.equal(answer[counts][: len(expected[0])], expected.flatten()[: len(expected[0])])
    assert (comparison.present, comparison.most) == (16, 16)
    with pytest.raises(SearchError, match="'taste' is not one of agreement"):
        Comparison(model, [batch()], "taste")


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("gamma", [2.0, 256.0])
def test_every_sigmoid_meets_the_budget(share: float, gamma: float) -> None:
    space = p_sigmoid.SigmoidSpace(SHAPE, 16, 16, budget=8)
    assert sum(space.layer_tokens(space.block(share, gamma))) == 8 * 4
    text = language_shape(tiny_model().config.text_config.to_dict())
    space = p_sigmoid.SigmoidSpace(SHAPE, 16, 16, flops=0.7, decoder=text, text=8)
    cost = prefill_flops(text, [8 + count for count in space.layer_tokens(space.block(share, gamma))])
    full = prefill_flops(text, [24] * 4)
    assert 0.7 - 1 / 24 < cost / full <= 0.7 + 0.02


def test_a_resumed_study_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason="optuna (extra 'search') is not installed")
    objective = lambda share, gamma: (share - 0.3) ** 2 + (gamma / 100 - 0.5) ** 2  # noqa: E731
    whole = p_sigmoid.optimise(p_sigmoid.open_study(tmp_path / "a", {"x": 1}), objective, 13)
    p_sigmoid.optimise(p_sigmoid.open_study(tmp_path / "b", {"x": 1}), objective, 5)
    study = p_sigmoid.open_study(tmp_path / "b", {"x": 1})
    study.ask()  # a trial that is cut off
    study = p_sigmoid.open_study(tmp_path / "b", {"x": 1})
    assert p_sigmoid.optimise(study, objective, 13) == whole
    with pytest.raises(SearchError, match="x 1, not 2"):
        p_sigmoid.open_study(tmp_path / "b", {"x": 2})


def test_without_optuna_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(SearchError, match="extra 'search'"):
        p_sigmoid.import_optuna()


def test_commands_write_files_that_build_and_act(pocket: Path, tmp_path: Path) -> None:
    out = tmp_path / "g" / "g.yaml"
    assert g_search.main(command(pocket, out, "--score", "kl", "--tolerance", "1e9", "--steps", "4")) == 0
    block = yaml.safe_load(out.read_text())["decoder"]
    assert block["rates"] == [1.0] + [0.0] * 5 and out.with_suffix(".png").stat().st_size > 0
    assert g_search.main(command(pocket, out, "--tolerance", "-1")) == 2
    picture = tmp_path / "s.png"
    assert stability.main(command(pocket, picture)) == 0
    assert picture.stat().st_size > 0 and len(json.loads(picture.with_suffix(".json").read_text())["tau"]) == 6


def test_p_sigmoid_writes_a_file_that_builds_and_meets_its_budget(
    pocket: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("optuna", reason="optuna (extra 'search') is not installed")
    out = tmp_path / "p.yaml"
    assert p_sigmoid.main(command(pocket, out, "--budget", "50", "--trials", "2")) == 0
    first = out.read_text()
    assert p_sigmoid.main(command(pocket, out, "--budget", "50", "--trials", "2")) == 0 and out.read_text() == first
    pruner = build_pruner(yaml.safe_load(first)["decoder"], DecoderShape(6, 32, 4, 144))
    assert "50 of 144 equivalent tokens" in capsys.readouterr().out  # as the model ran with it
    assert pruner.schedule.equivalent(144) == 50 and out.with_suffix(".png").stat().st_size > 0
    assert p_sigmoid.main(command(pocket, out, "--budget", "1", "--trials", "2")) == 2
