"""The latency command on tiny shapes: every part is there, methods leave what was asked, ratios are what they say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_llava import tiny_config

from llava_prumerge.efficiency.__main__ import report as main
from llava_prumerge.efficiency.errors import EfficiencyError
from llava_prumerge.efficiency.roofline import honest_seconds
from llava_prumerge.efficiency.shapes import model_shape, named_shapes
from llava_prumerge.efficiency.tokens import constant_counts
from llava_prumerge.ground.errors import FileError
from llava_prumerge.methods.registry import build_reducer
from llava_prumerge.profiling import latency, measurement, parts
from llava_prumerge.profiling.machine import NAMES, Peaks
from llava_prumerge.profiling.parts import ALL, STOCK, Subject, Workload, fork, make_systems
from llava_prumerge.profiling.random_model import adapts, class_logits, cut_down, find_logits

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
METHODS = ["prumerge=8", "{name: grid, rows: 2, columns: 3}"]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The config.json of a LLaVA of 36 patches."""
    folder = tmp_path_factory.mktemp("shape")
    made = tiny_config(image_seq_length=36).to_dict()
    made["vision_config"]["image_size"] = 42
    (folder / "config.json").write_text(json.dumps(made))
    return str(folder)


@pytest.fixture(scope="module")
def result(config: str, tmp_path_factory: pytest.TempPathFactory) -> dict:
    out = tmp_path_factory.mktemp("results") / "deep" / "latency.json"
    words = ["latency", "--model", config, "--methods", *METHODS, "--batch", "2", "1", "--prompt", "5", "--answer", "3"]
    words += ["--repeats", "2", "--device", "cpu", "--dtype", "float32", "--out", str(out), "--json"]
    printed = json.loads(main(words))
    assert printed == json.loads(out.read_text())
    return printed


def test_every_part_of_every_system_is_measured(result: dict) -> None:
    (run,) = result["runs"]
    assert run["systems"] == {ALL: 36, "prumerge 8": 8, "grid 6": 6} and run["weights"] == "random"
    assert [(cell["batch"], cell["prompt"], cell["answer"]) for cell in run["cells"]] == [(2, 5, 3), (1, 5, 3)]
    for cell in run["cells"]:
        found = {(row["part"], row["system"]): row for row in cell["parts"]}
        for system in run["systems"]:
            for part in ("projector", "prefill", "decode", "end to end"):
                assert found[part, system]["ms"]["n"] == 2 and found[part, system]["floor_ms"] > 0
            assert ("prefill", f"{STOCK}, {system}") in found and ("decode", f"{STOCK}, {system}") in found
        assert {("tower", ALL), ("tower", STOCK), ("reducer", "grid 6"), ("end to end", STOCK)} <= set(found)
        assert "floor_ms" not in found["reducer", "grid 6"] and ("reducer", ALL) not in found
        assert all(row["ms"]["q1"] <= row["ms"]["median"] <= row["ms"]["q3"] for row in cell["parts"])
        assert [row["system"] for row in cell["memory"]] == ["weights", *run["systems"]]
        assert cell["peaks"]["source"] == "measured"


def test_tables_and_plot_come_from_the_file(result: dict, tmp_path: Path) -> None:
    file, plot = tmp_path / "r.json", tmp_path / "plots" / "r.png"
    file.write_text(json.dumps(result))
    text = main(["latency", "--read", str(file), "--plot", str(plot)])
    for word in ("tower", "reducer", "end to end", "prefill, gain of 8 over 36 tokens", "random weights", "batch 1,"):
        assert word in text
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["prumerge", "prumerge_plus", "cls_topk", "uniform", "grid", "random"])
def test_adaptive_methods_leave_in_the_model_what_was_asked(name: str) -> None:
    shape, asked = named_shapes()["pocket"], 20
    (_, system) = make_systems([({"name": name}, asked)], shape.vision.side)
    assert adapts(system.reducer) and abs(system.tokens - asked) <= (0 if name != "prumerge_plus" else 3)
    subject = Subject(shape, torch.bfloat16, "sdpa", CPU)
    pixels = subject.draw(3, 3, 96, 96)
    with torch.inference_mode():
        action = subject.generation(system, Workload(3, 6, 2), pixels)
        action.run(action.prepare())
    stats = subject.model.reduction_stats()
    assert (stats["kept_min"], stats["kept_max"], stats["images"]) == (system.tokens, system.tokens, 3)


def test_the_outliers_made_are_the_only_ones() -> None:
    reducer = build_reducer({"name": "cls_topk"})
    for outliers in (1, 7, 100, 143):
        assert parts.find_logits({"name": "cls_topk"}, outliers, 24)[2] == outliers
        assert (class_logits(576, outliers) > 1).sum() == outliers
    assert not adapts(build_reducer({"name": "cls_topk", "budget": 3})) and adapts(reducer)


