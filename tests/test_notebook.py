"""The notebook runs from top to bottom on the pocket model, in a kernel of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "docs" / "quickstart.ipynb"


def test_it_runs_and_says_what_the_method_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel", reason="the kernel that runs a notebook: pip install ipykernel")
    for name, value in {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}.items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells), "it is kept without outputs"
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    said = ["".join(out.get("text", "") for out in cell.get("outputs", [])) for cell in notebook.cells]
    asked = next(text for text in said if "visual tokens reach the decoder" in text)
    assert "of 144 visual tokens" in asked and "prefill" in asked
    rows = next(text for text in said if text.startswith("none ")).splitlines()
    kept = [int(row.split(" tokens")[0].split()[-1]) for row in rows]
    assert len(rows) == 5 and kept[0] == kept[3] == 144 and kept[2] == 36 and kept[1] < 144
    assert any("prumerge_plus vision" in text for text in said), "the list of methods"
