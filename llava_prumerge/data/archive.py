"""Zip files, unpacked into a folder that nothing in them can leave."""

from __future__ import annotations

import os
import re
import shutil
import stat
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path, PureWindowsPath

from llava_prumerge.ground.errors import CannotGoOn
from llava_prumerge.ground.files import whole_file

# Images hardly compress; even text seldom does beyond a tenth.
MAX_RATIO = 100
_JUNK = ("__MACOSX/",)


class ArchiveError(CannotGoOn):
    """An archive that is refused; the message is one line."""


def unpack(archive: Path, folder: Path, advance: Callable[[int], object] = lambda size: None) -> int:
    """Unpacks an archive; what is there already is left alone, so that a killed run goes on. -> number of files

    A leading folder of the archive that is called like `folder` is taken to be it.

    Args:
        archive: a zip file.
        folder: where its files go.
        advance: told the bytes of each file that is in place.

    Raises:
        ArchiveError: before anything is written if a member is unsafe; a file that is in the way or a damaged member later.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [info for info in opened.infolist() if not info.is_dir() and not info.filename.startswith(_JUNK)]
            names = place_members(archive, members, folder.name)
            check_size(archive, members, names, folder)
            folder.mkdir(parents=True, exist_ok=True)
            root, parents = folder.resolve(), set()
            for info, name in zip(members, names, strict=True):
                target = root / name
                if target.parent not in parents:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    if not target.parent.resolve().is_relative_to(root):
                        raise ArchiveError(f"{archive}: {target.parent} is a link out of {folder}")
                    parents.add(target.parent)
                _write_member(opened, info, target)
                advance(info.file_size)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise ArchiveError(f"{archive} is damaged or no zip file ({error}); delete it to fetch it again") from error
    except OSError as error:
        raise ArchiveError(f"{archive} cannot be unpacked to {folder} ({error})") from error
    return len(members)


def place_members(archive: Path, members: list[zipfile.ZipInfo], folder: str) -> list[str]:
    """Each member's path below the folder.

    Raises:
        ArchiveError: a name that leaves the folder, a link, a name that occurs twice, a password.
    """
    parts = []
    for info in members:
        name = info.filename
        split = name.split("/")
        unsafe = re.search(r"[\\\x00-\x1f]", name) or PureWindowsPath(name).drive
        if unsafe or {"", ".", ".."} & set(split):  # an absolute path begins with an empty part
            raise ArchiveError(f"{archive}: {name!r} is no name for a file inside a folder")
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
            raise ArchiveError(f"{archive}: {name!r} is a link or a device")
        if info.flag_bits & 1:
            raise ArchiveError(f"{archive}: {name!r} has a password")
        parts.append(split)
    common = os.path.commonprefix([split[:-1] for split in parts])
    depth = common.index(folder) + 1 if folder in common else 0
    names = ["/".join(split[depth:]) for split in parts]
    name, count = Counter(names).most_common(1)[0] if names else ("", 0)
    if count > 1:
        raise ArchiveError(f"{archive} holds {name!r} twice")
    return names


def check_size(archive: Path, members: list[zipfile.ZipInfo], names: list[str], folder: Path) -> None:
    """Refuses what the disk cannot take, and what no honest archive grows to."""
    total, packed = sum(info.file_size for info in members), archive.stat().st_size
    if total > MAX_RATIO * packed:
        raise ArchiveError(f"{archive} would grow from {packed:,} to {total:,} bytes, more than {MAX_RATIO} times")
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(there).free
    if total > free:  # some of it may be in place
        total -= sum(info.file_size for info, name in zip(members, names, strict=True) if (folder / name).exists())
    if total > free:
        raise ArchiveError(f"{archive} needs {total:,} more bytes, {there} has {free:,} free")


def _write_member(opened: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path) -> None:
    if target.exists():
        if target.stat().st_size != info.file_size:
            raise ArchiveError(
                f"{opened.filename}: {target} is there with {target.stat().st_size:,} bytes, not {info.file_size:,}; "
                f"move it away"
            )
        return
    with opened.open(info) as source, whole_file(target, sync=False) as file:  # the name stands for a whole file
        shutil.copyfileobj(source, file, 1 << 20)
