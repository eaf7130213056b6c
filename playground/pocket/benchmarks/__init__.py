"""The six benchmarks on scenes of the test split, each in its official files with LLaVA's question file on top.

There is one module per benchmark. It has `FOLDER` and `write(folder, rng, scale)`, which writes everything and returns
the number of questions. Beside each lies a `scenes.json` with what its images show, for checks; no scorer reads it.
"""

from __future__ import annotations

import logging
import random
import sys
from pathlib import Path
from typing import Any

from playground.pocket import balance, facts, language, questions, records, scenes, store
from playground.pocket import world as worlds
from playground.pocket.benchmarks import humans, mmbench, mme, pope, sqa, textvqa, vqav2
from playground.pocket.world import POCKET, World

logger = logging.getLogger("pocket.benchmarks")
BENCHMARKS = {"vqav2": vqav2, "sqa": sqa, "textvqa": textvqa, "pope": pope, "mme": mme, "mmbench": mmbench}
SOURCES = (
    scenes,
    questions,
    facts,
    language,
    balance,
    records,
    store,
    worlds,
    humans,
    *BENCHMARKS.values(),
    sys.modules[__name__],
)


def build(
    out: Path, *, seed: int = 0, scale: float = 1.0, force: bool = False, world: World = POCKET
) -> dict[str, Any]:
    """Writes all benchmarks below `out`/eval; does nothing where they are up to date.

    Args:
        out: the data folder, as for the records.
        seed: of everything.
        scale: multiplies the sizes.
        force: write anew in any case.
        world: how scenes become pictures.

    Returns:
        What is in the manifest: settings and number of questions per benchmark.
    """
    out = out / "eval"
    settings = {"seed": seed, "scale": scale, "code": store.digest(*SOURCES), **world.settings}
    manifest: dict[str, Any] = {"settings": settings}
    if not force and store.is_current(out, settings):
        logger.info("the benchmarks in %s are up to date", out)
        return manifest
    with store.staged(out) as staging:
        manifest["counts"] = {}
        for name, benchmark in BENCHMARKS.items():
            rng = random.Random(f"{name}/{seed}")
            size = scale * world.shares.get(name, 1.0)
            manifest["counts"][name] = benchmark.write(staging / benchmark.FOLDER, rng, size, world)
            logger.info("%s: %d questions", name, manifest["counts"][name])
        store.write_json(staging / store.MANIFEST, manifest)
    return manifest
