"""The local page in a headless Chromium, at a desk's and a phone's width, as people use it."""

from __future__ import annotations

import io
import json
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llava_prumerge.viz.demo import serve
from llava_prumerge.viz.demo_queue import Question
from llava_prumerge.viz.demo_server import DemoHandler, DemoServer

pytestmark = pytest.mark.browser
SIZES = pytest.mark.parametrize("size", ["desktop", "phone"])


@pytest.fixture(scope="module")
def loaded(folder: Path) -> DemoServer:
    return serve([str(folder), "--port", "0", "--device", "cpu", "--method", "prumerge_plus"])


@pytest.fixture
def address(loaded: DemoServer, running: Callable[[Any], str]) -> str:
    """A server of its own for each test, with the one model."""
    made = DemoServer(0, loaded.model, loaded.methods, loaded.chosen, name="me/pocket")
    return running(made)


def choose(page: Any, image: Path, method: str | None = None, beside: str = "none") -> None:
    page.locator("#method option").first.wait_for(state="attached")
    page.set_input_files("#file", image)
    page.locator("#preview:not([hidden])").wait_for()
    if method is not None:
        page.select_option("#method", method)
    page.select_option("#beside", beside)


def ask(page: Any, sides: int = 2) -> list[dict[str, str]]:
    """Ask, and what stands on the page for each side."""
    page.locator("#question").press("Control+Enter")
    page.locator("#ask:enabled").wait_for()
    page.locator(".found:not([hidden])").nth(sides - 1).wait_for()
    articles = page.locator("article")
    assert articles.count() == sides
    return [
        {"answer": one.locator(".answer").inner_text(), "title": one.locator("h2").inner_text()}
        | {name: one.locator(f"[data-is={name}]").inner_text() for name in ("kept", "mean", "first", "time")}
        for one in (articles.nth(side) for side in range(sides))
    ]


def screen(page: Any, path: Path) -> Image.Image:
    page.screenshot(path=path, full_page=True)
    return Image.open(path)


@SIZES
def test_full_and_reduced_answer_side_by_side(
    size: str, address: str, opened: Callable, loaded: DemoServer, tmp_path: Path
) -> None:
    """An example, Ctrl+Enter, two answers as the library gives them, and nothing wider than the window."""
    page = opened(address, size)
    page.locator("#examples button").nth(0).click()
    page.locator("#preview:not([hidden])").wait_for()
    own, full = ask(page)
    assert (own["title"], full["title"]) == ("prumerge_plus", "none: all tokens")
    from llava_prumerge.viz.demo_examples import drawn_examples

    example = drawn_examples()[0]
    assert page.locator("#question").input_value() == example.question
    for found, block in ((own, {"vision": {"name": "prumerge_plus"}}), (full, {})):
        wanted = loaded.model.answer(example.image(), example.question, block, 64)
        assert found["answer"].strip() == (wanted.text or "(an empty answer)")
        assert found["kept"] == f"{wanted.seen.kept} of 144"
        assert found["time"].endswith(f"{wanted.new_tokens} tokens")
    left, right = (page.locator("article").nth(side).bounding_box() for side in range(2))
    beside = left["y"] == right["y"] and right["x"] > left["x"] + left["width"]
    assert beside == (size == "desktop") and (beside or right["y"] > left["y"] + left["height"])
    assert screen(page, tmp_path / f"{size}.png").width == page.viewport_size["width"], "nothing sticks out"


