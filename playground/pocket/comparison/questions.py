"""Writes what the comparison asks: benchmarks of their own, smaller than those of `make reproduce`, and calibration questions.

    python -m playground.pocket.comparison.questions --runs DIR --root DIR [--scale 0.3]

The benchmarks are the same kinds of questions on other scenes of the test split (seed 1). The searches are calibrated
on the first questions of stage 2's records, which are of the training split.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from llava_prumerge.ground.command import Parser, command
from llava_prumerge.ground.json_lines import write_json_lines
from llava_prumerge.ground.reading import read_json
from playground.pocket import benchmarks
from playground.pocket.comparison.places import Places, add_places
from playground.pocket.records import IMAGE_MARK

RECORDS = Path("playground/pocket/data/stage2.json")
INSTRUCTION = "Answer the question using a single word or phrase."


def calibration(records: list[dict]) -> list[dict[str, str]]:
    """Questions with a short answer that open a conversation about an image, in LLaVA's format."""
    openings = [(record.get("image"), record["conversations"][0]["value"]) for record in records]
    asked = [(image, text.removeprefix(f"{IMAGE_MARK}\n")) for image, text in openings if image]
    return [{"image": image, "text": text} for image, text in asked if text.endswith(INSTRUCTION)]


@command()
def main(words: list[str]) -> None:
    """The command line."""
    parser = Parser("playground.pocket.comparison.questions", __doc__)
    add_places(parser)
    parser.add_argument("--scale", type=float, default=0.3, help="of the benchmarks of make reproduce")
    given = parser.parse_args(words)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if not 0 < given.scale < float("inf"):
        parser.error(f"--scale {given.scale:g} is not a number above 0")
    places = Places.read(given)
    benchmarks.build(places.questions, seed=places.study.seeds["questions"], scale=given.scale)
    found = calibration(read_json(RECORDS))
    write_json_lines(places.calibration, found)
    logging.getLogger("pocket.comparison").info("%s: %d questions", places.calibration, len(found))


if __name__ == "__main__":
    sys.exit(main())
