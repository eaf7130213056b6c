"""What the launchers would start: which Python, which GPUs, how many processes. Fakes print the command line, nothing runs."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from train.fake_host import FAKES, PYTHON, REPOSITORY, SCRIPTS, UUIDS, Host, executable, listing, processes, started

from llava_prumerge.ground import shipped


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@pytest.fixture
def cluster(tmp_path: Path) -> Host:
    return Host(tmp_path).in_slurm()


# --- which GPUs CUDA shows -------------------------------------------------------------------------------------------

SETTINGS = (
    *(
        None,
        "",
        "0",
        "3",
        "4",
        "99",
        "0,1",
        "3,0",
        "0,1,2,3",
        "0,0",
        "0,1,0",
        "0,9,1",
        "9,0",
        "0,9,0",
        "0,-1,1",
        "-1",
        "-1,0",
    ),
    *(
        " 1",
        "1 , 2",
        "0,,1",
        "0,",
        ",0",
        "01",
        "+1",
        "1gpu2,2ampere",
        "NoDevFiles",
        "all",
        "none",
        "1 2",
        "12345678901",
    ),
    *(UUIDS[2], f"{UUIDS[3]},{UUIDS[0]}", "GPU-5c898", "GPU-5c89", "GPU-0ffe1,GPU-5c898", "GPU-0ffe,GPU-5c898", "GPU-"),
    *("GPU-0ffe1,GPU-0ffe11", "GPU-0ffe1,GPU-0ffe1", "GPU-0ffe1,0", "0,GPU-0ffe1", "GPU-0ffe1, GPU-5c898", "gpu-0ffe1"),
    *("GPU-dead,GPU-0ffe1", "GPU-0ffe1,GPU-dead,GPU-5c898", "GPU-0ffe1,", "5c89852c"),
)


def visible(text: str, settings: tuple[str | None, ...], tmp_path: Path) -> list[list[str]]:
    """What `find_visible` says for each setting of CUDA_VISIBLE_DEVICES, in one shell."""
    executable(tmp_path / "bin" / "nvidia-smi", f"#!/bin/sh\ncat <<'END'\n{text}END\n")
    lines = [f'set -euo pipefail; PATH="{tmp_path}/bin:$PATH"; source "{SCRIPTS}/launching.sh"; list_gpus']
    for setting in settings:
        lines.append("unset CUDA_VISIBLE_DEVICES" if setting is None else f"CUDA_VISIBLE_DEVICES='{setting}'")
        lines.append('find_visible; echo "${#visible[@]}:$(IFS=";"; echo "${visible[*]-}")"')
    done = subprocess.run(["bash", "-c", "\n".join(lines)], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and not done.stderr, done.stderr
    found = []
    for line in done.stdout.splitlines():
        count, _, named = line.partition(":")
        found.append(named.split(";") if named else [])
        assert len(found[-1]) == int(count)
    return found


def test_the_count_is_torchs_own(tmp_path, monkeypatch) -> None:
    """Against torch's reading of the variable, on a host of four GPUs."""
    monkeypatch.setattr(torch.cuda, "_raw_device_count_nvml", lambda: len(UUIDS))
    monkeypatch.setattr(torch.cuda, "_raw_device_uuid_nvml", lambda: list(UUIDS))
    found = visible(listing(), SETTINGS, tmp_path)
    counts = []
    for setting, entries in zip(SETTINGS, found, strict=True):
        if setting is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", setting)
        counts.append(torch.cuda._device_count_nvml())
        assert len(entries) == counts[-1], setting
        if entries:  # what is handed on means the same devices in the same order
            before = torch.cuda._parse_visible_devices()
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(entries))
            assert torch.cuda._parse_visible_devices() == before[: len(entries)], setting
    assert set(counts) == {0, 1, 2, 3, 4} - {3}


SLICES = """GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-5c89852c-1111)
  MIG 3g.20gb     Device  0: (UUID: MIG-c6d4f1ef-42e4)
  MIG 3g.20gb     Device  1: (UUID: MIG-cba663e8-9bed)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-5c89aaaa-2222)
"""


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        (None, ["0"]),  # CUDA shows one MIG device, and no whole GPU beside it
        ("1", ["1"]),
        ("0", ["0"]),
        ("1,0", ["0"]),
        ("MIG-cba663e8-9bed", ["MIG-cba663e8-9bed"]),
        ("MIG-cba663e8-9bed,MIG-c6d4f1ef-42e4", ["MIG-cba663e8-9bed"]),
        ("MIG-cba6", ["MIG-cba6"]),
        ("MIG-GPU-5c89852c-1111/1/0", ["MIG-GPU-5c89852c-1111/1/0"]),  # as drivers before R470 name them
        ("MIG-dead", []),
        ("MIG-GPU-dead/1/0", []),
        ("MIG-cba663e8-9bed,MIG-cba663e8-9bed", []),
    ],
)
def test_of_mig_devices_a_process_sees_one(tmp_path, setting, expected) -> None:
    assert visible(SLICES, (setting,), tmp_path) == [expected]


