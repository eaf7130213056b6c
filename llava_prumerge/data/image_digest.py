"""What the images, or videos, that records or questions name look like, as one hash: so that a changed image is noticed."""

from __future__ import annotations

import hashlib
import heapq
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from llava_prumerge.data.videos import frame_files

IMAGES_READ = 2048
_READ_AT_ONCE = 1 << 20


def digest_images(folder: Path, names: Iterable[str]) -> dict[str, Any]:
    """A hash over names and content of images, of 2048 of them where there are more.

    Args:
        folder: what the names are relative to.
        names: of all images, in the order of the records; some may be missing, which the hash tells as well.
    """
    digest, distinct = hashlib.sha256(), set()
    for name in names:
        digest.update(f"{name}\0".encode())
        distinct.add(name)
    read = heapq.nsmallest(IMAGES_READ, distinct, key=lambda name: hashlib.sha256(name.encode()).digest())
    for name in read:
        digest.update(_image_digest(folder, name))
    return {"sha256": digest.hexdigest(), "count": len(distinct), "read": len(read)}


def _image_digest(folder: Path, name: str) -> bytes:
    digest = hashlib.sha256()
    try:
        if os.path.isdir(os.path.join(folder, name)):  # a video's frames
            for frame in frame_files(Path(folder, name)):
                digest.update(frame.name.encode() + _image_digest(frame.parent, frame.name))
            return digest.digest()
        with open(os.path.join(folder, name), "rb") as file:
            while piece := file.read(_READ_AT_ONCE):
                digest.update(piece)
    except (OSError, ValueError):  # no image there, or no name for one: the records' check deals with it
        return b"missing"
    return digest.digest()
