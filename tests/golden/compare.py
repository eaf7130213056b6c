"""A method against the outputs of its authors' released code.

    python tests/golden/compare.py FILE.npz METHOD [key=value ...]

Settings are the method's own keys. Everything the file holds is compared: kept tokens and their order, outputs, last
states, cached decoding steps. The last word printed is the largest difference, as a part of the largest expected value;
the exit status is 0 if kept tokens are equal and every difference is within 1e-5 (2e-3 where the released code rounds), 1 if not,
and 2 where the method, a setting or the file cannot be used.
Files of decoder methods need `decoder_inputs.npz` beside them.
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import decoder_files  # noqa: E402
import mini_files  # noqa: E402
import rater_files  # noqa: E402
import tower_files  # noqa: E402
import vision_files  # noqa: E402
import yaml  # noqa: E402
from golden_arrays import Comparison, read  # noqa: E402

from llava_prumerge.methods.registry import find  # noqa: E402
from llava_prumerge.ops.errors import ReductionError  # noqa: E402


def compare(path: Path, method: str, **settings: Any) -> Comparison:
    """Compare a method with one file.

    Raises:
        ReductionError: the method is not known, the settings are wrong, or the file is of no form that a method can be held against.
    """
    find(method)
    arrays = read(path)
    if decoder_files.applies(arrays):
        return decoder_files.compare(path, arrays, method, settings)
    if rater_files.applies(arrays):
        return rater_files.compare(arrays, method, settings)
    if mini_files.applies(arrays):
        return mini_files.compare(arrays, method, settings)
    if tower_files.applies(arrays):
        return tower_files.compare(arrays, method, settings)
    if vision_files.applies(arrays):
        return vision_files.compare(arrays, method, settings)
    held = sorted({name.partition(".")[0] for name in arrays})
    raise ReductionError(f"{path} holds {', '.join(held)}: no inputs and outputs of a reducer or a pruner")


def main(words: list[str]) -> int:
    """The command line. -> exit status"""
    if len(words) < 2:
        print(__doc__, file=sys.stderr)
        return 2
    given = dict(item.split("=", 1) for item in words[2:])
    try:
        found = compare(Path(words[0]), words[1], **{key: yaml.safe_load(value) for key, value in given.items()})
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join([*found.lines, f"largest difference {found.largest:.9g}"]))
    return 0 if found.equal else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
