"""Convert checkpoints between the layouts LLaVA is published in.

    python -m llava_prumerge.model.checkpoints convert SOURCE TARGET [--to ours|original|llava-hf] [options]

SOURCE is a LLaVA (original layout, llava-hf's of either generation, ours), LoRA adapters, a projector, or an open_clip model; which, is
found out. TARGET must be new, and appears only when all of it is written. --dry-run lists every tensor of the result with its shape,
type and source, from config.json alone where there are no weights. docs/checkpoints.md has a command for each case.
"""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from llava_prumerge.ground.command import Parser, command
from llava_prumerge.methods.plugins import add_plugin_option
from llava_prumerge.methods.resolve import resolve
from llava_prumerge.model.assembling import DTYPES
from llava_prumerge.model.checkpoints.convert import TARGETS, convert
from llava_prumerge.model.checkpoints.request import Request
from llava_prumerge.model.checkpoints.writing import SHARD_BYTES

GIGABYTE = 10**9


def parse(arguments: Sequence[str]) -> Request:
    """The command line."""
    parser = Parser("llava_prumerge.model.checkpoints", __doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="convert")
    command = commands.add_parser("convert", help="make TARGET from SOURCE")
    command.add_argument("source", type=Path, help="folder or file to convert")
    command.add_argument("target", type=Path, nargs="?", help="folder to make; not needed with --dry-run")
    command.add_argument("--to", choices=TARGETS, default="ours", help="layout to write (ours)")
    command.add_argument(
        "--vision-tower", type=Path, metavar="FOLDER", help="the CLIP of layouts without vision weights"
    )
    command.add_argument("--language-model", type=Path, metavar="FOLDER", help="the base of adapters or a projector")
    command.add_argument(
        "--missing-from", type=Path, metavar="FOLDER", help="adapters like SOURCE, for files that SOURCE lacks"
    )
    command.add_argument(
        "--reduction",
        metavar="METHOD",
        help="a method for config.json: name, file, block or NAME:key=value,...; `none` drops what SOURCE says",
    )
    add_plugin_option(command)
    command.add_argument("--keep-rows", action="store_true", help="keep every row of the vocabulary in --to original")
    command.add_argument("--with-vision", action="store_true", help="keep a trained tower's weights in --to original")
    command.add_argument(
        "--merge", action="store_true", help="put adapters or projector into their base: a whole model"
    )
    command.add_argument("--dtype", choices=tuple(DTYPES), help="of all weights; by default each keeps its own")
    command.add_argument("--open-clip-model", metavar="NAME|JSON", help="architecture of an open_clip checkpoint")
    command.add_argument(
        "--shard-size",
        type=float,
        default=SHARD_BYTES / GIGABYTE,
        metavar="GB",
        help="of the result's files, at most (5)",
    )
    command.add_argument("--dry-run", action="store_true", help="list the result's tensors; write nothing")
    given = parser.parse_args(arguments)
    if given.shard_size <= 0:
        parser.error(f"--shard-size {given.shard_size} must be positive")
    values = {key: value for key, value in vars(given).items() if key not in ("command", "shard_size", "plugin")}
    values |= {"reduction": resolve(given.reduction), "dtype": DTYPES.get(given.dtype)}
    return Request(**values, shard_bytes=int(given.shard_size * GIGABYTE))


@command()
def main(words: list[str]) -> None:
    """Run the command."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for noisy in ("transformers", "httpx", "torch"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("error: terminated"))  # so that what was begun is removed
    print("\n".join(convert(parse(words))))


if __name__ == "__main__":
    sys.exit(main())
