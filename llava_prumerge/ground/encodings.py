"""What a file is that should be text in UTF-8 and is not, where it stops being that, and how to convert it."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from typing import IO

from llava_prumerge.ground.errors import AnyPath, FileError, naming

BLOCK = 1 << 20
_MARKS = (  # UTF-32's first mark begins with UTF-16's
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
_KINDS = (
    (b"\x1f\x8b", "a gzip file", "unpack it: gunzip -c FILE > NEW"),
    (b"PK\x03\x04", "a zip file, as workbooks (.xlsx) are", "unpack it, or save the sheet as text"),
    (b"PK\x05\x06", "an empty zip file", "it was made or copied wrongly"),
    (b"BZh", "a bzip2 file", "unpack it: bunzip2 -c FILE > NEW"),
    (b"\xfd7zXZ", "an xz file", "unpack it: xz -dc FILE > NEW"),
    (b"\x28\xb5\x2f\xfd", "a zstd file", "unpack it: zstd -dc FILE > NEW"),
    (b"7z\xbc\xaf", "a 7z archive", "unpack it"),
    (
        b"PAR1",
        "a Parquet file",
        "write it as JSON lines: pandas.read_parquet(FILE).to_json(NEW, orient='records', lines=True)",
    ),
    (b"ARROW1", "an Arrow file", "write it as JSON lines"),
    (b"\xd0\xcf\x11\xe0", "an old Office file, as workbooks (.xls) are", "save the sheet as text"),
    (b"\x89PNG", "a PNG image", "name the text file"),
    (b"\xff\xd8\xff", "a JPEG image", "name the text file"),
    (b"%PDF", "a PDF", "name the text file"),
    (b"\x80\x02", "a pickle", "write it as JSON"),
)
_POINTER = b"version https://git-lfs.github.com/spec/"
_PAGE = re.compile(rb"\s*<(!doctype html|html|\?xml)", re.IGNORECASE)
_SAMPLE = 512


def decode_text(content: bytes, path: AnyPath, line: int = 1) -> str:
    """The text in the bytes of a file in UTF-8, with or without a byte order mark.

    Args:
        content: the file's bytes, or those of one line.
        path: the file, for the message.
        line: the number of the first line, for the message.

    Raises:
        FileError: they are something else: what, from which place on, and how to convert it.
    """
    return "".join(_Decoder(path, line).feed(content, last=True))


def read_text_blocks(file: IO[bytes], path: AnyPath) -> Iterator[str]:
    """The text of an open file, block by block: what `decode_text` gives, without holding it whole.

    Raises:
        FileError: as `decode_text`, once the place is reached; or it cannot be read.
    """
    decoder = _Decoder(path, 1)
    with naming(path, "cannot be read"):
        while content := file.read(BLOCK):
            yield from decoder.feed(content)
        yield from decoder.feed(b"", last=True)


class _Decoder:
    """Bytes to text in pieces, which knows how far it has come."""

    def __init__(self, path: AnyPath, line: int) -> None:
        self.path, self.line, self.column, self.begun = path, line, 0, False
        self.kept = b""  # the last bytes of a block, if they are the first of a character

    def feed(self, content: bytes, last: bool = False) -> Iterator[str]:
        """The text in the next bytes."""
        if not self.begun and (known := what_is(self.kept + content)):
            raise FileError(self.path, known)
        content = self.kept + content
        try:
            text, used = codecs.utf_8_decode(content, "strict", last)
        except UnicodeDecodeError as error:
            raise self._fault(content, error.start, "is not UTF-8") from error
        if (at := content.find(b"\0")) >= 0:
            raise self._fault(content, at, "is in no text")
        self.kept = content[used:]
        if not self.begun and text:
            self.begun, text = True, text.removeprefix("\ufeff")
        self.line, self.column = self._position(content, used)
        if text:
            yield text

    def _position(self, content: bytes, at: int) -> tuple[int, int]:
        """The line of a byte, and how many bytes stand before it there."""
        breaks = content.count(b"\n", 0, at)
        return self.line + breaks, at - content.rfind(b"\n", 0, at) - 1 if breaks else self.column + at

    def _fault(self, content: bytes, at: int, what: str) -> FileError:
        line, column = self._position(content, at)
        place = f"line {line}: byte 0x{content[at]:02x} {what}, at byte {column + 1:,} of the line"
        return FileError(self.path, f"{place}; {_remedy(content, at)}")


def what_is(content: bytes) -> str | None:
    """What a file is by its first bytes, where that is no UTF-8 text, and what to do with it; None where it may be."""
    for mark, name in _MARKS:
        if content.startswith(mark):
            return f"it is {name}, not UTF-8; convert it: iconv -f {name} -t UTF-8 FILE > NEW"
    for magic, name, remedy in _KINDS:
        if content.startswith(magic):
            return f"it is {name}, whatever it is called; {remedy}"
    if content.startswith(_POINTER):
        return "it is a Git LFS pointer, not the file itself; fetch the file: git lfs pull"
    if _PAGE.match(content):
        return "it is a web page (HTML), so the download went wrong; fetch the file again"
    sample = content[:_SAMPLE]
    for first, name in ((1, "UTF-16LE"), (0, "UTF-16BE")):
        if len(sample) >= 4 and sample[first::2].count(0) > len(sample) // 3 and not sample[1 - first :: 2].count(0):
            return f"it looks like {name}, not UTF-8; convert it: iconv -f {name} -t UTF-8 FILE > NEW"
    return None


def _remedy(content: bytes, at: int) -> str:
    """What a byte that is not UTF-8 suggests."""
    window = content[max(at - _SAMPLE, 0) : at + _SAMPLE]
    if content[at] == 0 or sum(byte < 32 and byte not in b"\t\n\r\f" for byte in window) > len(window) // 10:
        return "the file is damaged, or no text"
    name, code = ("from Windows", "WINDOWS-1252") if 0x80 <= content[at] < 0xA0 else ("Latin-1", "LATIN1")
    return f"if the file is {name}, convert it: iconv -f {code} -t UTF-8 FILE > NEW"
