"""What a record file costs each rank in memory, measured: python -m llava_prumerge.data.footprint

Makes a file of as many records as LLaVA's stage 2 has, with as much text, and opens it in several processes at once as
training does: record file, sampling order, replacements for bad samples, and rows read at random. Private memory is what one
more rank costs; pages of the Arrow file are shared by all of them and given back when memory is short. Linux only.
"""

# ruff: noqa: T201 (a command prints)

from __future__ import annotations

import json
import multiprocessing
import random
import sys
import tempfile
import time
from itertools import islice
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

from llava_prumerge.ground.command import Parser, command
from llava_prumerge.ground.errors import CannotGoOn
from llava_prumerge.ground.files import whole_text

RECORDS = 665_298
BYTES_PER_RECORD = 1_550  # of llava_v1_5_mix665k.json, which has 1.03 GB
TEXT_ONLY = 40_688 / RECORDS
_SMAPS = Path("/proc/self/smaps_rollup")
_READ = 20_000
_WORDS = [
    "the",
    "a",
    "red",
    "blue",
    "cat",
    "dog",
    "image",
    "shows",
    "two",
    "people",
    "near",
    "table",
    "what",
    "is",
    "colour",
    "of",
    "there",
    "on",
    "left",
    "right",
    "small",
]


def memory() -> dict[str, float]:
    """Private and resident memory of this process, in MB."""
    if not _SMAPS.exists():
        raise CannotGoOn(f"{_SMAPS} is missing; private memory can be measured on Linux only")
    lines = (line.split() for line in _SMAPS.read_text().splitlines()[1:])
    kilobytes = {fields[0].rstrip(":"): int(fields[1]) for fields in lines}
    private = kilobytes["Private_Clean"] + kilobytes["Private_Dirty"]
    return {"private": private / 1024, "resident": kilobytes["Rss"] / 1024}


def peak_resident() -> float:
    """The most memory this process has had, in MiB. `getrusage` would count that of the process which started it."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024


def write_records(path: Path, count: int) -> None:
    """A file like LLaVA's mix: several turns, one image, now and then none."""
    draw = random.Random(0)
    texts = [" ".join(draw.choices(_WORDS, k=draw.randint(5, 120))) for _ in range(2000)]
    with whole_text(path) as file:
        for index in range(count):
            image = {} if draw.random() < TEXT_ONLY else {"image": f"coco/train2017/{index:012d}.jpg"}
            turns: list[dict[str, str]] = []
            size = 0
            while size < BYTES_PER_RECORD - 250:
                marker = "<image>\n" if image and not turns else ""
                turns += [{"from": "human", "value": marker + draw.choice(texts)}]
                turns += [{"from": "gpt", "value": draw.choice(texts)}]
                size += sum(len(turn["value"]) + 36 for turn in turns[-2:])
            record = {"id": f"{index:012d}", **image, "conversations": turns}
            file.write(("[" if index == 0 else ",\n") + json.dumps(record))
        file.write("]\n")


def convert(path: Path, cache: Path, results: Queue) -> None:
    """A process of its own that writes the Arrow file. Puts what it took at most."""
    from llava_prumerge.data.records import arrow_file

    started = time.perf_counter()
    size = arrow_file(path, cache).stat().st_size
    results.put(
        {"seconds": time.perf_counter() - started, "peak_resident_mb": peak_resident(), "arrow_mb": size / 2**20}
    )


def be_a_rank(path: Path, cache: Path, together: Barrier, results: Queue) -> None:
    """One rank: opens the file when all have loaded their libraries, and measures while all have it open."""
    import transformers  # noqa: F401 (a rank has it, and its memory is no matter of the records)

    from llava_prumerge.data.dataset import LlavaDataset
    from llava_prumerge.data.quarantine import QuarantiningDataset
    from llava_prumerge.data.sampler import GroupedSampler

    together.wait()
    before = memory()
    settings = {"image_token_id": 32000, "image_tokens": 576, "cache_dir": cache}
    # Neither tokens nor pixels are made here.
    dataset = QuarantiningDataset(LlavaDataset(path, path.parent, None, None, "vicuna_v1", **settings))  # type: ignore[arg-type]
    order = iter(GroupedSampler(dataset.lengths, 16, 8))
    together.wait()
    opened = memory()
    rows = [dataset.dataset.rows[next(order)]["images"] for _ in range(min(_READ, len(dataset)))]
    together.wait()
    after = memory()
    together.wait()
    results.put({"before": before, "opened": opened, "read": after, "rows": len(rows), "records": len(dataset)})


