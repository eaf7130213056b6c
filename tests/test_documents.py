"""Every command of the README and the pages is run by a test, or is accepted as it stands; few are excused, with the reason."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import io
import re
import shlex
from pathlib import Path

import pytest

from llava_prumerge.__main__ import COMMANDS, main

ROOT = Path(__file__).resolve().parents[1]
RUN_BY_THEIR_TESTS = {  # page: the test that runs its commands
    "adding_a_method.md": "tests/methods/test_guide.py",
    "asking.md": "tests/inference/test_asking_documents.py",
    "checkpoints.md": "tests/model/test_checkpoint_document.py",
    "data.md": "tests/data/test_data_document.py",
    "gpus_and_clusters.md": "tests/train/test_cluster_document.py",
    "lmms_eval.md": "tests/harness/test_lmms_eval.py",
    "own_data.md": "tests/test_own_data.py",
    "release.md": "tests/hub/test_release_document.py",
    "reliability.md": "tests/train/test_training_documents.py",
    "serving.md": "tests/serving/test_serving.py",
    "training.md": "tests/train/test_training_documents.py",
    "visualising.md": "tests/inference/test_asking_documents.py",
    "vlmevalkit.md": "tests/harness/test_vlmevalkit.py",
}
EXCUSED = {  # first word: why it is not tried
    "git": "reaches the network",
    "hf": "downloads a model from the Hub",
    "pip": "reaches the network",
    "pre-commit": "an optional tool of contributors",
    "pytest": "the tests themselves",
    "open": "shows a file on a desktop",
}
TARGETS = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
ASSIGNMENT = re.compile(r"^[A-Z_]+=\S*$")


def pages() -> list[Path]:
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def commands(page: Path) -> list[str]:
    """Lines of a page's shell blocks, continued ones joined, comments off."""
    blocks = re.findall(r"^ *```(?:bash|sh)\n(.*?)^ *```", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    lines = (line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines())
    found = (re.sub(r"\s+#.*$", "", line) for line in lines if line and not line.startswith("#"))
    return [command for line in found for command in line.split(" && ")]


ALL = [(page, command) for page in pages() for command in commands(page) if page.name not in RUN_BY_THEIR_TESTS]


@functools.cache
def help_of(words: tuple[str, ...]) -> str:
    """What `llava-prumerge WORDS --help` prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        main([*words, "--help"])
    return printed.getvalue()


def accepted(words: list[str]) -> str | None:
    """What is wrong with a command; None if nothing is."""
    while words and ASSIGNMENT.match(words[0]):
        words = words[1:]
    first = words[0] if words else ""
    if first in EXCUSED or first == "cd":
        return None
    if first == "make":
        names = [word for word in words[1:] if "=" not in word]
        return None if set(names) <= TARGETS else f"no target {names}"
    if first == "bash":
        return None if (ROOT / words[1]).is_file() else f"no script {words[1]}"
    if first == "llava-prumerge":
        if len(words) < 2 or words[1].startswith("-"):
            return None
        if words[1] not in COMMANDS:
            return f"no command {words[1]}"
        inner = words[2:3] if words[1] in ("prepare", "efficiency", "search") else []
        told = help_of((words[1], *inner))
        unknown = [word.split("=")[0] for word in words[2:] if word.startswith("--") and word.split("=")[0] not in told]
        return f"options {unknown} are not in its help" if unknown else None
    if first == "python" and words[1:2] == ["-m"]:
        found = importlib.util.find_spec(words[2])
        return None if found else f"no module {words[2]}"
    if first == "python":
        return None if (ROOT / words[1]).is_file() else f"no file {words[1]}"
    return f"{first!r} is no command that this test knows"


@pytest.mark.parametrize(("page", "command"), ALL, ids=lambda value: getattr(value, "name", None) or str(value)[:60])
def test_commands_are_accepted(page: Path, command: str) -> None:
    wrong = accepted(shlex.split(command.replace("[", "\\[").replace("(", "\\(").replace("|", "\\|")))
    assert wrong is None, f"{page.name}: {command}: {wrong}"


def test_there_are_commands_and_a_wrong_one_is_noticed() -> None:
    assert len(ALL) > 25
    assert (
        accepted(["make", "coffee"]) and accepted(["bash", "scripts/none.sh"]) and accepted(["llava-prumerge", "viz2"])
    )
    assert accepted(["llava-prumerge", "viz", "x.jpg", "--colour"]) and accepted(["rm", "-rf"])


@pytest.mark.parametrize(("page", "test"), RUN_BY_THEIR_TESTS.items())
def test_the_other_pages_have_their_own_test(page: str, test: str) -> None:
    assert (ROOT / "docs" / page).is_file() and (ROOT / test).is_file()
    assert page in (ROOT / test).read_text("utf-8")


def test_links_lead_somewhere() -> None:
    broken = []
    for page in pages():
        for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
            if not re.match(r"https?:|mailto:", link) and not (page.parent / link).exists():
                broken.append(f"{page.name}: {link}")
    assert not broken, broken


def headings(page: Path) -> set[str]:
    """What links into a page may name: its headings, as MkDocs and GitHub spell them."""
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ +(.+?) *$", text, re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in titles}


def test_links_lead_to_headings_that_are_there() -> None:
    seen, broken = 0, []
    for page in pages():
        for link, heading in re.findall(r"\]\(([^)#\s:]*)#([^)\s]+)\)", page.read_text("utf-8")):
            target, seen = page.parent / link if link else page, seen + 1
            if target.suffix == ".md" and heading not in headings(target):
                broken.append(f"{page.name}: {link}#{heading}")
    assert seen > 20 and not broken, broken


def test_lines_are_short() -> None:
    long = []
    for page in pages():
        if page.name in ("architecture.md",) or page.parent.name == "results":
            continue  # generated tables
        code = False
        for number, line in enumerate(page.read_text("utf-8").splitlines(), start=1):
            code ^= line.lstrip().startswith("```")
            if not code and not line.lstrip().startswith(("|", "!")) and len(line) > 130:
                long.append(f"{page.name}:{number}")
    assert not long, long


def test_the_readme_says_what_a_newcomer_looks_for() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    wanted = [
        "arxiv.org/abs/2403.15388",
        "LLaVA-PruMerge",
        "haotian-liu/LLaVA",
        "git clone",
        "make setup",
        "make reproduce",
    ]
    wanted += [
        "## Why",
        "## What it needs",
        "load_model",
        "## Evaluate",
        "## Reproduce",
        "## Cite",
        "## Licences",
        "Apache-2.0",
    ]
    assert [word for word in wanted if word not in text] == []
    assert text.index("make setup") < text.index("## ")


def test_the_surface_of_the_examples_exists() -> None:
    package = importlib.import_module("llava_prumerge")
    for name in ("ask", "inspect_image", "list_methods", "load_model", "register"):
        assert callable(getattr(package, name)) and name in dir(package)
