"""An OpenAI-compatible server for a model with its method: transformers' own (`transformers serve`), closed by default.

    llava-prumerge serve MODEL [--reduction NAME|FILE] [budget=64 ...] [--port N]

Serves this machine alone (127.0.0.1) unless --host says otherwise. Images come inside the requests; addresses and paths in them
are not followed. Answers are greedy. See docs/serving.md.
"""

from __future__ import annotations

import importlib.util
import logging
import sys

from llava_prumerge.ground.command import Parser, command, pairs
from llava_prumerge.ground.errors import InputError
from llava_prumerge.ground.hub_names import is_missing, why_missing
from llava_prumerge.methods.plugins import add_plugin_option
from llava_prumerge.methods.resolve import is_setting, resolve

LOOPBACK = "127.0.0.1"
PORT, LAST_PORT = 8000, 65_535
NEEDED = ("openai", "fastapi", "uvicorn")
"""What transformers' server needs besides transformers."""

logger = logging.getLogger("llava_prumerge.serving")


@command()
def main(words: list[str]) -> None:
    """Serve until it is interrupted."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    parser = Parser("llava_prumerge.serving", __doc__, settings=None)
    parser.add_argument("model", help="a run, a checkpoint, or a name on the Hub")
    parser.add_argument("--reduction", help="the method: a name, a file or a block (default: the checkpoint's own)")
    add_plugin_option(parser)
    parser.add_argument("--host", default=LOOPBACK, help=f"address to serve (default {LOOPBACK}: this machine alone)")
    parser.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME", help="a tunnel's or proxy's name that leads here"
    )
    parser.add_argument("--port", type=int, default=PORT, help=f"0 takes a free one (default {PORT})")
    parser.add_argument("--name", help="how requests call the model (default: its folder's or its run's name)")
    parser.add_argument("--dtype", default="auto", help="of the weights (default: float16 on a GPU, float32 without)")
    parser.add_argument("--device", help="such as cuda:0 or cpu (default: a GPU if there is one)")
    parser.add_argument("--attn", help="attention implementation")
    parser.add_argument("--template", default="vicuna_v1", help="conversation template of LLaVA-1.5 and its kin")
    given = parser.parse_args(words)
    if not 0 <= given.port <= LAST_PORT:
        parser.error(f"--port {given.port} is not within 0 to {LAST_PORT:,}")
    settings = pairs(given.settings)
    if wrong := [key for key in settings if not is_setting(key)]:
        parser.error(f"setting {wrong[0]!r} is not known")
    if is_missing(given.model):
        raise InputError(f"{given.model}: {why_missing(given.model)}")
    if given.reduction is not None:
        resolve(given.reduction)  # what is wrong is said before anything is loaded
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise InputError(f'{", ".join(missing)} not here: pip install "llava-prumerge[serve]"')

    from llava_prumerge.harness.session import Session
    from llava_prumerge.serving.server import bindable, start

    port = bindable(given.host, given.port)
    asked = {name: getattr(given, name) for name in ("reduction", "dtype", "device", "attn", "template")}
    session = Session({"pretrained": given.model, **asked, **settings})
    name = given.name or session.name
    place = f"http://{f'[{given.host}]' if ':' in given.host else given.host}:{port}"
    logger.info("%s with %s at %s/v1; Ctrl-C ends it", name, session.label, place)
    if given.host != LOOPBACK:
        logger.warning("whoever reaches %s can ask the model", place)
    start(session, name, given.host, port, tuple(given.allow_host))


if __name__ == "__main__":
    sys.exit(main())
