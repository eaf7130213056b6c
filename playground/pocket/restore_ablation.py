"""RESTORE's ablation in the pocket world: each part alone and together on top of reducers, in one table.

    python playground/pocket/restore_ablation.py [--methods fastervlm divprune] [--budget 18] [--task vqav2] [--limit 400]

After `make reproduce`, whose model and benchmarks it uses. About 20 s for each of the ten rows of a method on two cores; a
row that is there is not run again. The table is printed.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from llava_prumerge.ground.command import Parser, at_least, command  # noqa: E402

MERGE, WEIGH, PLACE, CALIBRATE = "anchors=1/2", "proportional=true", "positions=original", "calibration=2"
ROWS: dict[str, tuple[str, ...]] = {
    "off": (),
    "positions": (PLACE,),
    "calibration": (CALIBRATE,),
    "positions, calibration": (PLACE, CALIBRATE),
    "anchors": (MERGE,),
    "anchors, sizes": (MERGE, WEIGH),
    "anchors, positions": (MERGE, PLACE),
    "anchors, sizes, positions": (MERGE, WEIGH, PLACE),
    "anchors, sizes, calibration": (MERGE, WEIGH, CALIBRATE),
    "all": (MERGE, WEIGH, PLACE, CALIBRATE),
}
"""What is on, and its settings. Sizes weigh what anchors merge, so that they are never alone."""


@command()
def main(words: list[str]) -> int:
    parser = Parser("playground.pocket.restore_ablation", __doc__)
    parser.add_argument("--methods", nargs="+", default=["fastervlm"], help="vision reducers that take a budget")
    parser.add_argument("--budget", type=at_least(2), default=18, help="tokens of 144 that stay (default: %(default)s)")
    parser.add_argument("--task", default="vqav2", help="benchmark (default: %(default)s)")
    parser.add_argument("--limit", type=at_least(1), default=400, help="questions (default: %(default)s)")
    parser.add_argument(
        "--model", type=Path, default=ROOT / "runs/pocket-lora-none/merged", help="(default: %(default)s)"
    )
    parser.add_argument(
        "--data", type=Path, default=ROOT / "playground/pocket/data/eval", help="(default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "runs/restore", help="(default: %(default)s)")
    given = parser.parse_args(words)
    run = [sys.executable, "-m", "llava_prumerge"]
    where = ["--task", given.task, "--model", str(given.model), "--data", str(given.data), "--out", str(given.out)]
    for method in given.methods:
        for parts in ROWS.values():
            described = ",".join([f"{method}:budget={given.budget}", *parts])
            done = subprocess.run([*run, "evaluate", *where, f"method={described}", f"limit={given.limit}"], cwd=ROOT)
            if done.returncode:
                return done.returncode
    return subprocess.run([*run, "compare", str(given.out)], cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
