"""Kernels, launch gaps and host waits of the reduction, the tower, the prefill and a decoding step on a GPU.

    python -m llava_prumerge.profiling.kernels --methods NAME=TOKENS... --model llava-1.5-7b --batch 1 8
    python -m llava_prumerge.profiling.kernels --methods NAME=TOKENS --model pocket --device cpu --dtype float32   # tries it

At batch 1 a GPU often waits for the host to launch the next kernel. So each part is told by how many kernels it
launches, how long they keep the GPU busy, how long the part takes by CUDA events, and how often the host waits for the
GPU. On a CPU the operators that Python calls are counted in the kernels' place. `compiled` is the same reduction at a
fixed budget under `torch.compile(mode="reduce-overhead")`, which replays one CUDA graph.
"""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from torch.profiler import ProfilerActivity, profile

from llava_prumerge.efficiency.options import MODEL, columns
from llava_prumerge.efficiency.shapes import model_shape
from llava_prumerge.ground.command import Parser, command
from llava_prumerge.ground.files import write_json
from llava_prumerge.methods.base import VisionTokens
from llava_prumerge.methods.plugins import add_plugin_option
from llava_prumerge.profiling.latency import DTYPES, find_device, parse_method
from llava_prumerge.profiling.machine import describe
from llava_prumerge.profiling.parts import ALL, STOCK, Subject, System, Workload, make_systems
from llava_prumerge.profiling.random_model import cut_down
from llava_prumerge.profiling.timing import Action, ratios, spread, take_turns

ASKED = ("tower", "reducer", "prefill", "decode")
TOP = 8
"""Kernels listed of each part, those that take longest."""


def kernels_of(action: Action, device: torch.device) -> dict[str, Any]:
    """Kernels one run launches, the time they keep the device busy, and the longest of them.

    Returns:
        `kernels` (copies and fills counted apart in `copies`), `busy_ms` and `top`: [name, count, ms]. On a CPU the
        operators that no other operator calls, and the time spent in them.
    """
    gpu = device.type == "cuda"
    given = action.prepare()
    with profile(activities=[ProfilerActivity.CUDA if gpu else ProfilerActivity.CPU]) as seen:
        action.run(given)
        if gpu:
            torch.cuda.synchronize(device)
    counts, times = Counter[str](), Counter[str]()
    for event in seen.events():
        on_device = event.device_type == torch.autograd.DeviceType.CUDA
        if on_device != gpu or (not gpu and event.cpu_parent is not None):
            continue
        counts[event.name] += 1
        times[event.name] += event.device_time_total if gpu else event.cpu_time_total  # in microseconds
    copies = sum(count for name, count in counts.items() if name.startswith(("Memcpy", "Memset")))
    steps = action.times
    return {
        "kernels": round((sum(counts.values()) - copies) / steps, 1),
        "copies": round(copies / steps, 1),
        "busy_ms": round(sum(times.values()) / 1e3 / steps, 4),
        "top": [[name[:100], counts[name], round(time / 1e3, 4)] for name, time in times.most_common(TOP)],
    }


def host_waits(action: Action, device: torch.device) -> list[str]:
    """Places, FILE:LINE, at which the host waited for the GPU in one run; none on a CPU."""
    given = action.prepare()
    if device.type != "cuda":
        return []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            action.run(given)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    told = [warning for warning in caught if "called a synchronizing" in str(warning.message)]
    return [f"{'/'.join(Path(warning.filename).parts[-2:])}:{warning.lineno}" for warning in told]


def reductions(subject: Subject, system: System, setting: Workload) -> dict[str, Action]:
    """The reduction without the projections it asks for, as it is and compiled at a fixed budget."""
    pixels = subject.draw(setting.batch, 3, subject.shape.vision.image, subject.shape.vision.image)
    reducer, model = system.reducer, cast(Any, subject.adopt(system).model)
    assert reducer is not None
    tower = model.encode_images(pixels)
    given = (tower.features, *tower.projections())
    ids = torch.arange(setting.batch, device=subject.device)

    def reduce(features: torch.Tensor, queries: torch.Tensor, keys: torch.Tensor) -> Any:
        image = VisionTokens(features, tower.grid, lambda own=False: (queries, keys), tower.heads, ids=ids)
        return reducer(image)

    found = {f"reducer alone|{system.name}": Action(lambda _: reduce(*given))}
    if reducer.budget is not None and subject.device.type == "cuda":
        torch.compiler.reset()
        whole = torch.compile(reduce, fullgraph=True, mode="reduce-overhead")
        for _ in range(3):  # compiles, records the graph, replays it
            whole(*given)
        found[f"reducer alone, compiled|{system.name}"] = Action(lambda _: whole(*given))
    return found


