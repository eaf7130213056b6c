"""Launcher lines: torchrun on two nodes, the deepspeed launcher with a hostfile, Slurm with requeueing; all on loopback.

`fakes` holds a srun, scontrol, pdsh and ssh that run on this machine what the real ones run on others.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from train.launching import (
    REPOSITORY,
    SHARED,
    assert_deepspeed_ran,
    assert_same_bits,
    assert_same_run,
    losses_of,
    variables,
    zero,
)

from llava_prumerge.train.checkpoints import list_checkpoints
from llava_prumerge.train.run import main

FAKES = Path(__file__).with_name("fakes")
SBATCH = REPOSITORY / "scripts" / "slurm" / "finetune_lora.sbatch"
TWO_RANKS = SHARED | {"reduction": {"vision": {"name": "prumerge_plus", "iqr_factor": 0.2}}, "deepspeed": zero("zero2")}


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def overrides(world, run: Path, **changes: object) -> list[str]:
    """A run of the tiny world as key=value items on top of a shipped recipe."""
    plain = {
        "logging_steps": 1,
        "max_grad_norm": 1.0,
        "merge": False,
    }  # where the shipped recipe differs from the defaults
    (file,) = world.recipe("lora", run, **(plain | TWO_RANKS | changes))
    return [f"{key}={json.dumps(value)}" for key, value in yaml.safe_load(Path(file).read_text()).items()]


def environment(**values: str) -> dict[str, str]:
    """Of a user of the scripts, with the fakes first in PATH."""
    path = f"{FAKES}:{os.environ['PATH']}"
    return variables() | {"PATH": path, "RECIPE": "pocket", "METHOD": "none", "MASTER_PORT": free_port()} | values


def slurm_variables(folder: Path, tasks: int) -> dict[str, str]:
    return {
        "SLURM_SUBMIT_DIR": str(REPOSITORY),
        "SLURM_JOB_NODELIST": "node-0",
        "SLURM_JOB_ID": str(int(free_port()) - 20000),
        "SLURM_NTASKS": str(tasks),
        "REQUEUED": str(folder / "requeued"),
    }


def echo_launch(tmp_path: Path, world, name: str, **values: str) -> list[str]:
    """The command line that a launcher of this name would have got; it only writes it down."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / name).write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$MASTER_ADDR" "$MASTER_PORT" "$@" >"$ECHO"\n')
    (folder / name).chmod(0o755)
    shutil.copy(FAKES / "scontrol", folder)
    shutil.copy(FAKES / "ssh", folder)
    told = environment(**values) | {"ECHO": str(tmp_path / "echo"), "PATH": f"{folder}:{os.environ['PATH']}"}
    command = ["bash", "scripts/finetune_lora.sh", *overrides(world, tmp_path / "run")]
    result = subprocess.run(command, cwd=REPOSITORY, env=told, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return (tmp_path / "echo").read_text().splitlines()


def test_the_hostfiles_launcher_line(world, tmp_path) -> None:
    """As far as pdsh: hosts, ranks, module and settings."""
    (tmp_path / "hosts").write_text("node-0 slots=1\nnode-1 slots=1\n")
    _, _, *line = echo_launch(tmp_path, world, "pdsh", HOSTFILE=str(tmp_path / "hosts"))
    assert line[line.index("-w") + 1] == "node-0,node-1" and "--node_rank=%n" in line
    at = line.index("llava_prumerge.train.run")
    assert "--module" in line and "--no_local_rank" in line
    assert line[at + 1 : at + 3] == ["pocket/finetune_lora", "method=none"]


def test_ranks_that_do_not_fit_the_batch_are_said_once(world, tmp_path) -> None:
    """Before any of them is started."""
    command = ["bash", "scripts/finetune_lora.sh", *overrides(world, tmp_path / "run")]
    told = environment(GPUS="3")
    result = subprocess.run(command, cwd=REPOSITORY, env=told, capture_output=True, text=True, timeout=300)
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1
    assert "global_batch=4 is not a multiple of per_device_batch=2 x 3 ranks" in result.stderr


def start(command: list[str], told: dict[str, str], log: Path) -> subprocess.Popen:
    """A process in the background, which says what it has to say into a file."""
    with log.open("w") as file:
        return subprocess.Popen(command, cwd=REPOSITORY, env=told, stdout=file, stderr=subprocess.STDOUT)


def finish(*processes: tuple[subprocess.Popen, Path], timeout: int = 900) -> None:
    """All of them, and well."""
    for process, log in processes:
        try:
            status = process.wait(timeout)
        finally:
            process.kill()
        assert status == 0, log.read_text()[-6000:]


@pytest.fixture(scope="module")
def reference(world, tmp_path_factory) -> Path:
    """One process, without a launcher and DeepSpeed."""
    run = tmp_path_factory.mktemp("reference") / "run"
    assert main(world.recipe("lora", run, **(TWO_RANKS | {"deepspeed": None}))) == 0
    return run


@pytest.mark.zero
@pytest.mark.parametrize("rendezvous", ["static", "c10d"])
def test_two_nodes_equal_one_process(world, reference, tmp_path, rendezvous) -> None:
    run, port, nodes = tmp_path / "run", free_port(), []
    for node in range(2):
        told = environment(GPUS="1", NNODES="2", NODE_RANK=str(node), MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        command = ["bash", "scripts/finetune_lora.sh"]
        if rendezvous == "c10d":
            command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1"]
            command += ["--rdzv_backend", "c10d", "--rdzv_endpoint", f"127.0.0.1:{port}", "--rdzv_id", "test"]
            command += ["-m", "llava_prumerge.train.run", "configs/train/pocket/finetune_lora.yaml"]
        log = tmp_path / f"{node}.log"
        nodes.append((start([*command, *overrides(world, run)], told, log), log))
    finish(*nodes)
    assert_deepspeed_ran(run)
    assert_same_run(run, reference)


@pytest.mark.zero
def test_the_deepspeed_launcher_on_two_hosts_equals_one_process(world, reference, tmp_path) -> None:
    (tmp_path / "hosts").write_text("# two names of this machine\nnode-0 slots=1\nnode-1 slots=1\n")
    told = environment(HOSTFILE=str(tmp_path / "hosts"), DS_ACCELERATOR="cpu")
    log = tmp_path / "log"
    command = ["bash", "scripts/finetune_lora.sh", *overrides(world, tmp_path / "run")]
    finish((start(command, told, log), log))
    assert_deepspeed_ran(tmp_path / "run")
    assert_same_run(tmp_path / "run", reference)


def stop_after_two_steps(process: subprocess.Popen, run: Path, log: Path) -> None:
    """SIGTERM to the launcher's shell, once the run takes steps."""
    deadline = time.monotonic() + 600
    while not (run / "metrics.jsonl").exists() or len(losses_of(run)) < 2:
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-6000:]
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)