def test_settings_that_fix_the_number_say_it_themselves() -> None:
    assert find_logits({"name": "pool", "budget": 9}, None, 12)[2] == 9
    with pytest.raises(EfficiencyError, match="leaves 9 tokens, not 10"):
        find_logits({"name": "pool", "budget": 9}, 10, 12)


def test_the_model_has_the_shape_and_its_twin_the_weights() -> None:
    shape = cut_down(named_shapes()["pocket"], 2, 1)
    subject = Subject(shape, torch.float32, "sdpa", CPU)
    assert sum(value.numel() for value in subject.model.parameters()) == shape.parameters
    ids = torch.randint(1, 600, (2, 150))
    ids[:, 2:146] = subject.model.config.image_token_id
    pixels = subject.draw(2, 3, 96, 96)
    with torch.inference_mode():
        ours, theirs = (model(input_ids=ids, pixel_values=pixels).logits for model in (subject.model, subject.stock))
    torch.testing.assert_close(ours, theirs)
    assert subject.stock.lm_head is subject.model.lm_head


def test_a_fork_of_a_cache_leaves_it_as_it_was() -> None:
    shape = cut_down(named_shapes()["pocket"], 2, 1)
    subject = Subject(shape, torch.float32, "sdpa", CPU)
    embeddings = subject.draw(2, 7, shape.language.hidden)
    token = torch.ones(2, 1, dtype=torch.long)
    with torch.inference_mode():
        for model in (subject.model, subject.stock):
            cache = model(inputs_embeds=embeddings, use_cache=True).past_key_values
            logits = []
            for _ in range(2):
                twin = fork(cache)
                for _step in range(3):
                    output = model(input_ids=token, past_key_values=twin, use_cache=True)
                logits.append(output.logits)
                assert twin.get_seq_length() == 10 and cache.get_seq_length() == 7
            torch.testing.assert_close(*logits, rtol=0, atol=0)


def test_floors_are_the_roofline_models_at_the_width_of_the_numbers() -> None:
    shape = named_shapes()["llava-1.5-7b"]
    peaks = Peaks(1e12, 1e14, "made up")
    half = measurement.floors_of(shape, Workload(answer=1, attn="eager"), 576, peaks, 2)
    own = honest_seconds(shape, constant_counts(shape), peaks.hardware(2))
    assert half["prefill"] == own["prefill"] and half["end to end"] == sum(
        own[p] for p in ("tower", "projector", "prefill")
    )
    # A decoded token is bound by memory: numbers twice as wide take twice as long.
    full = measurement.floors_of(shape, Workload(answer=1, attn="eager"), 576, peaks, 4)
    assert full["decode"] == pytest.approx(2 * half["decode"], rel=0.01)
    longer = measurement.floors_of(shape, Workload(answer=11, attn="eager"), 576, peaks, 2)
    assert longer["end to end"] - longer["decode"] * 10 == pytest.approx(half["end to end"])


def test_ratios_are_of_the_times_they_name() -> None:
    shape, setting = named_shapes()["llava-1.5-7b"], Workload()
    systems = make_systems([({"name": "prumerge", "budget": 40}, None)], 24)
    name = systems[1].name
    times = {f"tower|{ALL}": [2.0], f"tower|{STOCK}": [4.0], f"reducer|{name}": [0.1]}
    for label, value in ((ALL, 6.0), (name, 1.0)):
        times |= {f"prefill|{label}": [value], f"decode|{label}": [value], f"decode|{STOCK}, {label}": [2 * value]}
    times |= {f"end to end|{ALL}": [9.0], f"end to end|{STOCK}": [12.0], f"end to end|{name}": [3.0]}
    found = {row["what"]: row for row in measurement.compare(times, shape, setting, systems)}
    assert found["tower, share of the stock tower"]["ratio"]["median"] == 0.5
    gain = found["prefill, gain of 40 over 576 tokens"]
    assert gain["ratio"]["median"] == 6.0 and gain["promised"] == pytest.approx(8.178 / 1.040, rel=1e-3)
    assert gain["reached"] == pytest.approx(6.0 / gain["promised"], abs=1e-3)
    assert found["decode, cost at 40 tokens in the cache beside the prompt"]["ratio"]["median"] == 0.5
    assert found[f"end to end, gain of {name} over {STOCK}"]["ratio"]["median"] == 4.0


def test_cells_that_do_not_fit_into_the_time_are_told(config: str) -> None:
    words = ["latency", "--model", config, "--methods", "prumerge=5", "--batch", "1", "2", "--seconds", "1e-9"]
    run = json.loads(main([*words, "--device", "cpu", "--json"]))["runs"][0]
    assert not run["cells"] and [row["batch"] for row in run["left_out"]] == [1, 2]
    assert "were over" in run["left_out"][0]["why"]


