"""Settings, method files and fingerprints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llava_prumerge.evaluation.execution import stage_of
from llava_prumerge.evaluation.fingerprint import fingerprint, method_label, method_name
from llava_prumerge.evaluation.records import EvaluationError
from llava_prumerge.evaluation.settings import apply_overrides, parse_generation, read_method
from llava_prumerge.ground.command import pairs
from llava_prumerge.ground.errors import InputError

METHODS = Path(__file__).resolve().parents[2] / "configs" / "method"


def test_settings_are_typed_and_checked() -> None:
    settings = parse_generation({"batch_size": "4", "images": "off", "reduction.vision.budget": "40", "train": "lora"})
    assert (settings.batch_size, settings.images, settings.train) == (4, "off", "lora")
    assert settings.overrides == {"vision.budget": 40}
    for values, message in (
        ({"batchsize": "4"}, "setting 'batchsize' is not known; did you mean 'batch_size'"),
        ({"batch_size": "0"}, "batch_size must be a positive whole number, not '0'"),
        ({"images": "maybe"}, "images must be one of on, off, not 'maybe'"),
        ({"train": "yes"}, "train must be one of none, projector, lora, full"),
    ):
        with pytest.raises(EvaluationError, match=message):
            parse_generation(values)
    with pytest.raises(InputError, match="given twice"):
        pairs(["a=1", "a=2"])
    with pytest.raises(InputError, match="'--nope' is not key=value"):
        pairs(["--nope"])


@pytest.mark.parametrize("path", sorted(METHODS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_method_file_is_a_block(path: Path) -> None:
    block = read_method(str(path))
    assert block == {} or all("name" in part for part in block.values())


def test_method_files(write) -> None:
    assert read_method(None) is None and read_method("none") == {}
    assert read_method("prumerge")["vision"]["name"] == "prumerge"
    assert parse_generation({"budget": "24"}).overrides == {"vision.budget": 24}
    assert read_method(str(write("m.yaml", "vision: {name: grid, rows: 5}\ndecoder: null\n"))) == {
        "vision": {"name": "grid", "rows": 5}
    }
    assert read_method(str(write("m.yaml", "reduction:\n  vision: {name: prumerge}\n"))) == {
        "vision": {"name": "prumerge"}
    }
    with pytest.raises(EvaluationError, match="expected the keys vision and decoder"):
        read_method(str(write("m.yaml", "visoin: {name: grid}\n")))
    with pytest.raises(InputError, match="no such file; method 'absent' is not known"):
        read_method("configs/method/absent.yaml")


def test_overrides() -> None:
    block = {"vision": {"name": "prumerge"}}
    assert apply_overrides(block, {"vision.budget": 40}) == {"vision": {"name": "prumerge", "budget": 40}}
    assert block == {"vision": {"name": "prumerge"}}
    with pytest.raises(EvaluationError, match="expected reduction.vision.NAME"):
        apply_overrides(block, {"budget": 40})
    with pytest.raises(EvaluationError, match="has settings but no method"):
        apply_overrides({}, {"decoder.layer": 2})


def test_method_names() -> None:
    block = {"vision": {"name": "grid", "rows": 5, "columns": 8}, "decoder": {"name": "fastv"}}
    assert (method_name(block), method_label(block)) == ("grid+fastv", "grid columns=8 rows=5 + fastv")
    assert method_name(None) == method_label({"vision": {"name": "none"}}) == "none"


def test_fingerprint_follows_content_not_place(tmp_path: Path) -> None:
    def model(name: str, weights: bytes, **files: str) -> str:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(weights)
        for file, text in files.items():
            (folder / f"{file}.json").write_text(text)
        return str(folder)

    weights = bytes(8 << 20)
    base = model("a", weights, config="{}")
    assert fingerprint(base) == fingerprint(model("b", weights, config="{}"))
    changed = bytearray(weights)
    changed[-1] = 1
    assert fingerprint(base) != fingerprint(model("c", bytes(changed), config="{}"))
    assert fingerprint(base) != fingerprint(model("d", weights, config='{"reduction": null}'))
    entry = {"path": "/moved/away", "from_here": "../a"}
    adapter = model("e", b"x", base=json.dumps({"model": entry, "language_model": None, "seed": 0}))
    before = fingerprint(adapter)
    (Path(base) / "config.json").write_text('{"a": 1}')
    assert fingerprint(adapter) != before
    assert fingerprint("liuhaotian/llava-v1.5-7b") == "hub:liuhaotian/llava-v1.5-7b"


def test_training_stage_of_a_checkpoint(tmp_path: Path) -> None:
    assert stage_of(tmp_path) is None
    (tmp_path / "config.yaml").write_text("stage: full\n")
    (tmp_path / "merged").mkdir()
    assert stage_of(tmp_path) == stage_of(tmp_path / "merged") == "full"
    (tmp_path / "adapter_config.json").write_text("{}")
    assert stage_of(tmp_path) == "lora"