@pytest.mark.parametrize("script", ["finetune_lora.sh", "eval/pope.sh"])
@pytest.mark.parametrize(
    ("variables", "count", "shown"),
    [
        ({}, 4, "unset"),
        ({"CUDA_VISIBLE_DEVICES": "1"}, 1, "1"),
        ({"CUDA_VISIBLE_DEVICES": "3,1"}, 2, "3,1"),
        ({"CUDA_VISIBLE_DEVICES": UUIDS[1]}, 1, UUIDS[1]),
        ({"CUDA_VISIBLE_DEVICES": "GPU-0ffe1,GPU-5c898,GPU-5c89a", "GPUS": "2"}, 2, "GPU-0ffe1,GPU-5c898"),
        ({"GPUS": "2"}, 2, "0,1"),
        ({"GPUS": "1"}, 1, "0"),
        ({"GPUS": "0"}, 1, ""),
        ({"GPUS": "0", "CUDA_VISIBLE_DEVICES": "1,2"}, 1, ""),
        ({"CUDA_VISIBLE_DEVICES": ""}, 1, ""),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, 1, "-1"),
        ({"CUDA_VISIBLE_DEVICES": "", "GPUS": "2"}, 2, ""),  # ranks on the CPU
        ({"NVIDIA_VISIBLE_DEVICES": "2"}, 4, "unset"),  # a container's: nvidia-smi lists what it leaves
    ],
)
def test_one_process_for_each_visible_gpu(host, script, variables, count, shown) -> None:
    host.listing = listing()
    result = host.run(script, "runs/model", **variables)
    line = started(result)
    assert processes(line) == count and f"visible={shown} " in result.stdout
    assert ("torch.distributed.run" in line) == (count > 1)
    (start,) = [line for line in result.stderr.splitlines() if line.startswith("start: ")]
    assert f"{count} process{'es' * (count > 1)}" in start and "torch 2.13.0" in start and str(host.bin) in start
    on_cpu = shown in ("", "-1")
    assert ("the CPU" in start) == on_cpu and (f"{count} of 4 GPUs" in start) == (not on_cpu)
    asked = count > 1 and not on_cpu
    assert ("devices" in result.stdout.splitlines()) == asked  # once, before several processes would say it


@pytest.mark.parametrize("script", ["finetune_lora.sh", "eval/pope.sh"])
@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"GPUS": "5"}, "GPUS=5, but CUDA shows 4 of this host's 4 GPUs"),
        (
            {"GPUS": "2", "CUDA_VISIBLE_DEVICES": "3"},
            "GPUS=2, but CUDA shows 1 of this host's 4 GPUs (CUDA_VISIBLE_DEVICES=3)",
        ),
        ({"GPUS": "1", "CUDA_VISIBLE_DEVICES": "9"}, "GPUS=1, but CUDA shows 0 of this host's 4 GPUs"),
        ({"GPUS": "two"}, "GPUS=two: must be a whole number"),
        ({"GPUS": "-1"}, "GPUS=-1: must be a whole number"),
        ({"HOSTFILE": "nowhere"}, "HOSTFILE=nowhere: there is no such file"),
        ({"LAUNCHER": "srun"}, "LAUNCHER=srun needs MASTER_ADDR"),
        ({"LAUNCHER": "mpirun"}, "LAUNCHER=mpirun: the one launcher"),
        ({"PYTHON": "nowhere/python"}, "PYTHON=nowhere/python: no such program"),
    ],
)
def test_what_cannot_be_started_is_said_in_one_line(host, script, variables, message) -> None:
    host.listing = listing()
    result = host.run(script, "runs/model", **variables)
    assert result.returncode == 2 and "run " not in result.stdout
    assert len(result.stderr.splitlines()) == 1 and result.stderr.startswith(f"error: {message}"), result.stderr


