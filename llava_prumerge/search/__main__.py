"""Searches for a method's settings on calibration questions: `python -m llava_prumerge.search NAME`.

    layer      the first layer that may run without image tokens
    g_search   a rate for every layer, by a greedy search under a budget
    p_sigmoid  the two numbers of a curve of rates, by Bayesian optimisation
    stability  how alike the layers rank the tokens

`NAME --help` lists a search's options. The name of a method with a layer to search for is short for `layer --method NAME`.
"""

from __future__ import annotations

import importlib
import sys

from llava_prumerge.ground.command import called_as, calling_name, command
from llava_prumerge.ground.errors import InputError
from llava_prumerge.ground.naming import not_known

SEARCHES = ("layer", "g_search", "p_sigmoid", "stability")
"""Each a module with a `main`, imported only when it is asked for."""


@command()
def main(words: list[str]) -> int:
    """Run the search that the first word names."""
    if not words or words[0] in ("-h", "--help"):
        print((__doc__ or "").rstrip())
        return 0
    name, rest = words[0].replace("-", "_"), words[1:]
    module = name
    if name not in SEARCHES:
        from llava_prumerge.methods.registry import search_targets
        from llava_prumerge.methods.search_target import SearchKind

        named = search_targets(SearchKind.LAYER)
        if name not in named:
            raise InputError(not_known("search", words[0], [*SEARCHES, *named]))
        module, rest = "layer", ["--method", name, *rest]
    with called_as(f"{calling_name('llava_prumerge.search')} {name}"):
        return importlib.import_module(f"llava_prumerge.search.{module}").main(rest)


if __name__ == "__main__":
    sys.exit(main())
