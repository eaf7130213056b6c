"""The training-step comparison trains what it says, on the same samples, and its padding is that of a count by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llava_prumerge.train import speed


@pytest.fixture(scope="module")
def rows(world, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder = tmp_path_factory.mktemp("speed")
    recipes = world.recipe("lora", folder / "lora", projector=None) + world.recipe("full", folder / "full")
    out = folder / "deep" / "speed.json"
    words = [*recipes, "--methods", world.prumerge_plus, "--steps", "3", "--rounds", "2", "--padding-batches", "6"]
    assert speed.main([*words, "--random-projector", "--out", str(out), "group_by_modality_length=true"]) == 0
    result = json.loads(out.read_text())
    assert result["what"] == "training" and result["projector"] == "random" and result["rounds"] == 2
    return result["rows"]


def test_every_stage_and_method_has_its_rates(rows: list[dict]) -> None:
    found = [(row["stage"], row["method"]) for row in rows]
    assert found == [("lora", "none"), ("lora", "prumerge_plus"), ("full", "none"), ("full", "prumerge_plus")]
    for row in rows:
        assert row["samples_per_second"]["n"] == 2 and row["samples_per_second"]["median"] > 0
        assert row["peak_mb"] is None or row["peak_mb"] >= 0
        assert row["method"] != "none" or row["gain"] == {"q1": 1.0, "median": 1.0, "q3": 1.0, "n": 2}


def test_reductions_act_and_grouping_pads_less(rows: list[dict]) -> None:
    whole, reduced = rows[:2]
    assert whole["grouped"]["kept_mean"] == 16 > reduced["grouped"]["kept_mean"]
    assert ["grouped" in row for row in rows] == [True, True, False, False]
    for row in rows[:2]:
        assert 0 <= row["grouped"]["padding_share"] <= row["shuffled"]["padding_share"] < 1


def test_padding_is_what_a_count_by_hand_gives(rows: list[dict], world) -> None:
    """All tokens: of the batches with an image, places that no sample fills, by the dataset's own lengths."""
    import itertools

    from llava_prumerge.data.sampler import GroupedSampler
    from llava_prumerge.model.adapters import Base
    from llava_prumerge.train.arguments import load_arguments
    from llava_prumerge.train.assembly import build_dataset

    arguments = load_arguments(world.recipe("full", world.folder / "by_hand"))
    model, processor = Base(None, arguments.language_model, arguments.vision_tower, seed=0).build()
    dataset = build_dataset(arguments, model.config, processor)
    order = list(itertools.islice(GroupedSampler(dataset.lengths, 2, 2, arguments.seed, True), 12))
    padded = places = 0
    for start in range(0, 12, 2):
        samples = [dataset[at] for at in order[start : start + 2]]
        if any("pixel_values" in sample for sample in samples):
            lengths = [len(sample["input_ids"]) for sample in samples]
            places += 2 * max(lengths)
            padded += 2 * max(lengths) - sum(lengths)
    assert rows[0]["grouped"]["padding_share"] == pytest.approx(padded / places, abs=1e-3)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nowhere.yaml"], "nowhere.yaml"),
        (["seed=1"], "required: RECIPE"),
        (["x.yaml", "--steps", "1"], "at least 2"),
        (["configs/train/pocket/finetune.yaml", "--methods", "nothing"], "method 'nothing' is not known"),
        (["configs/train/pocket/finetune.yaml", "speed=1"], "key 'speed' is not known"),
    ],
)
def test_bad_input_is_one_error(words: list[str], told: str, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.chdir(Path(__file__).resolve().parents[2])
    assert speed.main(words) == 2
    assert told in capsys.readouterr().err
