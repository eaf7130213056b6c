"""The methods of visual-token reduction: what there is, and the settings of each.

llava-prumerge methods            a line for each
llava-prumerge methods NAME       what it does, and its settings with what they accept
llava-prumerge methods [NAME] --json
llava-prumerge methods [NAME] --plugin MODULE|FILE.py
"""

from __future__ import annotations

import json
import sys

from llava_prumerge.ground.command import Parser, command
from llava_prumerge.methods.plugins import add_plugin_option


@command()
def main(words: list[str]) -> None:
    """Print the list, or one method."""
    parser = Parser("llava_prumerge.methods", __doc__)
    parser.add_argument("name", nargs="?", help="a method")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_plugin_option(parser)
    given = parser.parse_args(words)
    from llava_prumerge.methods.listing import as_text, describe, find_method, list_methods  # with torch

    if given.name is not None:
        method = find_method(given.name)
        print(json.dumps(method.as_json(), default=str) if given.json else describe(method))
        return
    methods = list_methods()
    print(json.dumps([one.as_json() for one in methods.values()], default=str) if given.json else as_text(methods))


if __name__ == "__main__":
    sys.exit(main())
