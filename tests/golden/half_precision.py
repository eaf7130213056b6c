"""What each method keeps in half precision: with our float32 scores, and with scores in the type itself, as authors' code has them.

    python tests/golden/half_precision.py [METHOD ...] [--images N] [--shared FOLDER]

The pocket backbones run once in float32 and once in each half type, tower and decoder included, on real images of FOLDER (drawn ones
without it), every method with its default settings; vision reducers see the arrays of this folder as well, up to 576 patches. Two rules then choose: the project's, whose scores are float32 whatever the
model's type, and the same rule with each step in the type. Printed for each is how much of what float32 keeps is kept, as common over
all of both sets, and how many images keep exactly the same (in all stages of a pruner).
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import logging
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import original_llava  # noqa: E402
import torch  # noqa: E402
import vision_files  # noqa: E402
from golden_arrays import read  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.overrides import TorchFunctionMode  # noqa: E402
from torch.utils._pytree import tree_leaves, tree_map  # noqa: E402

from llava_prumerge.inference.asking import inspect_image, method_of  # noqa: E402
from llava_prumerge.methods.registry import build_reducer, discover, site_of  # noqa: E402
from llava_prumerge.model.assembling import assemble  # noqa: E402
from llava_prumerge.ops.errors import ReductionError  # noqa: E402

HERE = Path(__file__).resolve().parent
TYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
Kept = tuple[frozenset[int], ...]
"""Patches that stay after the reducer, and after each stage of a pruner."""


class ScoresInType(TorchFunctionMode):
    """Leaves numbers in a half type where the code asks for float32. What torch cannot do in the type is done in float32 and rounded."""

    def __init__(self, kind: torch.dtype) -> None:
        super().__init__()
        self.kind = kind
        self.least = torch.finfo(kind).min
        self.kept = 0

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """One call of torch."""
        given = dict(kwargs or {})
        upward = func in (Tensor.float, Tensor.double) or (func is Tensor.to and torch.float32 in args)
        if upward and args[0].dtype in (self.kind, torch.bool):
            self.kept += args[0].dtype == self.kind
            return args[0].to(self.kind)
        if given.get("dtype") is torch.float32 and args and isinstance(args[0], Tensor) and args[0].dtype == self.kind:
            given["dtype"] = self.kind
        if func in (Tensor.masked_fill, Tensor.masked_fill_) and args[0].dtype == self.kind and args[2] < self.least:
            args = (*args[:2], self.least)  # as code in the type writes it
        try:
            return func(*args, **given)
        except RuntimeError as error:
            lowered = tree_map(self._lowered, (args, given))
            if self._held(args, given, self.kind) and self._held(args, given, torch.float32):
                return func(*lowered[0], **lowered[1])  # float32 made of nothing, such as weights, beside the type
            if "not implemented" not in str(error) and "must be either float" not in str(error):
                raise
        raised = tree_map(self._raised, (args, given))
        return tree_map(self._lowered, func(*raised[0], **raised[1]))

    def _held(self, args: Any, given: Any, kind: torch.dtype) -> bool:
        """Whether a tensor of a type is among the arguments."""
        return any(isinstance(leaf, Tensor) and leaf.dtype == kind for leaf in tree_leaves((args, given)))

    def _raised(self, value: Any) -> Any:
        return value.to(torch.float32) if isinstance(value, Tensor) and value.dtype == self.kind else value

    def _lowered(self, value: Any) -> Any:
        return value.to(self.kind) if isinstance(value, Tensor) and value.dtype == torch.float32 else value


@contextlib.contextmanager
def scored_in(model: Any, kind: torch.dtype) -> Iterator[ScoresInType]:
    """The model's method computes in a half type while the block runs."""
    mode = ScoresInType(kind)
    method = model.model.reducer or model.model.language_model.pruner
    steps = ["forward", *(["cut"] if getattr(method, "cuts", False) else [])]  # some act inside the tower

    def within(own: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **given: Any) -> Any:
            with mode:
                return own(*args, **given)

        return step

    for name in steps:
        setattr(method, name, within(getattr(method, name)))
    try:
        yield mode
    finally:
        for name in steps:
            delattr(method, name)


def kept_by(model: Any, processor: Any, image: Path, block: dict[str, Any], in_type: bool = False) -> Kept:
    """What a method keeps of an image."""
    with method_of(model, block):
        if in_type:
            with scored_in(model, model.dtype):
                found = inspect_image(model, processor, image, attention=False)
        else:
            found = inspect_image(model, processor, image, attention=False)
    stages = (found.indices, *found.pruned.values())
    return tuple(frozenset(place for place in stage if place >= 0) for stage in stages)


