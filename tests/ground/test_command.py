"""Commands: one style of arguments, one line for every mistake, and the exit status that goes with it."""

from __future__ import annotations

import errno
import json
import os
from argparse import Namespace
from pathlib import Path

import pytest

from llava_prumerge.ground.command import Parser, command, pairs
from llava_prumerge.ground.errors import CannotGoOn, FileError, InputError


def make_parser(settings: tuple[str, ...] | None) -> Parser:
    parser = Parser("llava_prumerge.example", "An example.", settings=settings)
    parser.add_argument("images", nargs="*")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--methods", nargs="+", default=[])
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--format", choices=("text", "csv"), default="text")
    return parser


WORDS = {
    "options": ["a.png", "--out", "x", "--batch-size", "4", "--dry-run", "b.png", "budget=9"],
    "with an equals sign": ["--out=x", "a.png", "b.png", "--budget=9", "--batch-size=4", "--dry-run"],
    "settings": ["out=x", "batch_size=4", "a.png", "dry_run=true", "b.png", "budget=9"],
    "settings with dashes": ["a.png", "dry-run=true", "batch-size=4", "--budget", "9", "b.png", "out=x"],
}


@pytest.mark.parametrize("settings", [("budget", "label"), None], ids=["known", "any"])
@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)
def test_both_styles_mean_the_same(words: list[str], settings: tuple[str, ...] | None) -> None:
    given = make_parser(settings).parse_args(words)
    expected = Namespace(
        images=["a.png", "b.png"],
        out=Path("x"),
        batch_size=4,
        methods=[],
        dry_run=True,
        format="text",
        settings=["budget=9"],
    )
    assert given == expected


def test_values_of_an_option_stay_with_it() -> None:
    words = ["--methods", "prumerge=5", "random", "--out", "budget=3", "label=a=b", "--batch-size", "-2"]
    given = make_parser(("budget", "label")).parse_args(words)
    assert given.methods == ["prumerge=5", "random"] and given.out == Path("budget=3") and given.batch_size == -2
    assert given.settings == ["label=a=b"] and pairs(given.settings) == {"label": "a=b"}
    given = make_parser(("budget",)).parse_args(
        ["--methods", "a", "budget=3", "reduction.vision.rows=2", "dry_run=false"]
    )
    assert given.methods == ["a"] and given.settings == ["budget=3", "reduction.vision.rows=2"] and not given.dry_run


def test_a_file_whose_name_has_an_equals_sign_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("epoch=3.png").write_text("")
    given = make_parser(None).parse_args(["epoch=3.png", "--", "seed=4.png", "--odd"])
    assert given.images == ["epoch=3.png", "seed=4.png", "--odd"] and given.settings == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--methds", "x"], "option '--methds' is not known; did you mean '--methods'?"),
        (["buget=3"], "setting 'buget' is not known; did you mean 'budget'?"),
        (["--buget", "3"], "option '--buget' is not known; did you mean '--budget'?"),
        (["--budget"], "--budget has no value; write --budget VALUE, or budget=VALUE"),
        (["--budget", "--dry-run"], "--budget has no value"),
        (["--out"], "argument --out: expected one argument"),
        (["batch_size=two"], "argument --batch-size: invalid int value: 'two'"),
        (["--format", "cvs"], "--format 'cvs' is not known; did you mean 'csv'? There are: text, csv"),
        (["dry_run=maybe"], "dry_run=maybe: --dry-run is on or off"),
    ],
)
def test_a_mistake_names_what_was_meant(words: list[str], told: str) -> None:
    with pytest.raises(InputError) as caught:
        make_parser(("budget",)).parse_args(words)
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_a_mistyped_option_is_no_setting_where_any_name_is_one() -> None:
    with pytest.raises(InputError, match="option '--methds' is not known; did you mean '--methods'"):
        make_parser(None).parse_args(["--methds", "x"])
    assert make_parser(None).parse_args(["--rows", "3"]).settings == ["rows=3"]


def test_a_command_without_settings_takes_none() -> None:
    given = make_parser(()).parse_args(["out=x"])
    assert given.out == Path("x") and not hasattr(given, "settings")
    for words, told in (
        (["speed=1"], "option 'speed' is not known"),
        (["--speed", "1"], "option '--speed' is not known"),
    ):
        with pytest.raises(InputError, match=told):
            make_parser(()).parse_args(words)
    parser = Parser("llava_prumerge.example")
    with pytest.raises(InputError, match="'x' is one argument too many"):
        parser.parse_args(["x"])


def test_commands_within_a_command() -> None:
    parser = Parser("llava_prumerge.example", "An example.")
    inner = parser.add_subparsers(dest="command", required=True, metavar="score|run")
    score = inner.add_parser("score", settings=("limit",))
    score.add_argument("--task", required=True)
    assert parser.parse_args(["score", "limit=4", "task=pope"]) == Namespace(
        command="score", task="pope", settings=["limit=4"]
    )
    for words, told in (
        (["scor"], "did you mean 'score'"),
        ([], "required: score|run"),
        (["score", "task=x", "lmit=3"], "did you mean 'limit'"),
    ):
        with pytest.raises(InputError, match=told):
            parser.parse_args(words)


def fail(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (InputError("a\n  b"), 2, "error: a b"),
        (CannotGoOn("no step is finite"), 1, "error: no step is finite"),
        (FileNotFoundError(errno.ENOENT, "x", "gone.json"), 2, "error: gone.json: no such file or folder"),
        (FileError("full.json", "cannot be written: the disk is full", errno.ENOSPC), 2, "error: full.json: cannot be"),
        (PermissionError(errno.EACCES, "x", b"locked"), 2, "error: locked: permission denied"),
        (OSError("We couldn't connect"), 2, "error: We couldn't connect"),
        (KeyboardInterrupt(), 130, "stopped"),
    ],
)
def test_errors_become_one_line_and_a_status(
    error: BaseException, status: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main = command(interrupted="stopped")(lambda words: fail(error))
    assert main([]) == status
    text = capsys.readouterr().err
    assert text.startswith(told) and text.count("\n") == 1


def test_what_is_our_own_mistake_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError):
        command()(lambda words: fail(ZeroDivisionError()))([])
    monkeypatch.setenv("LLAVA_PRUMERGE_TRACEBACK", "1")
    with pytest.raises(InputError):
        command()(lambda words: fail(InputError("x")))([])


def test_the_status_is_what_the_command_returns(capsys: pytest.CaptureFixture[str]) -> None:
    @command()
    def main(words: list[str]) -> int | None:
        """Documented."""
        print(json.dumps(words))
        return 3 if words else None

    assert main.__doc__ == "Documented." and main([]) == 0 and main([Path("a"), 1]) == 3
    assert capsys.readouterr().out.splitlines() == ["[]", '["a", "1"]']


def test_help_is_no_failure(capsys: pytest.CaptureFixture[str]) -> None:
    assert command()(lambda words: make_parser(None).parse_args(words))(["--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: python -m llava_prumerge.example") and "An example." in text


def test_output_that_nobody_reads_ends_quietly(capfd: pytest.CaptureFixture[str]) -> None:
    assert command()(lambda words: fail(BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))))([]) == 1
    assert capfd.readouterr().err == ""
