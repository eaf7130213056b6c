"""A reduction is a fixed number of tensor calls and one host synchronisation, whatever the number of images and tokens."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from vision_tokens import blocks, label, make_tokens, tower_grid

from llava_prumerge.methods.base import build_reducer

VIEWS = {"view", "_unsafe_view", "expand", "transpose", "unsqueeze", "slice", "select", "detach", "alias", "permute"}
LIMITS = {"prumerge": 56, "prumerge_plus": 72, "grid": 80, "pool": 105, "random": 66}
LIMIT = 40
HOST = {"_local_scalar_dense", "nonzero", "is_nonzero"}


class Calls(TorchDispatchMode):
    """Counts calls that reach a kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        self.counts[function.overloadpacket.__name__.split(".")[-1]] += 1
        return function(*arguments, **(keywords or {}))


def calls(block: dict[str, Any], images: int, side: int) -> Counter[str]:
    reducer = build_reducer(block)
    image = make_tokens(images=images, grid=tower_grid(reducer, (side, side)))
    with Calls() as counter:
        reducer(image)
    return counter.counts


@pytest.mark.parametrize("block", blocks(), ids=label)
def test_calls_do_not_depend_on_images_or_tokens(block: dict[str, Any]) -> None:
    one = calls(block, 1, 10)
    assert one == calls(block, 7, 10) == calls(block, 3, 24)
    kernels = {name: count for name, count in one.items() if name not in VIEWS}
    assert sum(kernels.values()) <= LIMITS.get(block["name"], LIMIT), kernels


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
    assert not [name for name in names if name in HOST | {"item"}]
