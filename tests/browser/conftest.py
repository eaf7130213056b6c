"""A headless Chromium, a pocket LLaVA on disk, and what a page may never do."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

BACKBONES = Path(__file__).resolve().parents[2] / "playground" / "pocket" / "backbones"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
SIZES = {"desktop": (1200, 900), "phone": (390, 844)}
PATIENCE = 60_000  # milliseconds


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium: the system's, or the one that Playwright has fetched."""
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed (make test-browser)")
    with playwright.sync_playwright() as started:
        found = next(filter(None, map(shutil.which, BROWSERS)), None)
        if found is None and not Path(started.chromium.executable_path).exists():
            pytest.skip("no Chromium is installed: apt install chromium, or playwright install chromium")
        opened = started.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pocket LLaVA, as a release named me/pocket; its projector is untrained."""
    from llava_prumerge import assemble

    place = tmp_path_factory.mktemp("hub") / "me" / "pocket"
    model, processor = assemble(BACKBONES / "lm", BACKBONES / "clip")
    model.save_pretrained(place)
    processor.save_pretrained(place)
    return place


@pytest.fixture
def opened(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens an address in a window of a size, and fails where the page had errors or asked anybody else for anything."""
    contexts, wrong = [], []

    def at(address: str, size: str = "desktop") -> Any:
        width, height = SIZES[size]
        contexts.append(browser.new_context(viewport={"width": width, "height": height}, has_touch=size == "phone"))
        page = contexts[-1].new_page()
        page.set_default_timeout(PATIENCE)

        def asked(request: Any) -> None:
            if not request.url.startswith((address, "data:", "blob:")):
                wrong.append(request.url)

        page.on("request", asked)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(address)
        return page

    yield at
    for context in contexts:
        context.close()
    assert not wrong


@pytest.fixture
def running() -> Iterator[Callable[[Any], str]]:
    """Runs a server until the test ends. -> its address"""
    ends = []

    def run(server: Any) -> str:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        ends.append((server, thread))
        return server.address

    yield run
    for server, thread in ends:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def red(tmp_path: Path) -> Path:
    """A red square."""
    Image.new("RGB", (96, 96), (220, 30, 30)).save(tmp_path / "red.png")
    return tmp_path / "red.png"