@torch.inference_mode()
def measure(subject: Subject, setting: Workload, systems: list[System], repeats: int) -> Iterator[dict[str, Any]]:
    """Each part of one setting: kernels, busy time, time by events, host waits, share of the tower."""
    whole = subject.actions(setting, systems)
    actions = {name: action for name, action in whole.items() if name.split("|")[0] in ASKED}
    for system in systems:
        if system.reducer is not None and not system.reducer.reads_prompt and system.reducer.site == "tower":
            actions |= reductions(subject, system, setting)
    times = take_turns(actions, subject.device, repeats, warmup=2)
    for name, action in actions.items():
        part, label = name.split("|")
        row: dict[str, Any] = {"batch": setting.batch, "part": part, "system": label, "ms": spread(times[name], 1e3)}
        row |= kernels_of(action, subject.device) | {"waits": host_waits(action, subject.device)}
        row["busy_share"] = round(row["busy_ms"] / row["ms"]["median"], 4)
        if part.startswith("reducer"):
            row["share_of_tower"] = ratios(times[name], times[f"tower|{ALL}"])
        if part == "decode" and not label.startswith(STOCK) and (twin := f"decode|{STOCK}, {label}") in times:
            row["times_stock"] = ratios(times[name], times[twin])
        yield row


def as_text(result: dict[str, Any]) -> str:
    """The rows as a table."""
    rows: list[tuple[str, ...]] = [("batch", "part", "system", "ms", "kernels", "busy", "host waits", "ratio")]
    for row in result["rows"]:
        ratio = ""
        if share := row.get("share_of_tower"):
            ratio = f"{share['median']:.2%} ({share['q1']:.2%} to {share['q3']:.2%}) of the tower"
        elif cost := row.get("times_stock"):
            ratio = f"{cost['median']:.3f} ({cost['q1']:.3f} to {cost['q3']:.3f}) of stock"
        told = (
            f"{row['ms']['median']:.3f}",
            f"{row['kernels']:.0f}",
            f"{row['busy_share']:.0%}",
            f"{len(row['waits'])}",
        )
        rows.append((str(row["batch"]), row["part"], row["system"], *told, ratio))
    return columns(rows, left=3)


@command()
def main(words: list[str]) -> None:
    """The command."""
    parser = Parser("llava_prumerge.profiling.kernels", __doc__)
    parser.add_argument("--model", default=MODEL, help=f"a shape or the path of a config.json (default: {MODEL})")
    parser.add_argument("--layers", type=int, metavar="N", help="decoder layers (default: all)")
    parser.add_argument("--blocks", type=int, metavar="N", help="tower blocks that run (default: all)")
    parser.add_argument("--methods", nargs="+", required=True, metavar="NAME=TOKENS")
    add_plugin_option(parser)
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--prompt", type=int, default=40)
    parser.add_argument("--answer", type=int, default=8, help="decoding steps measured (default: %(default)s)")
    parser.add_argument("--dtype", default="bfloat16", choices=sorted(DTYPES))
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: a GPU where there is one)")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--out", metavar="FILE.json")
    given = parser.parse_args(words)
    device = find_device(given.device)
    shape = cut_down(model_shape(given.model), given.layers, given.blocks)
    systems = make_systems([parse_method(written) for written in given.methods], shape.vision.side)
    subject = Subject(shape, DTYPES[given.dtype], "sdpa", device)
    result: dict[str, Any] = {"what": "kernels", "machine": describe(device), "model": shape.name}
    result |= {"dtype": given.dtype, "prompt": given.prompt, "rows": []}
    for batch in given.batch:
        for row in measure(subject, Workload(batch, given.prompt, given.answer, given.dtype), systems, given.repeats):
            result["rows"].append(row)
            if given.out:
                write_json(given.out, result, indent=1)
    print(as_text(result))  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
