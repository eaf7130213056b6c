"""Which device a process computes on: what was asked for, what torch sees, and one line where the two do not agree.

    python -m llava_prumerge.model.devices     says what a process started here would compute on; status 2 where it cannot

GPUs that are there and that torch cannot use are an error, unless the CPU was asked for: a training that runs on the CPU
by mistake takes a hundred times as long, and nothing else would say so. The CPU is asked for by GPUS=0, by an empty
CUDA_VISIBLE_DEVICES (or -1), or by `device=cpu`.
"""

# ruff: noqa: T201  (an entry point talks to people)

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping

from llava_prumerge.ground.errors import InputError
from llava_prumerge.ground.ranks import local_rank, world_size

VISIBLE = "CUDA_VISIBLE_DEVICES"
STARTED = "LLAVA_PRUMERGE_STARTED"  # set by scripts/launching.sh, which has said then how the run was started
LISTING_SECONDS = 60.0
MEND = (
    "activate the environment that has a CUDA build, or install one into this (https://pytorch.org/get-started/locally)"
)
ON_CPU = "GPUS=0 or device=cpu computes on the CPU"


class DeviceError(InputError):
    """A device that cannot be used; one line with the cause and the mend."""


def asked_for_cpu(device: str | None = None, environment: Mapping[str, str] = os.environ) -> str | None:
    """By which setting the CPU was asked for, such as "GPUS=0"; None where it was not.

    Args:
        device: the command's own setting.
    """
    if device is not None and device.split(":")[0] == "cpu":
        return f"device={device}"
    if re.fullmatch("0+", environment.get("GPUS", "")):
        return f"GPUS={environment['GPUS']}"
    shown = environment.get(VISIBLE)
    if shown is not None and re.fullmatch(r"\s*(-1.*)?", shown):
        return f"{VISIBLE}={shown}"
    return None


def hide_gpus(device: str | None = None) -> None:
    """Where the CPU was asked for, hide the GPUs from everything this process imports later."""
    if asked_for_cpu(device) is not None:
        os.environ[VISIBLE] = ""


def keep_one_gpu() -> None:
    """Without a launcher, show this process its first GPU alone: transformers' Trainer would take all in one process.

    Before CUDA is first used. The global batch would be multiplied by their number, in the slow `DataParallel`.
    """
    import torch

    if "WORLD_SIZE" not in os.environ and torch.cuda.device_count() > 1:
        os.environ[VISIBLE] = os.environ.get(VISIBLE, "0").split(",")[0]


def listed_gpus() -> list[str]:
    """The GPUs of this host as `nvidia-smi -L` names them; [] where it is missing, or finds none."""
    if shutil.which("nvidia-smi") is None:
        return []
    try:
        done = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=LISTING_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return re.findall(r"^GPU \d+: (.*?)(?: \(UUID.*)?$", done.stdout, re.MULTILINE)


def choose_device(device: str | None = None) -> str:
    """The device of this process: what was asked for, or the GPU of its rank, or the CPU where there are no GPUs.

    Args:
        device: the command's own setting, such as cuda:1; None: to be chosen.

    Raises:
        DeviceError: GPUs are here that torch does not see, more processes than GPUs, or `device` is none of this host's.
    """
    if device is None and asked_for_cpu() is not None or device is not None and asked_for_cpu(device, {}) is not None:
        return "cpu"
    import torch

    seen, local = torch.cuda.device_count() if torch.cuda.is_available() else 0, local_rank()
    if device is not None:
        _check_setting(device, seen)
        if (cpu := asked_for_cpu()) is not None:
            raise DeviceError(f"device={device} contradicts {cpu}, which asks for the CPU; leave out one of the two")
        return device
    if seen == 0:
        gpus = listed_gpus()
        if gpus:
            number = f"{len(gpus)} GPU{'s' * (len(gpus) > 1)} ({gpus[0]})"
            raise DeviceError(f"this host has {number}, but {_why_unseen()}; or: {ON_CPU}")
        return "cpu"
    if local >= seen:
        raise DeviceError(
            f"process {local} of this host has no GPU: torch sees {seen}{_setting()}; start one process per GPU"
        )
    return f"cuda:{local}"


def _check_setting(device: str, seen: int) -> None:
    kind, _, number = device.partition(":")
    if kind != "cuda":
        import torch

        try:
            torch.empty(1, device=device)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            raise DeviceError(f"device={device}: torch cannot use it here; take cpu, cuda or cuda:NUMBER") from error
        return
    if number and not number.isdecimal():
        raise DeviceError(f"device={device}: expected cpu, cuda or cuda:NUMBER")
    if seen == 0 and listed_gpus():
        raise DeviceError(f"device={device}: {_why_unseen()}")
    if int(number or 0) >= seen:
        raise DeviceError(f"device={device}: torch sees {seen or 'no'} GPU{'s' * (seen != 1)} here{_setting()}")


def _setting() -> str:
    return f" ({VISIBLE}={os.environ[VISIBLE]})" if VISIBLE in os.environ else ""


def _why_unseen() -> str:
    """Why torch sees none of the GPUs of this host, and what mends it."""
    import torch

    if torch.version.cuda is None:
        return f"torch {torch.__version__} in {sys.prefix} is a build without CUDA: {MEND}"
    try:
        torch.cuda.init()
        reason = "torch sees none of them"
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:300].rstrip(".")
    if os.environ.get(VISIBLE) == "NoDevFiles":
        return "Slurm gave none of them to this job: ask for them, as in --gpus-per-node=1"
    if VISIBLE in os.environ and "No CUDA GPUs are available" in reason:
        return f"{VISIBLE}={os.environ[VISIBLE]} names none of them: correct it or unset it"
    return f"torch {torch.__version__} (CUDA {torch.version.cuda}) cannot use them ({reason}): update the driver, or {MEND}"


def describe_start(device: str) -> str:
    """How this process was started, in one line: Python, torch, device, ranks."""
    import torch

    place = os.environ.get("VIRTUAL_ENV") or os.environ.get("CONDA_PREFIX")
    active = place is not None and os.path.realpath(place) == os.path.realpath(sys.prefix)
    chosen = "the active environment" if active else "started by its path"
    named = device
    if device.startswith("cuda") and torch.cuda.is_available():
        seen = torch.cuda.device_count()
        named = f"{device} of {seen} GPU{'s' * (seen > 1)}, {torch.cuda.get_device_name(device)}{_setting()}"
    elif device == "cpu":
        asked = asked_for_cpu()
        named = f"the CPU ({asked or 'no GPU here'})"
    ranks = world_size()
    words = f"{ranks} process{'es' * (ranks > 1)}"
    return f"start: {sys.executable} ({chosen}), torch {torch.__version__}, {named}, {words}"


def was_said() -> bool:
    """Whether the line about the start has been printed: by the script that started this process."""
    return STARTED in os.environ


def main() -> int:
    """Say what a process started here would compute on."""
    hide_gpus()
    try:
        line = describe_start(choose_device())
    except DeviceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not was_said():
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
