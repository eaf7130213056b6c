"""The demo over HTTP on loopback, with a tiny model: good and bad requests, and methods exchanged between questions."""

from __future__ import annotations

import base64
import io
import itertools
import json
import struct
import threading
import zlib
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
import pytest
import torch
import yaml
from demo_client import OWN_BLOCK, ask, photo, request
from PIL import Image

from llava_prumerge.inference.asking import QUESTION, inspect_image
from llava_prumerge.methods.base import ReductionError
from llava_prumerge.methods.resolve import read_method_file
from llava_prumerge.model.modeling import PruMergeLlavaForConditionalGeneration
from llava_prumerge.viz.demo import main
from llava_prumerge.viz.demo_examples import examples_of
from llava_prumerge.viz.demo_model import DemoModel
from llava_prumerge.viz.demo_requests import MAX_BYTES
from llava_prumerge.viz.demo_server import DemoServer
from llava_prumerge.viz.method_list import OWN, MethodList, with_budget
from llava_prumerge.viz.panels import Drawn, panels_of


def marked(result: dict, stage: int = 0) -> int:
    """How many patches of the one tile are marked in a stage's picture."""
    (units,) = result["stages"][stage]["units"]
    assert result["grids"] == [[4, 4]] and all(0 <= unit < 16 for unit in units) and len(set(units)) == len(units)
    return len(units)


def test_it_listens_on_loopback_alone(server: DemoServer) -> None:
    assert server.server_address[0] == "127.0.0.1"


def test_the_page_runs_its_own_script_and_nothing_else(server: DemoServer) -> None:
    status, headers, content = request(server, "GET", "/")
    page = content.decode()
    assert status == 200 and headers["Content-Type"].startswith("text/html")
    nonce = page.split('<script nonce="')[1].split('"')[0]
    policy = headers["Content-Security-Policy"]
    assert len(nonce) > 16 and f"script-src 'nonce-{nonce}'" in policy and "default-src 'none'" in policy
    assert "{nonce}" not in page and "http://" not in page and "https://" not in page, "nothing comes from elsewhere"
    assert request(server, "GET", "/")[2] != content, "each page has a nonce of its own"


def test_methods_are_those_of_files_searches_and_the_checkpoint(server: DemoServer) -> None:
    status, _, content = request(server, "GET", "/methods")
    offer = json.loads(content)
    assert status == 200 and offer["chosen"] == OWN
    assert {OWN, "none", "prumerge_plus", "fastv", "found"} <= set(offer["methods"]) and "notes" not in offer["methods"]
    assert json.loads(offer["methods"][OWN]) == OWN_BLOCK


