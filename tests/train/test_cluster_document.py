"""docs/gpus_and_clusters.md: its commands start what it says, its memory is the dry run's, its variables and messages exist."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from train.fake_host import REPOSITORY, Host, executable, listing, processes, started

from llava_prumerge.efficiency.tokens import constant_counts
from llava_prumerge.train.arguments import accumulation_steps, load_arguments
from llava_prumerge.train.estimate import BACKENDS, gigabytes, kept_tokens, read_backend, shape_of
from llava_prumerge.train.model_parts import check_parts
from llava_prumerge.train.published import published_config

TEXT = (REPOSITORY / "docs" / "gpus_and_clusters.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
LINES = [line.split("  #")[0].strip() for block in BLOCKS for line in block.splitlines()]
LINES += re.findall(r"^\| `((?:\w+=\S+ )*bash scripts/[^`]+)`", TEXT, re.MULTILINE)
EIGHT = tuple(f"GPU-{at}" for at in range(8))


def test_the_document_shows_every_way_to_start() -> None:
    text = "\n".join(LINES)
    for part in (
        "CUDA_VISIBLE_DEVICES=",
        "GPUS=",
        "NNODES=2",
        "HOSTFILE=",
        "RECIPE=13b",
        "FLASH=1",
        "setup-gpu",
        "TASK=",
    ):
        assert part in text
    jobs = {path.name for path in (REPOSITORY / "scripts" / "slurm").glob("*.sbatch")}
    assert jobs and all(job in text for job in jobs)


@pytest.mark.parametrize("line", LINES)
def test_every_command_starts_what_it_should(tmp_path: Path, line: str) -> None:
    """With fakes of everything that computes; the settings are read as a start reads them."""
    words = shlex.split(line)
    variables = dict(word.split("=", 1) for word in words if re.match(r"^[A-Z_]+=", word))
    if words[0] == "make":
        target = next(word for word in words[1:] if "=" not in word)
        assert re.search(rf"^{target}:", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
        return
    script = next(word for word in words if word.startswith("scripts/"))
    settings = words[words.index(script) + 1 :]
    batch = "sbatch" in words
    host = Host(tmp_path)
    host.listing = listing(EIGHT)
    if batch:
        host.in_slurm()
        for word in words[words.index("sbatch") + 1 : words.index(script)]:
            assert word.split("=")[0] in ("--nodes", "--gpus-per-node", "--ntasks-per-node"), word
    if "HOSTFILE" in variables:
        (host.home / variables["HOSTFILE"]).write_text((REPOSITORY / "configs/deepspeed/hostfile.example").read_text())
    result = host.run(script.removeprefix("scripts/"), *settings, **variables)
    assert result.returncode == 0, result.stderr
    if "--dry-run" in settings:
        return
    start = result.stdout.replace("\n", " ") if batch else started(result)
    module = "llava_prumerge.evaluation.run" if "eval" in script else "llava_prumerge.train.run"
    assert module in start
    if module.endswith("train.run"):
        files = start.split("llava_prumerge.train.run ")[1].split()[:2]  # recipe and method
        ranks = int(re.search(r"check WORLD_SIZE=(\d+)", result.stdout)[1])
        arguments = load_arguments([*files, *[word for word in settings if "=" in word]])
        check_parts(arguments)
        one_gpu = line in re.findall(r"^\| `([^`]+)` \| [\d.]+ \(", TEXT, re.MULTILINE)
        assert accumulation_steps(arguments, 1 if one_gpu else ranks) >= 1


def test_the_start_line_is_the_one_that_is_printed(tmp_path: Path) -> None:
    shown = next(line for line in TEXT.splitlines() if line.startswith("start: "))
    host = Host(tmp_path)
    host.listing = listing(EIGHT)
    executable(tmp_path / "env" / "bin" / "python", (host.bin / "python").read_text())
    told = {"VIRTUAL_ENV": str(tmp_path / "env"), "CUDA_VISIBLE_DEVICES": "2,3"}
    result = host.run("finetune_lora.sh", **told)
    assert processes(started(result)) == 2
    assert result.stderr.strip().replace(str(tmp_path), "/home/me") == shown


def cell(recipe: str, method: str, backend: str, gpus: int, settings: list[str]) -> str:
    """Memory as the document has it."""
    configs = REPOSITORY / "configs"
    arguments = load_arguments([f"{configs}/train/{recipe}.yaml", f"{configs}/method/{method}.yaml", *settings])
    config = published_config(arguments)
    shape = shape_of(config)
    kept = kept_tokens(arguments, config, shape)
    full = constant_counts(shape, None, kept.text)
    reduced, whole = (gigabytes(arguments, shape, counts, backend, gpus) for counts in (kept, full))
    return f"{reduced:.1f}" if method == "none" else f"{reduced:.1f} ({whole:.1f})"


RECIPE_ROWS = re.findall(r"^\| `((?:13b/)?\w+)` \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", TEXT, re.MULTILINE)
COMMAND_ROWS = re.findall(r"^\| `([^`]*scripts/\w+\.sh[^`]*)` \| ([\d.]+ \([\d.]+\)) \|$", TEXT, re.MULTILINE)


@pytest.mark.parametrize("row", RECIPE_ROWS, ids=lambda row: row[0])
def test_memory_on_eight_gpus_is_the_dry_runs(row, monkeypatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    recipe, *cells = row
    method = "none" if recipe.endswith("pretrain") else "prumerge_plus"
    backends = ["ZeRO-2", "ZeRO-3", "ZeRO-3, offload"]
    arguments = load_arguments([f"configs/train/{recipe}.yaml"])
    for backend, found in zip(backends, cells, strict=True):
        mark = " <-" if read_backend(arguments) == backend else ""
        assert found == cell(recipe, method, backend, 8, []) + mark


@pytest.mark.parametrize("row", COMMAND_ROWS, ids=lambda row: row[0])
def test_memory_on_one_gpu_is_the_dry_runs(row) -> None:
    words = shlex.split(row[0])
    recipe = next((word.split("=")[1] for word in words if word.startswith("RECIPE=")), None)
    script = next(Path(word).stem for word in words if word.startswith("scripts/"))
    settings = [word for word in words if re.match(r"[a-z_]+=", word)]
    recipe = recipe or script
    backend = read_backend(load_arguments([f"{REPOSITORY}/configs/train/{recipe}.yaml", *settings]))
    assert backend in BACKENDS and row[1] == cell(recipe, "prumerge_plus", backend, 1, settings)


def test_the_rows_of_memory_were_found() -> None:
    assert len(RECIPE_ROWS) == 6 and len(COMMAND_ROWS) == 5


def test_variables_of_the_scripts_and_of_the_document_are_the_same() -> None:
    names = set(re.findall(r"^\| (`[A-Z_`, ]+`) \|", TEXT, re.MULTILINE))
    shown = {name for cell_ in names for name in re.findall(r"[A-Z_]+", cell_)}
    head = (REPOSITORY / "scripts" / "launching.sh").read_text().split("checkout=")[0]
    told = set(re.findall(r"\b[A-Z]{4,}(?:_[A-Z]+)*\b", head.split("variables:")[1])) - {"SC2034"}
    assert shown == told | {"RECIPE", "METHOD"}


@pytest.mark.parametrize(
    ("words", "file"),
    [
        ("is a build without CUDA", "llava_prumerge/model/devices.py"),
        ("names none of them", "llava_prumerge/model/devices.py"),
        ("Slurm gave none of them to this job", "llava_prumerge/model/devices.py"),
        ("GPUS=$GPUS, but CUDA shows", "scripts/launching.sh"),
        ("is not a multiple of", "llava_prumerge/train/arguments.py"),
    ],
)
def test_the_messages_it_explains_exist(words: str, file: str) -> None:
    assert words in (REPOSITORY / file).read_text()
    assert words.replace("$GPUS", "8") in TEXT


def test_files_it_names_exist() -> None:
    for path in set(re.findall(r"(?:scripts|configs)/[\w./]+\.(?:sh|sbatch|json|example|yaml)", TEXT)):
        assert (REPOSITORY / path).is_file() or path == "scripts/slurm/site.sh", path
    ignored = subprocess.run(
        ["git", "check-ignore", "scripts/slurm/site.sh"], cwd=REPOSITORY, capture_output=True, check=False
    )
    assert ignored.returncode in (0, 128)  # 128: no git here
