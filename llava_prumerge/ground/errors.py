"""Errors whose text is one line for the person at the console: wrong input, work that cannot go on, and files."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

AnyPath = str | os.PathLike[str]

_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota of this disk is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EFBIG: "the file is larger than may be written here (see `ulimit -f`)",
    errno.ENOENT: "no such file or folder",
    errno.ENOTDIR: "a part of its path is a file, not a folder",
    errno.EISDIR: "it is a folder, not a file",
    errno.EEXIST: "it exists already",
    errno.ENOTEMPTY: "it exists already and is not empty",
    errno.ENAMETOOLONG: "the name is too long for this file system",
    errno.EIO: "the disk reports an error",
    errno.ELOOP: "its links lead in a circle",
    errno.EMFILE: "too many files are open (see `ulimit -n`)",
}

DISK_ERRORS = frozenset(_REASONS) - {errno.ENOENT, errno.EEXIST}  # what writing to an open file can meet


class InputError(ValueError):
    """Something given to a command or function cannot be used; the text is one line that names it and what is accepted.

    Every folder's errors of this kind derive from it; a command that meets one ends with exit status 2.
    """


class CannotGoOn(RuntimeError):
    """What was given was right and the work cannot go on all the same; the text is one line. Exit status 1."""


class FileError(OSError):
    """A file that cannot be read or written. Its text is one line with the file's path; `errno` and `filename` are set.

    Args:
        path: the file or folder that the caller named.
        reason: the rest of the line, such as "cannot be written: the disk is full".
        code: the `errno` it came from, if it came from one.
    """

    def __init__(self, path: AnyPath, reason: str, code: int | None = None) -> None:
        super().__init__(code, reason, os.fspath(path))
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.filename}: {self.reason}"

    def __reduce__(self) -> tuple[type[FileError], tuple[str, str, int | None]]:
        return type(self), (self.filename, self.reason, self.errno)


def reason_of(error: OSError) -> str:
    """Why the system refused, in a few words: "the disk is full"."""
    if isinstance(error, FileError):
        return error.reason
    if error.errno in _REASONS:
        return _REASONS[error.errno]
    return os.strerror(error.errno) if error.errno else " ".join(str(error).split()) or type(error).__name__


@contextlib.contextmanager
def naming(path: AnyPath, action: str) -> Iterator[None]:
    """Turn an OSError into a FileError: `with naming(path, "cannot be read"): ...`."""
    try:
        yield
    except FileError:
        raise
    except OSError as error:
        raise FileError(path, f"{action}: {reason_of(error)}", error.errno) from error
