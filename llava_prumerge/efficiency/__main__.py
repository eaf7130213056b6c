"""What reduction costs and saves: `python -m llava_prumerge.efficiency COMMAND`.

Computed here, or measured by `llava_prumerge.profiling`:

    flops      FLOPs in every convention in use, and by part of the model
    roofline   least times on known machines; the paper's cost table, cell by cell
    memory     weights, cache, activations per GPU, for inference and training
    latency    measured times, by part, of a model of that shape with random weights
    collect    the results of `make bench` in one page

`COMMAND --help` lists a command's options.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from llava_prumerge.efficiency.errors import EfficiencyError, refuse
from llava_prumerge.efficiency.options import Parser
from llava_prumerge.ops.errors import ReductionError

COMMANDS = {
    "flops": "llava_prumerge.profiling.flops",
    **{name: f"llava_prumerge.efficiency.{name}" for name in ("roofline", "memory")},
    **{name: f"llava_prumerge.profiling.{name}" for name in ("latency", "collect")},
}
"""Each a module with `add_arguments(parser)` and `run(given) -> text`, loaded only when asked for."""


def main(arguments: Sequence[str] | None = None) -> str:
    """Run a command. -> what it prints

    Raises:
        EfficiencyError, ReductionError: what was asked cannot be computed.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        return (__doc__ or "").rstrip()
    if words[0] not in COMMANDS:
        raise refuse("command", words[0], COMMANDS)
    module = importlib.import_module(COMMANDS[words[0]])
    parser = Parser(
        prog=f"python -m llava_prumerge.efficiency {words[0]}", description=(module.__doc__ or "").split("\n")[0]
    )
    module.add_arguments(parser)
    return module.run(parser.parse_intermixed_args(words[1:]))


if __name__ == "__main__":
    try:
        print(main())
    except (EfficiencyError, ReductionError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
