"""What all commands share: one style of arguments, one line for a mistake, and the exit status that goes with it.

A command is a function of the words of its command line, made by `@command()`:

    @command()
    def main(words: list[str]) -> int | None:
        parser = Parser("llava_prumerge.viz", __doc__, settings=None)
        parser.add_argument("--out", type=Path)
        given = parser.parse_args(words)

Exit status: what the function returned (None is 0); 2 for whatever was wrong in what the command was given, and for a file that
cannot be read or written, for want of room as well; 1 where all of that was right and the work could not go on, such as training
whose loss is not finite; 130 after Ctrl-C. Anything else is a mistake of ours, and shows its traceback.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import os
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, Protocol

from llava_prumerge.ground.errors import CannotGoOn, InputError, reason_of
from llava_prumerge.ground.naming import nearest, not_known

WRONG, FAILED, INTERRUPTED = 2, 1, 130
TRACEBACK = "LLAVA_PRUMERGE_TRACEBACK"
"""With this variable set in the environment, errors of one line show where they come from as well."""

_LONGEST_LINE = 2000  # characters: a message may quote a value of any length

Work = Callable[[list[str]], int | None]


class Main(Protocol):
    """The entry point of a command."""

    def __call__(self, words: Sequence[str] | None = None, /) -> int:
        """Run the command with words, those of the process for None. -> exit status"""


_called: list[tuple[str, str]] = []


def calling_name(module: str) -> str:
    """How the help calls a module's command."""
    return _called[-1][0] if _called else f"python -m {module}"


@contextlib.contextmanager
def called_as(name: str, hidden: str = "") -> Iterator[None]:
    """Let the help of a command say this name: `llava-prumerge viz` in place of `python -m llava_prumerge.viz`.

    Args:
        name: the name.
        hidden: a word that the name stands for as well, and that the help leaves out.
    """
    _called.append((name, hidden))
    try:
        yield
    finally:
        _called.pop()


def command(interrupted: str = "interrupted") -> Callable[[Work], Main]:
    """Make the entry point of a command: it takes words, those of the process for None, and returns the exit status.

    Args:
        interrupted: what is said after Ctrl-C.
    """

    def wrap(work: Work) -> Main:
        @functools.wraps(work)
        def main(words: Sequence[str] | None = None, /) -> int:
            return _run(work, interrupted, words)

        return main

    return wrap


def _run(work: Work, interrupted: str, words: Sequence[str] | None = None) -> int:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # else one of a test or of a notebook
            stream.reconfigure(errors="backslashreplace")  # a file's name that this console cannot show
    try:
        return work([str(word) for word in (sys.argv[1:] if words is None else words)]) or 0
    except SystemExit as end:  # argparse's, after --help
        if end.code not in (None, 0):
            raise
        return 0
    except KeyboardInterrupt:
        return _say(("\n" if sys.stderr.isatty() else "") + interrupted, INTERRUPTED)
    except BrokenPipeError:  # `| head` has seen enough
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (InputError, CannotGoOn, OSError) as error:
        if os.environ.get(TRACEBACK):
            raise
        return _say(f"error: {one_line(error)}", status_of(error))


def status_of(error: BaseException) -> int:
    """The exit status of an error that is one line: 1 where the command was right and could not go on, else 2."""
    return FAILED if isinstance(error, CannotGoOn) else WRONG


def one_line(error: BaseException) -> str:
    """An error's text without line breaks; what the system says of a file, beginning with the file."""
    if type(error).__str__ is OSError.__str__ and isinstance(error, OSError) and error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {reason_of(error)}"
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _LONGEST_LINE else f"{text[: _LONGEST_LINE // 2]} ... {text[-_LONGEST_LINE // 4 :]}"


def _say(text: str, status: int) -> int:
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()
    return status


