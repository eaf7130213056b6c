"""Convert checkpoints between the layouts LLaVA is published in.

    python -m llava_prumerge.model.checkpoints convert SOURCE TARGET [--to LAYOUT] [options]

SOURCE is a LLaVA (original layout, llava-hf's of either generation, ours), a Video-LLaVA or an InternVL as their authors publish them,
LoRA adapters, a projector, or an open_clip model; which, is found out. It may be a name on the Hub, as may every FOLDER: NAMESPACE/NAME, or NAMESPACE/NAME@REVISION. TARGET must be new, and appears
only when all of it is written. --dry-run lists every tensor of the result with its shape, type and source, from config.json alone where
there are no weights. docs/checkpoints.md has a command for each case.
"""

from __future__ import annotations

import dataclasses
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from llava_prumerge.ground.command import Parser, command
from llava_prumerge.methods.plugins import add_plugin_option
from llava_prumerge.methods.resolve import resolve
from llava_prumerge.model.checkpoints.request import Request


def parse(arguments: Sequence[str]) -> Request:
    """The command line."""
    parser = Parser("llava_prumerge.model.checkpoints", __doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="convert")
    command = commands.add_parser("convert", help="make TARGET from SOURCE", description=__doc__)
    command.add_argument("source", type=Path, help="folder, file or name on the Hub to convert")
    command.add_argument("target", type=Path, nargs="?", help="folder to make; not needed with --dry-run")
    for field in dataclasses.fields(Request):
        if field.metadata:
            command.add_argument(f"--{field.name.replace('_', '-')}", default=field.default, **field.metadata)
    add_plugin_option(command)
    given = parser.parse_args(arguments)
    if given.shard_size <= 0:
        parser.error(f"--shard-size {given.shard_size} must be positive")
    values = {key: value for key, value in vars(given).items() if key not in ("command", "plugin")}
    return Request(**values | {"reduction": resolve(given.reduction)})


@command()
def main(words: list[str]) -> None:
    """Run the command."""
    request = parse(words)
    from llava_prumerge.model.checkpoints.convert import convert  # with torch, which the help does not need

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for noisy in ("transformers", "httpx", "torch"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("error: terminated"))  # so that what was begun is removed
    print("\n".join(convert(request)))


if __name__ == "__main__":
    sys.exit(main())
