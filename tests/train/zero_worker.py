"""One rank of a test: several runs in one process, since importing the libraries takes longer than all of them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from llava_prumerge.train.run import main

if __name__ == "__main__":
    for tokens in json.loads(Path(sys.argv[1]).read_text()):
        status = main(tokens)
        if status:
            sys.exit(status)
