"""What every test shares: quiet threads, no network, and `--plugin` for methods from outside the package."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads starve each other as soon as two processes run
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import contextlib  # noqa: E402
from collections.abc import Iterator  # noqa: E402

import pytest  # noqa: E402

with contextlib.suppress(ModuleNotFoundError):  # a copy of the tree need not hold the pocket world
    from playground.pocket.torchvision_mend import declare_operators

    declare_operators()  # where it is there and not torch's own, so that what compares with open_clip can run


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--plugin`, as every command of the project has it."""
    parser.addoption(
        "--plugin",
        action="append",
        default=[],
        metavar="MODULE|FILE.py",
        help="Python that registers methods of your own: the tests that walk the registry cover them, too; repeatable",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Load them before tests are collected, whose parameters are the methods."""
    names = config.getoption("--plugin")
    if names:
        from llava_prumerge.methods.plugins import load_plugins
        from llava_prumerge.ops.errors import ReductionError

        try:
            load_plugins(names)
        except ReductionError as error:
            raise pytest.UsageError(str(error)) from error


@pytest.fixture(autouse=True)
def environment_kept() -> Iterator[None]:
    """Give every test the environment variables it found: a command run in this process may set some for its own life."""
    before = dict(os.environ)
    yield
    if dict(os.environ) != before:
        os.environ.clear()
        os.environ.update(before)
