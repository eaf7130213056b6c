"""What made a result: the command, the code's revision and libraries' versions."""

from __future__ import annotations

from typing import Any

from llava_prumerge.ground.revision import command_line, library_versions, revision_text


def describe_environment() -> dict[str, Any]:
    """The command, the code's revision and the libraries' versions."""
    versions = library_versions()
    return {
        "command": command_line(),
        "revision": revision_text(),
        "versions": {name: version for name, version in versions.items() if version is not None},
    }
