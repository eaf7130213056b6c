"""Settings, method files and fingerprints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llava_prumerge.evaluation.execution import Subject, stage_of
from llava_prumerge.evaluation.records import EvaluationError
from llava_prumerge.evaluation.settings import parse_generation
from llava_prumerge.ground.command import pairs
from llava_prumerge.ground.errors import InputError
from llava_prumerge.model.fingerprint import fingerprint


def test_settings_are_typed_and_checked() -> None:
    settings = parse_generation({"batch_size": "4", "images": "off", "reduction.vision.budget": "40", "train": "lora"})
    assert (settings.batch_size, settings.images, settings.train) == (4, "off", "lora")
    assert settings.overrides == {"reduction.vision.budget": 40}
    for values, message in (
        ({"batchsize": "4"}, "setting 'batchsize' is not known; did you mean 'batch_size'. There are: method"),
        ({"batch_size": "0"}, "batch_size must be a whole number from 1 to 100,000, not '0'"),
        ({"workers": "-1"}, "workers must be a whole number from 1 to 1,024, not '-1'"),
        ({"max_new_tokens": "9" * 5000}, "max_new_tokens must be a whole number from 1 to 1,000,000, not '999"),
        ({"limit": "2.0"}, "limit must be a whole number from 1 to"),
        ({"limit": "\u0663"}, "limit must be a whole number from 1 to"),
        ({"images": "maybe"}, "images must be one of on, off, not 'maybe'"),
        ({"train": "yes"}, "train must be one of none, method, projector, lora, full"),
    ):
        with pytest.raises(EvaluationError, match=message):
            parse_generation(values)
    with pytest.raises(InputError, match="given twice"):
        pairs(["a=1", "a=2"])
    with pytest.raises(InputError, match="'--nope' is not key=value"):
        pairs(["--nope"])


def test_a_methods_settings_stand_beside_those_of_the_evaluation(tmp_path: Path) -> None:
    """And act on the checkpoint's own method where none is named."""
    (tmp_path / "config.json").write_text('{"reduction": {"vision": {"name": "prumerge"}}}')

    def block(**values: str) -> dict | None:
        return Subject(str(tmp_path), parse_generation(values)).replacement

    assert block() is None and block(method="none") == {}
    assert block(budget="24") == {"vision": {"name": "prumerge", "budget": 24}}
    assert block(method="fastv:layer=3", keep="0.4375") == {
        "decoder": {"name": "fastv", "layer": 3, "keep_ratio": 0.4375}
    }
    assert block(method="prumerge_plus", budget="17", share="13/17", batch_size="4")["vision"]["share"] == "13/17"
    assert block(method="pyramiddrop", layers="[1,3]", keep_ratio="0.5")["decoder"]["layers"] == [1, 3]
    for values, words in (
        ({"method": "fasv"}, "method 'fasv' is not known; did you mean 'fastv'"),
        ({"method": "fastv", "rounds": "3"}, "fastv: setting 'rounds' is not known"),
        ({"budget": "0"}, "prumerge: budget 0 is not a positive whole number"),
        ({"decoder.layer": "3"}, "decoder.layer=3 has no method to belong to"),
        ({"budget": "["}, "'budget': line 1, column 2: not valid YAML"),
    ):
        with pytest.raises(EvaluationError, match=words):
            block(**values)


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
