"""Files and folders that are written whole or not at all.

What is written goes to a hidden name in the same folder, is forced to the disk, and takes its own name by a rename. A
reader, a kill or a full disk therefore finds the old content or the new one, never a part of it:

    write_json(path, value)               # or write_text, write_bytes
    with whole_file(path) as file:        # a file for bytes; whole_text for text in UTF-8
        file.write(...)
    with whole_folder(path) as folder:    # a folder that gets its name when the block ends well
        model.save_pretrained(folder)

Whatever fails, what was begun is removed. After a kill it stays, as `.NAME.unfinished`, and the next writer of the same
name takes it over. Writers of one name at the same time do not disturb each other: the last rename wins.

Everything here raises `FileError`, an OSError whose text is one line that names the file (`ground/errors.py`).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from llava_prumerge.ground.errors import DISK_ERRORS, AnyPath, FileError, naming, reason_of

UNFINISHED = ".unfinished"  # ends the hidden name of what is being written
REMOVED = ".removed"  # ends the hidden name of a folder that is being deleted
_LONGEST_NAME = 180  # bytes of a name that a hidden name can hold; file systems allow 255 in all
_RUST_ERROR = re.compile(r"\(os error (\d+)\)")  # how safetensors and tokenizers report what the system refused


def whole_file(path: AnyPath, *, sync: bool = True) -> contextlib.AbstractContextManager[IO[bytes]]:
    """Open a file for bytes that replaces `path` when the block ends well, and is removed otherwise.

    Folders that are missing are made. A link is followed: what it leads to is replaced. What is no regular file, such
    as /dev/null, is written to directly.

    Args:
        path: the file's final name.
        sync: wait until the disk has the content before the rename. False is for many files that can be made again,
            such as unpacked images: after a power failure such a file may be empty.

    Raises:
        FileError: it cannot be written; nothing has changed then. Other errors of the block pass through as they are.
    """
    return _whole_file(Path(path), sync, lambda handle: open(handle, "wb"))


def whole_text(path: AnyPath, *, sync: bool = True) -> contextlib.AbstractContextManager[IO[str]]:
    """The same for text: UTF-8, with line ends as they are given. See `whole_file` and `write_text`."""
    return _whole_file(
        Path(path), sync, lambda handle: open(handle, "w", encoding="utf-8", errors="backslashreplace", newline="")
    )


@contextlib.contextmanager
def _whole_file(path: Path, sync: bool, open_handle: Callable[[int], IO[Any]]) -> Iterator[IO[Any]]:
    with _refusals(path):
        kind = _kind(path)
        if kind == stat.S_IFDIR:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if kind not in (None, stat.S_IFREG):
            with open_handle(os.open(path, os.O_WRONLY)) as file:
                yield file
            return
        target = _final(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, working = _claim(target, _open_file)
        file = open_handle(handle)
        try:
            os.ftruncate(handle, 0)
            yield file
            file.flush()
            if sync:
                os.fsync(handle)
            os.replace(working, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(working)
            raise
        finally:
            with contextlib.suppress(OSError):  # after an error what is left in the buffer cannot be written either
                file.close()
        if sync:
            sync_folder(target.parent)


def write_bytes(path: AnyPath, content: bytes, *, sync: bool = True) -> None:
    """Write a file whole or not at all. See `whole_file`."""
    with whole_file(path, sync=sync) as file:
        file.write(content)


def write_text(path: AnyPath, text: str, *, sync: bool = True) -> None:
    """Write a text file in UTF-8, whole or not at all; line ends stay as they are. See `whole_file`.

    What UTF-8 cannot hold, such as a part of a file's name that is none, is written as an escape: `\\udce4`.
    """
    write_bytes(path, text.encode(errors="backslashreplace"), sync=sync)


def write_json(path: AnyPath, value: Any, *, indent: int | None = 2, sync: bool = True) -> None:
    """Write a JSON file that ends with a line break, whole or not at all. See `whole_file`.

    Raises:
        TypeError, ValueError: the value is none that JSON can hold; the file is as before.
    """
    write_text(path, json.dumps(value, indent=indent, ensure_ascii=False) + "\n", sync=sync)


@contextlib.contextmanager
def whole_folder(path: AnyPath, *, replace: bool = False, sync: bool = True) -> Iterator[Path]:
    """Give a hidden, empty folder that becomes `path` when the block ends well, and is removed otherwise.

    Args:
        path: the folder's final name. Folders above it are made.
        replace: put it in the place of a folder that is there. Without it only an empty folder is replaced.
        sync: wait until the disk has every file before the rename.

    Raises:
        FileError: it cannot be written, or `path` is a file, or a folder with something in it and `replace` is false.
    """
    path = Path(path)
    check_free(path, replace=replace)
    target = _final(path)
    with _refusals(path):
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, working = _claim(target, _open_folder)
        try:
            with _refusals(path, inside=working):
                _empty(working)  # of a writer that was killed
                yield working
                if sync:
                    sync_tree(working)
                if replace and target.is_dir():
                    remove_folder(target)
                working.rename(target)
        except BaseException:
            shutil.rmtree(working, ignore_errors=True)
            raise
        finally:
            os.close(handle)
        if sync:
            sync_folder(target.parent)


def check_free(path: AnyPath, *, replace: bool = False) -> None:
    """Refuse a folder's name that `whole_folder` would refuse; ask before hours of work.

    Raises:
        FileError: it is a file, or a folder with something in it and `replace` is false.
    """
    path = Path(path)
    with naming(path, "cannot be written"):
        if not os.path.lexists(path):
            return
        if not path.is_dir():
            raise FileError(path, "it is a file; name a folder, or a name that is free", errno.ENOTDIR)
        if not replace and any(path.iterdir()):
            raise FileError(path, "it exists already; name another folder, or remove it first", errno.ENOTEMPTY)


def remove_folder(path: AnyPath) -> None:
    """Delete a folder, its name first: a kill half-way leaves no part of it under that name.

    Raises:
        FileError: it cannot be deleted.
    """
    path = Path(path)
    with naming(path, "cannot be removed"):
        old = _hidden(path, REMOVED)
        if old.exists():  # of a removal that was killed
            shutil.rmtree(old)
        path.rename(old)
        shutil.rmtree(old)


def sync_folder(folder: AnyPath) -> None:
    """Wait until the disk has the names in a folder. A file system that cannot do this is passed over."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sync_tree(folder: AnyPath) -> None:
    """Wait until the disk has every file below a folder, and their names.

    Raises:
        OSError: the disk could not take a file after all.
    """
    for place, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(place, name)
            if os.path.islink(path):
                continue
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        sync_folder(place)