def test_kept_patches_are_those_that_are_not_faded(
    address: str, opened: Callable, loaded: DemoServer, red: Path
) -> None:
    """Every patch of every layer's picture has the colour that its token's fate gives it."""
    page = opened(address)
    choose(page, red, "pyramiddrop")
    ask(page)
    pictures = page.locator("article").nth(0).locator("canvas[data-done]")
    wanted = loaded.model.answer(
        Image.open(red).convert("RGB"), "What is in this picture?", {"decoder": {"name": "pyramiddrop"}}, 8
    )
    stages = [wanted.seen.tokens, *(tokens for _, tokens in sorted(wanted.seen.left.items()))]
    assert pictures.count() == len(stages) > 3
    for number, tokens in enumerate(stages):
        drawn = Image.open(io.BytesIO(pictures.nth(number).screenshot())).convert("RGB")
        kept = {unit for _, unit in tokens}
        for unit in range(144):
            place = ((unit % 12 + 0.5) * drawn.width / 12, (unit // 12 + 0.5) * drawn.height / 12)
            green = drawn.getpixel((int(place[0]), int(place[1])))[1]
            assert (green < 90) == (unit in kept), (number, unit)


def test_the_budget_is_a_slider_whose_settings_are_shown(address: str, opened: Callable, red: Path) -> None:
    page = opened(address)
    choose(page, red, "none", beside="")
    assert page.locator("#budget").is_disabled() and page.locator("#own").is_disabled()
    page.select_option("#method", "cls_topk")
    assert page.locator("#told").inner_text() == "the method's own"
    page.uncheck("#own")
    page.locator("#budget").fill("17")
    page.get_by_text(re.compile('"budget":17')).wait_for()
    (found,) = ask(page, 1)
    assert found["kept"] == "17 of 144" and found["title"] == "cls_topk, budget 17"
    page.locator("#budget").press("ArrowRight")
    page.get_by_text(re.compile('"budget":18')).wait_for()
    page.check("#own")
    page.wait_for_selector("#block:not(:has-text('budget'))")


def test_words_appear_before_the_answer_is_whole(
    address: str, opened: Callable, red: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, say, pieces = threading.Event(), Question.say, []

    def slowly(self: Question, kind: str, **told: Any) -> None:
        say(self, kind, **told)
        pieces.extend([told["text"]] if kind == "text" else [])
        assert len(pieces) < 2 or go.wait(60)

    monkeypatch.setattr(Question, "say", slowly)
    page = opened(address)
    choose(page, red, beside="")
    page.click("#ask")
    page.locator(".answer.writing", has_text=pieces[0].strip() if pieces else re.compile(r"\w")).wait_for()
    assert (
        page.locator("#stop").is_enabled() and page.locator("#ask").is_disabled() and page.locator(".found").is_hidden()
    )
    go.set()
    page.locator(".found:not([hidden])").wait_for()
    assert page.locator(".answer").inner_text().strip() == "".join(pieces).strip()


def test_a_broken_connection_is_read_on(
    address: str, opened: Callable, red: Path, loaded: DemoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first three connections break, each after another part."""
    send, breaks = DemoHandler.send_slowly, [b"event: begin", b"event: text", b"event: answer"]

    def breaking(self: DemoHandler, content: bytes) -> None:
        if breaks and breaks[0] in content:
            del breaks[0]
            raise ConnectionResetError
        send(self, content)

    monkeypatch.setattr(DemoHandler, "send_slowly", breaking)
    page = opened(address)
    choose(page, red, beside="")
    (found,) = ask(page, 1)
    wanted = loaded.model.answer(
        Image.open(red).convert("RGB"), "What is in this picture?", {"vision": {"name": "prumerge_plus"}}, 64
    )
    assert found["answer"].strip() == wanted.text and not breaks


def test_stop_ends_and_the_next_question_is_answered(
    address: str, opened: Callable, red: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, say = threading.Event(), Question.say

    def slowly(self: Question, kind: str, **told: Any) -> None:
        say(self, kind, **told)
        assert kind != "text" or go.wait(60)

    monkeypatch.setattr(Question, "say", slowly)
    page = opened(address)
    choose(page, red, beside="")
    page.click("#ask")
    page.locator(".answer", has_text=re.compile(r"\w")).wait_for()
    with page.expect_response("**/stop**") as stopped:
        page.click("#stop")
    assert stopped.value.status == 200 and page.locator("#status").inner_text() == "stopped"
    go.set()
    ask(page, 1)


def test_nothing_of_before_stays_beside_an_error(
    address: str, opened: Callable, red: Path, loaded: DemoServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is no image, one that only the browser can show, and a fault: the old image and answer are gone."""
    page = opened(address)
    status = page.locator("#status.bad")
    choose(page, red, beside="")
    ask(page, 1)
    (tmp_path / "bad.png").write_bytes(b"no image")
    page.set_input_files("#file", tmp_path / "bad.png")
    status.get_by_text("this is no image").wait_for()
    assert page.locator("#preview").is_hidden() and page.locator("#result").is_hidden()
    page.click("#ask")
    status.get_by_text("choose an image first").wait_for()
    choose(page, red, beside="")
    ask(page, 1)
    (tmp_path / "drawn.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>')
    page.set_input_files("#file", tmp_path / "drawn.svg")
    assert page.locator("#result").is_hidden()
    page.click("#ask")
    status.get_by_text("the uploaded file is none of JPEG").wait_for()
    assert page.locator("#result").is_hidden() and page.locator("article").count() == 0
    choose(page, red, beside="")
    ask(page, 1)

    def broken(*_: object) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr(loaded.model, "answer", broken)
    page.click("#ask")
    status.get_by_text("this failed; the console shows why").wait_for()
    assert page.locator("#result").is_hidden() and page.locator("#ask").is_enabled()


@SIZES
def test_attention_and_what_was_merged_are_drawn_on_demand(
    size: str, address: str, opened: Callable, red: Path
) -> None:
    page = opened(address, size)
    choose(page, red, "tome", beside="")
    ask(page, 1)
    for button, captions in (("#attention", ["attention received"]), ("#merged", ["what went into what"])):
        page.click(button)
        page.locator("#looked figcaption", has_text=captions[0]).wait_for()
        for picture in page.locator("#looked img").all():
            assert picture.bounding_box()["width"] > 200 and picture.bounding_box()["height"] > 200
    page.select_option("#method", "grid")
    ask(page, 1)
    assert page.locator("#looked *").count() == 0
    page.click("#merged")
    page.get_by_text("This method merges nothing").wait_for()


def test_ten_people_at_once(address: str, opened: Callable, loaded: DemoServer, red: Path) -> None:
    """Ten windows ask before any has its answer; three close; the others get theirs."""
    methods = ["none", "prumerge_plus", "grid", "fastv", "cls_topk"] * 2
    pages = [opened(address) for _ in methods]
    for page, method in zip(pages, methods, strict=True):
        choose(page, red, method, beside="")
    for page in pages:
        page.click("#ask")
    for page in pages[2::3]:
        page.close()
    picture = Image.open(red).convert("RGB")
    for number, (page, method) in enumerate(zip(pages, methods, strict=True)):
        if number % 3 == 2:
            continue
        page.locator(".found:not([hidden])").wait_for()
        block = loaded.methods.find(method)
        wanted = loaded.model.answer(picture, "What is in this picture?", block, 64)
        assert page.locator(".answer").inner_text().strip() == (wanted.text or "(an empty answer)")
        assert page.locator("[data-is=kept]").inner_text() == f"{wanted.seen.kept} of 144"
        assert json.loads(page.locator("#block").inner_text()) == block