def hold_objects(path: Path, count: int, results: Queue) -> None:
    """What LLaVA's own code does in each rank, for the first so many records: Python objects."""
    from llava_prumerge.data.record_files import read_records

    before = memory()
    records = list(islice(read_records(path), count))
    results.put({"private_mb": memory()["private"] - before["private"], "records": len(records)})


def measure(folder: Path, cache: Path, records: int, ranks: int) -> dict[str, Any]:
    """All numbers, in MB. The record file is made in `folder` unless it is there, the Arrow file always anew."""
    context = multiprocessing.get_context("spawn")
    path, results = folder / f"records-{records}.json", context.Queue()
    if not path.exists():
        write_records(path, records)
    converted = _run(context, convert, (path, cache, results), results)
    together = context.Barrier(ranks)
    processes = [context.Process(target=be_a_rank, args=(path, cache, together, results)) for _ in range(ranks)]
    for process in processes:
        process.start()
    found = [results.get(timeout=3600) for _ in processes]
    for process in processes:
        process.join()
    # A part of them: all would take gigabytes from whoever else works here.
    objects = _run(context, hold_objects, (path, -(-records // 10), results), results)
    growth = {
        moment: {
            kind: max(rank[moment][kind] - rank["before"][kind] for rank in found) for kind in ("private", "resident")
        }
        for moment in ("opened", "read")
    }
    return {
        "records": found[0]["records"],
        "file_mb": path.stat().st_size / 2**20,
        "convert": converted,
        "ranks": ranks,
        "rows_read": found[0]["rows"],
        "libraries_private_mb": max(rank["before"]["private"] for rank in found),
        "growth_mb": growth,
        "objects": objects,
    }


def _run(context: Any, target: Any, arguments: tuple[Any, ...], results: Queue) -> dict[str, float]:
    process = context.Process(target=target, args=arguments)
    process.start()
    found = results.get(timeout=3600)
    process.join()
    return found


def describe(found: dict[str, Any]) -> str:
    """The numbers for people."""
    opened, read, convert = found["growth_mb"]["opened"], found["growth_mb"]["read"], found["convert"]
    return "\n".join(
        [
            f"{found['records']:,} records, {found['file_mb']:,.0f} MB of JSON, {convert['arrow_mb']:,.0f} MB of Arrow",
            f"written once: {convert['seconds']:.0f} s, {convert['peak_resident_mb']:,.0f} MB resident at most",
            f"each of {found['ranks']} ranks, above the {found['libraries_private_mb']:,.0f} MB of its libraries:",
            f"  opened, order drawn:   {opened['private']:6.1f} MB private ({opened['resident']:,.0f} MB resident)",
            f"  {found['rows_read']:,} rows read:      {read['private']:6.1f} MB private ({read['resident']:,.0f} MB resident)",
            f"as Python objects {found['objects']['records']:,} of them take {found['objects']['private_mb']:,.0f} MB private",
        ]
    )


@command()
def main(words: list[str]) -> None:
    """Entry point."""
    parser = Parser("llava_prumerge.data.footprint", __doc__)
    parser.add_argument("--records", type=int, default=RECORDS, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--ranks", type=int, default=2, metavar="N", help="processes (default: %(default)s)")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="keep the generated file here")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    args = parser.parse_args(words)
    if args.records < 1 or args.ranks < 1:
        parser.error("--records and --ranks must be at least 1")
    if args.folder:
        args.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
        found = measure(args.folder or Path(temporary), Path(temporary) / "cache", args.records, args.ranks)
    print(json.dumps(found) if args.json else describe(found))


if __name__ == "__main__":
    sys.exit(main())
