"""Archives stay inside their folder, go on after a kill, and are refused whole where one member is unsafe."""

from __future__ import annotations

import stat
import zipfile
from pathlib import Path

import pytest
from data.file_server import make_zip

from llava_prumerge.data import archive as archives
from llava_prumerge.data.archive import ArchiveError, unpack

FILES = {"1.jpg": b"one", "more/2.jpg": b"two" * 100, "more/deep/3.jpg": b""}


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("prefix", ["", "images/", "data/images/"])
def test_a_leading_folder_of_the_same_name_is_the_folder(tmp_path: Path, prefix: str) -> None:
    archive, sizes = make_zip(tmp_path / "a.zip", FILES, prefix), []
    with zipfile.ZipFile(archive, "a") as opened:
        opened.writestr("__MACOSX/._1.jpg", "junk")
        opened.mkdir("empty")
    assert unpack(archive, tmp_path / "gqa" / "images", sizes.append) == 3
    assert tree(tmp_path / "gqa" / "images") == FILES and sorted(sizes) == [0, 3, 300]


def test_a_folder_of_another_name_stays(tmp_path: Path) -> None:
    assert unpack(make_zip(tmp_path / "a.zip", FILES, "00453/"), tmp_path / "images") == 3
    assert (tmp_path / "images" / "00453" / "1.jpg").read_bytes() == b"one"


UNSAFE = ["../x.jpg", "a/../../x.jpg", "/x.jpg", "a//x.jpg", "./x.jpg", "C:/x.jpg", "a\\..\\x.jpg", "a\nb.jpg", ".."]


@pytest.mark.parametrize("name", UNSAFE)
def test_a_name_that_leaves_the_folder_refuses_the_whole(tmp_path: Path, name: str) -> None:
    archive = make_zip(tmp_path / "a.zip", {"ok.jpg": b"1", name: b"2"})
    with pytest.raises(ArchiveError, match="is no name for a file inside a folder"):
        unpack(archive, tmp_path / "in" / "images")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.zip"]


def special(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, mode << 16
    return info


def test_links_devices_passwords_doubles_and_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive, folder = tmp_path / "a.zip", tmp_path / "images"
    for mode in (stat.S_IFLNK | 0o777, stat.S_IFIFO | 0o600):
        with zipfile.ZipFile(archive, "w") as opened:
            opened.writestr(special("link", mode), "/etc")
        with pytest.raises(ArchiveError, match="'link' is a link or a device"):
            unpack(archive, folder)
    with zipfile.ZipFile(archive, "w") as opened, pytest.warns(UserWarning, match="Duplicate"):
        opened.writestr("a.jpg", "1")
        opened.writestr("a.jpg", "2")
    with pytest.raises(ArchiveError, match=r"holds 'a\.jpg' twice"):
        unpack(archive, folder)
    make_zip(archive, {"a.jpg": b"1"})
    content = bytearray(archive.read_bytes())
    content[content.index(b"PK\1\2") + 8] |= 1
    archive.write_bytes(content)
    with pytest.raises(ArchiveError, match="has a password"):
        unpack(archive, folder)
    with pytest.raises(ArchiveError, match=r"would grow from .* to 10,000,000 bytes, more than 100 times"):
        unpack(make_zip(archive, {"a.jpg": bytes(10_000_000)}), folder)
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda folder: _Usage())
    with pytest.raises(ArchiveError, match=r"needs 303 more bytes, .* has 10 free"):
        unpack(make_zip(archive, FILES), folder)
    assert not folder.exists()


class _Usage:
    free = 10


def test_damage_is_named(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {"a.jpg": bytes(range(256)) * 20})
    content = archive.read_bytes()
    for broken in (content[:-30], b"", content.replace(content[60:80], bytes(20))):
        archive.write_bytes(broken)
        with pytest.raises(ArchiveError, match=r"a\.zip is damaged or no zip file"):
            unpack(archive, tmp_path / "images")
        assert not list((tmp_path / "images").glob("*.jpg"))


def test_a_second_run_writes_only_what_is_missing(tmp_path: Path) -> None:
    archive, folder = make_zip(tmp_path / "a.zip", FILES), tmp_path / "images"
    unpack(archive, folder)
    (folder / "1.jpg").write_bytes(b"eno")  # of the right size: not looked into
    (folder / "more" / "2.jpg").rename(folder / "more" / ".2.jpg.unfinished")  # as a kill leaves it
    assert unpack(archive, folder) == 3
    assert tree(folder) == FILES | {"1.jpg": b"eno"}
    (folder / "1.jpg").write_bytes(b"a file of the user's")
    with pytest.raises(ArchiveError, match=r"1\.jpg is there with 20 bytes, not 3; move it away"):
        unpack(archive, folder)
    assert (folder / "1.jpg").read_bytes() == b"a file of the user's"


def test_a_link_in_the_folder_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "images" / "more").symlink_to(tmp_path / "outside")
    with pytest.raises(ArchiveError, match="more is a link out of"):
        unpack(make_zip(tmp_path / "a.zip", {"more/2.jpg": b"2"}), tmp_path / "images")
    assert not list((tmp_path / "outside").iterdir())
    (tmp_path / "disk").mkdir()
    (tmp_path / "linked").symlink_to(tmp_path / "disk")  # the folder itself may lie elsewhere
    assert unpack(make_zip(tmp_path / "a.zip", FILES), tmp_path / "linked") == 3 and tree(tmp_path / "disk") == FILES