def in_common(left: Kept, right: Kept) -> float:
    """Common over all, the mean over stages; 1 where both keep nothing by its place."""
    shares = [len(a & b) / len(a | b) if a | b else 1.0 for a, b in zip(left, right, strict=True)]
    return sum(shares) / len(shares)


def compare(names: list[str], images: int, shared: Path) -> dict[str, list[tuple[float, int, int]]]:
    """For each method and each of: float16 and bfloat16, scores in float32 and in the type. -> share in common, equal images, images"""
    torch.manual_seed(0)
    whole, processor = assemble(original_llava.BACKBONES / "lm", original_llava.BACKBONES / "clip")
    models = {kind: copy.deepcopy(whole).to(kind) for kind in TYPES.values()}
    found: dict[str, list[tuple[float, int, int]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        paths = original_llava.pictures(shared, images, Path(scratch))
        for name in names:
            block = {site_of(name): {"name": name}}
            try:
                wanted = [kept_by(whole, processor, path, block) for path in paths]
                for model in models.values():
                    for in_type in (False, True):
                        got = [kept_by(model, processor, path, block, in_type) for path in paths]
                        pairs = list(zip(wanted, got, strict=True))
                        share = sum(in_common(left, right) for left, right in pairs) / len(pairs)
                        found.setdefault(name, []).append((share, sum(a == b for a, b in pairs), len(pairs)))
            except ReductionError as error:
                print(f"{name} is left out: {error}", file=sys.stderr)
                found.pop(name, None)
    return found


def compare_arrays(names: list[str]) -> dict[str, list[tuple[float, int, int]]]:
    """The same on the golden arrays, for vision reducers that need nothing but features and projections."""
    files = [read(path) for path in sorted(HERE.rglob("*.npz")) if path.stem != "open_clip"]
    files = [arrays for arrays in files if {"features", "keys", "queries_cls"} <= set(arrays)]
    found: dict[str, list[tuple[float, int, int]]] = {}
    for name in names:
        if site_of(name) != "vision":
            continue
        reducer = build_reducer({"name": name})
        assert reducer is not None
        try:
            wanted = [_origins(reducer(vision_files.tokens_of(arrays))) for arrays in files]
            for kind in TYPES.values():
                halves = [{key: _lower(value, kind) for key, value in arrays.items()} for arrays in files]
                for mode in (contextlib.nullcontext(), ScoresInType(kind)):
                    with mode:
                        got = [_origins(reducer(vision_files.tokens_of(arrays))) for arrays in halves]
                    pairs = [
                        pair for left, right in zip(wanted, got, strict=True) for pair in zip(left, right, strict=True)
                    ]
                    share = sum(in_common((left,), (right,)) for left, right in pairs) / len(pairs)
                    found.setdefault(name, []).append((share, sum(a == b for a, b in pairs), len(pairs)))
        except ReductionError as error:
            print(f"{name} is left out of the arrays: {error}", file=sys.stderr)
    return found


def _lower(value: Tensor, kind: torch.dtype) -> Tensor:
    return value.to(kind) if value.is_floating_point() and value.dim() else value


def _origins(reduced: tuple[Tensor, Tensor, Tensor]) -> list[frozenset[int]]:
    """The patches that stay of each image."""
    rows = reduced[2].masked_fill(~reduced[1], -1)
    return [frozenset(place for place in row if place >= 0) for row in rows.tolist()]


def main() -> int:
    """The command line. -> exit status"""
    logging.disable(logging.WARNING)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", help="by name; all without")
    parser.add_argument("--images", type=int, default=24, help="images to compare (24)")
    parser.add_argument("--shared", type=Path, default=original_llava.SHARED)
    given = parser.parse_args()
    names = given.methods or list(discover())
    heads = [f"{kind}, {how}" for kind in TYPES for how in ("scores in float32 (ours)", "scores in the type")]
    for title, found in (
        ("pocket model", compare(names, given.images, given.shared)),
        ("golden arrays", compare_arrays(names)),
    ):
        print(f"\n| {title} | {' | '.join(heads)} |\n|{'---|' * (1 + len(heads))}")
        for name, cells in found.items():
            print(f"| `{name}` | {' | '.join(f'{share:.3f}, {same} of {all_}' for share, same, all_ in cells)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
