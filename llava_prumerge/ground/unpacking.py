"""Compressed content in memory, bounded in what it unpacks to: gzip, the zip files that workbooks are, and tables.

The limit is 2 GiB, or what `$LLAVA_PRUMERGE_MAX_UNPACKED` says: a number of bytes, also as 500M or 8G.
"""

from __future__ import annotations

import io
import os
import re
import zipfile
import zlib

from llava_prumerge.ground.errors import AnyPath, FileError

VARIABLE = "LLAVA_PRUMERGE_MAX_UNPACKED"
DEFAULT = 2 << 30
GZIP, ZIP = b"\x1f\x8b", b"PK"
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_BLOCK = 1 << 20


def most_unpacked() -> int:
    """Bytes that a file may unpack to.

    Raises:
        FileError: the variable is no number of bytes.
    """
    text = os.environ.get(VARIABLE, "").strip().upper()
    if not text:
        return DEFAULT
    found = re.fullmatch(r"([0-9]{1,15})([KMGT]?)B?", text)
    if found is None or not int(found[1]):
        raise FileError(f"${VARIABLE}", f"it must be a number of bytes such as 500M or 8G, not {text[:40]!r}")
    return int(found[1]) * _UNITS[found[2]]


def gunzip(content: bytes, path: AnyPath) -> bytes:
    """The content of a gzip file of one part or several; of what is beyond the limit nothing is unpacked.

    Raises:
        FileError: it is damaged or cut off, or unpacks to more than the limit.
    """
    limit, pieces, size = most_unpacked(), [], 0
    while content:
        part = zlib.decompressobj(zlib.MAX_WBITS | 16)
        try:
            while not part.eof and content:
                piece = part.decompress(content, min(_BLOCK, limit - size + 1))
                pieces.append(piece)
                size += len(piece)
                if size > limit:
                    raise FileError(path, _too_large(limit))
                if not piece and not part.unconsumed_tail:
                    break
                content = part.unconsumed_tail
        except zlib.error as error:
            raise FileError(path, f"cannot be decompressed: {error}") from error
        if not part.eof:
            raise FileError(path, "cannot be decompressed: it is cut off")
        content = part.unused_data.lstrip(b"\0")  # gzip files may be padded
    return b"".join(pieces)


def check_zip(content: bytes, path: AnyPath) -> None:
    """Refuse a zip file that is none, or whose members unpack to more than the limit.

    Raises:
        FileError: as said.
    """
    limit = most_unpacked()
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            total = sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError) as error:
        raise FileError(path, f"it is a damaged zip file ({error})") from error
    if total > limit:
        raise FileError(path, _too_large(limit))


class UnpackedBytes:
    """Counts what several pieces of a file, or several files, unpack to, against the limit."""

    def __init__(self) -> None:
        self.limit, self.size = most_unpacked(), 0

    def check(self, size: int, path: AnyPath) -> None:
        """Refuse bytes that are still to come.

        Raises:
            FileError: with them there are more than the limit.
        """
        if self.size + size > self.limit:
            raise FileError(path, _too_large(self.limit))

    def add(self, size: int, path: AnyPath) -> None:
        """Count bytes that have come; errors as `check`."""
        self.check(size, path)
        self.size += size


def _too_large(limit: int) -> str:
    return f"it unpacks to more than {limit:,} bytes; if that is meant, raise ${VARIABLE}"
