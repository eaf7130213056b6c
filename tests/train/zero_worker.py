"""One rank of a test: several runs in one process, since importing the libraries takes longer than all of them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from llava_prumerge.train.run import leave_process_group, main

if __name__ == "__main__":
    status = max(main(tokens) for tokens in json.loads(Path(sys.argv[1]).read_text()))
    leave_process_group()
    sys.exit(status)