def test_ranks_on_a_host_without_gpus(host) -> None:
    result = host.run("finetune_lora.sh", GPUS="3")
    assert processes(started(result)) == 3 and "the CPU (no GPU here), 3 processes" in result.stderr
    assert "check WORLD_SIZE=3" in result.stdout
    host.listing = "No devices were found\n"
    assert "the CPU (nvidia-smi: No devices were found)" in host.run("finetune_lora.sh").stderr


# --- where processes meet --------------------------------------------------------------------------------------------


def test_the_port_is_free_on_one_host_and_agreed_on_several(host) -> None:
    host.listing = listing()
    assert "--standalone" in started(host.run("finetune.sh"))
    assert "--standalone" in started(host.run("eval/mme.sh", "m"))
    line = started(host.run("finetune.sh", MASTER_PORT="1234"))
    assert "--standalone" not in line and "--master_port 1234" in line
    several = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "node-0"}
    line = started(host.run("finetune.sh", **several))
    assert "--nnodes 2 --node_rank 1 --master_addr node-0 --master_port 29500 --nproc_per_node 4" in line
    for job, port in (("123456", 20000 + 123456 % 20000), ("7", 20007)):
        line = started(host.run("finetune.sh", **several, SLURM_JOB_ID=job))
        assert f"--master_port {port} " in line
    assert "8 processes by torchrun on 2 hosts" in host.run("finetune.sh", **several).stderr


def test_ranks_of_a_hostfile_are_its_slots(host) -> None:
    (host.home / "hosts").write_text("# node-9 slots=9\nnode-0 slots=8\nnode-1 slots=4 # four\n")
    result = host.run("finetune.sh", HOSTFILE="hosts")
    assert "deepspeed.launcher.runner --hostfile hosts --master_port 29500" in started(result)
    assert "check WORLD_SIZE=12" in result.stdout and "12 processes by the deepspeed launcher" in result.stderr


# --- which Python ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "places", "chosen"),
    [
        ({}, (), "bin/python (found in PATH"),
        ({}, ("checkout/.venv",), "checkout/.venv/bin/python (the checkout's .venv)"),
        ({"VIRTUAL_ENV": "venv"}, ("checkout/.venv", "venv"), "venv/bin/python (the active virtual environment)"),
        ({"CONDA_PREFIX": "conda"}, ("checkout/.venv", "conda"), "conda/bin/python (the active conda environment)"),
        (
            {"CONDA_PREFIX": "conda", "CONDA_DEFAULT_ENV": "llava"},
            ("checkout/.venv", "conda"),
            "conda/bin/python (the active conda environment)",
        ),
        (
            {"CONDA_PREFIX": "conda", "CONDA_DEFAULT_ENV": "base"},
            ("checkout/.venv", "conda"),
            "checkout/.venv/bin/python (the checkout's .venv)",
        ),
        (
            {"CONDA_PREFIX": "conda", "CONDA_DEFAULT_ENV": "base"},
            ("conda",),
            "conda/bin/python (the active conda environment)",
        ),
        (
            {"VIRTUAL_ENV": "venv"},
            ("checkout/.venv",),
            "checkout/.venv/bin/python (the checkout's .venv)",
        ),  # it is gone
        ({"VIRTUAL_ENV": "venv", "CONDA_PREFIX": "conda"}, ("venv", "conda"), "venv/bin/python (the active virtual"),
        ({"PYTHON": "own/bin/python", "VIRTUAL_ENV": "venv"}, ("venv", "own"), "own/bin/python (PYTHON=)"),
        ({"PYTHON": "python", "VIRTUAL_ENV": "venv"}, ("venv",), "bin/python (PYTHON=)"),
    ],
)
@pytest.mark.parametrize("script", ["finetune.sh", "eval/pope.sh", "release.sh"])
def test_the_active_environment_is_taken(host, script, variables, places, chosen) -> None:
    for place in places:
        executable(host.folder / place / "bin" / "python", PYTHON)
    paths = {name: value if "/" not in value else value for name, value in variables.items()}
    for name in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        if name in paths:
            paths[name] = str(host.folder / paths[name])
    if "/" in paths.get("PYTHON", ""):
        paths["PYTHON"] = f"../{paths['PYTHON']}"  # as seen from where the user stands
    result = host.run(script, "runs/model", **paths)
    line = started(result)
    path = Path(line.split()[1])
    wanted = chosen.split(" ")[0]
    assert (host.home / path).resolve() == (host.folder / wanted).resolve()
    if script != "release.sh":
        assert chosen.partition(" ")[2] in result.stderr