def test_an_answer_with_the_checkpoints_own_method(server: DemoServer, checkpoint: Path) -> None:
    """The same as by the Auto classes and the processor, without any of the demo's code."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    status, result = ask(server)
    assert status == 200
    assert result["tokens"] == {"full": 16, "kept": 5, "layers": [5.0] * 4, "mean": 5.0}
    assert result["seconds"] > 0 and result["new_tokens"] == 4 and result["reduction"] == OWN_BLOCK
    assert [(stage["layer"], stage["tokens"], stage["others"]) for stage in result["stages"]] == [(0, 5, 1)]
    assert marked(result) == 4, "four patches; the fifth token stands for the rest"
    assert 0 < result["first"] < result["seconds"] and "beside" not in result
    (picture,) = (Image.open(io.BytesIO(base64.b64decode(one.partition(",")[2]))) for one in result["pictures"])
    assert (picture.format, picture.size) == ("JPEG", (576, 576))
    model = AutoModelForImageTextToText.from_pretrained(checkpoint).eval()
    processor = AutoProcessor.from_pretrained(checkpoint)
    system = "A chat between a curious user and an artificial intelligence assistant. "
    system += "The assistant gives helpful, detailed, and polite answers to the user's questions."
    text = f"{system} USER: <image>\nw3 w4 w5 ASSISTANT:"
    inputs = processor(images=Image.open(io.BytesIO(photo())).convert("RGB"), text=text, return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=4, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert result["answer"] == processor.decode(ids, skip_special_tokens=True).strip() != ""


@pytest.mark.parametrize(
    "method, budget, kept, layers",
    [
        ("none", "", 16, [16.0] * 4),
        ("prumerge_plus", 7, 7, [7.0] * 4),
        ("grid", 9, 9, [9.0] * 4),
        ("fastv", "", 16, [16.0, 16.0, 8.0, 8.0]),
        ("found", "", 16, [16.0, 12.0, 8.0, 4.0]),
    ],
)
def test_methods_are_exchanged_between_questions(
    method: str, budget: object, kept: int, layers: list[float], server: DemoServer
) -> None:
    status, result = ask(server, method=method, budget=budget)
    assert status == 200, result
    assert (result["tokens"]["kept"], result["tokens"]["layers"]) == (kept, layers)
    assert [stage["tokens"] for stage in result["stages"]] == list(dict.fromkeys(layers)), "a picture for each step"
    assert all(marked(result, at) + stage["others"] == stage["tokens"] for at, stage in enumerate(result["stages"]))
    assert [stage["layer"] for stage in result["stages"]] == [layers.index(count) for count in dict.fromkeys(layers)]
    assert layers[-1] == kept or len(result["stages"]) > 1
    assert ask(server)[1]["tokens"]["kept"] == 5, "the checkpoint's own method is back"


def test_questions_at_once_do_not_mix_their_methods(server: DemoServer) -> None:
    wanted = {"none": 16, OWN: 5, "found": 16} | {"uniform": 3}
    found: dict[str, list[int]] = {name: [] for name in wanted}

    def several(name: str) -> None:
        for _ in range(3):
            found[name].append(ask(server, method=name, budget=3 if name == "uniform" else "")[1]["tokens"]["kept"])

    threads = [threading.Thread(target=several, args=(name,)) for name in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {name: [kept] * 3 for name, kept in wanted.items()}


@pytest.mark.parametrize("budget", [8, 12])
def test_every_layer_before_which_a_pruner_acts_has_a_picture(budget: int, server: DemoServer) -> None:
    """All of PyramidDrop's steps, each within the one before."""
    result = ask(server, method="pyramiddrop", budget=budget)[1]
    layers, stages = result["tokens"]["layers"], result["stages"]
    steps = [0, *(layer for layer in range(1, 4) if layers[layer] < layers[layer - 1])]
    assert [stage["layer"] for stage in stages] == steps and len(steps) > 2, "more than the first and the last"
    for before, after in itertools.pairwise(stages):
        assert set(after["units"][0]) < set(before["units"][0]) and len(after["units"][0]) == after["tokens"]


def test_two_methods_answer_one_question(server: DemoServer) -> None:
    """Side by side: each as it answers alone."""
    status, both = ask(server, beside="none")
    assert status == 200, both
    own, full = ask(server)[1], ask(server, method="none")[1]
    for found, alone in ((both, own), (both["beside"], full)):
        for key in ("answer", "reduction", "tokens", "stages", "grids", "new_tokens"):
            assert found[key] == alone[key], key
    assert "pictures" in both and "pictures" not in both["beside"] and own["answer"] != full["answer"]
    assert ask(server, beside="magic")[0] == 400


def test_settings_are_told_with_the_budget(server: DemoServer) -> None:
    def settings(**fields: object) -> tuple[int, dict]:
        status, _, content = request(server, "GET", f"/settings?{urlencode(fields)}")
        return status, json.loads(content)

    assert settings(method=OWN) == (200, {"method": OWN, "reduction": OWN_BLOCK})
    assert settings(method=OWN, budget=9)[1]["reduction"] == {"vision": {"name": "prumerge", "budget": 9}}
    assert settings(method="none", budget=9) == (400, {"error": "none takes no budget; leave it empty"})
    assert settings(budget=17)[0] == settings(method="magic")[0] == settings(question="w")[0] == 400
    offer = json.loads(request(server, "GET", "/methods")[2])
    assert {OWN, "fastv", "pyramiddrop"} <= set(offer["budgeted"]) and not {"none", "grid_5x8"} & set(offer["budgeted"])
    assert (offer["most"], offer["places"]) == (16, 16) and "/llava" in offer["model"]


