"""A secret or a path in any file of a run: the release stops, or what is released does not hold it. Never the secret itself."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file, save_file

from llava_prumerge.hub.__main__ import parse, write_card
from llava_prumerge.hub.export import export
from llava_prumerge.hub.scan import check_clean
from llava_prumerge.hub.source import ReleaseError, find_source

LETTERS = "aB3dE5gH7jK9mN1pQ2sT4uV6xY8z0aB3dE5gH7jK9"
SECRETS = (
    f"hf_{LETTERS[:34]}",
    f"sk-{LETTERS[:40]}",
    f"ghp_{LETTERS[:36]}",
    "AKIA" + "ABCDEFGHIJKLMNOP",
    f"aws_secret_access_key={LETTERS[:40]}",
    "https://me:pa55word@host.org/x",
    "postgres://me:pa55word@db/1",
    "-----BEGIN RSA PRIVATE KEY-----",
    "/home/somebody/models/llava",
    "/fsx9/team/models",
)
BASES = ["--base", "language_model=me/pocket-lm", "--base", "vision_tower=me/pocket-clip"]


def in_json(file: Path, secret: str) -> None:
    """In a field that nobody knows, in one that is known, and deep within."""
    content = json.loads(file.read_text())
    if isinstance(content, list):
        content[-1]["command"] = [*content[-1]["command"], f"run_name={secret}"]
    else:
        content |= {"extra_field": secret, "deep": {"er": [secret]}}
    file.write_text(json.dumps(content))


def in_text(file: Path, secret: str) -> None:
    file.write_text(f"{file.read_text()}\n{{#- {secret} -#}}\n")


def in_yaml(file: Path, secret: str) -> None:
    content = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump(content | {"run_name": secret, "data": secret}))


def in_metadata(file: Path, secret: str) -> None:
    save_file(load_file(file), file, metadata={"format": "pt", "from": secret})


def in_pickle(file: Path, secret: str) -> None:
    file.write_bytes(pickle.dumps({"path": secret}))


def in_token(file: Path, secret: str) -> None:
    """As a token that somebody has added."""
    content = json.loads(file.read_text())
    content["added_tokens"].append(content["added_tokens"][-1] | {"id": 700, "content": secret})
    file.write_text(json.dumps(content))


PLACES: dict[str, Callable[[Path, str], Any]] = {
    "environment.json": in_json,
    "config.yaml": in_yaml,
    "config.json": in_json,
    "adapter_config.json": in_json,
    "base.json": in_json,
    "tokenizer_config.json": in_json,
    "processor_config.json": in_json,
    "tokenizer.json": in_token,
    "chat_template.json": lambda file, secret: file.write_text(json.dumps({"chat_template": f"{{#- {secret} -#}}"})),
    "chat_template.jinja": in_text,
    "adapter_model.safetensors": in_metadata,
    "mm_projector.safetensors": in_metadata,
    "trainer_state.json": lambda file, secret: file.write_text(json.dumps({"log": secret})),
    "README.md": lambda file, secret: file.write_text(secret),
    "training_args.bin": in_pickle,
    "checkpoint-2/optimizer.pt": in_pickle,
}


def release(folder: Path, out: Path) -> None:
    """Everything of a release up to the scan that stands before its upload."""
    given = parse([str(folder), "me/pocket", "--dry-run", "--license", "apache-2.0", "--without-results", *BASES])
    source = find_source(given.run, given.merge, dict(word.split("=") for word in given.base))
    export(source, write_card(source, given), out)
    check_clean(out)


def try_secret(run: Path, out: Path, place: str, secret: str) -> bool:
    """-> whether it was stopped"""
    PLACES[place](run / place, secret)
    try:
        release(run, out)
    except ReleaseError as error:
        told = str(error)
        assert ("is not published" in told or "would be published" in told) and "\n" not in told, told
        assert "pa55word" not in told and LETTERS[:20] not in told, told
        return True
    held = [path.name for path in out.iterdir() if secret.encode() in path.read_bytes()]
    assert not held, (place, secret, held)
    return False


def test_a_run_without_secrets_is_released(runs: Path, tmp_path: Path) -> None:
    release(runs / "lora", tmp_path / "out")
    assert (tmp_path / "out" / "release.json").is_file()


@pytest.mark.parametrize("number", range(len(PLACES)))
def test_a_secret_in_a_file_of_a_run(runs: Path, tmp_path: Path, number: int) -> None:
    """Each file, with one secret after the other; the slow test takes all pairs."""
    try_secret(runs / "lora", tmp_path / "out", list(PLACES)[number], SECRETS[number % len(SECRETS)])


@pytest.mark.slow
def test_every_secret_in_every_file(original_runs: Path, tmp_path: Path) -> None:
    stopped = {}
    for place in PLACES:
        for secret in SECRETS:
            run, out = tmp_path / "runs" / "lora", tmp_path / "out"
            shutil.copytree(original_runs, tmp_path / "runs")
            stopped.setdefault(place, []).append(try_secret(run, out, place, secret))
            shutil.rmtree(tmp_path / "runs")
            shutil.rmtree(out, ignore_errors=True)
    assert all(stopped["chat_template.json"]) and all(stopped["adapter_model.safetensors"]), stopped
    assert not any(stopped["training_args.bin"]) and not any(stopped["checkpoint-2/optimizer.pt"])
    print({place: f"{sum(found)} of {len(found)} stopped" for place, found in stopped.items()})  # noqa: T201