def test_a_model_that_does_not_fit_is_told(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def burst(*given: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(latency, "Subject", burst)
    run = json.loads(main(["latency", "--model", config, "--methods", "prumerge=5", "--device", "cpu", "--json"]))[
        "runs"
    ][0]
    assert "can be built here" in run["left_out"][0]["why"]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("--model gpt", "llava-1.5-7b"),
        ("--methods prumerge", "NAME=TOKENS"),
        ("--methods prumerge=999", "within 1 to 576"),
        ("--methods fastv=40", "fastv"),
        ("--methods nothing=4", "nothing"),
        ("--methods prumerge=40 prumerge=40", "named twice"),
        ("--batch 0", "at least 1"),
        ("--dtype fp16", "float32"),
        ("--attn fast", "sdpa"),
        ("--device tpu", "cpu"),
        ("--layers 99", "1 to 32"),
        ("--blocks 0", "1 to 23"),
        ("--repeats 0", "at least 1"),
        ("--read nowhere.json", "no such file"),
    ],
)
def test_bad_input_is_one_error(words: str, named: str) -> None:
    with pytest.raises(ValueError, match="(?s).*") as caught:
        main(["latency", *words.split()])
    assert named in str(caught.value) and "\n" not in str(caught.value)


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    for content, told in (("{", "not JSON"), ("{}", "no result"), ("[]", "must hold a JSON object")):
        (tmp_path / "x.json").write_text(content)
        with pytest.raises((EfficiencyError, FileError), match=told):
            main(["latency", "--read", str(tmp_path / "x.json")])


def test_boards_are_known_by_the_drivers_names_alone() -> None:
    import re

    known = {
        "Tesla V100-SXM2-32GB": "V100",
        "NVIDIA A100-SXM4-80GB": "A100-80",
        "NVIDIA A100-PCIE-40GB": "A100-40",
        "NVIDIA H100 80GB HBM3": "H100",
        "NVIDIA H200": "H200",
        "NVIDIA RTX A6000": "A6000",
        "NVIDIA L40": "L40",
        "NVIDIA GeForce RTX 4090": "RTX-4090",
    }
    for name in (*known, "NVIDIA H100 PCIe", "NVIDIA H100 NVL", "NVIDIA L40S", "NVIDIA GeForce RTX 4090 Laptop GPU"):
        assert [key for key, pattern in NAMES.items() if re.search(pattern, name)] == [
            known[name] for _ in range(name in known)
        ]


BLOCKED = "deepspeed peft datasets open_clip accelerate torchvision wandb tensorboard matplotlib pandas scipy"


def test_the_gpu_script_runs_through_and_needs_only_torch_and_transformers(config: str, tmp_path: Path) -> None:
    """On CPU at a tiny shape, every optional package made unimportable."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "from importlib.machinery import PathFinder\n"
        "class Without(PathFinder):\n"
        "    @classmethod\n"
        "    def find_spec(cls, name, path=None, target=None):\n"
        f"        hidden = name.split('.')[0] in {BLOCKED.split()!r}\n"
        "        return None if hidden else super().find_spec(name, path, target)\n"
        "sys.meta_path[sys.meta_path.index(PathFinder)] = Without\n"
    )
    out = tmp_path / "gpu.json"
    matrix = {"MODELS": config, "METHODS": "prumerge=5", "BATCHES": "1 2", "PROMPTS": "4", "ANSWERS": "2"}
    matrix |= {
        "DTYPES": "float32",
        "ATTENTIONS": "sdpa eager",
        "REPEATS": "1",
        "DEVICE": "cpu",
        "LIMIT": "440",
    }
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    environment = {**os.environ, **matrix, "PYTHON": sys.executable, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    blocked = subprocess.run([sys.executable, "-c", "import peft"], capture_output=True, text=True, env=environment)
    assert "No module named 'peft'" in blocked.stderr, "it is hidden"
    done = subprocess.run(
        ["bash", "scripts/bench_gpu.sh", str(out)], cwd=ROOT, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    runs = json.loads(out.read_text())["runs"]
    assert [run["model"]["name"] for run in runs] == [model_shape(config).name]
    kinds = [(cell["batch"], cell["dtype"], cell["attn"]) for cell in runs[0]["cells"]]
    assert kinds == [(1, "float32", "sdpa"), (2, "float32", "sdpa"), (1, "float32", "eager")]


def test_the_gpu_script_says_that_there_is_none() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(["bash", "scripts/bench_gpu.sh"], cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 2 and "no CUDA device" in done.stderr


@pytest.mark.gpu
def test_a_small_matrix_on_a_gpu(config: str) -> None:
    words = ["latency", "--model", config, "--methods", "prumerge=5", "--repeats", "3", "--device", "cuda", "--json"]
    (cell,) = json.loads(main(words))["runs"][0]["cells"]
    assert cell["dtype"] == "float16" and all(row["ms"]["median"] > 0 for row in cell["parts"])