def test_examples_are_drawn_or_read(server: DemoServer, tmp_path: Path) -> None:
    offered = json.loads(request(server, "GET", "/methods")[2])["examples"]
    assert [example["name"] for example in offered] == ["shapes", "chart", "sign"]
    for number, example in enumerate(offered):
        _, headers, content = request(server, "GET", f"/example?number={number}")
        assert Image.open(io.BytesIO(content)).size == (384, 288) and headers["Content-Type"] == "image/unknown"
        small = Image.open(io.BytesIO(request(server, "GET", f"/example?number={number}&small=yes")[2]))
        assert max(small.size) == 160 and example["question"].endswith("?")
        assert len(small.getcolors(1 << 20)) > 3, "something is drawn"
    assert {request(server, "GET", f"/example?number={number}")[0] for number in ("3", "-1", "x", "")} == {400}
    (tmp_path / "b.png").write_bytes(photo())
    (tmp_path / "a.jpg").write_bytes(photo("JPEG"))
    (tmp_path / "b.txt").write_text(" Was ist das?\n", encoding="utf-8")
    found = examples_of(tmp_path)
    assert [(one.name, one.question) for one in found] == [("a", QUESTION), ("b", "Was ist das?")]
    assert found[1].read() == photo() and found[1].image().size == (64, 40)


@pytest.mark.parametrize(
    "files, words",
    [
        ({}, "0 images"),
        ({"a.png": b"no image"}, "a.png is none of JPEG"),
        ({"a.png": photo(), "a.txt": b"\xff\xfe"}, "a.txt: a question is text in UTF-8"),
        ({"a.png": photo(), "a.txt": b" "}, "a.txt: a question has 1 to 2000 characters, not 0"),
        ({f"{number}.png": photo() for number in range(25)}, "25 images"),
    ],
)
def test_examples_that_are_none_are_named(files: dict[str, bytes], words: str, tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=words):
        examples_of(tmp_path)


def look(server: DemoServer, body: bytes | None = None, **fields: object) -> tuple[int, dict]:
    given = {"question": "w3", **fields}
    body = photo() if body is None else body
    status, _, content = request(server, "POST", f"/look?{urlencode(given)}", body, Content_Type="image/png")
    return status, json.loads(content)


def test_attention_and_what_was_merged_are_drawn_on_demand(server: DemoServer) -> None:
    """The same pictures as the library's of the same image, question and method."""
    image = Image.open(io.BytesIO(photo())).convert("RGB")
    demo = server.model
    for method, show, kinds in (
        ("none", "attention", ["attention"]),
        ("fastv", "attention", ["attention"]),
        (OWN, "attention", ["attention"]),
        (OWN, "merged", ["clusters"]),
        ("grid", "merged", []),
    ):
        status, found = look(server, method=method, show=show, budget=4 if method == "grid" else "")
        assert status == 200, found
        assert [picture["kind"] for picture in found["pictures"] if picture["kind"] != "rest"] == kinds, (method, show)
        seen = inspect_image(
            demo.model,
            demo.processor,
            image,
            "w3",
            reduction=found["reduction"],
            attention=show == "attention",
            merges=True,
        )
        wanted = {panel.kind: panel for panel in panels_of(Drawn("", "", "", "w3", seen, demo.pictures(image, seen)))}
        for picture in found["pictures"]:
            drawn = Image.open(io.BytesIO(base64.b64decode(picture["source"].partition(",")[2])))
            whole = wanted[picture["kind"]]
            assert picture["caption"] == whole.caption and drawn.size == whole.picture.size
            apart = np.abs(np.asarray(drawn, dtype=float) - np.asarray(whole.picture.convert("RGB"), dtype=float))
            assert apart.mean() < 6, "but for the JPEG"
    assert ask(server)[1]["tokens"]["kept"] == 5, "the checkpoint's own method is back"
    assert look(server, b"no image", show="merged")[0] == look(server, show="more")[0] == look(server)[0] == 400
    assert look(server, show="merged", new_tokens=4)[0] == 400


