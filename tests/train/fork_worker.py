"""Starts training runs in processes of their own without importing the libraries for each: they are imported once, here.

Reads one JSON value per line: a list of command-line tokens, or such a list and where the run is to be killed (`Death`).
Answers with the process id of the run, then with its status. Nothing is computed before the fork, so that a run begins as
a new process does.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from typing import Any

import llava_prumerge.train.assembly  # noqa: F401
from llava_prumerge.train.run import main

CHANGES = ("open", "os.rename", "os.mkdir", "os.truncate", "os.remove", "os.rmdir")
TREES = {"checkpoint": ("checkpoint", ".checkpoint"), "end": (".result", "..result")}


class Death:
    """Kills this process while it writes: at its n-th change of files, or in the middle of a file.

    Args:
        run: the run's folder.
        part: "checkpoint": changes of checkpoints count; "end": every change from the first one of the final save on.
        at: the number of the change that is not made any more; 0: none, they are only counted.
        count: a file that gets the number of changes so far.
        bytes: a size at which the kernel ends the process that lets a file grow beyond it; 0: none.
    """

    def __init__(self, run: str, part: str, at: int = 0, count: str = "", bytes: int = 0) -> None:  # noqa: A002
        self.run, self.part, self.at, self.count, self.seen = run, part, at, count, 0
        if bytes:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (bytes, bytes))
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it; this is a kill in the middle of a write
        sys.addaudithook(self.hook)

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in CHANGES or not isinstance(arguments[0], str | bytes | os.PathLike):
            return
        if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
        place = os.path.relpath(os.fsdecode(arguments[0]), self.run)
        begun = self.part == "end" and self.seen > 0
        if place.startswith("../") or not (begun or place.startswith(TREES[self.part])):
            return
        self.seen += 1
        if self.seen == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


def run(tokens: list[str], death: dict[str, Any] | None) -> int:
    """One run. -> its status"""
    dying = None if death is None else Death(**death)
    status = main(tokens)
    if dying is not None and dying.count:
        seen = dying.seen
        with open(dying.count, "w") as file:
            file.write(str(seen))
    return status


if __name__ == "__main__":
    print("ready", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        tokens, death = asked if isinstance(asked[0], list) else (asked, None)
        child = os.fork()
        if not child:
            os.setpgid(0, 0)  # a group of its own, as a scheduler makes for a job
            os._exit(run(tokens, death))
        print(child, flush=True)
        status = os.waitpid(child, 0)[1]
        print(os.waitstatus_to_exitcode(status), flush=True)
