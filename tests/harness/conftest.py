"""Questions with one image, several and none, and a tiny checkpoint of any family to ask them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from other_tools import POCKET, ROOT, Asked
from PIL import Image
from tiny_families import write_family


@pytest.fixture(scope="session")
def questions(tmp_path_factory: pytest.TempPathFactory) -> list[Asked]:
    """Fourteen questions of different lengths; images of different sizes."""
    folder, draw = tmp_path_factory.mktemp("pictures"), np.random.default_rng(7)
    files = []
    for at, (height, width) in enumerate([(40, 40), (30, 60), (64, 48), (33, 31)]):
        files.append(str(folder / f"{at}.png"))
        Image.fromarray(draw.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(files[-1])
    shown = [[0], [1], [0, 1], [], [2], [3], [3, 2], [], [1], [0], [2], [2, 0, 1], [3], []]
    return [
        Asked(" ".join(f"w{draw.integers(3, 90)}" for _ in range(2 + at % 5)), [files[one] for one in which])
        for at, which in enumerate(shown)
    ]


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Writes a family's checkpoint once."""
    root, written = tmp_path_factory.mktemp("families"), {}

    def write(name: str) -> Path:
        if name not in written:
            written[name] = write_family(root / name, name)
        return written[name]

    return write


@pytest.fixture(params=["none", "prumerge_plus"])
def trained(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model that was trained in the pocket world, in a folder from which its questions are found as from a checkout."""
    model, data = POCKET / f"runs/pocket-lora-{request.param}/merged", POCKET / "playground/pocket/data"
    if not (model.is_dir() and data.is_dir()):
        pytest.skip(f"{model}: not there; make reproduce trains it (LLAVA_PRUMERGE_POCKET names another checkout)")
    (tmp_path / "playground/pocket").mkdir(parents=True)
    (tmp_path / "playground/pocket/data").symlink_to(data.resolve())
    (tmp_path / "playground/pocket/lmms_eval").symlink_to(ROOT / "playground/pocket/lmms_eval")
    (tmp_path / "runs/model").mkdir(parents=True)
    (tmp_path / "runs/model/merged").symlink_to(model.resolve())
    monkeypatch.chdir(tmp_path)
    return Path("runs/model/merged")
