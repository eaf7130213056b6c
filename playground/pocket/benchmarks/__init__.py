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
from playground.pocket.benchmarks import humans, mmbench, mme, pope, sqa, textvqa, vqav2

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
    humans,
    *BENCHMARKS.values(),
    sys.modules[__name__],
)


def build(out: Path, *, seed: int = 0, scale: float = 1.0, force: bool = False) -> dict[str, Any]:
    """Writes all benchmarks below `out`/eval; does nothing where they are up to date.

    Args:
        out: the data folder, as for the records.
        seed: of everything.
        scale: multiplies the sizes.
        force: write anew in any case.

    Returns:
        What is in the manifest: settings and number of questions per benchmark.
    """
    out = out / "eval"
    manifest: dict[str, Any] = {"settings": {"seed": seed, "scale": scale, "code": store.digest(*SOURCES)}}
    if not force and store.is_current(out, manifest["settings"]):
        logger.info("the benchmarks in %s are up to date", out)
        return manifest
    with store.staged(out) as staging:
        manifest["counts"] = {}
        for name, benchmark in BENCHMARKS.items():
            rng = random.Random(f"{name}/{seed}")
            manifest["counts"][name] = benchmark.write(staging / benchmark.FOLDER, rng, scale)
            logger.info("%s: %d questions", name, manifest["counts"][name])
        store.write_json(staging / store.MANIFEST, manifest)
    return manifest
