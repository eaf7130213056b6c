"""The ways that docs/architecture.md draws, against the files that really run: none is left out, and none is named in vain."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from test_architecture import ROOT, files_on_the_way

from llava_prumerge.evaluation.execution import LoadedModel, conclude, prepare
from llava_prumerge.evaluation.generate import Ranks
from llava_prumerge.methods.resolve import resolve
from llava_prumerge.model.attach import attach

PACKAGE = ROOT / "llava_prumerge"
ASKED = {
    "the words of the question": {"data/conversation.py", "evaluation/prefix_cache.py"}
    | {"text/templates.py", "text/chat_templates.py", "model/chat.py", "model/asked_text.py"},
    "settings of the evaluation": {"evaluation/settings.py"},
    "what watches": {"model/statistics.py", "methods/contract.py", "methods/base.py"},
    "what binds answers to their origin": {"data/image_digest.py", "model/fingerprint.py", "evaluation/fingerprint.py"}
    | {"model/template_files.py"},
    "which family it is": {"model/families/__init__.py"},
    "the shapes that a method's cost is told by": {"methods/cost.py"},
    "methods from outside the package": {"methods/plugins.py"},
    "what results call it": {"methods/labels.py"},
    "the block a checkpoint carries": {"methods/resolve.py"},
    "what differs between releases of transformers": {"model/handover.py"},
    "the calls that all ranks make": {"model/touching.py"},
    "whether a method learns from the full model": {"model/distillation.py"},
    "messages": {"ops/errors.py", "data/errors.py"},
}
"""What the page leaves out in words: asked on the way, but the thing itself does not pass it. And all of ground/."""


@contextmanager
def recorded(files: set[str]) -> Iterator[None]:
    """Collect the package's files of which a function is called meanwhile, in any thread."""
    inside = f"{PACKAGE}/"

    def note(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(inside) and code.co_name != "<module>":
            files.add(code.co_filename.removeprefix(inside))

    before = sys.getprofile()
    sys.setprofile(note)
    threading.setprofile(note)
    try:
        yield
    finally:
        sys.setprofile(before)
        threading.setprofile(None)


def left_out(files: set[str]) -> set[str]:
    return {name for name in files if not name.startswith("ground/")} - set().union(*ASKED.values())


def test_an_image_passes_the_files_that_are_listed(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    [run] = prepare(str(checkpoint), "pope", data, tmp_path, {"max_new_tokens": "2"})
    loaded = LoadedModel(run.subject, Ranks())
    model, _ = loaded.model_and_processor
    assert model.model.reducer.name == "prumerge"
    files: set[str] = set()
    with recorded(files):
        records = loaded.answer(run) if run.claim(loaded.dtype) else None
        printed = conclude(run, {}, records or [], loaded, scored=True)
    assert printed["kept"]["mean"] < 16 and printed["n"] == 6
    listed = set(files_on_the_way("image"))
    assert listed <= files

    assert sorted(left_out(files) - listed) == [], "what an image passes and the page does not list"


def test_a_setting_passes_the_files_that_are_listed(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    [run] = prepare(str(checkpoint), "pope", data, tmp_path, {"max_new_tokens": "2", "method": "none"})
    loaded = LoadedModel(run.subject, Ranks())
    model, _ = loaded.model_and_processor
    images: set[str] = set()
    with recorded(images):
        run.claim(loaded.dtype)
        loaded.answer(run)
    files: set[str] = set()
    with recorded(files):
        attach(model, resolve("fastv:layer=1,keep_ratio=0.5"))
        other = prepare(str(checkpoint), "pope", data, tmp_path / "fastv", {"max_new_tokens": "2"})[0]
        other.claim(loaded.dtype)
        records = loaded.answer(other)
    assert records and {record["metadata"]["equivalent"] for record in records} == {(16 + 3 * 8) / 4}
    listed = set(files_on_the_way("setting"))
    assert listed <= files
    assert sorted(left_out(files) - images - listed - set(files_on_the_way("image"))) == [], "passed, and not listed"
