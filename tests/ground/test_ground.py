"""Names, ranks and revisions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from llava_prumerge.ground import ranks
from llava_prumerge.ground.naming import nearest, not_known
from llava_prumerge.ground.revision import code_revision, library_versions

METHODS = ["dart", "fastv", "prumerge", "prumerge_plus", "random"]


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("prumerge+", "prumerge_plus"),
        ("PruMerge-Plus", "prumerge_plus"),
        ("prumege", "prumerge"),
        ("FASTV", "fastv"),
        ("zzz", None),
        ("", None),
        ("x" * 1_000_000, None),
    ],
)
def test_the_name_that_was_meant(given: str, meant: str | None) -> None:
    assert nearest(given, METHODS) == meant
    told = not_known("method", given, METHODS)
    assert len(told) < 300 and told.endswith("ere are: dart, fastv, prumerge, prumerge_plus, random")
    assert ("did you mean" in told) == (meant is not None) and (meant is None or repr(meant) in told)


def test_several_names_and_long_lists() -> None:
    told = not_known("setting", {"layerr", "zzz"}, ["layer", "keep_ratio"])
    assert told == "setting 'layerr', 'zzz' are not known; did you mean 'layer'? There are: layer, keep_ratio"
    assert not_known("key", "a", (f"k{n}" for n in range(100))).endswith("k58, k59 and 40 more")
    assert not_known("key", "a", []) == "key 'a' is not known; there are: none"


def test_ranks_come_from_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert (ranks.rank(), ranks.local_rank(), ranks.world_size(), ranks.is_main_rank()) == (0, 0, 1, True)
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert (ranks.rank(), ranks.local_rank(), ranks.world_size(), ranks.is_main_rank()) == (5, 1, 8, False)
    monkeypatch.setenv("RANK", "first")
    with pytest.raises(ValueError, match="RANK must be a whole number, not 'first'"):
        ranks.rank()


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    done = subprocess.run(["git", "-C", folder, *identity, *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_revision_says_whether_files_differ(tmp_path: Path) -> None:
    assert code_revision(tmp_path) is None
    git(tmp_path, "init", "-q")
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-qm", "a")
    found = code_revision(tmp_path)
    assert found is not None and str(found) == git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "site-packages").mkdir()
    assert code_revision(tmp_path / "site-packages") is None  # installed within somebody's repository
    (tmp_path / "a").write_text("2")
    assert str(code_revision(tmp_path)) == f"{found.commit}+"


def test_versions_without_an_import() -> None:
    found = library_versions(["torch", "no-such-library"])
    import torch

    assert found["torch"] == torch.__version__ and found["no-such-library"] is None
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
