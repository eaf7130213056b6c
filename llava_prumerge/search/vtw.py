"""A former command, `python -m llava_prumerge.search.NAME` for the layer search of a method of this file's name; it goes on."""

from __future__ import annotations

import sys
from pathlib import Path

from llava_prumerge.search.__main__ import main

if __name__ == "__main__":
    sys.exit(main([Path(__file__).stem, *sys.argv[1:]]))
