"""A reduction is a fixed number of tensor calls and one host synchronisation, whatever the number of images and tokens.

A method whose rule is sequential says how often its step repeats (`VisionReducer.repeats`); then the number of calls
must be a straight line in that, and the step must be short. How many calls are allowed a method says itself
(`VisionReducer.call_limit`), with the reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from vision_tokens import REDUCERS, blocks, label, make_tokens, tower_grid

from llava_prumerge.methods.cost import CallLimit
from llava_prumerge.methods.registry import build_reducer, discover

VIEWS = {"view", "_unsafe_view", "expand", "transpose", "unsqueeze", "slice", "select", "detach", "alias", "permute"}
SAME = {
    "_unsafe_view": "view",
    "alias": "slice",
}  # which of them it is depends on whether a side has length one; so does a clone
REMEDY = (
    "compute masks and sums once and use them again; where the method needs more, declare in its class, with the reason, "
    'call_limit = CallLimit({}, why="...") of llava_prumerge.methods.cost'
)
HOST = {"_local_scalar_dense", "nonzero", "is_nonzero"}


class Calls(TorchDispatchMode):
    """Counts calls that reach a kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        name = function.overloadpacket.__name__.split(".")[-1]
        self.counts[SAME.get(name, name)] += name != "clone"
        return function(*arguments, **(keywords or {}))


def calls(block: dict[str, Any], images: int, side: int) -> tuple[Counter[str], int]:
    """Calls by name, and the repeats that the method declares."""
    reducer = build_reducer(block)
    image, earlier = (make_tokens(images=images, grid=tower_grid(reducer, (side, side))) for _ in range(2))
    reducer(earlier)  # tables that are made once for a grid
    with Calls() as counter:
        kept = reducer(image)[1].shape[1]
    return counter.counts, reducer.repeats(image.features.shape[1], kept)


@pytest.mark.parametrize("block", blocks(), ids=label)
def test_calls_do_not_depend_on_images_or_tokens(block: dict[str, Any]) -> None:
    one, repeats = calls(block, 1, 10)
    assert (one, repeats) == calls(block, 7, 10)
    other, more = calls(block, 3, 24)
    if more == repeats:
        assert one == other
    third, most = calls(block, 2, 17)
    for name in one | other | third:
        assert (other[name] - one[name]) * (most - repeats) == (third[name] - one[name]) * (more - repeats), name
    kernels = {name: count for name, count in one.items() if name not in VIEWS}
    wrong = too_many(kernels, build_reducer(block).call_limit, repeats)
    assert wrong is None, wrong


def too_many(kernels: Mapping[str, int], limit: CallLimit, repeats: int) -> str | None:
    """What to say of a method that makes more calls than it may; None where it does not."""
    total, most = sum(kernels.values()), limit.allowed(repeats)
    told = ", ".join(f"{count} {name}" for name, count in sorted(kernels.items(), key=lambda item: -item[1]))
    return None if total <= most else f"{total} tensor calls, at most {most}: {told}; {REMEDY.format(total)}"


def test_the_message_says_how_many_which_and_what_to_do() -> None:
    said = too_many({"add": 30, "sort": 6}, CallLimit(), 0)
    assert said is not None and said.startswith("36 tensor calls, at most 34: 30 add, 6 sort; compute masks")
    assert 'call_limit = CallLimit(36, why="...")' in said
    assert too_many({"add": 36}, CallLimit(30, step=3, why="a loop"), 2) is None


@pytest.mark.parametrize("name", REDUCERS)
def test_another_limit_has_its_reason(name: str) -> None:
    limit = discover()[name].call_limit
    assert (limit == CallLimit()) != bool(limit.why), f"{name}: a limit of its own needs `why`, the default none"


def test_only_sequential_rules_repeat() -> None:
    """Those that declare a step, and as often as their rule says; none hides a loop over images."""
    repeating = {block["name"]: build_reducer(block).repeats(576, 64) for block in blocks(64)}
    assert {name for name, times in repeating.items() if times} == {
        name for name in repeating if discover()[name].call_limit.step
    }
    assert {name: repeating[name] for name in ("divprune", "par", "tome")} == {"divprune": 64, "par": 10, "tome": 8}


@pytest.mark.parametrize("block", blocks(), ids=label)
def test_one_host_synchronisation(block: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """`tolist` is the one place where values come to the host; `item`, `nonzero` and friends do not occur."""
    seen = []
    plain = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: seen.append(tensor.shape) or plain(tensor))
    reducer = build_reducer(block)
    image = make_tokens(grid=tower_grid(reducer, (12, 12)))
    with profile(activities=[ProfilerActivity.CPU]) as record:
        reducer(image)
    names = [event.name.removeprefix("aten::") for event in record.events()]
    assert len(seen) <= 1
    waits = [name for name in names if name in HOST]
    assert len(waits) <= reducer.call_limit.waits, waits
