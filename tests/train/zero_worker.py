"""One rank of a test: several runs in one process, since importing the libraries takes longer than all of them.

The plan is a JSON object: `runs`, a list of command lines, and what is to be added to them:

    gather        write every trained weight, gathered one by one, to gathered.safetensors beside what a run saves
    nan_picture   id of a sample whose picture is NaN on every reading
    nan_gradient  {"rank", "step"}: in that step, that rank's gradients are NaN though its loss is not
    die           {"rank", "step", "how"}: in that step, that rank raises an error ("raise") or is killed ("kill")
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from llava_prumerge.data.dataset import LlavaDataset
from llava_prumerge.train.run import leave_process_group, main
from llava_prumerge.train.trainer import LlavaTrainer

RANK = int(os.environ["RANK"])


def write_gathered(after) -> None:
    """Let each saving be followed by a gathering that shares no code with it."""

    def save_model(self, output_dir=None, _internal_call=False) -> None:
        after(self, output_dir, _internal_call)
        found = {}
        for name, parameter in self.model.named_parameters():
            if not parameter.requires_grad:
                continue
            if hasattr(parameter, "ds_id"):
                import deepspeed

                with deepspeed.zero.GatheredParameters([parameter]):
                    found[name] = parameter.detach().clone()
            else:
                found[name] = parameter.detach().clone()
        if RANK == 0:
            folder = Path(output_dir or self.args.output_dir)
            save_file({name: tensor.contiguous() for name, tensor in found.items()}, folder / "gathered.safetensors")

    LlavaTrainer.save_model = save_model


def spoil_picture(sample: str, get) -> None:
    def spoiled(self, index):
        item = get(self, index)
        if item["id"] == sample:
            item["pixel_values"] = item["pixel_values"] * math.nan
        return item

    LlavaDataset.__getitem__ = spoiled


class NanGradient(torch.autograd.Function):
    """Adds nothing to a loss, and NaN to its gradient."""

    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * math.nan


def fault(plan: dict, compute) -> None:
    """Put a fault into a step of a rank."""

    def compute_loss(self, *given, **named):
        loss = compute(self, *given, **named)
        step = self.state.global_step + 1
        gradient, death = plan.get("nan_gradient"), plan.get("die")
        if gradient and (RANK, step) == (gradient["rank"], gradient["step"]):
            loss = NanGradient.apply(loss)
        if death and (RANK, step) == (death["rank"], death["step"]):
            if death["how"] == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError("the fault that this test injects")
        return loss

    LlavaTrainer.compute_loss = compute_loss


if __name__ == "__main__":
    plan = json.loads(Path(sys.argv[1]).read_text())
    sys.path.append(str(Path(__file__).resolve().parents[1]))
    from tiny_families import have_num2words

    have_num2words(pytest.MonkeyPatch())
    if plan.get("gather"):
        write_gathered(LlavaTrainer.save_model)
    if plan.get("nan_picture"):
        spoil_picture(plan["nan_picture"], LlavaDataset.__getitem__)
    fault(plan, LlavaTrainer.compute_loss)
    status = max(main(tokens) for tokens in plan["runs"])
    if status == 0:
        leave_process_group()
    sys.exit(status)
