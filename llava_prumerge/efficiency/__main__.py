"""What reduction costs and saves: `python -m llava_prumerge.efficiency COMMAND`.

Computed here, or measured by `llava_prumerge.profiling`:

    flops      FLOPs in every convention in use, and by part of the model
    roofline   least times on known machines; the paper's cost table, cell by cell
    memory     weights, cache, activations per GPU, for inference and training
    latency    measured times, by part, of a model of that shape with random weights
    collect    the results of `make bench` in one page
    collect-gpu  the results of `scripts/bench_gpu.sh` in one page

`COMMAND --help` lists a command's options.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from llava_prumerge.efficiency.options import settings_of
from llava_prumerge.ground.command import Parser, command
from llava_prumerge.ground.errors import InputError
from llava_prumerge.ground.naming import not_known

COMMANDS = {
    "flops": "llava_prumerge.profiling.flops",
    **{name: f"llava_prumerge.efficiency.{name}" for name in ("roofline", "memory")},
    **{name: f"llava_prumerge.profiling.{name}" for name in ("latency", "collect")},
    "collect-gpu": "llava_prumerge.profiling.gpu_page",
}
"""Each a module with `add_arguments(parser)` and `run(given) -> text`, loaded only when asked for."""


def report(words: Sequence[str]) -> str:
    """What a command says.

    Raises:
        EfficiencyError, ReductionError: what was asked cannot be computed.
    """
    if not words or words[0] in ("-h", "--help"):
        return (__doc__ or "").rstrip()
    if words[0] not in COMMANDS:
        raise InputError(not_known("command", words[0], COMMANDS))
    module = importlib.import_module(COMMANDS[words[0]])
    parser = Parser("llava_prumerge.efficiency", (module.__doc__ or "").split("\n")[0])
    parser.prog += f" {words[0]}"
    module.add_arguments(parser)
    given = parser.parse_args(words[1:])
    if "method" in given:
        settings_of(given)  # without a method there are none, whatever the command then computes
    return module.run(given)


@command()
def main(words: list[str]) -> None:
    """Run a command."""
    print(report(words))


if __name__ == "__main__":
    sys.exit(main())