def test_the_environment_activated_last_is_taken(host) -> None:
    for place in ("venv", "conda"):
        executable(host.folder / place / "bin" / "python", PYTHON)
    both = {"VIRTUAL_ENV": str(host.folder / "venv"), "CONDA_PREFIX": str(host.folder / "conda")}
    path = f"{host.folder}/conda/bin:{host.folder}/venv/bin:{host.bin}:{os.environ['PATH']}"
    assert "the active conda environment" in host.run("finetune.sh", **both, PATH=path).stderr


def test_a_python_without_torch_is_named(host) -> None:
    executable(host.bin / "python", '#!/bin/sh\ncase "$*" in *found.version*) exit 1;; esac\n')
    result = host.run("finetune.sh")
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1
    assert f"{host.bin}/python (found in PATH, no environment is active) has no torch" in result.stderr


# --- paths -----------------------------------------------------------------------------------------------------------


def test_relative_paths_are_the_callers(host) -> None:
    """The checkout's code runs, on what the caller sees."""
    (host.home / "own.yaml").write_text("seed: 1\n")
    (host.home / "methods").mkdir()
    (host.home / "methods" / "mine.yaml").write_text("vision: {name: none}\n")
    result = host.run("finetune.sh", "data=my.json", RECIPE="own.yaml", METHOD="methods/mine.yaml")
    line = started(result)
    assert line.split()[-3:] == ["own.yaml", "method=methods/mine.yaml", "data=my.json"]
    assert f"path={host.checkout} safe=1" in result.stdout
    line = started(host.run("eval/pope.sh", "my/model", "--out", "results"))
    assert line.split()[-6:] == ["--task", "pope", "--model", "my/model", "--out", "results"]


@pytest.mark.parametrize(
    ("script", "recipe", "file"),
    [
        ("finetune_lora", None, "finetune_lora"),
        ("pretrain", "pretrain", "pretrain"),
        ("finetune_lora", "finetune_lora_prumerge", "finetune_lora_prumerge"),
        ("pretrain", "pocket", "pocket/pretrain"),
        ("finetune", "13b", "13b/finetune"),
        ("finetune_lora", "13b", "13b/finetune_lora"),
        ("finetune_lora", "13b/finetune_lora_prumerge", "13b/finetune_lora_prumerge"),
        ("finetune_lora", "13b/finetune_lora_prumerge.yaml", "13b/finetune_lora_prumerge"),
    ],
)
def test_recipes_by_name(host, script, recipe, file) -> None:
    (host.home / "pocket").mkdir()  # a folder of the caller's is no recipe by that name alone
    told = {} if recipe is None else {"RECIPE": recipe}
    words = started(host.run(f"{script}.sh", METHOD="random", **told)).split()
    found = shipped.find("train", words[-2])
    assert words[-1] == "method=random" and found is not None and found == shipped.folder("train") / f"{file}.yaml"


def test_a_folder_of_ones_own_holds_a_recipe_per_script(host) -> None:
    (host.home / "mine").mkdir()
    (host.home / "mine" / "finetune.yaml").write_text("{}")
    assert started(host.run("finetune.sh", RECIPE="./mine")).split()[-2] == "./mine/finetune.yaml"


# --- Slurm -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("job", "arguments", "module", "end"),
    [
        ("pretrain", ["seed=1"], "llava_prumerge.train.run", ["pretrain", "method=none", "seed=1"]),
        ("finetune", ["seed=1"], "llava_prumerge.train.run", ["finetune", "method=prumerge_plus", "seed=1"]),
        ("finetune_lora", ["seed=1"], "llava_prumerge.train.run", ["finetune_lora", "method=prumerge_plus", "seed=1"]),
        (
            "evaluate",
            ["runs/m", "limit=5"],
            "llava_prumerge.evaluation.run",
            ["--task", "all", "--model", "runs/m", "limit=5"],
        ),
    ],
)
def test_every_job_hands_its_cpus_to_srun(cluster, job, arguments, module, end) -> None:
    result = cluster.run(f"slurm/{job}.sbatch", *arguments)
    assert result.returncode == 0, result.stderr
    check, address, port, *line, told = result.stdout.splitlines()
    assert (
        check == f"check WORLD_SIZE={'' if job == 'evaluate' else 8}"
        and address == "127.0.0.1"
        and port == str(20000 + 123456 % 20000)
    )
    assert line[:3] == ["--kill-on-bad-exit=1", "--cpus-per-task=6", "bash"] and line[3].endswith(
        "scripts/slurm/task.sh"
    )
    assert line[line.index(module) - 1] == "-m" and line[-len(end) :] == end
    assert told == "OMP=6 SITE=" and "8 processes by srun" in result.stderr
    assert not (cluster.folder / "requeued").exists()


