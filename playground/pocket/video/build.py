"""Makes the pocket videos: `python playground/pocket/video/build.py [--out FOLDER] [--scale S]`.

train.json   records in LLaVA's format with a key `video`, questions over several turns
videos/      a folder of frames for each clip
eval/        MSVD-QA, MSRVTT-QA, TGIF-QA and ActivityNet-QA in their official files

A second run finds that there is nothing to do; a killed one leaves nothing half written.
"""

from __future__ import annotations

import logging
import random
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[0] = str(HERE.parents[2])  # this folder itself must not shadow installed packages

from llava_prumerge.ground.command import Parser, command  # noqa: E402
from playground.pocket import scenes, store  # noqa: E402
from playground.pocket.questions import SHORT_ANSWER  # noqa: E402
from playground.pocket.store import Picture  # noqa: E402
from playground.pocket.video import clips, questions  # noqa: E402
from playground.pocket.video.clips import Clip  # noqa: E402
from playground.pocket.video.questions import KINDS, STATIC, TEMPORAL, Asked, Kind, ask  # noqa: E402

VIDEO_MARK = "<video>"
DATA = HERE.parent / "data" / "video"
TRAIN = 1600
TURNS = 6
BENCHMARKS: dict[str, tuple[str, dict[str, Kind]]] = {
    "msvd": ("MSVD_Zero_Shot_QA", STATIC),
    "msrvtt": ("MSRVTT_Zero_Shot_QA", KINDS),
    "tgif": ("TGIF_Zero_Shot_QA", TEMPORAL),
    "activitynet": ("Activitynet_Zero_Shot_QA", KINDS),
}
"""Folder of each, and the kinds of question that it asks."""
CLIPS, EACH = 160, 1
"""Clips of a benchmark, and questions about each of them."""

logger = logging.getLogger("pocket.video")


def pictures(folder: str, clip: Clip, seed: int) -> list[Picture]:
    """The frames of a clip as images; each has a jitter of its own, as a shaking camera gives."""
    return [Picture(f"{folder}/{at:03d}.png", scene, seed + at) for at, scene in enumerate(clip.frames())]


def train_record(name: str, clip: Clip, rng: random.Random) -> dict[str, Any]:
    """One record: questions of different kinds, the first below the video."""
    turns = []
    for at, asked in enumerate(ask(KINDS, clip, rng, TURNS)):
        ahead = f"{VIDEO_MARK}\n" if at == 0 else ""
        instruction = SHORT_ANSWER if at == 0 else ""
        turns += [
            {"from": "human", "value": f"{ahead}{asked.text}{instruction}"},
            {"from": "gpt", "value": asked.answer},
        ]
    return {"id": name, "video": name, "conversations": turns}


def question_files(folder: Path, name: str, asked: list[tuple[str, Asked]]) -> int:
    """test_q.json and test_a.json. -> number of questions"""
    official = name == "activitynet"  # it numbers types; the others have none, and say here whether time matters
    rows = [(f"{video}_{at}", video, one) for at, (video, one) in enumerate(asked)]
    texts = [
        {"video_name": video, "question_id": key, "question": f"{one.text}{SHORT_ANSWER}"} for key, video, one in rows
    ]
    truths = [
        {
            "question_id": key,
            "answer": one.answer,
            "type": one.type if official else "temporal" if one.kind in TEMPORAL else "static",
        }
        for key, _, one in rows
    ]
    store.write_json(folder / "test_q.json", texts)
    store.write_json(folder / "test_a.json", truths)
    return len(rows)


def build(out: Path, scale: float = 1.0, workers: int = 2) -> dict[str, Any]:
    """Write everything. -> the manifest: settings and counts"""
    code = store.digest(scenes, clips, questions, store, sys.modules[__name__])
    manifest: dict[str, Any] = {"settings": {"scale": scale, "code": code}}
    if store.is_current(out, manifest["settings"]):
        logger.info("the videos in %s are up to date", out)
        return manifest
    with store.staged(out) as staging:
        drawn, records, counts = [], [], {}
        rng = random.Random("video/train")
        for at, clip in enumerate(clips.clips("train", "0", max(1, round(TRAIN * scale)))):
            name = f"train/{at:05d}"
            records.append(train_record(name, clip, rng))
            drawn += pictures(f"videos/{name}", clip, 10 * at)
        store.write_json(staging / "train.json", records)
        counts["train"] = len(records)
        for name, (folder, kinds) in BENCHMARKS.items():
            rng, asked = random.Random(f"video/{name}"), []
            for at, clip in enumerate(clips.clips("test", name, max(1, round(CLIPS * scale)))):
                video = f"{'v_' if name == 'activitynet' else ''}{name}{at:04d}"
                drawn += pictures(f"eval/{folder}/videos/{video}", clip, 10 * at)
                asked += [(video, one) for one in ask(kinds, clip, rng, EACH)]
            counts[name] = question_files(staging / "eval" / folder, name, asked)
        logger.info("drawing %d frames for %s", len(drawn), counts)
        store.save_pictures(staging, drawn, workers)
        manifest["counts"] = counts
        store.write_json(staging / store.MANIFEST, manifest)
    return manifest


@command()
def main(words: list[str]) -> int:
    """Build what is missing."""
    parser = Parser(prog="python playground/pocket/video/build.py", description=__doc__)
    parser.add_argument("--out", type=Path, default=DATA)
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies all counts")
    given = parser.parse_args(words)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    build(given.out, given.scale)
    return 0


if __name__ == "__main__":
    sys.exit(main())
