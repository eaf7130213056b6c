"""transformers' server with our models, asked by the official OpenAI client (make test-tools)."""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import json
import os
import re
import shlex
import signal
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from other_tools import ROOT, TOKENS
from PIL import Image
from tiny_families import write_family

from llava_prumerge.inference.asking import ask
from llava_prumerge.model.loading import load_model

pytestmark = [
    pytest.mark.tools,
    pytest.mark.skipif(
        importlib.util.find_spec("openai") is None,
        reason="the OpenAI client is not here: make test-tools builds its environment",
    ),
]
PAGE = ROOT / "docs" / "serving.md"  # serving.md
METHOD = "uniform:budget=3"


def address(path: Path) -> dict[str, Any]:
    content = base64.b64encode(path.read_bytes()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{content}"}}


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder, found = tmp_path_factory.mktemp("pictures"), []
    for seed, size in ((1, (40, 30)), (2, (33, 64))):
        found.append(folder / f"{seed}.png")
        Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)).save(found[-1])
    return found


@pytest.fixture(scope="module", params=["llava", "llava_next", "internvl", "qwen2_5_vl", "gemma3"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, str, Path]]:
    """A family's model with a method behind the server. -> its session, the server's address, its folder"""
    from llava_prumerge.harness.session import Session
    from llava_prumerge.serving.server import bindable, start

    folder = write_family(tmp_path_factory.mktemp("models") / request.param, request.param)
    session = Session({"pretrained": str(folder), "reduction": METHOD, "device": "cpu"})
    port = bindable("127.0.0.1", 0)
    server = start(session, "ours", "127.0.0.1", port, background=True)
    for _ in range(200):
        if server.server.started:
            break
        time.sleep(0.05)
    yield session, f"http://127.0.0.1:{port}", folder
    server.kill_server()


@pytest.fixture
def client(served: tuple[Any, str, Path]) -> Any:
    import openai

    return openai.OpenAI(base_url=f"{served[1]}/v1", api_key="none", max_retries=0)


def said(client: Any, *content: Any, **settings: Any) -> Any:
    settings = {"max_tokens": TOKENS} | settings
    return client.chat.completions.create(
        model="ours", messages=[{"role": "user", "content": list(content)}], **settings
    )


def test_the_openai_client_gets_the_models_own_answers(served: Any, client: Any, pictures: list[Path]) -> None:
    """Whole and streamed; one image, two, none; with the method."""
    session, _, folder = served
    model, processor = load_model(folder, reduction=METHOD, device="cpu")
    session.model.reduction_stats()
    different = set()
    for words, shown in (("w3 w4 w5", pictures[:1]), ("w9", pictures), ("w3 w4", [])):
        expected = ask(model, processor, words, shown, max_new_tokens=TOKENS)
        content = [*map(address, shown), text(words)]
        whole = said(client, *content)
        assert whole.choices[0].message.content == expected.text
        assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (
            expected.prompt_tokens,
            expected.new_tokens,
        )
        assert whole.choices[0].finish_reason == ("length" if expected.new_tokens == TOKENS else "stop")
        pieces = [
            chunk.choices[0].delta.content or "" for chunk in said(client, *content, stream=True) if chunk.choices
        ]
        assert "".join(pieces).strip() == expected.text
        assert (
            len([piece for piece in pieces if piece]) > 1 or " " not in expected.text
        )  # some words are control tokens
        different.add(expected.text)
    counted = session.model.reduction_stats()
    assert counted["images"] == 6 and counted["kept_mean"] < counted["full_mean"], "the method acted"
    assert len(different) > 1


def test_turns_and_limits(served: Any, client: Any, pictures: list[Path]) -> None:
    first = said(client, address(pictures[0]), text("w3")).choices[0].message.content
    short = said(client, address(pictures[0]), text("w3"), max_tokens=2)
    assert short.usage.completion_tokens == 2 and first.startswith(short.choices[0].message.content)
    turns = [
        {"role": "user", "content": [address(pictures[0]), text("w3")]},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "w5"},
    ]
    told = client.chat.completions.create(model="ours", messages=turns, max_tokens=TOKENS)
    assert told.usage.prompt_tokens > said(client, address(pictures[0]), text("w3")).usage.prompt_tokens
    assert [one.id for one in client.models.list()] == ["ours"]