BAD: dict[str, tuple[dict, int, str]] = {
    "not an image": ({"body": b"GIF87a but not really"}, 400, "the uploaded file"),
    "text": ({"body": b"hello"}, 400, "not an image"),
    "truncated": ({"body": photo()[:200]}, 400, "broken: the uploaded file"),
    "svg": (
        {"body": b"<svg xmlns='http://www.w3.org/2000/svg'/>", "headers": {"Content_Type": "image/svg+xml"}},
        400,
        "not an image",
    ),
    "unknown method": ({"method": "magic"}, 400, "method 'magic' is not known; there are: "),
    "a path for a method": ({"method": "../../etc/passwd"}, 400, "is not known"),
    "wrong budget": ({"budget": "many"}, 400, "budget is a whole number from 1 to 16"),
    "large budget": ({"budget": 17}, 400, "budget is a whole number from 1 to 16"),
    "no budget to give": ({"method": "none", "budget": 4}, 400, "none takes no budget"),
    "no question": ({"question": " "}, 400, "a question has 1 to 2000 characters"),
    "long question": ({"question": "w" * 2001}, 400, "a question has 1 to 2000 characters"),
    "image mark": ({"question": "<image> w3"}, 400, "the question holds '<image>' itself"),
    "endless answer": ({"new_tokens": 100000}, 400, "new_tokens is a whole number from 1 to 512"),
    "unknown field": ({"model": "other"}, 400, "fields are question, method, budget, new_tokens, beside, each once"),
    "a form of another site": ({"headers": {"Content_Type": "text/plain"}}, 415, "the body is text/plain"),
    "another site's script": (
        {"headers": {"Origin": "http://evil.example"}},
        403,
        "'http://evil.example' are not answered",
    ),
    "a name that leads here": ({"headers": {"Host": "evil.example"}}, 403, "host 'evil.example' is not this page"),
    "a page of this machine's on another port": (
        {"headers": {"Origin": "http://127.0.0.1:1"}},
        403,
        "are not answered",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_requests_are_refused_and_the_next_is_answered(name: str, server: DemoServer) -> None:
    arguments, status, words = BAD[name]
    found, result = ask(server, **arguments)
    assert found == status and words in result["error"] and "\n" not in result["error"]
    assert set(result) == {"error"}


def test_the_page_is_refused_to_other_names_too(server: DemoServer) -> None:
    for path in ("/", "/methods"):
        assert request(server, "GET", path, Host=f"attacker.example:{server.server_port}")[0] == 403
        assert request(server, "GET", path, Host=f"localhost:{server.server_port}")[0] == 200
        assert request(server, "GET", path, Host="localhost:8000")[0] == 200, "as through ssh -L 8000:localhost:7860"


def test_a_question_through_a_tunnel_is_answered(server: DemoServer) -> None:
    headers = {"Host": "localhost:8000", "Origin": "http://localhost:8000"}
    assert ask(server, headers=headers)[0] == 200


def test_uploads_are_bounded_before_they_are_read(server: DemoServer) -> None:
    status, result = ask(server, body=b"x" * (MAX_BYTES + 1))
    assert status == 413 and f"at most {MAX_BYTES} are accepted" in result["error"]
    status, _, content = request(server, "POST", "/ask?question=w3", b"", Content_Length="-5", Content_Type="image/png")
    assert status == 411 and "Content-Length" in json.loads(content)["error"]


def test_pixels_are_bounded_before_they_are_decoded(server: DemoServer) -> None:
    """A hundred bytes that would become 2.7 GB."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )
    status, result = ask(server, body=bomb)
    assert status == 400 and "too large: the uploaded file" in result["error"]


def test_what_is_not_there_is_said(server: DemoServer) -> None:
    assert request(server, "GET", "/../../etc/passwd")[0] == 404
    assert request(server, "POST", "/", b"")[0] == 404
    assert request(server, "DELETE", "/")[0] == 501


def test_a_failure_inside_is_no_traceback_for_the_page(
    server: DemoServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("out of memory at 0x7f with w3 w4 w5")

    monkeypatch.setattr(PruMergeLlavaForConditionalGeneration, "generate", broken)
    status, result = ask(server, method="none")
    assert status == 500 and result == {"error": "this failed; the console shows why"}
    assert "out of memory at 0x7f with [the question]" in caplog.text and "/ask failed" in caplog.text
    assert "w3 w4 w5" not in caplog.text and "w3+w4" not in caplog.text
    monkeypatch.undo()
    assert ask(server)[1]["tokens"]["kept"] == 5, "the checkpoint's own method is back"


def test_untrained_parameters_are_told(checkpoint: Path) -> None:
    from llava_prumerge.model.loading import load_model

    model = DemoModel(*load_model(checkpoint, device="cpu"))
    image = Image.open(io.BytesIO(photo())).convert("RGB")
    answer = model.answer(image, "w3", {"decoder": {"name": "atp_llava"}}, 2)
    assert answer.untrained == ["atp_llava"]
    assert model.answer(image, "w3", OWN_BLOCK, 2).untrained == []
    assert all(torch.isfinite(parameter).all() for parameter in model.model.parameters())


def test_method_files(tmp_path: Path) -> None:
    """Both forms are read; what is none is named; a new file appears without a restart."""
    (tmp_path / "a.yaml").write_text(yaml.safe_dump({"reduction": OWN_BLOCK}))
    (tmp_path / "prumerge.yaml").write_text(yaml.safe_dump(OWN_BLOCK))
    methods = MethodList(None, [tmp_path])
    assert methods.find("a") == OWN_BLOCK == methods.find(str(tmp_path / "prumerge.yaml"))
    assert methods.find("prumerge") == {"vision": {"name": "prumerge"}}, "the shipped one keeps its short name"
    (tmp_path / "later.yaml").write_text("decoder: {name: fastv}\n")
    assert methods.find("later") == {"decoder": {"name": "fastv"}}
    assert MethodList(None, [tmp_path / "prumerge.yaml"]).find("prumerge") == OWN_BLOCK, "a named file comes first"
    for text in ("- a\n", "vision: {budget: 3}\n", "other: {name: fastv}\n", "a: [", "\0"):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(ReductionError, match="bad.yaml is no method file"):
            read_method_file(tmp_path / "bad.yaml")
        with pytest.raises(ReductionError, match="bad.yaml is no method file"):
            MethodList(None, [tmp_path / "bad.yaml"])


def test_a_budget_goes_to_the_first_method_that_takes_one() -> None:
    pair = {"vision": {"name": "prumerge_plus"}, "decoder": {"name": "pyramiddrop"}}
    assert with_budget(pair, 9) == {**pair, "vision": {"name": "prumerge_plus", "budget": 9}}
    alone = {"vision": {"name": "none"}, "decoder": {"name": "pyramiddrop"}}
    assert with_budget(alone, 9) == {"decoder": {"name": "pyramiddrop", "budget": 9}}
    with pytest.raises(ReductionError, match="none takes no budget"):
        with_budget({"vision": {"name": "none"}}, 9)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["{gone}"], "does not exist"),
        (["{checkpoint}", "--method", "magic"], "method 'magic' is not known"),
        (["{checkpoint}", "--methods", "/nowhere/methods"], "no such method file or folder"),
        (["{checkpoint}", "--examples", "/nowhere/examples"], "/nowhere/examples: no such folder of examples"),
    ],
)
def test_a_wrong_command_is_one_line(
    arguments: list[str], words: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    filled = [word.format(gone=tmp_path / "gone", checkpoint=checkpoint) for word in arguments]
    assert main([*filled, "--port", "0"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and words in error


def test_the_app_without_gradio_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    assert main(["no-model", "--gradio"]) == 2
    assert capsys.readouterr().err == "error: --gradio needs gradio: pip install 'llava-prumerge[demo]'\n"
