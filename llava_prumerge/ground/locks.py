"""One process at a time: a lock on a folder or file that ends with its holder, on file systems with and without locks.

    with hold(folder, inside=True):       # makes folder/.lock and folder/.holder
    with hold(answers):                   # makes .NAME.lock and .NAME.holder beside it

The kernel's lock, where the file system has one, decides: it ends with its process however that ends, and no child takes it
over. `.holder` says who holds it, for people. On a file system without locks `.holder` is the lock: it is made in one step, and
left behind by a kill. It counts for nothing then, if its process is gone and was on this machine; of another machine nothing can
be known, and the message says what to delete.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from llava_prumerge.ground.errors import AnyPath, FileError, naming
from llava_prumerge.ground.files import write_json

LOCK_FILES = frozenset({".lock", ".holder"})
"""What `hold(folder, inside=True)` makes in the folder."""
_TAKEN = frozenset({errno.EACCES, errno.EAGAIN})
_ATTEMPTS = 20
_PAUSE = 0.05  # seconds, while another process is seen in the middle of taking or leaving the lock
_TORN_SECONDS = 5.0  # a holder that cannot be read for longer was not left by a writer at work
_held: set[Path] = set()  # of this process, which the kernel would give the lock twice


class LockedError(FileError):
    """Somebody else is at work there; the message says who, and what to delete if that is not so."""


@dataclass(frozen=True)
class Holder:
    """A process.

    Attributes:
        host: its machine.
        process: its number there.
        started: when, as the kernel counts it, so that a number that is used again is not mistaken for it; "" if unknown.
        boot: of that machine, for the same reason; "" if unknown.
    """

    host: str
    process: int
    started: str
    boot: str

    @classmethod
    def here(cls) -> Holder:
        """This process."""
        return cls(socket.gethostname(), os.getpid(), _start_of(os.getpid()), _boot())

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}"

    def is_gone(self) -> bool:
        """Whether it has ended for certain; False of another machine's, of which nothing is known."""
        if self.host != socket.gethostname():
            return False
        if self.boot and _boot() and self.boot != _boot():
            return True
        try:
            os.kill(self.process, 0)
        except ProcessLookupError:
            return True
        except OSError:
            pass  # there is one, of somebody else
        return bool(self.started) and _start_of(self.process) not in ("", self.started)


def _start_of(process: int) -> str:
    with contextlib.suppress(OSError, IndexError):
        fields = Path(f"/proc/{process}/stat").read_text(encoding="latin-1").rpartition(")")[2].split()
        return fields[19] if fields[0] not in ("Z", "X") else "ended"
    return ""


def _boot() -> str:
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return ""


@contextlib.contextmanager
def hold(path: AnyPath, *, inside: bool = False) -> Iterator[str | None]:
    """Hold the lock of a name for as long as the block runs; gives a line about a holder that a kill left behind, or None.

    Args:
        path: what is locked; a file need not exist, and its folder is made.
        inside: it is a folder, which is made, and the lock's files lie in it.

    Raises:
        LockedError: another process holds it, in one line with that process.
        FileError: the lock's files cannot be written.
    """
    path = Path(path)
    folder, name = (path, "") if inside else (path.parent, f".{path.name}")
    with naming(path, "cannot be locked"):
        folder.mkdir(parents=True, exist_ok=True)
        folder = Path(os.path.realpath(folder))
        lock, holder = folder / f"{name}.lock", folder / f"{name}.holder"
        if lock in _held:
            raise LockedError(path, "this process is at work there already", errno.EAGAIN)
        handle = _take_kernel_lock(path, lock, holder)
        try:
            left = _claim_holder(path, holder) if handle is None else _note_holder(holder)
        except BaseException:
            _leave(handle, lock)
            raise
    _held.add(lock)
    owner = os.getpid()
    try:
        yield left
    finally:
        _held.discard(lock)
        if os.getpid() == owner:  # not in a child that leaves this block by a copy of it
            with contextlib.suppress(OSError):
                holder.unlink()
            _leave(handle, lock)


def _leave(handle: int | None, lock: Path) -> None:
    if handle is None:
        return
    with contextlib.suppress(OSError):
        lock.unlink()  # while it is held: whoever waits for it sees that it is no longer the lock
    os.close(handle)


def _take_kernel_lock(path: Path, lock: Path, holder: Path) -> int | None:
    """The lock file's descriptor, locked; None where the file system has no locks."""
    for _ in range(_ATTEMPTS):
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(handle), os.stat(lock)):
                return handle
        except FileNotFoundError:
            pass  # its last holder has just removed it
        except OSError as error:
            os.close(handle)
            if error.errno in _TAKEN:
                found = _read_holder(holder)
                raise LockedError(path, f"{found or 'another process'} is at work there", errno.EAGAIN) from error
            with contextlib.suppress(OSError):
                lock.unlink()
            return None
        os.close(handle)
    raise LockedError(path, "other processes begin and end there all the time", errno.EAGAIN)


def _read_holder(file: Path) -> Holder | None:
    try:
        values = json.loads(file.read_bytes())
        return Holder(str(values["host"]), int(values["process"]), str(values["started"]), str(values["boot"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _note_holder(file: Path) -> str | None:
    """Under the kernel's lock: say who holds it. -> a line about who was killed while holding it, or None"""
    before = _read_holder(file)
    write_json(file, asdict(Holder.here()), sync=False)
    return f"{before} was at work here and has ended without a word" if before else None


def _claim_holder(path: Path, file: Path) -> str | None:
    """Without the kernel's lock: make the holder's file, which one process alone can do. -> as `_note_holder`"""
    own = file.with_name(f"{file.name}.{uuid.uuid4().hex[:12]}")
    left = None
    try:
        own.write_text(json.dumps(asdict(Holder.here())) + "\n", encoding="utf-8")
        for _ in range(_ATTEMPTS):
            if _link_new(own, file):
                return left
            before = _read_holder(file)
            if before is None:
                if not _is_torn(file):
                    time.sleep(_PAUSE)
                    continue
            elif not before.is_gone():
                elsewhere = before.host != socket.gethostname()
                advice = f"; if that is not so any more, delete {file}" if elsewhere else ""
                raise LockedError(path, f"{before} is at work there{advice}", errno.EAGAIN)
            left = f"{before or 'another process'} was at work here and has ended without a word"
            aside = file.with_name(f"{own.name}.old")
            with contextlib.suppress(FileNotFoundError):  # of several that see it, one moves it
                file.rename(aside)
                moved = _read_holder(aside)
                if moved != before:  # somebody else was quicker, and this is theirs: it goes back
                    _link_new(aside, file)
                aside.unlink()
                if moved != before:
                    raise LockedError(path, f"{moved or 'another process'} is at work there", errno.EAGAIN)
        raise LockedError(path, f"it cannot be told who is at work there; if nobody is, delete {file}", errno.EAGAIN)
    finally:
        with contextlib.suppress(OSError):
            own.unlink()


def _link_new(source: Path, target: Path) -> bool:
    """Give a whole file a second name, in one step that fails where the name is taken."""
    try:
        os.link(source, target)
        return True
    except FileExistsError:
        return False
    except OSError:  # no links there either
        try:
            handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            return False
        with os.fdopen(handle, "wb") as file:
            file.write(source.read_bytes())
        return True


def _is_torn(file: Path) -> bool:
    """Whether a holder's file that cannot be read has been so for longer than writing it takes."""
    try:
        return time.time() - file.stat().st_mtime > _TORN_SECONDS
    except OSError:
        return False
