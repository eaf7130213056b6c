"""What another harness passes on: arguments of the model, settings of the generation, and how an error ends the process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llava_prumerge.ground.errors import CannotGoOn, InputError
from llava_prumerge.harness.session import NEW_TOKENS, RunEnds, Session, ends_the_run, read_generation


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({}, "pretrained= names the model"),
        ({"pretrained": "nowhere/at/all"}, "pretrained=nowhere/at/all: "),
        ({"pretrained": ".", "limit": 3}, "model argument 'limit' is not known"),
        ({"pretrained": ".", "colour": "red"}, "setting 'colour' is not known"),
        ({"pretrained": ".", "dtype": "int8"}, "dtype must be one of auto, float32, float16, bfloat16"),
        ({"pretrained": ".", "batch_size": "auto"}, "batch_size must be a whole number from 1"),
        ({"pretrained": ".", "device": "tpu"}, "device=tpu"),
        ({"pretrained": ".", "attn": "quick", "device": "cpu"}, "quick"),
    ],
)
def test_wrong_arguments_are_one_line(
    arguments: dict[str, Any], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as error:
        Session(arguments)
    assert line in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "expected", "unused"),
    [
        ({}, {"max_new_tokens": NEW_TOKENS, "until": [], "do_sample": False}, []),
        ({"until": "x", "temperature": 0, "top_p": None}, {"until": ["x"], "do_sample": False}, []),
        ({"temperature": 0.0, "do_sample": True, "top_p": 1.0}, {"do_sample": False}, []),
        ({"temperature": 0.7, "top_p": 0.9, "top_k": None}, {"do_sample": True, "temperature": 0.7, "top_p": 0.9}, []),
        ({"do_sample": True}, {"do_sample": True}, []),
        ({"do_sample": False, "temperature": 0.7}, {"do_sample": False}, []),
        (
            {"num_beams": 3, "image_aspect_ratio": "original"},
            {"num_beams": 3, "do_sample": False},
            ["image_aspect_ratio"],
        ),
    ],
)
def test_settings_of_the_generation(given: dict[str, Any], expected: dict[str, Any], unused: list[str]) -> None:
    found, left = read_generation(given)
    assert found == {"max_new_tokens": NEW_TOKENS, "until": []} | expected and left == unused


@pytest.mark.parametrize("given", [{"until": 3}, {"until": [3]}, {"max_new_tokens": "16"}, {"max_new_tokens": -1}])
def test_wrong_settings_of_the_generation(given: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="must be"):
        read_generation(given)


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (InputError("no such thing"), 2, "error: no such thing\n"),
        (CannotGoOn("no room"), 1, "error: no room\n"),
        (RuntimeError("CUDA out of memory"), 1, "RuntimeError: CUDA out of memory\n"),
    ],
)
def test_an_error_ends_the_process(
    error: Exception, status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    @ends_the_run
    def work() -> None:
        raise error

    with pytest.raises(RunEnds) as ended:
        work()
    assert (ended.value.code, ended.value.__cause__) == (status, error)
    told = capsys.readouterr().err
    assert told.endswith(said) and ("Traceback" in told) == (type(error) is RuntimeError)
    assert not isinstance(ended.value, Exception), "nothing that catches errors passes over it"
