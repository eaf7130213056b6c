"""Every family on a GPU: the logits and greedy answers of the CPU, without a method and with one of each kind."""

from __future__ import annotations

import copy
import os
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

from llava_prumerge.model.attach import attach
from llava_prumerge.model.families import family_types

pytestmark = pytest.mark.gpu
DEVICE = torch.device(os.environ.get("GPU_TESTS_ON", "cuda"))
TINY = runpy.run_path(str(Path(__file__).resolve().parents[1] / "model" / "test_families.py"))
BLOCKS: dict[str, dict[str, Any] | None] = {
    "no method": None,
    "prumerge": {"vision": {"name": "prumerge", "budget": 6}},
    "fastv": {"decoder": {"name": "fastv", "layer": 1, "keep_ratio": 0.5}},
}


@pytest.mark.parametrize("method", BLOCKS)
@pytest.mark.parametrize("name", family_types())
@torch.no_grad()
def test_logits_and_answers_are_those_of_the_cpu(name: str, method: str) -> None:
    stock, batch, _ = TINY["made"](name)
    how: dict[str, Any] = dict(max_new_tokens=3, do_sample=False, eos_token_id=None)
    found = []
    for device in (torch.device("cpu"), DEVICE):
        model = copy.deepcopy(stock).to(device)
        model = model if BLOCKS[method] is None else attach(model, BLOCKS[method])
        given = {key: value.to(device) for key, value in batch.items()}
        output = model(**given)
        assert output.logits.device.type == device.type
        other = {key: -value if key.startswith("pixel_values") else value for key, value in given.items()}
        assert not torch.equal(model(**other).logits[0], output.logits[0]), "the image reaches the answer"
        if BLOCKS[method] is not None:
            assert model.model(**given).visual[0, -1] < (batch["input_ids"][0] == TINY["IMG"]).sum()
        found.append((output.logits[:, -1].cpu(), model.generate(**given, **how)[:, -3:].cpu()))
    (theirs, said), (ours, says) = found
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)
    assert torch.equal(said, says)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("name", family_types())
@torch.no_grad()
def test_half_precision_runs(name: str, dtype: torch.dtype) -> None:
    stock, batch, _ = TINY["made"](name)
    model = attach(copy.deepcopy(stock).to(DEVICE, dtype), BLOCKS["prumerge"])
    given = {key: value.to(DEVICE) for key, value in batch.items()}
    given = {key: value.to(dtype) if value.is_floating_point() else value for key, value in given.items()}
    logits = model(**given).logits
    assert logits.dtype == dtype and logits.isfinite().all()
