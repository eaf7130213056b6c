"""The photographs: what is painted where, the split of photographs, the data, the rows, and the answers on the page."""

from __future__ import annotations

import json
import random
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
from PIL import Image

from llava_prumerge.data.region_format import read_regions
from llava_prumerge.evaluation.results import mean_over_clusters
from llava_prumerge.ground.errors import InputError
from playground.photos import build, findings, reproduce
from playground.photos.backgrounds import SIDE, SPLITS, Photographs, Textures, fit, split_of_name
from playground.photos.paint import NOTHING, PATCH, PATCHES, Painter, boxes, words_for
from playground.photos.reproduce import DOCS, TRAINED, Plan
from playground.photos.study import BUDGETS, FOLDERS, MIDDLE, STUDY
from playground.pocket.comparison.evaluate import settings_of
from playground.pocket.comparison.places import Places
from playground.pocket.comparison.report import Scale, images_of
from playground.pocket.scenes import COLOURS, Object, Scene, Word, split_of

NOWHERE = Path("no/such/folder")
SCENE = Scene((Object("square", "blue", 0, 1), Object("ring", "red", 2, 2)), (Word("CAT", 1, 0),))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty plain photographs, some below a folder, of many shapes."""
    folder = tmp_path_factory.mktemp("photographs")
    (folder / "more").mkdir()
    for number in range(40):
        shade = (4 * number, 90, 255 - 4 * number)
        path = folder / ("more" if number % 2 else "") / f"{number:03d}.jpg"
        Image.new("RGB", (40 + 9 * number, 400 - 7 * number), shade).save(path)
    (folder / "note.txt").write_text("no picture")
    return folder


def test_items_are_where_the_patches_say() -> None:
    """The middle of a square's patches has its colour, a ring's hole is not the ring, and a word's plate is light."""
    painter = Painter(Textures("test"))
    for seed in range(5):
        picture, shown = np.asarray(painter(SCENE, seed)), painter.patches(SCENE, seed)
        assert picture.shape == (SIDE, SIDE, 3) and shown.shape == (PATCHES, PATCHES)
        cut = picture.reshape(PATCHES, PATCH, PATCHES, PATCH, 3).swapaxes(1, 2)
        for number, item in enumerate((*SCENE.objects, *SCENE.words)):
            rows, columns = np.nonzero(shown == number)
            assert 4 <= len(rows) <= 40
            third = PATCHES / 3
            assert {int(row // third) for row in rows} == {item.row} and {int(col // third) for col in columns} == {
                item.col
            }
            tone = np.median(cut[shown == number].reshape(-1, 3), axis=0)
            wanted = (245, 245, 245) if isinstance(item, Word) else COLOURS[item.colour]
            assert np.abs(tone - wanted).max() <= 10, (item, tone)
        ring = np.argwhere(shown == 1)
        assert shown[tuple(ring.mean(axis=0).round().astype(int))] == NOTHING


def test_the_seed_decides_the_picture_and_nothing_that_is_asked() -> None:
    painter = Painter(Textures("test"))
    assert painter(SCENE, 1).tobytes() == painter(SCENE, 1).tobytes() != painter(SCENE, 2).tobytes()
    assert (painter.patches(SCENE, 1) >= 0).any() and (painter.patches(SCENE, 1) != painter.patches(SCENE, 2)).any()


def test_regions_cover_exactly_the_patches() -> None:
    """In the form that training reads, with the words of the language model's own lessons."""
    painter = Painter(Textures("train"))
    told = read_regions(painter.regions(SCENE, 3))
    shown, again = painter.patches(SCENE, 3), np.full((PATCHES, PATCHES), NOTHING)
    names = [words_for(item) for item in (*SCENE.objects, *SCENE.words)]
    assert names == ["blue square top center", "red ring bottom right", "word CAT middle left"]
    for region in told:
        left, top, right, bottom = (round(side * PATCHES) for side in region["box"])
        again[top:bottom, left:right] = names.index(region["text"])
    assert (again == shown).all()
    line = np.array([[NOTHING, 2, 2, 0], [1, NOTHING, NOTHING, 1]])
    assert [number for _, number in boxes(line)] == [2, 0, 1, 1]


def test_photographs_are_split_by_name_and_fitted(photographs: Path) -> None:
    of = {split: Photographs(photographs, split).names for split in SPLITS}
    assert sorted(name for names in of.values() for name in names) == sorted(
        str(path.relative_to(photographs)) for path in photographs.rglob("*.jpg")
    )
    assert all(split_of_name(name) == split for split, names in of.items() for name in names)
    shares = [sum(split_of_name(f"{n}.jpg") == split for n in range(4000)) / 4000 for split in SPLITS]
    assert shares == pytest.approx([0.75, 0.125, 0.125], abs=0.02)
    wide = np.asarray(fit(Image.new("RGB", (672, 100), (9, 200, 30))))
    assert (
        wide.shape == (SIDE, SIDE, 3)
        and (wide[168, 168] == (9, 200, 30)).all()
        and wide[10, 168].tolist() == [124, 116, 104]
    )
    rng = random.Random(0)
    drawn = Photographs(photographs, "train").draw(rng)
    assert drawn.size == (SIDE, SIDE)


def test_a_folder_that_will_not_do_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        _ = Photographs(tmp_path / "none", "train").names
    with pytest.raises(InputError, match="0 photographs, none for test"):
        _ = Photographs(tmp_path, "test").names


@pytest.mark.parametrize(
    ("command", "words", "told"),
    [
        (reproduce, "--scale -1", "--scale -1 is not above 0"),
        (reproduce, "--photos no/such/folder", "no/such/folder: there is no such folder"),
        (reproduce, "--only nothing", "--only 'nothing' is part of no step's name"),
        (build, "scale=0", "scale=0 is not above 0"),
        (build, "image=3", "did you mean 'images'?"),
        (build, "photos=no/such/folder", "no/such/folder: there is no such folder"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_values_are_one_line(command: object, words: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(words.split()) == 2  # type: ignore[attr-defined]
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and told in error


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, photographs: Path) -> Path:
    """The data at the smallest size."""
    out = tmp_path_factory.mktemp("photos") / "data"
    build.build(out, photographs, images=6, scale=0.06)
    return out


def test_data_is_whole_and_its_sets_share_nothing(data: Path) -> None:
    records = json.loads((data / "stage2.json").read_text())
    regions = json.loads((data / "regions.json").read_text())
    assert len(records) == 6 and {one["id"] for one in regions} == {one["id"] for one in records if "image" in one}
    for record in regions:
        with Image.open(data / "images" / record["image"]) as picture:
            assert picture.size == (SIDE, SIDE)
        assert read_regions(record["regions"]) == record["regions"] != []
    keys = {name: set() for name in ("train", "test", "validation")}
    keys["train"] = {key for key, _ in json.loads((data / "scenes.json").read_text()).values()}
    for folder, split in build.SETS.items():
        for path in (data / folder / "eval").glob("*/scenes.json"):
            keys[split] |= {key for key, _ in json.loads(path.read_text()).values()}
    assert all(keys.values()) and not (keys["test"] & keys["validation"]) and not (keys["train"] & keys["test"])
    from tests.pocket.oracle import parse

    assert all(split_of(parse(key)) == split for split, own in keys.items() for key in own)


def test_every_mark_knows_its_image(data: Path) -> None:
    """In the order of the references, whatever the order of the questions."""
    marks = {task: images_of(task, data / "eval") for task in STUDY.tasks}
    assert all(marks.values())
    assert all(image is not None for task in STUDY.tasks if task != "sqa" for image in marks[task])
    assert None in marks["sqa"] and any(marks["sqa"])
    pope = json.loads("[" + (data / "eval/pope/llava_pope_test.jsonl").read_text().replace("\n", ",").rstrip(",") + "]")
    assert set(marks["pope"]) == {one["image"] for one in pope} and len(marks["pope"]) == len(pope)
    assert max(marks["vqav2"].count(image) for image in marks["vqav2"]) == build.PER_IMAGE


def test_the_interval_is_over_images() -> None:
    """Equal to the interval over single values where each has its own image, wider where those of an image agree."""
    rng = random.Random(0)
    single = [rng.random() for _ in range(50)]
    mean, half = mean_over_clusters(single, range(50))
    n, error = 50, np.std(single, ddof=1) / 50**0.5
    assert mean == pytest.approx(fmean(single)) and half == pytest.approx(1.959963984540054 * error)
    four = [value for value in single for _ in range(4)]
    assert mean_over_clusters(four, [at // 4 for at in range(4 * n)]) == pytest.approx((mean, half))
    assert mean_over_clusters(four, range(4 * n))[1] < 0.6 * half
    scale = Scale({"a": ["x", "x", None], "b": ["x", "y"]})
    own, other = {"a": [1.0, 1.0, 0.0], "b": [1.0, 0.0]}, {"a": [0.0, 1.0, 1.0], "b": [1.0, 1.0]}
    assert scale.score(own)[0] == 75.0 and scale.difference(own, other)[0] == 0.0


def test_rows_are_unscaled_and_every_budget_has_them() -> None:
    rows = STUDY.rows(NOWHERE)
    assert len({row.label for row in rows}) == len({row.stem for row in rows}) == len(rows)
    assert {row.table for row in rows} == set(STUDY.tables) and set(FOLDERS) == set(TRAINED)
    for row in rows:
        part = (row.block or {}).get("vision", {})
        if row.name in ("PruMerge", "PruMerge+") and isinstance(row.table, int) and not row.trained:
            assert set(part) == {"name", "budget"}, "the release's constants"
    for budget in BUDGETS:
        able = {row.name for row in rows if row.table == budget and not row.why}
        assert {*findings.CHANCE, "PruMerge", "DivPrune", "FasterVLM", "SCOPE", "VScan"} <= able
        assert len([row for row in rows if row.table == budget and row.name == "random"]) == 3
    assert {row.table for row in rows if row.trained} == {MIDDLE}


def test_only_what_cuts_inside_the_tower_is_asked_without_its_cache(tmp_path: Path) -> None:
    places = Places(STUDY, tmp_path, tmp_path)
    without = {row.name for row in STUDY.rows(NOWHERE) if not row.why and "tower_cache" not in settings_of(row, places)}
    assert without == {"FlowCut"}


def test_the_plan_is_whole_and_in_order() -> None:
    for trial in (False, True):
        plan = Plan(Path("photographs"), 0.05 if trial else 1.0, trial)
        steps = plan.steps("command")
        names = [step.name for step in steps]
        assert len(set(names)) == len(names)
        assert all(names.index(before) < names.index(step.name) for step in steps for before in step.after)
        asked = {step.command[step.command.index("--table") + 1] for step in steps if "--table" in step.command}
        left_out = {str(budget) for budget in BUDGETS if budget != MIDDLE} if trial else set()
        assert asked == {str(table or "references") for table in STUDY.tables} - left_out
        assert (plan.out == DOCS) == (not trial)
        if trial:
            read = {step.name: [word for word in step.command if word.startswith("data=")] for step in steps}
            assert read["photos warm start"] == ["data=runs/trial/photos/data/regions.json"]
            assert read["photos training full"] == ["data=runs/trial/photos/data/stage2.json"]
    assert Plan(None, 1.0, trial=False).out != DOCS


def test_answers_come_from_the_differences() -> None:
    """What is named as better than all three controls is what the intervals say."""
    gaps = {"DivPrune": (5.0, 1.0), "FasterVLM": (0.5, 1.0), "PruMerge": (-6.0, 2.0)}
    content = {
        "against": [
            {"name": name, "table": 64, "gaps": dict.fromkeys(findings.CONTROLS, gap)} for name, gap in gaps.items()
        ],
        "order": findings.order({"rows": [row | {"table": 64} for row in rows_of_the_pocket_world()]}),
        "merging": [{"name": "sum", "gap": (-3.0, 1.0)}],
        "trained": [],
        "positions": [{"name": "random", "gap": (0.2, 1.0)}],
    }
    text = findings.told(content)
    assert "- 64 tokens: 1 of 3 beat all three: DivPrune." in text and "Below pool: PruMerge." in text
    assert "| DivPrune | **+5.0** / **+5.0** / **+5.0** |" in text and "| random | +0.2 ± 1.0 |" in text
    ranked = [one for one in content["order"] if one["table"] == 64]
    assert ranked and all(one["rank_correlation"] == pytest.approx(1.0) for one in ranked), (
        "the pocket world with itself"
    )


def rows_of_the_pocket_world() -> list[dict]:
    """The lines of its table that stands beside 64 of 576 tokens."""
    rows = json.loads(findings.POCKET.read_text())["rows"]
    return [row for row in rows if row["table"] == findings.ALIKE[64]]
