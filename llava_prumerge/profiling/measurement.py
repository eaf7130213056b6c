"""One cell of the latency matrix: its times, each part's floor, the ratios that are asked about, and peak memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch

from llava_prumerge.efficiency.roofline import honest_seconds, products
from llava_prumerge.efficiency.shapes import ModelShape
from llava_prumerge.efficiency.tokens import TokenCounts, constant_counts
from llava_prumerge.profiling.machine import Peaks, find_peaks
from llava_prumerge.profiling.parts import ALL, STOCK, Subject, System, Workload
from llava_prumerge.profiling.timing import peak_memory, ratios, spread, take_turns

FLOORS = ("tower", "projector", "prefill", "decode")
"""Parts whose least time the roofline model knows; the whole way's is the sum of them."""


def counts_of_tokens(shape: ModelShape, tokens: int, text: int) -> TokenCounts:
    """The layout of a system: the whole tower, then so many visual tokens."""
    return replace(constant_counts(shape, tokens, text), projected=tokens)


def floors_of(shape: ModelShape, setting: Workload, tokens: int, peaks: Peaks, width: int) -> dict[str, float]:
    """Least seconds of each part by the roofline model, at the peaks of the machine.

    Args:
        shape: of the model.
        setting: its batch and lengths.
        tokens: visual tokens of each image.
        peaks: of the machine.
        width: bytes per number.
    """
    counts, machine, fused = (
        counts_of_tokens(shape, tokens, setting.prompt),
        peaks.hardware(width),
        setting.attn != "eager",
    )
    middle = max(1, setting.answer // 2)  # decoding grows its cache: that of the answer's middle
    found = honest_seconds(shape, counts, machine, fused=fused, batch=setting.batch, written=middle)
    found["end to end"] = sum(found[part] for part in ("tower", "projector", "prefill"))
    found["end to end"] += (setting.answer - 1) * found["decode"]  # the prefill gives the first token
    return found


@torch.inference_mode()
def measure_cell(
    subject: Subject,
    setting: Workload,
    systems: Sequence[System],
    repeats: int,
    seconds: float | None = None,
) -> dict[str, Any]:
    """Measure one cell.

    Args:
        subject: the model.
        setting: batch and lengths.
        systems: ways to run it, all tokens first.
        repeats, seconds: see `take_turns`.

    Returns:
        The setting with `parts` (times, floors, shares of the floor), `ratios`, `memory` and the machine's `peaks`.
    """
    before = find_peaks(subject.device, subject.dtype)
    times = take_turns(subject.actions(setting, systems), subject.device, repeats, seconds=seconds)
    peaks = before.best(find_peaks(subject.device, subject.dtype))
    width = torch.finfo(subject.dtype).bits // 8
    tokens = {system.name: system.tokens for system in systems} | {STOCK: subject.shape.vision.patches}
    floors = {number: floors_of(subject.shape, setting, number, peaks, width) for number in set(tokens.values())}
    parts = []
    for name, values in times.items():
        part, system = name.split("|")
        own = tokens[system.removeprefix(f"{STOCK}, ")]
        row: dict[str, Any] = {"part": part, "system": system, "tokens": own, "ms": spread(values, 1e3)}
        if part in floors[own] and not (part == "tower" and system == STOCK):
            floor = 1e3 * floors[own][part]
            row |= {"floor_ms": round(floor, 5), "share_of_floor": round(floor / row["ms"]["median"], 4)}
        parts.append(row)
    return {
        **asdict(setting),
        "peaks": asdict(peaks),
        "parts": parts,
        "ratios": compare(times, subject.shape, setting, systems),
        "memory": memory_of(subject, setting, systems),
    }


def compare(
    times: dict[str, list[float]], shape: ModelShape, setting: Workload, systems: Sequence[System]
) -> list[dict[str, Any]]:
    """The ratios a reader asks for, each round's own, with what arithmetic promises where it does.

    `gain` is how many times faster, `share` how large a part of something, `cost` how long compared with the stock model.
    """
    found: list[dict[str, Any]] = [
        {"what": "tower, share of the stock tower", "ratio": ratios(times[f"tower|{ALL}"], times[f"tower|{STOCK}"])}
    ]
    found[0]["promised"] = round(shape.vision.run / shape.vision.blocks, 4)
    full = systems[0]
    work = products(shape, counts_of_tokens(shape, full.tokens, setting.prompt))
    for system in systems:
        if f"decode|{system.name}" in times:
            ours, theirs = (times[f"decode|{label}"] for label in (system.name, f"{STOCK}, {system.name}"))
            found.append(
                {
                    "what": f"decode, cost at {system.tokens} tokens in the cache beside the prompt",
                    "ratio": ratios(ours, theirs),
                }
            )
        if system is full:
            continue
        if f"prefill|{system.name}" in times:
            less = work / products(shape, counts_of_tokens(shape, system.tokens, setting.prompt))
            gain = ratios(times[f"prefill|{ALL}"], times[f"prefill|{system.name}"])
            reached = {"promised": round(less, 4), "reached": round(gain["median"] / less, 4)}
            found.append(
                {"what": f"prefill, gain of {system.tokens} over {full.tokens} tokens", "ratio": gain, **reached}
            )
        found.append(
            {
                "what": f"reducer, share of the tower: {system.name}",
                "ratio": ratios(times[f"reducer|{system.name}"], times[f"tower|{ALL}"]),
            }
        )
        for before in (ALL, STOCK):
            ratio = ratios(times[f"end to end|{before}"], times[f"end to end|{system.name}"])
            found.append({"what": f"end to end, gain of {system.name} over {before}", "ratio": ratio})
    found.append(
        {
            "what": "end to end, gain of all tokens over stock",
            "ratio": ratios(times[f"end to end|{STOCK}"], times[f"end to end|{ALL}"]),
        }
    )
    return found


def memory_of(subject: Subject, setting: Workload, systems: Sequence[System]) -> list[dict[str, Any]]:
    """Peak memory of the whole way beyond the weights, and the weights."""
    weights = sum(value.numel() * value.element_size() for value in subject.model.parameters())
    pixels = subject.draw(setting.batch, 3, subject.shape.vision.image, subject.shape.vision.image)
    found: list[dict[str, Any]] = [{"system": "weights", "mb": round(weights / 1e6, 1)}]
    for system in systems:
        action = subject.generation(system, setting, pixels)
        model = action.prepare()
        peak = peak_memory(partial(action.run, model), subject.device)
        found.append({"system": system.name, "mb": None if peak is None else round(peak / 1e6, 1)})
    return found
