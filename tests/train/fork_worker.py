"""Starts training runs in processes of their own without importing the libraries for each: they are imported once, here.

Reads one JSON list of command-line tokens per line; answers with the process id of the run, then with its status. Nothing is
computed before the fork, so that a run begins as a new process does.
"""

from __future__ import annotations

import json
import os
import sys

import llava_prumerge.train.assembly  # noqa: F401
from llava_prumerge.train.run import main

if __name__ == "__main__":
    print("ready", flush=True)
    for line in sys.stdin:
        child = os.fork()
        if not child:
            os.setpgid(0, 0)  # a group of its own, as a scheduler makes for a job
            os._exit(main(json.loads(line)))
        print(child, flush=True)
        status = os.waitpid(child, 0)[1]
        print(os.waitstatus_to_exitcode(status), flush=True)
