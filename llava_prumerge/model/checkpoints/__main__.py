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
from typing import Any

import yaml

from llava_prumerge.ground.command import Parser, command
from llava_prumerge.methods.base import VisionReducer
from llava_prumerge.methods.registry import discover
from llava_prumerge.model.assembling import DTYPES
from llava_prumerge.model.checkpoints.convert import TARGETS, convert
from llava_prumerge.model.checkpoints.request import Request
from llava_prumerge.model.checkpoints.writing import SHARD_BYTES
from llava_prumerge.model.configuration import check_reduction
from llava_prumerge.model.weight_files import LoadingError

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
        metavar="METHOD|FILE",
        help="a method's name or YAML for config.json; `none` drops what SOURCE says",
    )
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
    values = {key: value for key, value in vars(given).items() if key not in ("command", "shard_size")}
    values |= {"reduction": reduction_of(given.reduction), "dtype": DTYPES.get(given.dtype)}
    return Request(**values, shard_bytes=int(given.shard_size * GIGABYTE))


def reduction_of(word: str | None) -> dict[str, Any] | None:
    """The block of a method's name or of a file as in configs/method; {} for `none`, None for nothing said.

    Raises:
        LoadingError: neither a method nor a file.
    """
    if word is None or word == "none":
        return None if word is None else {}
    if Path(word).suffix in (".yaml", ".yml"):
        if not Path(word).is_file():
            raise LoadingError(f"--reduction {word} does not exist")
        block = yaml.safe_load(Path(word).read_text(encoding="utf-8"))
        return check_reduction(block.get("reduction", block) if isinstance(block, dict) else {"vision": block})
    methods = discover()
    if word not in methods:
        raise LoadingError(f"--reduction {word} is no method and no YAML file; methods are: {', '.join(methods)}")
    return {"vision" if issubclass(methods[word], VisionReducer) else "decoder": {"name": word}}


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