def _kind(path: Path) -> int | None:
    """What a path leads to, as one of stat's S_IF constants; None where there is nothing yet."""
    try:
        return stat.S_IFMT(path.stat().st_mode)
    except FileNotFoundError:
        return None


def _final(path: Path) -> Path:
    """Where a path leads to in the end, so that a link stays a link."""
    return Path(os.path.realpath(path)) if os.path.islink(path) else path


def _hidden(target: Path, ending: str) -> Path:
    name = target.name
    if len(os.fsencode(name)) > _LONGEST_NAME:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    return target.with_name(f".{name}{ending}")


def _open_file(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)


def _open_folder(path: Path) -> int:
    with contextlib.suppress(FileExistsError):
        os.mkdir(path)
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)


def _claim(target: Path, open_one: Callable[[Path], int]) -> tuple[int, Path]:
    """A hidden file or folder beside `target` that nobody else writes to. -> its descriptor, its path

    It has one fixed name, so that nothing piles up after kills, and is locked for as long as the descriptor is open.
    Where another writer holds the lock, or the file system has none, a name of our own is taken.
    """
    first = _hidden(target, UNFINISHED)
    with contextlib.suppress(OSError):
        handle = open_one(first)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(handle), os.lstat(first)):  # not renamed by its writer since it was opened
                return handle, first
        except BlockingIOError:
            pass
        except OSError:
            _drop_empty(first)  # no locks here: nobody uses the fixed name
        os.close(handle)
    own = _hidden(target, f".{uuid.uuid4().hex[:12]}{UNFINISHED}")
    return open_one(own), own


def _drop_empty(path: Path) -> None:
    with contextlib.suppress(OSError):
        if path.is_dir():
            path.rmdir()
        elif path.stat().st_size == 0:
            path.unlink()


def _empty(folder: Path) -> None:
    for entry in list(folder.iterdir()):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


@contextlib.contextmanager
def _refusals(path: Path, inside: Path | None = None) -> Iterator[None]:
    """Name `path` in what the system refuses; errors that are about other files, and all others, pass through.

    Args:
        path: what the caller writes.
        inside: a folder whose files are all part of it.
    """
    try:
        yield
    except FileError:
        raise
    except OSError as error:
        named = error.filename
        if named is None or isinstance(named, int):
            ours = error.errno in DISK_ERRORS
        else:
            place = Path(os.fsdecode(named))
            ours = place in (path, *path.parents, _final(path), *_final(path).parents)
            ours = ours or place.name.endswith(UNFINISHED) or (inside is not None and place.is_relative_to(inside))
        if not ours:
            raise
        raise FileError(path, f"cannot be written: {reason_of(error)}", error.errno) from error
    except Exception as error:
        found = _RUST_ERROR.search(str(error))
        if found is None or int(found[1]) not in DISK_ERRORS:
            raise
        system = OSError(int(found[1]), os.strerror(int(found[1])))
        raise FileError(path, f"cannot be written: {reason_of(system)}", system.errno) from error
