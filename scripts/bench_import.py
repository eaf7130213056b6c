"""CPU time of a first transformers import, alone and behind ours: python scripts/bench_import.py [ROUNDS]. Status 1 above 15%."""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys

LIMIT = 0.15
FIRST = "from transformers import AutoProcessor, Trainer"
CODES = {"transformers alone": FIRST, "import llava_prumerge first": f"import llava_prumerge; {FIRST}"}


def cpu_seconds(code: str) -> float:
    """Of a fresh interpreter that runs the code."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def main(words: list[str]) -> int:
    """Runs take turns, the order of a round turned each time, so that what disturbs one disturbs the other."""
    rounds = int(words[0]) if words else 7
    for code in CODES.values():  # fills the file cache, and writes the bytecode
        cpu_seconds(code)
    times: dict[str, list[float]] = {name: [] for name in CODES}
    for turn in range(rounds):
        for name in list(CODES) if turn % 2 else reversed(CODES):
            times[name].append(cpu_seconds(CODES[name]))
    alone, ours = times.values()
    ratio = statistics.median(mine / other for mine, other in zip(ours, alone))
    medians = {name: round(statistics.median(values), 3) for name, values in times.items()}
    print(json.dumps({"cpu_seconds": medians, "ratio": round(ratio, 4), "rounds": rounds, "limit": 1 + LIMIT}))
    return int(ratio > 1 + LIMIT)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