@contextlib.contextmanager
def refused(line: str) -> Iterator[None]:
    """What the client raises for a request that is wrong, its one line among the answer."""
    import openai

    with pytest.raises(openai.BadRequestError) as error:
        yield
    assert line in error.value.response.text and "\\n" not in error.value.response.text


def status(place: str, body: bytes | None = None, **headers: str) -> tuple[int, str]:
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    asked = urllib.request.Request(place, body, {"Content-Type": "application/json"} | headers)
    try:
        with urllib.request.urlopen(asked, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_what_is_not_meant_for_it_is_refused(
    served: Any, client: Any, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import httpx

    _, place, _ = served
    monkeypatch.setattr(httpx, "get", lambda *_, **__: pytest.fail("an address was followed"))
    content = bytearray(pictures[0].read_bytes())
    content[16:24] = struct.pack(">II", 60_000, 60_000)  # its head says so
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    huge = pictures[0].parent / "huge.png"
    huge.write_bytes(content)
    for url, line in (
        ("http://127.0.0.1:9/x.png", "addresses and paths are not followed"),
        ("https://example.org/x.png", "addresses and paths are not followed"),
        (str(pictures[0]), "addresses and paths are not followed"),
        (f"file://{pictures[0]}", "addresses and paths are not followed"),
        ("data:image/png;base64,AAAA", "not an image"),
        (address(huge)["image_url"]["url"], "too large"),
    ):
        with refused(line):
            said(client, {"type": "image_url", "image_url": {"url": url}}, text("w3"))
    with refused("video"):
        said(client, {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}}, text("w3"))
    with refused("pinned to 'ours'"):
        client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "w3"}])
    with refused("not offered"):
        said(client, text("w3"), extra_body={"chat_template_kwargs": {"chat_template": "{{ 1 }}"}})
    assert status(f"{place}/health", Host="example.org")[0] == 403
    assert status(f"{place}/reset", b"", Origin="http://example.org")[0] == 403
    assert status(f"{place}/v1/chat/completions", b"{}", Content_Length=str(1 << 40))[0] == 413
    assert "is 'ours'" in status(f"{place}/load_model", json.dumps({"model": "hf-internal/tiny"}).encode())[1]
    assert status(f"{place}/reset", b"")[0] == 200  # which unloads the models of a stock server
    assert said(client, address(pictures[0]), text("w3")).choices[0].message.content


def test_the_pages_commands(tmp_path: Path, pictures: list[Path]) -> None:
    """The command line, its first line, the page's Python, and the end by Ctrl-C."""
    import openai

    page = PAGE.read_text("utf-8")
    (line,) = [line for line in page.splitlines() if line.startswith("llava-prumerge serve")]
    words = shlex.split(line.partition(" #")[0])
    words[2:3] = [str(write_family(tmp_path / "model", "llava"))]
    words = [sys.executable, "-m", "llava_prumerge", *words[1:], "--port", "0", "--device", "cpu"]
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        try:
            found = next(
                match
                for row in process.stdout or ()
                if (match := re.search(r"^(\S+) with (\S+).* at (http://\S+)/v1", row))
            )
            next(row for row in process.stdout or () if "Uvicorn running" in row)
            assert found[1] == "model" and found[2].startswith("visionzip")
            (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
            code = (
                code.replace("http://127.0.0.1:8000", found[3])
                .replace("photo.jpg", str(pictures[0]))
                .replace("MODEL", "model")
            )
            code = code.replace("What is on the table?", "w3 w4 w5")
            printed: list[str] = []
            exec(code, {"print": lambda *told, **_: printed.append(" ".join(map(str, told)))})
            assert len(printed) > 2 and any("w" in one for one in printed)
            assert openai.OpenAI(base_url=f"{found[3]}/v1", api_key="none").models.list().data[0].id == "model"
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(timeout=60)
    assert process.returncode in (0, 130, -signal.SIGINT)
