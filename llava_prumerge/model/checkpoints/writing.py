"""Writing: safetensors tensor by tensor, in shards with an index."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from llava_prumerge.ground.files import write_json
from llava_prumerge.model.checkpoints.plan import Entry
from llava_prumerge.model.checkpoints.weights import DTYPES, Reader

SHARD_BYTES = 5 * 10**9  # as on the Hub
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def write_model(folder: Path, entries: list[Entry], reader: Reader, shard_bytes: int = SHARD_BYTES) -> list[Path]:
    """Write a whole model's weights as transformers names them. -> the files"""
    groups = split(entries, shard_bytes)
    if len(groups) == 1:
        files = [folder / "model.safetensors"]
    else:
        files = [folder / f"model-{n:05d}-of-{len(groups):05d}.safetensors" for n in range(1, len(groups) + 1)]
        index = {
            "metadata": {"total_size": sum(entry.bytes for entry in entries)},
            "weight_map": {entry.key: file.name for file, group in zip(files, groups, strict=True) for entry in group},
        }
        write_json(folder / "model.safetensors.index.json", index)
    for file, group in zip(files, groups, strict=True):
        write_tensors(file, group, reader)
    return files


def split(entries: list[Entry], shard_bytes: int) -> list[list[Entry]]:
    """Cut a list into shards of at most so many bytes, in order; a larger tensor has a shard of its own."""
    groups: list[list[Entry]] = [[]]
    filled = 0
    for entry in entries:
        if groups[-1] and filled + entry.bytes > shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(entry)
        filled += entry.bytes
    return groups


def write_tensors(file: Path, entries: list[Entry], reader: Reader) -> None:
    """Write one safetensors file, holding one tensor at a time.

    The format is a header (its length in eight bytes, then JSON with each tensor's type, shape and place) and the bytes of the
    tensors without gaps; wide types come first, so that each begins at a multiple of its size.
    """
    entries = sorted(entries, key=lambda entry: -entry.dtype.itemsize)
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    place = 0
    for entry in entries:
        span = [place, place + entry.bytes]
        header[entry.key] = {"dtype": _NAMES[entry.dtype], "shape": list(entry.shape), "data_offsets": span}
        place = span[1]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("xb") as opened:
        opened.write(struct.pack("<Q", len(text)) + text)
        for entry in entries:
            opened.write(entry.read_bytes(reader))
