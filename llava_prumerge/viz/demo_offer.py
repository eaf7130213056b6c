"""What the demo offers: its command line, and the model, methods and examples that this names."""

from __future__ import annotations

import argparse
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llava_prumerge.ground.command import Parser
from llava_prumerge.ground.errors import InputError
from llava_prumerge.methods.plugins import add_plugin_option
from llava_prumerge.methods.resolve import resolve
from llava_prumerge.viz.doors import LOOPBACK

if TYPE_CHECKING:
    from llava_prumerge.viz.demo_examples import Example
    from llava_prumerge.viz.demo_model import DemoModel
    from llava_prumerge.viz.method_list import MethodList

MODULE = "llava_prumerge.viz.demo"
LAST_PORT = 65_535
INSTALL = "pip install 'llava-prumerge[demo]'"


@dataclass(frozen=True)
class Offer:
    """What a page offers.

    Attributes:
        model: answers.
        methods: what can be chosen.
        chosen: the name the page begins with.
        name: the model's, for the page.
        examples: images to ask about; drawn ones for None.
    """

    model: DemoModel
    methods: MethodList
    chosen: str
    name: str
    examples: list[Example] | None


def parse(words: list[str], description: str | None = None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(MODULE, description)
    parser.add_argument("model", help="a run, a checkpoint, or a name on the Hub")
    parser.add_argument(
        "--method", help="the method to begin with: a name, a file or a block (default: the checkpoint's own)"
    )
    parser.add_argument("--methods", type=Path, nargs="+", default=[], metavar="FILE|DIR", help="more method files")
    parser.add_argument(
        "--examples", type=Path, metavar="DIR", help="images to offer, the question to NAME.jpg in NAME.txt"
    )
    add_plugin_option(parser)
    parser.add_argument("--gradio", action="store_true", help="the same as a Gradio app (needs the extra demo)")
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
    if given.gradio and importlib.util.find_spec("gradio") is None:
        raise InputError(f"--gradio needs gradio: {INSTALL}")
    return given


def load(given: argparse.Namespace) -> Offer:
    """Load what the command line names."""
    from llava_prumerge.model.loading import load_model  # with torch, which the help does not need
    from llava_prumerge.viz.demo_examples import examples_of
    from llava_prumerge.viz.demo_model import DemoModel
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
    return Offer(model, methods, chosen, "/".join(Path(given.model).parts[-2:]), examples)