@pytest.mark.zero
@pytest.mark.parametrize("launcher", ["torchrun", "sbatch"])
def test_preemption_saves_on_all_ranks_and_the_same_line_goes_on(world, tmp_path, launcher) -> None:
    """SIGTERM to the shell: status 0 and a checkpoint of that step; Slurm's job is back in the queue."""
    straight, run, log = tmp_path / "straight", tmp_path / "run", tmp_path / "log"
    values = {"max_steps": 40, "save_steps": 0}
    told = environment(GPUS="2") | slurm_variables(tmp_path, 2)
    script = str(SBATCH) if launcher == "sbatch" else "scripts/finetune_lora.sh"
    finish((start(["bash", script, *overrides(world, straight, **values)], told, log), log))
    command = ["bash", script, *overrides(world, run, **values)]
    process = start(command, told, log)
    stop_after_two_steps(process, run, log)
    finish((process, log))
    (checkpoint,) = list_checkpoints(run)
    assert int(checkpoint.name.split("-")[1]) == len(losses_of(run)) < 40 and not (run / "finished.json").exists()
    requeued = tmp_path / "requeued"
    assert requeued.exists() == (launcher == "sbatch")
    assert "stopped at step" in log.read_text()
    finish((start(command, told, log), log))
    assert_same_bits(run, straight)
    assert not requeued.exists() or len(requeued.read_text().splitlines()) == 1
