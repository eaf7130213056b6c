"""Which device is computed on: what was asked for, GPUs that torch cannot use as an error with its cause, one GPU per process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from llava_prumerge.model import devices
from llava_prumerge.model.devices import (
    DeviceError,
    asked_for_cpu,
    choose_device,
    describe_start,
    hide_gpus,
    keep_one_gpu,
    listed_gpus,
)


@pytest.fixture
def host(tmp_path, monkeypatch):
    """A function: how many GPUs nvidia-smi lists, how many torch sees, and why not -> nothing; variables are unset."""
    for name in ("CUDA_VISIBLE_DEVICES", "GPUS", "LOCAL_RANK", "WORLD_SIZE", devices.STARTED):
        monkeypatch.delenv(name, raising=False)

    def make(listed: int, seen: int, build: str | None = "12.8", reason: str = "") -> None:
        lines = [f"GPU {at}: NVIDIA A100-SXM4-80GB (UUID: GPU-{at})" for at in range(listed)]
        script = tmp_path / "nvidia-smi"
        script.write_text("#!/bin/sh\n" + "\n".join(f"echo '{line}'" for line in lines) + "\n")
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        monkeypatch.setattr(torch.version, "cuda", build)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: seen > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: seen)

        def fail() -> None:
            raise RuntimeError(reason)

        monkeypatch.setattr(torch.cuda, "init", fail if reason else lambda: None)

    return make


@pytest.mark.parametrize(
    ("device", "variables", "by"),
    [
        ("cpu", {}, "device=cpu"),
        (None, {"GPUS": "0"}, "GPUS=0"),
        (None, {"CUDA_VISIBLE_DEVICES": ""}, "CUDA_VISIBLE_DEVICES="),
        (None, {"CUDA_VISIBLE_DEVICES": "-1"}, "CUDA_VISIBLE_DEVICES=-1"),
        (None, {"GPUS": "2", "CUDA_VISIBLE_DEVICES": "0"}, None),
        (None, {"CUDA_VISIBLE_DEVICES": "99"}, None),
        (None, {"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, None),
        ("cuda:0", {}, None),
        (None, {}, None),
    ],
)
def test_how_the_cpu_is_asked_for(host, monkeypatch, device, variables, by) -> None:
    host(2, 0, None)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert asked_for_cpu(device, variables) == by
    if by is None:
        with pytest.raises(DeviceError):
            choose_device(device)
    else:
        assert choose_device(device) == "cpu"
        hide_gpus(device)
        assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


@pytest.mark.parametrize(
    ("build", "reason", "shown", "words"),
    [
        (None, "", None, ["build without CUDA", torch.__version__, sys.prefix, "pytorch.org", "GPUS=0"]),
        (
            "12.8",
            "The NVIDIA driver on your system is too old (found version 11040).\nUpdate it.",
            None,
            ["11040", "driver"],
        ),
        ("12.8", "No CUDA GPUs are available", "99", ["CUDA_VISIBLE_DEVICES=99 names none of them"]),
        ("12.8", "No CUDA GPUs are available", "NoDevFiles", ["Slurm gave none", "--gpus-per-node"]),
        ("12.8", "No CUDA GPUs are available", None, ["No CUDA GPUs are available", "driver"]),
    ],
)
def test_gpus_that_torch_cannot_use_are_an_error_with_the_cause(host, monkeypatch, build, reason, shown, words) -> None:
    host(2, 0, build, reason)
    if shown is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    with pytest.raises(DeviceError) as caught:
        choose_device()
    message = str(caught.value)
    assert "this host has 2 GPUs (NVIDIA A100-SXM4-80GB)" in message and "\n" not in message
    assert all(word in message for word in words), message


def test_a_host_without_gpus_computes_on_the_cpu(host, monkeypatch) -> None:
    host(0, 0)
    assert listed_gpus() == [] and choose_device() == "cpu"
    with pytest.raises(DeviceError, match="device=cuda:1: torch sees no GPUs here"):
        choose_device("cuda:1")


@pytest.mark.parametrize("variable", [("GPUS", "0"), ("CUDA_VISIBLE_DEVICES", "")])
def test_a_device_is_held_against_what_the_environment_asks_for(host, monkeypatch, variable) -> None:
    """A setting is checked also where GPUs are hidden, and another device than the CPU is not taken for it."""
    host(2, 2)
    monkeypatch.setenv(*variable)
    assert choose_device() == choose_device("cpu") == "cpu"
    with pytest.raises(DeviceError, match="device=banana: torch cannot use it here"):
        choose_device("banana")
    with pytest.raises(DeviceError, match=f"device=cuda:0 contradicts {variable[0]}={variable[1]}, which asks for"):
        choose_device("cuda:0")


def test_each_process_has_the_gpu_of_its_rank(host, monkeypatch) -> None:
    host(4, 2)
    assert choose_device() == "cuda:0" and choose_device("cuda:1") == "cuda:1" and choose_device("cpu") == "cpu"
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert choose_device() == "cuda:1"
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(DeviceError, match="process 2 of this host has no GPU: torch sees 2"):
        choose_device()
    for wrong in ("cuda:2", "cuda:x"):
        with pytest.raises(DeviceError, match=f"device={wrong}"):
            choose_device(wrong)


@pytest.mark.parametrize(("shown", "kept"), [(None, "0"), ("3,1", "3"), ("GPU-b,GPU-a", "GPU-b")])
def test_a_process_on_its_own_keeps_one_gpu(host, monkeypatch, shown, kept) -> None:
    host(4, 2)
    if shown is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    keep_one_gpu()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == kept
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    keep_one_gpu()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"


def test_the_start_line_names_everything(host, monkeypatch) -> None:
    host(0, 0)
    monkeypatch.setenv("WORLD_SIZE", "2")
    line = describe_start("cpu")
    assert sys.executable in line and f"torch {torch.__version__}" in line
    assert "the CPU (no GPU here)" in line and "2 processes" in line
    monkeypatch.setenv("VIRTUAL_ENV", sys.prefix)
    assert "the active environment" in describe_start("cpu")


def test_the_command_refuses_what_a_start_would(tmp_path) -> None:
    """In a process of its own, as the launchers run it: a CPU build of torch beside a listed GPU."""
    if torch.version.cuda is not None:
        pytest.skip("this torch is no CPU build")
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H100 (UUID: GPU-1)'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    told = {name: value for name, value in os.environ.items() if name not in ("CUDA_VISIBLE_DEVICES", "GPUS")}
    told |= {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    command = [sys.executable, "-m", "llava_prumerge.model.devices"]
    done = subprocess.run(command, env=told, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "1 GPU (NVIDIA H100), but torch" in done.stderr and "build without CUDA" in done.stderr
    done = subprocess.run(command, env=told | {"GPUS": "0"}, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "the CPU (GPUS=0)" in done.stdout
