"""No credential, key or path of a machine leaves with a release, in whatever file it stands."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from llava_prumerge.hub import scan
from llava_prumerge.hub.card import show_command
from llava_prumerge.hub.scan import check_clean
from llava_prumerge.hub.source import ReleaseError

LETTERS = "aB3dE5gH7jK9mN1pQ2sT4uV6xY8z0aB3dE5gH7jK9"
HEX = "0123456789abcdef0123456789abcdef01234567"
SECRETS = {
    f"hf_{LETTERS[:34]}": "a token of the Hub",
    f"sk-{LETTERS[:40]}": "an API key",
    f"sk-proj-{LETTERS[:30]}": "an API key",
    f"ghp_{LETTERS[:36]}": "a GitHub token",
    "AKIA" + "ABCDEFGHIJKLMNOP": "an AWS key",
    f"WANDB_API_KEY={HEX}": "a wandb key",
    f'"wandb": {{"key": "{HEX}"}}': "a wandb key",
    "https://user:pa55word@host.org/x": "credentials in an address",
    f"https://{LETTERS[:20]}@github.com/x/y": "credentials in an address",
    "postgres://me:secret1@db/1": "credentials in an address",
    "https://x.org/y?sig=abcdefgh12": "a token in an address",
    "password=hunter2": "a password or key",
    '"password": "hunter22"': "a password or key",
    "DB_PASSWORD=hunter22": "a password or key",
    "token=abcd1234": "a token setting",
    "Authorization: Bearer abcdefghijklmnop123": "a bearer token",
    "-----BEGIN RSA PRIVATE KEY-----": "a private key",
    "-----BEGIN OPENSSH PRIVATE KEY-----": "a private key",
    "aws_secret_access_key = " + LETTERS[:40]: "a password or key",
    "sk_live_" + LETTERS[:24]: "a Stripe key",
    "pypi-AgEIcHlwaS5vcmc" + LETTERS + LETTERS: "a package index's token",
    "DefaultEndpointsProtocol=https;AccountKey=" + LETTERS + "==": "an Azure key",
    "-----BEGIN PGP PRIVATE KEY BLOCK-----": "a private key",
    "scp me@host:/home/me/x .": "a path of a machine",
    "file:///private/x": "an address of a file",
    '{"data": "/fsx9/team/records.json"}': "an absolute path",
    "images: /somewhere/else/coco": "an absolute path",
    "- vision_tower: /opt9/clip": "an absolute path",
    "D:\\\\models\\\\llava": "a path of a Windows machine",
    "D:/models/llava": "a path of a Windows machine",
    "/home/somebody/models/llava": "a path of a machine",
    '"/mnt/disk2/vicuna"': "a path of a machine",
    "images=/data/coco/train2017": "a path of a machine",
    "C:\\\\Users\\\\me\\\\models": "a path of a Windows machine",
    '"_name_or_path": "runs/my-lora"': "a folder's name in _name_or_path",
    '"base_model_name_or_path": "../vicuna"': "a folder's name in _name_or_path",
}
HARMLESS = (
    '{"_name_or_path": "", "base_model_name_or_path": "lmsys/vicuna-7b-v1.5"}',
    '{"bos_token": "<s>", "pad_token": "<pad>", "token_type": "x", "image_token": "<image>"}',
    f"code: {HEX}, sha256: {HEX}{HEX[:24]}",
    "https://huggingface.co/lmsys/vicuna-7b-v1.5 and git@github.com:x/y.git",
    "an API key is not needed; the password is yours; /usr is a folder, and/or so; 10/home",
    "python -m llava_prumerge.train.run ~/recipe.yaml data=.../records.json",
    '{"secret": null, "password": none}',
    'USER: and A:\\nB, 3:/4, https://host.org/a/b, /v1 and a/b/c, "/" or "//" or \'/n\'',
)


@pytest.mark.parametrize("text", SECRETS)
@pytest.mark.parametrize("file", ["README.md", "config.json", "deep/er/notes.bin"])
def test_what_must_not_be_published_stops_a_release(tmp_path: Path, text: str, file: str) -> None:
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(f"first line\n{text}\n")
    with pytest.raises(ReleaseError, match="is not published: ") as caught:
        check_clean(tmp_path)
    told = str(caught.value)
    assert SECRETS[text] in told and file in told and "\n" not in told
    assert ("line 2" in told) == (file != "deep/er/notes.bin")
    assert LETTERS[:20] not in told and "hunter2" not in told and "pa55word" not in told


def test_what_is_harmless_passes(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("\n".join(HARMLESS))
    check_clean(tmp_path)


def test_metadata_of_weights_is_read_and_weights_are_not(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"w": np.frombuffer(b"/home/me/models/" * 4, np.uint8)}, file, metadata={"format": "pt"})
    check_clean(tmp_path)
    save_file({"w": np.zeros(4, np.uint8)}, file, metadata={"from": "/home/me/models/x"})
    with pytest.raises(ReleaseError, match=r"model.safetensors: a path of a machine \(/home/me/models/x\)"):
        check_clean(tmp_path)


def test_values_of_this_machines_own_secrets_are_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SERVICE_TOKEN", "correct horse battery")
    (tmp_path / "README.md").write_text("correct horse battery staple")
    with pytest.raises(ReleaseError, match=r"README.md, line 1: the value of MY_SERVICE_TOKEN \(co\.\.\.\)"):
        check_clean(tmp_path)


def test_a_secret_between_two_pieces_of_a_large_file_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "_PIECE", 5000)
    secret = f"hf_{LETTERS[:34]}"
    for before in range(4970, 5003, 4):
        (tmp_path / "log.txt").write_text("x\n" * (before // 2) + secret + "\n" * 9000)
        with pytest.raises(ReleaseError, match=rf"line {before // 2 + 1}: a token of the Hub") as caught:
            check_clean(tmp_path)
        assert str(caught.value).count("a token of the Hub") == 1


def test_commands_are_told_without_paths_of_the_machine(tmp_path: Path) -> None:
    words = [
        "/opt/env/bin/python",
        "/srv/code/llava_prumerge/train/run.py",
        "/mnt/a/recipe.yaml",
        "images=/data/coco/train",
    ]
    told = show_command(words)
    assert told == "python -m llava_prumerge.train.run .../recipe.yaml images=.../train"
    (tmp_path / "README.md").write_text(told + json.dumps(told))
    check_clean(tmp_path)
