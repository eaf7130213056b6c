"""`--plugin`: every command that takes a method takes one from outside the package, and says in one line where it cannot."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from llava_prumerge.__main__ import COMMANDS, main
from llava_prumerge.methods import registry

PLUGIN = '''
"""Two methods of somebody else's."""

from dataclasses import dataclass

from llava_prumerge.methods.base import DecoderPruner, Reduced, VisionTokens
from llava_prumerge.methods.reducers import OutlierReducer, OutlierSettings
from llava_prumerge.methods.registry import register
from llava_prumerge.methods.search_target import SearchKind, SearchTarget
from llava_prumerge.methods.settings import Settings, setting
from llava_prumerge.ops.select import pick
from llava_prumerge.ops.select import top_mask


@dataclass(frozen=True, kw_only=True)
class PluggedSettings(OutlierSettings):
    plugged_power: float = setting(2.0, "a setting that no other method has")


@register("plugged")
class Plugged(OutlierReducer):
    """Somebody else's reducer."""

    settings: PluggedSettings

    def forward(self, image: VisionTokens) -> Reduced:
        counts = self.counts(image)
        size = self.width(image, counts)
        return pick(image.features, top_mask(image.features.sum(dim=-1), counts), size)


@register("plugged_pruner")
class PluggedPruner(DecoderPruner):
    """Somebody else's pruner."""

    settings: Settings
    search_targets = (SearchTarget(SearchKind.LAYER, lambda layer: {}, "nobody"),)
'''
CASES: dict[str, tuple[str, str]] = {
    "methods": ("methods plugged", ""),
    "viz": ("viz x.png method=plugged tower=NOWHERE", "NOWHERE"),
    "chat": ("chat NOWHERE --reduction plugged", "NOWHERE"),
    "serve": ("serve NOWHERE --reduction plugged", "NOWHERE"),
    "profile": ("profile NOWHERE x.png --method plugged", "x.png"),
    "demo": ("demo NOWHERE --method plugged", "NOWHERE"),
    "train": ("train pocket/finetune_lora method=plugged plugged_power=3 check=true", "this run needs"),
    "evaluate": ("evaluate task=pope model=HERE data=HERE plugged_power=3", "no such file"),
    "throughput": ("throughput task=pope data=HERE model=HERE plugged_power=3", "no such file"),
    "training-speed": ("training-speed NOWHERE.yaml methods=plugged", "NOWHERE"),
    "search": ("search layer method=plugged_pruner model=NOWHERE questions=NOWHERE.jsonl images=.", "NOWHERE.jsonl"),
    "efficiency": ("efficiency flops model=llava-1.5-7b method=plugged tokens=64", ""),
    "convert": ("convert NOWHERE there reduction=plugged", "NOWHERE"),
    "release": ("release NOWHERE me/mine", "NOWHERE"),
}
"""Each goes as far as it can without a model: the words, and what is wrong with them once the method is known."""
WITHOUT_METHODS = {"prepare", "score", "compare", "tables", "footprint"}
LATE = {"release", "serve"}
"""They look at their model first."""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the plugin, whose methods are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(PLUGIN)
    (tmp_path / "HERE").mkdir()
    (tmp_path / "HERE" / "config.json").write_text("{}")
    before, modules = registry.discover(), set(sys.modules)
    yield tmp_path
    registry._REGISTRY.clear()
    registry._REGISTRY.update(before)
    for name in set(sys.modules) - modules:
        if name.startswith("llava_prumerge_plugin_"):
            del sys.modules[name]


def test_every_command_is_looked_at() -> None:
    assert set(CASES) | WITHOUT_METHODS == set(COMMANDS)


@pytest.mark.parametrize("name", CASES)
def test_a_command_takes_a_method_from_outside(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    words, wrong = CASES[name][0].split(), CASES[name][1]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and (name in LATE or "plugged" in error and "not known" in error), error
    for written in (["--plugin", "mine.py"], ["plugin=mine.py"]):
        status = main([*words, *written])
        said = capsys.readouterr()
        assert status == (2 if wrong else 0), said.err
        assert wrong in said.err.splitlines()[-1] and "plugged" not in said.err if wrong else "plugged" in said.out


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    ("plugin", "told"),
    [
        ("absent.py", "plugin absent.py: no such file"),
        ("absent_package.mine", "there is no module absent_package"),
        ("broken.py", "plugin broken.py: ZeroDivisionError: division by zero"),
    ],
)
def test_a_plugin_that_cannot_be_loaded(
    name: str, plugin: str, told: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "broken.py").write_text("1 / 0")
    assert main([*CASES[name][0].split(), "--plugin", plugin]) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1


def test_a_release_is_checked_with_its_plugins(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llava_prumerge.hub import check

    called: list[list[str]] = []

    def run(words: list[str], **_: object) -> SimpleNamespace:
        called.append(words)
        return SimpleNamespace(returncode=0, stdout=json.dumps({"answer": "yes"}), stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    source = SimpleNamespace()
    assert check.check_release(source, place, None, "What?", ["mine.py", "theirs"]) == {"answer": "yes"}  # type: ignore[arg-type]
    assert called[0][-4:] == ["--plugin", "mine.py", "--plugin", "theirs"]