def test_a_site_file_is_read_and_a_job_starts_from_anywhere(cluster) -> None:
    (cluster.checkout / "scripts" / "slurm" / "site.sh").write_text(
        "[[ -n $NOT_SET_ANYWHERE ]]\nexport SITE_WAS_READ=1\n"
    )
    told = {"SLURM_SUBMIT_DIR": str(cluster.home), "CHECKOUT": str(cluster.checkout)}
    result = cluster.run("slurm/pretrain.sbatch", **told)
    assert result.returncode == 0 and result.stdout.splitlines()[-1] == "OMP=6 SITE=1", result.stderr
    (cluster.home / "site").write_text("export SITE_WAS_READ=mine\n")
    assert cluster.run("slurm/pretrain.sbatch", SITE="site").stdout.splitlines()[-1] == "OMP=6 SITE=mine"
    result = cluster.run("slurm/pretrain.sbatch", SITE="nowhere")
    assert result.returncode == 2 and result.stderr == "error: SITE=nowhere: there is no such file\n"


@pytest.mark.parametrize(
    ("listing_", "shown", "local", "expected"),
    [
        (listing(), None, "2", "2"),
        (listing(), "1", "2", "0"),  # bound by Slurm's variable
        (listing(UUIDS[:1]), None, "3", "0"),  # bound by a cgroup
        (None, None, "1", "1"),
    ],
)
def test_a_task_knows_its_rank_and_its_gpu(cluster, listing_, shown, local, expected) -> None:
    cluster.listing = listing_
    told = {"SLURM_PROCID": "5", "SLURM_LOCALID": local} | ({} if shown is None else {"CUDA_VISIBLE_DEVICES": shown})
    result = cluster.run("slurm/task.sh", "bash", "-c", "echo $RANK $LOCAL_RANK $WORLD_SIZE", **told)
    assert result.stdout.split() == ["5", expected, "8"], result.stderr


@pytest.mark.parametrize(("status", "requeued"), [(0, True), (143, True), (1, False)])
def test_a_stopped_job_goes_back_into_the_queue(cluster, status, requeued) -> None:
    """What the ranks end with after the signal: a training with 0, an evaluation by the signal, a fault with something else."""
    ready = cluster.folder / "ready"
    executable(
        cluster.bin / "srun",
        f"#!/usr/bin/env bash\ntrap 'exit {status}' TERM\ntouch {ready}\nwhile :; do sleep 0.05; done\n",
    )
    job = cluster.checkout / "scripts" / "slurm" / "evaluate.sbatch"
    starter = f"bash {job} m & job=$!; while [[ ! -e {ready} ]]; do sleep 0.05; done; kill -TERM $job; wait $job"
    executable(cluster.checkout / "scripts" / "starter.sh", starter)
    result = cluster.run("starter.sh")
    assert result.returncode == (0 if requeued else status), result.stderr
    assert (cluster.folder / "requeued").exists() == requeued


def batch_options(job: Path) -> dict[str, str]:
    lines = [line.split() for line in job.read_text().splitlines() if line.startswith("#SBATCH")]
    return dict(line[1].removeprefix("--").partition("=")[::2] for line in lines)


@pytest.mark.parametrize("job", sorted((SCRIPTS / "slurm").glob("*.sbatch")), ids=lambda path: path.stem)
def test_every_batch_script_asks_for_what_preemption_needs(job: Path) -> None:
    options = batch_options(job)
    assert "requeue" in options and options["open-mode"] == "append" and options["signal"].startswith("B:TERM@")
    assert options["gpus-per-node"] == options["ntasks-per-node"] and int(options["cpus-per-task"]) > 1
    assert options["output"].startswith(options["job-name"])


# --- the scripts themselves ------------------------------------------------------------------------------------------

SHELL = [*sorted(SCRIPTS.rglob("*.s*")), *sorted(FAKES.iterdir())]


@pytest.mark.parametrize("script", SHELL, ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_every_script_is_valid_bash(script: Path) -> None:
    result = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True, check=False)
    assert result.returncode == 0 and not result.stderr, result.stderr


@pytest.mark.skipif(
    shutil.which("shellcheck") is None, reason="shellcheck is not installed (apt-get install shellcheck)"
)
def test_shellcheck_finds_nothing() -> None:
    result = subprocess.run(
        ["shellcheck", *map(str, SHELL)], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout
