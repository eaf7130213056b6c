"""A local page to ask a model about an image, with any method, and to see what the method keeps.

    python -m llava_prumerge.viz.demo MODEL [--method NAME|FILE] [--methods FILE|DIR ...] [--examples DIR] [--port N]

Serves this machine alone (127.0.0.1) unless --host says otherwise; a tunnel that ends at localhost needs no setting, a proxy
with a name of its own --allow-host. Methods are the shipped method files, those of --methods (as the searches write
them), and the checkpoint's own.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from llava_prumerge.ground.command import Parser, command
from llava_prumerge.methods.plugins import add_plugin_option
from llava_prumerge.methods.resolve import resolve
from llava_prumerge.viz.doors import LOOPBACK

if TYPE_CHECKING:
    from llava_prumerge.viz.demo_server import DemoServer

LAST_PORT = 65_535

logger = logging.getLogger("llava_prumerge.viz.demo")


def serve(words: list[str]) -> DemoServer:
    """Load what the command line names, and give a server that is bound but not yet running."""
    parser = Parser("llava_prumerge.viz.demo", __doc__)
    parser.add_argument("model", help="a run, a checkpoint, or a name on the Hub")
    parser.add_argument(
        "--method", help="the method to begin with: a name, a file or a block (default: the checkpoint's own)"
    )
    parser.add_argument("--methods", type=Path, nargs="+", default=[], metavar="FILE|DIR", help="more method files")
    parser.add_argument(
        "--examples", type=Path, metavar="DIR", help="images to offer, the question to NAME.jpg in NAME.txt"
    )
    add_plugin_option(parser)
    parser.add_argument("--host", default=LOOPBACK, help=f"address to serve (default {LOOPBACK}: this machine alone)")
    parser.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME", help="a tunnel's or proxy's name that leads here"
    )
    parser.add_argument("--port", type=int, default=7860, help="0 takes a free one (default 7860)")
    parser.add_argument("--dtype", default="auto", help="of the weights (default: bfloat16 on a GPU, float32 without)")
    parser.add_argument("--device", help="such as cuda:0 or cpu (default: a GPU if there is one)")
    given = parser.parse_args(words)
    if not 0 <= given.port <= LAST_PORT:
        parser.error(f"--port {given.port} is not within 0 to {LAST_PORT:,}")

    from llava_prumerge.model.loading import load_model  # with torch, which the help does not need
    from llava_prumerge.viz.demo_examples import examples_of
    from llava_prumerge.viz.demo_model import DemoModel
    from llava_prumerge.viz.demo_server import DemoServer
    from llava_prumerge.viz.method_list import OWN, MethodList

    file = Path(given.method) if given.method and Path(given.method).is_file() else None
    places = [*([file] if file else []), *given.methods]
    listed = MethodList(None, places).read()  # what is wrong is said before the model is loaded
    examples = None if given.examples is None else examples_of(given.examples)
    described = {}
    if given.method and not file and given.method not in (*listed, OWN):
        described = {given.method: resolve(given.method) or {}}
    model = DemoModel(*load_model(given.model, dtype=given.dtype, device=given.device))
    methods = MethodList(model.own_block, places, described)
    first = OWN if model.own_block else "none"
    chosen = first if given.method is None else (file.stem if file else given.method)
    methods.find(chosen)
    allowed, name = tuple(given.allow_host), "/".join(Path(given.model).parts[-2:])
    return DemoServer(given.port, model, methods, chosen, given.host, allowed, name, examples)


@command()
def main(words: list[str]) -> None:
    """Run the page until it is interrupted."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    server = serve(words)
    if server.doors.is_open:
        logger.warning("whoever reaches %s can ask this model; nothing asks for a password", server.address)
    sys.stdout.write(f"open {server.address} (Ctrl-C ends it)\n")
    sys.stdout.flush()
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        sys.stdout.write("\n")
    finally:
        server.server_close()


if __name__ == "__main__":
    sys.exit(main())
