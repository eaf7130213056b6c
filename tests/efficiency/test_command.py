"""The commands: what they print, shapes and hardware as data, and one clear error for bad input."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from llava_prumerge.efficiency import shapes
from llava_prumerge.efficiency.__main__ import COMMANDS
from llava_prumerge.efficiency.__main__ import report as main
from llava_prumerge.efficiency.errors import EfficiencyError
from llava_prumerge.efficiency.hardware import all_hardware
from llava_prumerge.ground.errors import InputError

ROOT = Path(__file__).resolve().parents[2]


def test_flops_prints_all_conventions_and_parts() -> None:
    text = main(["flops", "--model", "llava-1.5-7b", "--method", "prumerge_plus", "--tokens", "144"])
    for word in ("A  ", "B  ", "C  ", "D  ", "E  ", "F  ", "causal", "FastV", "PyramidDrop", "calflops", "938.0 G"):
        assert word in text
    for part in ("vision tower", "reducer", "projector", "LLM prefill", "decode, per token"):
        assert part in text


def test_numbers_come_as_json_too() -> None:
    found = json.loads(main(["flops", "--per-layer", "2x576,30x144", "--json"]))
    assert found["equivalent"] == 171
    assert found["conventions"]["C"]["dense_full"] == pytest.approx(3.817e12, abs=0.0005e12)
    table = json.loads(main(["roofline", "--json"]))
    assert (table["agree"], table["of"]) == (31, 32)
    honest = json.loads(main(["roofline", "--preset", "honest", "--json"]))
    assert [row["hardware"] for row in honest["seconds"]] == list(all_hardware())
    memory = json.loads(main(["memory", "--train", "lora", "--zero", "2", "--gpus", "8", "--tokens", "144", "--json"]))
    assert memory["bytes"]["activations"] < memory["bytes_full"]["activations"]


def test_both_presets_stand_side_by_side() -> None:
    rows = json.loads(main(["roofline", "--preset", "both", "--json"]))
    assert [row["paper"]["tokens"] for row in rows] == [700, 70] * 4
    assert [row["honest"]["tokens"] for row in rows] == [616, 80] * 4
    half, four = rows[0], rows[2]
    assert half["honest"]["tera_flops"] == four["honest"]["tera_flops"]  # 4-bit weights take no fewer operations
    assert half["honest"]["prefill_ms"] >= four["honest"]["prefill_ms"]
    assert half["paper"]["prefill_ms"] < four["paper"]["prefill_ms"]


def test_the_misprint_is_told() -> None:
    text = main(["roofline"])
    assert "31 of 32 cells agree" in text and "appears to be a misprint" in text
    assert text.count("(!)") == 2


def test_settings_may_stand_anywhere() -> None:
    assert "equivalent tokens (visual tokens averaged over the layers): 171" in main(
        ["flops", "keep=0.25", "--method", "fastv", "layer=2", "--text", "40"]
    )


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("latency2", "flops, roofline, memory"),
        ("flops --model gpt", "llava-1.5-7b, llava-1.5-13b, pocket, small, small-clip, the path of"),
        ("flops --method nothing", "prumerge_plus"),
        ("flops --tokens -1", "within 0 to 576"),
        ("flops --tokens 577", "within 0 to 576"),
        ("flops --tokens 1.5", "whole number"),
        ("flops --tokens nan", "within 0 to 576"),
        ("flops --tokens inf", "within 0 to 576"),
        ("flops --method vtw --text 0", "at least 1"),
        ("flops --method fastv --tokens 171 budget=3", "leave out budget=3"),
        ("flops --method fastv keep=[", "keep=["),
        ("flops --tokens many", "--tokens"),
        ("flops --text -1", "--text -1"),
        ("flops --tokens 0 --text 0", "at least 1"),
        ("flops --per-layer 3x5", "has 32"),
        ("flops --per-layer 2x5,30x9", "rises"),
        ("flops --per-layer two", "such as 2x576,30x144"),
        ("flops --per-layer 32x-4", "within 0 to 576"),
        ("flops --per-layer 32x5 --method fastv", "one of both"),
        ("flops --method grid", "needs --tokens"),
        ("flops --method none --tokens 5", "keeps all 576"),
        ("flops --method atp_llava --tokens 72", "'budget' is not known"),
        ("flops --method fastv kep=1", "setting 'kep' is not known; there are: budget, keep_ratio"),
        ("flops keep=1", "need --method"),
        ("flops --method fastv keep", "'keep' is one argument too many"),
        ("flops --wrong", "--wrong"),
        ("roofline --hardware T4", "V100, A100-40"),
        ("roofline --preset rosy", "paper, honest, both"),
        ("roofline --preset both --tokens 40", "takes no layout"),
        ("roofline --preset honest --dtype fp8", "fp16, int8, int4"),
        ("roofline --preset honest --batch 0", "at least 1"),
        ("roofline --tokens 40 --fused", "honest preset's"),
        ("roofline --dtype int4", "honest preset's"),
        ("memory --train some", "method, projector, lora, full"),
        ("memory --train full --zero 4", "0, 1, 2, 3"),
        ("memory --train full --offload", "--zero 1, 2 or 3"),
        ("memory --train full --dtype fp16", "inference"),
        ("memory --gpus 4", "--train"),
        ("memory --dtype fp7", "bf16"),
        ("memory --answer -4", "at least 0"),
    ],
)
def test_bad_input_is_one_error_that_names_what_is_accepted(words: str, named: str) -> None:
    with pytest.raises(InputError, match="(?s).*") as caught:
        main(words.split())
    assert named in str(caught.value) and "\n" not in str(caught.value)


def test_the_exit_status_is_2_and_torch_stays_unloaded() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "llava_prumerge.efficiency", "flops", "--model", "x"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert run.returncode == 2 and run.stdout == ""
    assert run.stderr.startswith("error: model 'x'") and run.stderr.count("\n") == 1
    program = (
        "import sys; from llava_prumerge.efficiency.__main__ import main; "
        "main(['flops']); main(['roofline', '--preset', 'honest']); main(['memory']); "
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0


def test_help_names_every_command() -> None:
    assert all(f"\n    {command} " in main([]) for command in COMMANDS)


def test_a_checkpoints_config_serves_as_a_shape(tmp_path: Path) -> None:
    seven = shapes.named_shapes()["llava-1.5-7b"]
    config = {  # as llava-hf writes it: what equals the default is left out
        "vision_feature_layer": -2,
        "text_config": {"model_type": "llama", "vocab_size": 32000},
        "vision_config": {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "image_size": 336,
            "patch_size": 14,
        },
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    for name in (tmp_path, tmp_path / "config.json"):
        found = shapes.model_shape(str(name))
        assert (found.vision, found.language) == (seven.vision, seven.language)
    for wrong in ({"num_attention_heads": 0}, {"hidden_size": "wide"}, {"num_hidden_layers": -1}):
        (tmp_path / "config.json").write_text(json.dumps({**config, "text_config": wrong}))
        with pytest.raises(EfficiencyError):
            shapes.model_shape(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(EfficiencyError, match="vision_config and text_config"):
        shapes.model_shape(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(EfficiencyError, match="not JSON"):
        shapes.model_shape(str(tmp_path))


def test_the_pocket_shape_is_the_pocket_models() -> None:
    from playground.pocket import tokenizer
    from playground.pocket.train_lm import LanguageSettings

    shape, settings = shapes.named_shapes()["pocket"], LanguageSettings()
    language = shape.language
    assert (language.hidden, language.layers, language.head_width, language.intermediate) == (
        settings.width,
        settings.layers,
        settings.head_width,
        settings.intermediate,
    )
    assert language.vocabulary == tokenizer.VOCABULARY
    clip = json.loads((ROOT / "playground/pocket/pocket_clip.json").read_text())["vision_cfg"]
    vision = shape.vision
    assert (vision.blocks, vision.width, vision.image, vision.patch) == (
        clip["layers"],
        clip["width"],
        clip["image_size"],
        clip["patch_size"],
    )


def test_the_data_files_are_part_of_the_package() -> None:
    packaged = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    patterns = packaged["llava_prumerge"]
    for name in ("shapes.yaml", "hardware.yaml"):
        path = ROOT / "llava_prumerge/efficiency" / name
        assert any(path.relative_to(ROOT / "llava_prumerge").match(pattern) for pattern in patterns)
        assert yaml.safe_load(path.read_text())


def test_all_the_issues_machines_are_there() -> None:
    assert set(all_hardware()) == {"V100", "A100-40", "A100-80", "H100", "H200", "A6000", "L40", "RTX-4090"}
    for machine in all_hardware().values():
        assert machine.bandwidth < machine.fp16 <= 2 * machine.int8  # V100's INT8 is slower than its tensor cores


def test_what_the_document_shows_is_what_the_commands_print() -> None:
    document = (ROOT / "docs" / "efficiency.md").read_text(encoding="utf-8")
    shown = re.findall(
        r"```console\n\$ python -m llava_prumerge\.efficiency ([^\n]*)\n(.*?)\n```", document, flags=re.DOTALL
    )
    assert len(shown) == document.count("```console")
    for words, output in shown:
        printed = main(shlex.split(words.partition(" | ")[0]))
        if " | head -" in words:
            printed = "\n".join(printed.split("\n")[: int(words.rpartition("-")[2])])
        assert printed == output, words


def test_the_documents_conventions_table_is_what_the_command_gives() -> None:
    document = (ROOT / "docs" / "efficiency.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([A-F]) \|.*\| ([^|]*) \| ([^|]*) \|$", document, flags=re.MULTILINE)
    assert [letter for letter, _, _ in rows] == list("ABCDEF")
    for letter, commands, given in rows:
        for words, value in zip(re.findall(r"`([^`]*)`", commands), given.split(", "), strict=True):
            line = next(line for line in main(words.split()).splitlines() if line.startswith(f"{letter}  "))
            assert f"  {value}  " in line, (words, line)
    counts = dict(
        re.findall(r"([\d.]+ [TG]) \((\d+)(?: tokens)?\)", document.partition("With C")[2].partition("\n\n")[0])
    )
    assert len(counts) == 4
    for value, tokens in counts.items():
        assert f"  {value}  " in main(["flops", "--tokens", tokens])


def test_what_is_computed_is_computed_without_torch() -> None:
    """On a machine without it, and at once."""
    commands = [["flops"], ["roofline"], ["roofline", "--preset", "both"], ["memory", "--per-layer", "2x576,30x144"]]
    program = (
        "import sys\nfrom llava_prumerge.efficiency.__main__ import main\n"
        f"for words in {commands}: main(words)\nprint('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.stdout.splitlines()[-1:] == ["False False"], done.stderr
