"""The command `llava-prumerge`: a map of everything, light to load, with one way to say that something is wrong."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llava_prumerge import __version__
from llava_prumerge.__main__ import COMMANDS, main
from llava_prumerge.search.__main__ import SEARCHES

ROOT = Path(__file__).resolve().parents[1]
ASKED = {"train", "evaluate", "score", "tables", "compare", "prepare", "convert", "search"} | {
    *("efficiency", "viz", "demo", "release", "methods")
}
INNER = {"prepare": "check", "efficiency": "flops", "search": "layer"}  # a command within the command


def test_the_map_names_everything_and_loads_nothing() -> None:
    code = (
        "import sys; from llava_prumerge.__main__ import main; status = main(['--help'])\n"
        "heavy = {'torch', 'transformers', 'numpy', 'yaml', 'PIL'} & set(sys.modules)\n"
        "sys.exit(status or bool(heavy))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr
    assert set(COMMANDS) >= ASKED
    assert all(f"\n  {one.name} " in done.stdout and one.summary in done.stdout for one in COMMANDS.values())


def test_no_help_waits_for_torch() -> None:
    """One process for all: whichever command loaded it would be named by the first."""
    code = (
        "import contextlib, io, sys\n"
        "from llava_prumerge.__main__ import COMMANDS, main\n"
        "from llava_prumerge.search.__main__ import SEARCHES\n"
        "for words in [*([name] for name in COMMANDS), *(['search', name] for name in SEARCHES)]:\n"
        "    with contextlib.redirect_stdout(io.StringIO()) as said:\n"
        "        assert main([*words, '--help']) == 0 and '--help' in said.getvalue(), words\n"
        "    heavy = sorted({'torch', 'transformers'} & set(sys.modules))\n"
        "    assert not heavy, f'{words} loads {heavy}'\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_its_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    inner = [INNER[name]] if name in INNER else []
    assert main([name, *inner, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: {' '.join(['llava-prumerge', name, *inner])} ") and "--help" in text
    assert importlib.import_module(f"llava_prumerge.{COMMANDS[name].module}").main is not None


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize(
    "words", [["--no-such-option", "1"], ["nosuch.option=1", "--no-such-option"]], ids=["dashes", "both"]
)
def test_every_command_refuses_an_unknown_option_in_one_line(
    name: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    inner = [INNER[name]] if name in INNER else []
    assert main([name, *inner, *words]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("error: ") and said.err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["trian"], "command 'trian' is not known; did you mean 'train'?"),
        (["search", "g-serch"], "search 'g-serch' is not known; did you mean 'g_search'?"),
        (["efficiency", "flop"], "command 'flop' is not known; did you mean 'flops'?"),
        (["methods", "prumrge+"], "method 'prumrge+' is not known; did you mean 'prumerge_plus'?"),
        (["evaluate", "--taks", "pope"], "option '--taks' is not known; did you mean '--task'?"),
        (
            ["evaluate", "task=pope", "model=.", "batchsize=3"],
            "setting 'batchsize' is not known; did you mean 'batch_size'?",
        ),
        (["train", "fintune_lora"], "recipe or method 'fintune_lora' is not known; did you mean 'finetune_lora'?"),
        (["train", "finetune", "learning_rat=1"], "'learning_rat' is not known; did you mean 'learning_rate'?"),
        (["train"], "name a recipe"),
        (["prepare", "downlod"], "did you mean 'download'?"),
        (["score"], "--task"),
    ],
)
def test_names_that_are_not_known(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and told in error and error.count("\n") == 1


def test_version_and_search(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0 and capsys.readouterr().out == f"llava-prumerge {__version__}\n"
    assert main(["search"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n    {name} " in text for name in SEARCHES)
    assert main([]) == 0 and "usage: llava-prumerge COMMAND" in capsys.readouterr().out


def test_the_methods_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods"]) == 0 and "\n  prumerge_plus " in capsys.readouterr().out
    assert main(["methods", "fastv", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["site"] == "decoder" and "layer" in told["settings"] and "fastv" in told["files"]
    assert main(["methods", "json=true"]) == 0
    names = [one["name"] for one in json.loads(capsys.readouterr().out)]
    assert main(["methods", "prumerge"]) == 0 and "2403.15388" in capsys.readouterr().out
    assert names == sorted(names) and {"prumerge", "prumerge_plus", "fastv"} <= set(names)


def test_a_stage_is_trained_by_name_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same as the scripts: a recipe, a method, settings; what is missing is said before anything is loaded."""
    monkeypatch.chdir(tmp_path)
    for words in (["prumerge_plus"], ["method=prumerge_plus"], ["--method", "prumerge_plus"]):
        assert main(["train", "finetune_lora", *words, "seed=3", "check=true"]) == 2
        error = capsys.readouterr().err
        assert "this run needs data=playground/data/" in error and error.count("\n") == 1
