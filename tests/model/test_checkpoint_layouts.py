"""The table of layouts: each is a file of one folder, and one more file is one more layout, read and written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llava_prumerge.model.checkpoints import layouts
from llava_prumerge.model.checkpoints.layout import KINDS, Layout, Source, known_layouts
from llava_prumerge.model.weight_files import LoadingError

MINE = '''
"""A layout of somebody else: short keys, and a file that says what it is."""
from llava_prumerge.model.checkpoints import layout, plan
from llava_prumerge.model.checkpoints.layouts import llava_hf

KEYS = plan.Keys("mine", tuple((f"my.{at}.", name) for at, name in enumerate(llava_hf.SAME)))


class Mine(layout.Layout):
    name, keys = "mine", (KEYS,)

    def kind_of(self, source):
        return layout.PARTS if "mine.txt" in source.files else None

    def read(self, request, kind):
        return llava_hf.read_transformers(request, request.source, self.keys, self.name)

    def files(self, made, request):
        return {layout.MODEL_FILE: plan.with_keys(self.placed(made, request), KEYS)}

    def write_beside(self, made, request, folder):
        llava_hf.write_transformers(made, made.config, request, folder)
        (folder / "mine.txt").write_text("mine")


LAYOUT = Mine()
'''


def test_the_table_has_a_layout_for_each_file() -> None:
    files = {path.stem for path in Path(layouts.__path__[0]).glob("*.py")} - {"__init__"}
    known = known_layouts()
    assert {name.replace("-", "_") for name in known} == files and {"ours", "original", "llava-hf", "open_clip"} <= set(
        known
    )
    assert all(isinstance(one, Layout) and one.name == name for name, one in known.items())
    names = [keys.name for one in known.values() for keys in one.keys]
    assert len(names) == len(set(names))


def test_one_more_file_is_one_more_layout(
    ours: Path, convert: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(LoadingError, match="--to 'mine' is not known"):
        convert(ours, tmp_path / "t", "--to", "mine")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "mine_layout_of_a_test.py").write_text(MINE)
    monkeypatch.setattr(layouts, "__path__", [*layouts.__path__, str(tmp_path / "more")])
    convert(ours, tmp_path / "mine", "--to", "mine")
    assert {key.split(".")[0] for key in load_file(tmp_path / "mine" / "model.safetensors")} == {"my"}
    convert(tmp_path / "mine", tmp_path / "again")
    left, right = (load_file(folder / "model.safetensors") for folder in (ours, tmp_path / "again"))
    assert set(left) == set(right) and all(torch.equal(left[key], right[key]) for key in left)


def test_every_source_of_the_tests_is_claimed_once(sources: Path, ours: Path) -> None:
    """By kind: where two layouts claim a source, the kinds differ, and the first kind has it."""
    for folder in (*sources.iterdir(), ours):
        claims = [kind for one in known_layouts().values() if (kind := one.kind_of(Source.of(folder)))]
        assert len(claims) == len(set(claims)) and set(claims) <= set(KINDS), folder
