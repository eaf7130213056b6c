"""A local page to ask a model about an image, with any method, and to see what the method keeps.

    python -m llava_prumerge.viz.demo MODEL [--method NAME|FILE] [--methods FILE|DIR ...] [--examples DIR] [--port N]
        [--gradio]

Serves this machine alone (127.0.0.1) unless --host says otherwise; a tunnel that ends at localhost needs no setting, a proxy
with a name of its own --allow-host. Methods are the shipped method files, those of --methods (as the searches write
them), and the checkpoint's own.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

from llava_prumerge.ground.command import command
from llava_prumerge.viz.demo_offer import MODULE, load, parse
from llava_prumerge.viz.doors import Doors

if TYPE_CHECKING:
    from llava_prumerge.viz.demo_server import DemoServer

logger = logging.getLogger(MODULE)


def serve(words: list[str]) -> DemoServer:
    """Load what the command line names, and give a server that is bound but not yet running."""
    given = parse(words, __doc__)
    offer = load(given)
    from llava_prumerge.viz.demo_server import DemoServer

    names = tuple(given.allow_host)
    return DemoServer(
        given.port, offer.model, offer.methods, offer.chosen, given.host, names, offer.name, offer.examples
    )


def warn(doors: Doors, address: str) -> None:
    """Say so where others than this machine can ask."""
    if doors.is_open:
        logger.warning("whoever reaches %s can ask this model; nothing asks for a password", address)


@command()
def main(words: list[str]) -> None:
    """Run the page until it is interrupted."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    given = parse(words, __doc__)
    if given.gradio:
        from llava_prumerge.viz.gradio_app import run

        offer = load(given)
        warn(Doors(given.host), given.host)
        return run(offer, given.host, given.port, given.allow_host)
    server = serve(words)
    warn(server.doors, server.address)
    sys.stdout.write(f"open {server.address} (Ctrl-C ends it)\n")
    sys.stdout.flush()
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        sys.stdout.write("\n")
    finally:
        server.server_close()
    return None


if __name__ == "__main__":
    sys.exit(main())
