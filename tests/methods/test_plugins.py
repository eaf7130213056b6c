"""Methods from outside the package: named files and modules, announced packages, and what is said of those that are wrong."""

from __future__ import annotations

import importlib.metadata
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from vision_tokens import make_tokens

from llava_prumerge.ground.command import Parser
from llava_prumerge.ground.errors import InputError
from llava_prumerge.methods import plugins, registry
from llava_prumerge.methods.base import DecoderPruner, DecoderShape, DecoderTokens, VisionReducer
from llava_prumerge.methods.registry import build_reducer, discover
from llava_prumerge.methods.resolve import resolve
from llava_prumerge.methods.settings import Settings
from llava_prumerge.ops.errors import ReductionError
from llava_prumerge.ops.layout import TokenLayout

PLUGIN = '''
from llava_prumerge.methods.base import VisionReducer
from llava_prumerge.methods.registry import register
from llava_prumerge.methods.settings import Settings
from llava_prumerge.ops.merge import pick
from llava_prumerge.ops.select import top_mask


@register("first_few")
class FirstFew(VisionReducer):
    """Keep the first patches."""

    settings: Settings

    def forward(self, image):
        return pick(image.features, top_mask(-image.features[..., 0].argsort().argsort(), NUMBER), NUMBER)
'''


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What these tests register is gone after them."""
    monkeypatch.setattr(registry, "_REGISTRY", dict(discover()))


def test_a_file_is_named_and_a_changed_one_is_run_again(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    for number in (3, 5):
        path.write_text(PLUGIN.replace("NUMBER", str(number)))
        plugins.load_plugin(str(path))
        plugins.load_plugin(str(path))
        assert build_reducer({"name": "first_few"})(make_tokens())[1].shape == (3, number)
    assert resolve("first_few") == {"vision": {"name": "first_few"}}


def test_a_module_is_named_and_a_command_takes_it_as_an_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_methods.py").write_text(PLUGIN.replace("NUMBER", "4"))
    monkeypatch.syspath_prepend(str(tmp_path))
    parser = Parser("some.command", "text", settings=None)
    plugins.add_plugin_option(parser)
    assert parser.parse_args(["--plugin", "their_methods"]).plugin == ["their_methods"]
    assert "first_few" in discover()
    with pytest.raises(InputError, match="plugin no_such_module: there is no module no_such_module; give a module"):
        parser.parse_args(["--plugin", "no_such_module"])


@pytest.mark.parametrize(
    "text, words",
    [
        (None, "no such file"),
        ("import not_there_at_all\n", "No module named 'not_there_at_all'"),
        ("1 / 0\n", "ZeroDivisionError: division by zero"),
        ("def\n", "SyntaxError"),
        (
            PLUGIN.replace("NUMBER", "3").replace("first_few", "tome"),
            "two methods are called 'tome': ToMe of .*FirstFew of",
        ),
    ],
)
def test_what_is_wrong_with_a_plugin_is_one_line(text: str | None, words: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ReductionError, match=f"plugin .*wrong.py: .*{words}") as caught:
        plugins.load_plugin(str(path))
    assert "\n" not in str(caught.value)


def test_installed_packages_announce_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One that fails is named, and takes nobody else's away."""
    (tmp_path / "announced_methods.py").write_text(PLUGIN.replace("NUMBER", "4"))
    monkeypatch.syspath_prepend(str(tmp_path))
    points = [importlib.metadata.EntryPoint(name, f"{name}_methods", plugins.GROUP) for name in ("broken", "announced")]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: points if group == plugins.GROUP else [])
    plugins.load_announced.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert {"first_few", "tome"} <= set(discover())
    assert "methods of broken (broken_methods) are left out: ModuleNotFoundError" in caplog.text


GOOD = {
    "features": torch.zeros(3, 5, 16),
    "valid": torch.ones(3, 5, dtype=torch.bool),
    "origin": torch.zeros(3, 5, dtype=torch.long),
}


@pytest.mark.parametrize(
    "reduced, found",
    [
        (GOOD["features"], r"a tensor \[3, 5, 16\] float32"),
        ((GOOD["features"], GOOD["valid"]), "a tuple of 2"),
        ((GOOD["features"].half(), GOOD["valid"], GOOD["origin"]), "float16"),
        ((GOOD["features"], GOOD["valid"].float(), GOOD["origin"]), "float32"),
        ((GOOD["features"], GOOD["valid"], GOOD["origin"].int()), "int32"),
        ((GOOD["features"][:, :4], GOOD["valid"], GOOD["origin"]), r"\[3, 4, 16\]"),
        ((torch.zeros(3, 200, 16), torch.ones(3, 200, dtype=torch.bool), torch.zeros(3, 200, dtype=torch.long)), "200"),
        (None, "a NoneType"),
    ],
)
def test_a_reducer_that_gives_something_else_is_told_the_contract(reduced: Any, found: str) -> None:
    class Wrong(VisionReducer):
        name = "wrong"

        def forward(self, image: Any) -> Any:
            return reduced

    words = rf"wrong: forward has to give \(features \[N, K, C\], valid \[N, K\] bool, origin .*; it gave .*{found}"
    with pytest.raises(ReductionError, match=words):
        Wrong()(make_tokens())


@pytest.mark.parametrize("kept", [torch.ones(1, 3, dtype=torch.bool), torch.ones(1, 4, dtype=torch.long), [True], 3])
def test_a_pruner_that_gives_something_else_is_told_the_contract(kept: Any) -> None:
    class Wrong(DecoderPruner):
        name = "wrong"

        def forward(self, layer: int, tokens: DecoderTokens) -> Any:
            return kept

    is_image = torch.tensor([[False, True, True, False]])
    layout = TokenLayout(is_image, torch.ones_like(is_image), torch.arange(4)[None], torch.tensor([[-1, 0, 1, -1]]))
    pruner = Wrong(Settings(), DecoderShape(4, 16, 4, 4), [2])
    with pytest.raises(ReductionError, match=r"wrong: forward has to give \[B, L\] bool .* B = 1, L = 4; it gave"):
        pruner(2, DecoderTokens(torch.zeros(1, 4, 16), layout, attention=None))