class Parser(argparse.ArgumentParser):
    """argparse, where `--option value` and `option=value` are the same, and a mistake is one line that knows better.

    Words `key=value` that are no option of the command are its settings, where it takes any: `given.settings` is then
    their list, as written. `--key value` is the same as `key=value` for them, too.

    Args:
        module: the command's module, for its help; None within a command.
        description: the text of the help; of several paragraphs all are shown.
        settings: names of the settings that the command takes, where more are not accepted; None where any name is,
            as with the settings of methods. Names with a dot are settings wherever any are taken.
        **others: argparse's own.
    """

    def __init__(
        self,
        module: str | None = None,
        description: str | None = None,
        settings: Iterable[str] | None = (),
        **others: Any,
    ) -> None:
        self.setting_names = None if settings is None else tuple(settings)
        if module is not None:
            others.setdefault("prog", calling_name(module))
        elif _called and others.get("prog") == " ".join(_called[-1]):
            others["prog"] = _called[-1][0]
        others.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(description=description, allow_abbrev=False, **others)

    def format_help(self) -> str:
        """argparse's, and a line about the settings."""
        if self.setting_names:
            return f"{super().format_help()}\nsettings, as key=value:\n{_listed(self.setting_names)}"
        return super().format_help() + ("\nsettings: key=value, those of the method\n" if self._takes_settings else "")

    def error(self, message: str) -> NoReturn:
        """argparse's way out: one error of one line.

        Raises:
            InputError: always.
        """
        raise InputError(f"{message}; see {self.prog} --help")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            name = "/".join(action.option_strings) or action.metavar or action.dest or "command"
            raise InputError(not_known(str(name), value, map(str, action.choices)))

    def parse_known_args(  # type: ignore[override]  # any namespace, as argparse itself says in words
        self, args: Any = None, namespace: Any = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """argparse's, with settings taken out, options in either style, and positional words in any place."""
        words = [str(word) for word in (sys.argv[1:] if args is None else args)]
        if any(isinstance(action, argparse._SubParsersAction) for action in self._actions):
            return super().parse_known_args(words, namespace)
        words, settings = self._sort(words)
        given, rest = super().parse_known_args(words, namespace)
        if self._takes_settings:
            given.settings = settings
        return given, rest

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """argparse's; what is left over is an error that names what there is."""
        given, rest = self.parse_known_args(args, namespace)
        if rest:
            self.error(f"{rest[0]!r} is one argument too many")
        return given

    @property
    def _takes_settings(self) -> bool:
        return self.setting_names is None or bool(self.setting_names)

    def _options(self) -> dict[str, argparse.Action]:
        """Options by name, without dashes before it and with underscores within: batch_size."""
        return {
            string.lstrip("-").replace("-", "_"): action
            for action in self._actions
            for string in action.option_strings
            if string.startswith("--")
        }

    def _sort(self, words: list[str]) -> tuple[list[str], list[str]]:
        """Words for argparse, positional ones first, and settings as `key=value`."""
        options = self._options()
        positional: list[str] = []
        dashes: list[str] = []
        settings: list[str] = []
        at = 0
        while at < len(words):
            word, at = words[at], at + 1
            if word == "--":
                return [*dashes, "--", *positional, *words[at:]], settings
            dashed, (key, equals, value) = word.startswith("--"), word.partition("=")
            name = key.lstrip("-").replace("-", "_") if dashed or equals else ""
            if name in options and equals:
                dashes += self._given(options[name], word, value)
            elif name in options:
                end = self._values_end(options[name], words, at)
                dashes += [_long(options[name]), *words[at:end]]
                at = end
            elif dashed:
                at = self._setting_of_dashes(name, equals, value, words, at, settings)
            elif equals and self._is_setting(word, key):
                settings.append(word)
            else:
                (dashes if word.startswith("-") and len(word) > 1 else positional).append(word)
        return positional + dashes, settings

    def _values_end(self, option: argparse.Action, words: list[str], at: int) -> int:
        """Where the values of an option end that begin at a place."""
        if isinstance(option.nargs, int) or option.nargs is None:
            return min(at + (1 if option.nargs is None else option.nargs), len(words))
        names = {*self._options(), *(self.setting_names or ())}
        most = at + 1 if option.nargs == "?" else len(words)
        while at < min(most, len(words)) and not words[at].startswith("--"):
            key, equals, _ = words[at].partition("=")
            if equals and key.replace("-", "_") in names:
                break
            at += 1
        return at

    def _given(self, option: argparse.Action, word: str, value: str) -> list[str]:
        """The words for argparse of an option with its value behind an equals sign."""
        string = _long(option)
        if option.nargs != 0:
            return [string, value] if not value.startswith("-") else [f"{string}={value}"]
        if value.lower() not in ("true", "false"):
            raise InputError(f"{word}: {string} is on or off; write {string}, or {string.lstrip('-')}=true or =false")
        return [string] if value.lower() == "true" else []

    def _setting_of_dashes(
        self, name: str, equals: str, value: str, words: list[str], at: int, settings: list[str]
    ) -> int:
        """Take `--name value` or `--name=value` for a setting. -> where the words go on

        Raises:
            InputError: there is no such setting.
        """
        known = self.setting_names is None or name in self.setting_names or ("." in name and self._takes_settings)
        ends = not equals and (at == len(words) or words[at].startswith("--"))
        mistyped = self.setting_names is None and nearest(f"--{name}", self._option_strings()) is not None
        if not known or ends or mistyped:
            listed = [*self._option_strings(), *(f"--{one.replace('_', '-')}" for one in self.setting_names or ())]
            dashed = f"--{name.replace('_', '-')}"
            if known and self.setting_names is not None:
                raise InputError(f"{dashed} has no value; write {dashed} VALUE, or {name}=VALUE")
            raise InputError(not_known("option", dashed, listed))
        settings.append(f"{name}={value if equals else words[at]}")
        return at if equals else at + 1

    def _is_setting(self, word: str, key: str) -> bool:
        """Whether a word is a setting of this command; False is a word for argparse, such as the name of a file.

        Raises:
            InputError: it can be nothing else, and there is no such setting.
        """
        if Path(word).exists():
            return False
        if self.setting_names is None or key in self.setting_names or ("." in key and self._takes_settings):
            return True
        kind = "setting" if self._takes_settings else "option"
        options = [string.lstrip("-") for string in self._option_strings()]
        raise InputError(not_known(kind, key, [*self.setting_names, *options]))

    def _option_strings(self) -> list[str]:
        return [_long(action) for action in self._actions if action.option_strings]


def _listed(names: Iterable[str]) -> str:
    return textwrap.fill(", ".join(names), 100, initial_indent="  ", subsequent_indent="  ") + "\n"


def _long(option: argparse.Action) -> str:
    """An option's first name with two dashes."""
    return next((name for name in option.option_strings if name.startswith("--")), option.option_strings[0])


def at_least(least: int) -> Callable[[str], int]:
    """The `type=` of an option that takes whole numbers from one on."""

    def read(text: str) -> int:
        if not text.strip().lstrip("+").isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
        return int(text)

    return read


def pairs(settings: Iterable[str]) -> dict[str, str]:
    """`key=value` words as a dictionary.

    Raises:
        InputError: a word is not of that form, or a key comes twice.
    """
    found: dict[str, str] = {}
    for word in settings:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise InputError(f"{word!r} is not key=value")
        if key in found:
            raise InputError(f"the setting {key} is given twice")
        found[key] = value
    return found
