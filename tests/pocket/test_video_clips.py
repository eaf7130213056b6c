"""Pocket clips and their questions: every answer is found again in the frames, by code that knows nothing of how they were drawn."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest

from llava_prumerge.evaluation.benchmark import find
from playground.pocket.scenes import place_name
from playground.pocket.video import build
from playground.pocket.video.clips import DIRECTIONS, FRAMES, Clip, clips, split_of
from playground.pocket.video.questions import KINDS, STATIC, TEMPORAL, ask

SOME = 150


@pytest.fixture(scope="module")
def some() -> list[Clip]:
    return list(clips("train", "test", SOME))


def seen(clip: Clip) -> list[dict[str, tuple[int, int]]]:
    """Name of each shape -> its cell, frame by frame."""
    return [{f"{o.colour} {o.shape}": (o.row, o.col) for o in scene.objects} for scene in clip.frames()]


def answers(kind: str, text: str, frames: list[dict[str, tuple[int, int]]]) -> set[str]:
    """What may be answered, from the frames alone."""
    last = frames[-1]
    moving = {name for frame in frames for name in frame if name in frames[0] and frame[name] != frames[0][name]}
    named = {name for name in last if name in text or name.split()[1] in text or f"{name.split()[0]} shape" in text}
    if kind == "which_moves":
        return moving
    if kind == "where_to":
        (name,) = moving
        change = tuple(b - a for a, b in zip(frames[0][name], last[name]))
        return {word for word, step in DIRECTIONS.items() if tuple((v > 0) - (v < 0) for v in change) == step}
    if kind == "does_move":
        return {"Yes" if named & moving else "No"}
    if kind == "comes_first":
        return {name for name in named if name in frames[0]}
    if kind == "comes_later":
        return set(last) - set(frames[0])
    if kind in ("starts_at", "where_is"):
        (name,) = named
        return {place_name(*frames[0].get(name, last[name]))}
    if kind == "colour_of":
        return {name.split()[0] for name in named}
    if kind == "shape_of":
        return {name.split()[1] for name in last if name.split()[0] in text}
    if kind == "is_there":
        return {"Yes" if any(name in text for name in last) else "No"}
    return {str(len(last))}


def test_every_answer_is_in_the_frames(some) -> None:
    rng, asked = random.Random(0), Counter()
    for clip in some:
        for question in ask(KINDS, clip, rng, len(KINDS)):
            assert answers(question.kind, question.text, seen(clip)) == {question.answer}, (clip, question)
            asked[question.kind] += 1
    assert set(asked) == set(KINDS) == set(TEMPORAL) | set(STATIC) and min(asked.values()) > SOME / 10


def test_clips_move_by_whole_cells_and_splits_share_none(some) -> None:
    test = list(clips("test", "test", 40))
    assert {clip.key for clip in some}.isdisjoint(clip.key for clip in test)
    assert all(split_of(clip) == "test" for clip in test)
    for clip in some:
        frames = seen(clip)
        assert len(frames) == FRAMES and frames[0][clip.mover.name] != frames[-1][clip.mover.name]
        assert all(len(set(frame.values())) == len(frame) for frame in frames)  # nothing covers another


def test_answers_are_asked_for_evenly(some) -> None:
    rng = random.Random(0)
    said = Counter(q.answer for clip in some for q in ask({"where_to": KINDS["where_to"]}, clip, rng, 1))
    assert set(said) == set(DIRECTIONS) and max(said.values()) < 2 * min(said.values())


def test_the_files_are_those_of_the_benchmarks(tmp_path: Path) -> None:
    """The readers of the four benchmarks take them, every video is there, and a second run changes nothing."""
    manifest = build.build(tmp_path, scale=0.03, workers=1)
    records = json.loads((tmp_path / "train.json").read_text())
    assert len(records) == manifest["counts"]["train"] == 48
    assert all(len(list((tmp_path / "videos" / record["video"]).glob("*.png"))) == FRAMES for record in records)
    assert records[0]["conversations"][0]["value"].startswith("<video>\n")
    for name, task in (("msvd", "msvd_qa"), ("tgif", "tgif_qa"), ("activitynet", "activitynet_qa")):
        files = find(task).files(tmp_path / "eval")
        questions = find(task).questions(files)
        assert len(questions) == len(find(task).references(files)) == manifest["counts"][name]
        assert all(len(list((files.images / question.video).iterdir())) == FRAMES for question in questions)
    before = (tmp_path / "manifest.json").stat().st_mtime_ns
    build.build(tmp_path, scale=0.03, workers=1)
    assert (tmp_path / "manifest.json").stat().st_mtime_ns == before
