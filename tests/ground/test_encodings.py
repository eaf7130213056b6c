"""Text that is no UTF-8: what the file is instead, the line and the byte, how to convert it; whole and in blocks alike."""

from __future__ import annotations

import gzip
import io
import subprocess
import zipfile
from pathlib import Path

import pytest

from llava_prumerge.ground import encodings
from llava_prumerge.ground.encodings import decode_text, read_text_blocks
from llava_prumerge.ground.errors import FileError
from llava_prumerge.ground.yaml_files import MOST_VALUES, parse_yaml, read_yaml


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("xl/workbook.xml", "<workbook/>")
    return file.getvalue()


TEXT = '[{"id": "ä", "text": "猫 🙂"}]\n'
OTHERS = {
    "UTF-16": (TEXT.encode("utf-16"), "it is UTF-16, not UTF-8; convert it: iconv -f UTF-16 -t UTF-8"),
    "UTF-16 without a mark": (TEXT.encode("utf-16-le"), "it looks like UTF-16LE"),
    "UTF-16BE without a mark": ("plain text".encode("utf-16-be"), "it looks like UTF-16BE"),
    "UTF-32": (TEXT.encode("utf-32"), "it is UTF-32, not UTF-8; convert it: iconv -f UTF-32"),
    "Latin-1": (
        "erste\n\nzweite Bär\n".encode("latin-1"),
        "line 3: byte 0xe4 is not UTF-8, at byte 9 of the line; .* LATIN1",
    ),
    "Windows": ("it’s".encode("cp1252"), "line 1: byte 0x92 is not UTF-8, at byte 3 .* WINDOWS-1252"),
    "cut in a character": ("ä猫".encode()[:-1], "line 1: byte 0xe7 is not UTF-8, at byte 3"),
    "gzip": (gzip.compress(TEXT.encode()), "it is a gzip file, whatever it is called; unpack it: gunzip"),
    "workbook": (zipped(), "it is a zip file, as workbooks .*save the sheet"),
    "image": (b"\x89PNG\r\n\x1a\n", "it is a PNG image"),
    "Parquet": (b"PAR1\x15\x04", "it is a Parquet file"),
    "pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n",
        "a Git LFS pointer.*git lfs pull",
    ),
    "web page": (b"\n<!DOCTYPE html><html>", "it is a web page"),
    "a hole": (
        b'[{"id": 1},\n' + bytes(4096),
        "line 2: byte 0x00 is in no text, at byte 1 of the line; the file is damaged",
    ),
    "noise": (b"\xf1" + bytes(range(1, 32)) * 9, "line 1: byte 0xf1 is not UTF-8, at byte 1 of the line; .*no text"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_it_is_where_and_what_to_do(kind: str, tmp_path: Path) -> None:
    content, message = OTHERS[kind]
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(FileError, match=message) as caught:
        decode_text(content, path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    with path.open("rb") as file, pytest.raises(FileError) as again:
        list(read_text_blocks(file, path))
    assert str(again.value) == str(caught.value)


@pytest.mark.parametrize("block", [1, 2, 3, 5, 1 << 20])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_blocks_give_the_same_text_and_the_same_place(
    block: int, mark: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encodings, "BLOCK", block)
    path = tmp_path / "a"
    whole = "\ufeff".join(["", "aä\n猫🙂\r\n", "x\n"]) if mark else "aä\n猫🙂\r\n\ufeffx\n"
    path.write_bytes(whole.encode())
    with path.open("rb") as file:
        assert (
            "".join(read_text_blocks(file, path)) == whole.removeprefix("\ufeff") == decode_text(whole.encode(), path)
        )
    path.write_bytes(mark + "ok\nBü".encode() + b"\xe4r")
    with (
        path.open("rb") as file,
        pytest.raises(FileError, match=r"line 2: byte 0xe4 is not UTF-8, at byte 4 of the line"),
    ):
        list(read_text_blocks(file, path))


def test_the_command_in_the_message_converts(tmp_path: Path) -> None:
    """What the message says to type makes the file readable."""
    for encoding in ("latin-1", "utf-16"):
        path = tmp_path / f"{encoding}.txt"
        path.write_bytes("Bär\n".encode(encoding))
        with pytest.raises(FileError) as caught:
            decode_text(path.read_bytes(), path)
        command = (
            str(caught.value).partition("convert it: ")[2].replace("FILE", str(path)).replace("NEW", f"{path}.new")
        )
        subprocess.run(command, shell=True, check=True)
        assert decode_text(Path(f"{path}.new").read_bytes(), path) == "Bär\n"


BOMB = (
    "a: &a ["
    + "1, " * 9
    + "1]\n"
    + "".join(f"{b}: &{b} [{f'*{a}, ' * 9}*{a}]\n" for a, b in zip("abcdefgh", "bcdefghi"))
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: {c: 2, 'c': 3}\n", "line 2, column 11: not valid YAML: the key 'c' stands here a second time"),
        (BOMB, f"it holds more than {MOST_VALUES:,} values"),
        ("a: &x [*x]", "line 1: a value holds itself"),
        ("[" * 5000, "nested too deeply"),
        ("a: [1", "line 1, column 6: not valid YAML"),
        ("? [1]\n: 2", "unhashable key"),
        ("!!timestamp x", "a value is not what it should be"),
        ("2024-13-45", "a value is not what it should be"),
        ("a: " + "9" * 9999, "a value is not what it should be"),
        ("!!python/object:os.system x", "could not determine a constructor"),
        ("--- 1\n--- 2\n", "line 2, column 1: not valid YAML: but found another document"),
        ("a\x07b", "not valid YAML: unacceptable character"),
    ],
)
def test_yaml_that_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(FileError, match=message) as caught:
        read_yaml(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_yaml_that_is_read(tmp_path: Path) -> None:
    assert parse_yaml("a: &x {b: [1, 2.5, yes]}\nc: {<<: *x, d: é}\n", "a") == {
        "a": {"b": [1, 2.5, True]},
        "c": {"b": [1, 2.5, True], "d": "é"},
    }
    assert parse_yaml("# nothing\n", "a") is None
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbfkey: value\r\n")
    assert read_yaml(tmp_path / "a") == {"key": "value"}
