"""The Gradio app in a headless Chromium, begun by the app.py of a Space as the release command writes it."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llava_prumerge.hub.source import COMPLETE
from llava_prumerge.hub.space import write_space
from llava_prumerge.viz.demo_model import DemoModel

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.browser
pytest.importorskip("gradio", reason="Gradio is not installed (make test-browser)")
QUESTION = "What is in this picture?"


@pytest.fixture(scope="module")
def address(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The Space's own app.py, run where me/pocket is a folder."""
    space = tmp_path_factory.mktemp("space") / "demo"
    write_space(space, folder, "me/pocket", "mit", COMPLETE)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = os.environ | {"GRADIO_SERVER_PORT": str(port), "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen([sys.executable, space / "app.py"], cwd=folder.parents[1], env=variables) as app:
        found, end = f"http://127.0.0.1:{port}/", time.monotonic() + 240
        while True:
            assert app.poll() is None and time.monotonic() < end, "the app did not begin"
            try:
                urllib.request.urlopen(found, timeout=5).close()
                break
            except OSError:
                time.sleep(0.2)
        yield found
        app.terminate()


@pytest.fixture(scope="module")
def model(folder: Path) -> DemoModel:
    from llava_prumerge.model.loading import load_model

    return DemoModel(*load_model(folder, device="cpu"))


@pytest.mark.parametrize("size", ["desktop", "phone"])
def test_the_app_answers_with_two_methods(
    size: str, address: str, opened: Callable, model: DemoModel, red: Path, tmp_path: Path
) -> None:
    page = opened(address, size)
    page.locator("input[type=file]").first.set_input_files(red)
    page.locator("img[src*='red']").first.wait_for()
    choose(page, "Method", "pyramiddrop")
    page.get_by_role("button", name="Ask", exact=True).click()
    page.get_by_text("whole answer").nth(1).wait_for()
    image = Image.open(red).convert("RGB")
    for label, block in (("the method", {"decoder": {"name": "pyramiddrop"}}), ("compared with", {})):
        wanted = model.answer(image, QUESTION, block, 64)
        assert page.get_by_role("textbox", name=label, exact=True).input_value() == (wanted.text or "(an empty answer)")
        for layer, tokens in wanted.seen.left.items():
            assert page.get_by_text(f"from layer {layer} on: {len(tokens)} tokens").count() > 0
    page.get_by_role("button", name="Attention map").click()
    page.get_by_text("attention received").first.wait_for()
    page.screenshot(path=tmp_path / "app.png", full_page=True)
    assert Image.open(tmp_path / "app.png").width == page.viewport_size["width"], "nothing sticks out"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:8000"}, 200),
        ({"Host": "rebound.example"}, 403),
        ({"Origin": "https://other.example"}, 403),
    ],
)
def test_the_app_answers_to_its_own_names_alone(headers: dict[str, str], status: int, address: str) -> None:
    """As the page does: a site whose name leads here, or whose script asks, is refused."""
    try:
        found = urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=60).status
    except urllib.error.HTTPError as error:
        found = error.code
    assert found == status


def choose(page: Any, label: str, name: str) -> None:
    page.get_by_label(label, exact=True).click()
    page.get_by_role("option", name=name, exact=True).click()


def test_budget_settings_and_refusals(address: str, opened: Callable, red: Path) -> None:
    page = opened(address)
    page.get_by_role("button", name="Ask", exact=True).click()
    page.get_by_text("choose an image first").wait_for()
    choose(page, "Method", "cls_topk")
    page.get_by_label("the method's own budget").uncheck()
    number = page.get_by_label("number input for Budget, tokens")
    number.fill("17")
    number.press("Enter")
    number.blur()
    page.wait_for_timeout(300)
    page.locator("input[type=file]").first.set_input_files(red)
    page.locator("img[src*='red']").first.wait_for()
    page.get_by_label("Question (Enter asks)").press("Enter")
    page.get_by_text("17 of 144", exact=True).wait_for()


def test_equal_pictures_of_two_people_are_two_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradio itself writes what has the same content to the same file, also while somebody reads it."""
    from llava_prumerge.viz.gradio_app import saved
    from llava_prumerge.viz.panels import Panel

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    panels = [Panel("kept", "a", Image.new("RGB", (9, 9))), Panel("layer", "b", Image.new("RGB", (9, 9)))]
    files = [path for _ in range(2) for path, _ in saved(panels)]
    assert len(set(files)) == 4 and all(Path(path).is_relative_to(tmp_path) for path in files)
    assert {Image.open(path).size for path in files} == {(9, 9)}


def test_ten_at_once_get_their_own_answers(address: str, model: DemoModel, red: Path) -> None:
    """By the app's API; every third leaves after its first words."""
    from gradio_client import Client, handle_file

    from llava_prumerge.viz.method_list import MethodList

    methods = ["none", "prumerge_plus", "grid", "fastv", "cls_topk"] * 2
    found: dict[int, Any] = {}

    def person(number: int) -> None:
        client = Client(address, verbose=False)
        words = (handle_file(str(red)), QUESTION, methods[number], True, 1, "nothing", 32)
        job = client.submit(*words, api_name="/ask")
        if number % 3 == 2:
            next(iter(job))
            job.cancel()
            return
        found[number] = job.result(timeout=120)

    people = [threading.Thread(target=person, args=(number,)) for number in range(10)]
    for thread in people:
        thread.start()
    for thread in people:
        thread.join(180)
    assert sorted(found) == [number for number in range(10) if number % 3 != 2]
    image, listed = Image.open(red).convert("RGB"), MethodList(None)
    for number, (_, answer, facts, *_) in found.items():
        wanted = model.answer(image, QUESTION, listed.find(methods[number]), 32)
        assert answer == (wanted.text or "(an empty answer)")
        assert re.search(rf"\*\*{wanted.seen.kept} of 144\*\*", facts)
