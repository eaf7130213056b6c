"""What must not be published: credentials, keys, and paths of a machine, looked for in every file of a release."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llava_prumerge.ground.hub_names import is_hub_name
from llava_prumerge.hub.source import ReleaseError

_SHOWN = 3
_HEADER_LENGTH = 8  # bytes of a safetensors file that say how long its header is
_PIECE, _OVERLAP = 1 << 24, 4096  # bytes that are looked at together, and that two pieces share
_MASKED = 6

_VALUE = r"""["']?\s*[=:]\s*["']?(?!(?:null|none|true|false)\b)[^\s"',}]{4,}"""
SECRETS = {
    "a token of the Hub": r"\bhf_[A-Za-z0-9]{20,}",
    "an API key (sk-)": r"\bsk-[A-Za-z0-9_-]{20,}",
    "a GitHub token": r"\b(?:gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,})",
    "a GitLab token": r"\bglpat-[\w-]{20,}",
    "an AWS key": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "a Google key": r"\bAIza[\w-]{35}",
    "a Slack token": r"\bxox[abeoprs]-[\w-]{10,}",
    "a wandb key": r"(?i:wandb)[^\n]{0,40}?\b[0-9a-f]{40}\b",
    "a JSON web token": r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]+",
    "a bearer token": r"(?i:bearer)\s+[\w.~+/-]{16,}",
    "a Stripe key": r"\b[rs]k_(?:live|test)_[A-Za-z0-9]{16,}",
    "a package index's token": r"\b(?:pypi-[\w-]{40,}|npm_[A-Za-z0-9]{30,})",
    "an Azure key": r"(?i:AccountKey|SharedAccessKey)=[A-Za-z0-9+/=]{20,}",
    "a private key": r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----",
    "credentials in an address": r"""\b[a-zA-Z][\w+.-]*://(?:[^\s/@:"']+:[^\s/@"']+|[^\s/@:"']{16,})@""",
    "a token in an address": r"""[?&](?i:access_token|token|api_key|apikey|sig|signature|x-amz-signature)=[^\s"'&]{6,}""",
    "a password or key": rf"(?i:(?<![A-Za-z])(?:password|passwd|secret|api[_-]?key|access[_-]?key|auth[_-]?token|access[_-]?token){_VALUE})",
    "a token setting": r"""(?<![\w-])(?i:token)=[^\s"',}]{4,}""",
}
_ROOTS = (
    "home|root|[Uu]sers|mnt|data\\d*|scratch\\d*|work|workspace|tmp|var|gpfs|lustre|fsx|efs|opt|srv|media|nfs|storage|shared|private|"
    "projects?|usr|etc|run|Volumes|vol|volume|export|cluster|content|kaggle|nobackup|ssd\\d*|disk\\d*|raid|cache|models|datasets|s3"
)
PATHS = {
    "a path of a machine": rf"(?<![\w./~>-])/(?:{_ROOTS})/[^\s\"'`<>,;)\\]+",
    "an absolute path": r"""(?x)
        (?<=["']) (?:/[\w.@+-]+){2,}/? (?=["'])                                   # a whole value of JSON
        | (?m:^[ \t-]* [\w.-]+: [ \t]+ (?:/[\w.@+-]+){2,}/? [ \t]*$)              # a whole value of YAML
        | (?<=[\s=]) (?:/[\w.@+-]+){3,}                                          # in a text or command
    """,
    "an address of a file": r"\bfile://[^\s\"'`<>,;)]+",
    "a path of a Windows machine": r"\b[A-Za-z]:(?:(?:\\\\?|/)Users(?:\\\\?|/)|\\\\\w[\w .-]*\\\\|/\w[\w.-]*/)[^\s\"']*",
}
_NAME_OR_PATH = re.compile(r'"\w*_name_or_path"\s*:\s*"([^"]+)"')
_SECRET_VARIABLE = re.compile(r"(TOKEN|KEY|SECRET|PASSWORD|PASSWD)$")
_LEAST_SECRET = 8  # characters of a variable's value that is looked for


@dataclass(frozen=True)
class Finding:
    """Something that must not be published.

    Attributes:
        file: it stands in.
        line: of the file, from 1; 0 where it has no lines.
        kind: in words.
        text: its beginning; the rest is masked if it is a secret.
    """

    file: str
    line: int
    kind: str
    text: str

    def __str__(self) -> str:
        place = f"{self.file}, line {self.line}" if self.line else self.file
        return f"{place}: {self.kind} ({self.text})"


def check_clean(folder: Path) -> None:
    """Refuse to publish a folder with credentials, keys or paths of a machine in any file's text or metadata.

    Raises:
        ReleaseError: with the first findings; of secrets the beginning alone is shown.
    """
    found = [finding for path in sorted(folder.rglob("*")) if path.is_file() for finding in scan_file(path, folder)]
    if found:
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise ReleaseError(
            f"{folder} is not published: {'; '.join(map(str, found[:_SHOWN]))}{more}; remove it where it comes from (the run's "
            "environment.json, config.yaml or a result file), and release again"
        )


def scan_file(path: Path, folder: Path) -> Iterator[Finding]:
    """What a file of a release must not hold."""
    name = path.relative_to(folder).as_posix()
    is_text = path.suffix not in (".safetensors", ".model", ".bin", ".pt")
    # Whoever trained a sentencepiece model left the paths of their texts in it, which are public since.
    patterns = SECRETS if path.suffix == ".model" else {**SECRETS, **PATHS}
    seen: set[tuple[str, str]] = set()
    for line, text in _pieces(path, is_text):
        for kind, start, told in _matches(text, patterns):
            if (kind, told) not in seen:
                seen.add((kind, told))
                yield Finding(name, line + text.count("\n", 0, start) if is_text else 0, kind, told)


def _pieces(path: Path, is_text: bool) -> Iterator[tuple[int, str]]:
    """The text of a file in pieces that overlap, each with the line it begins in; of weights the header alone."""
    line = 1
    with path.open("rb") as file:
        left = path.stat().st_size
        if path.suffix == ".safetensors":
            left = min(int.from_bytes(file.read(_HEADER_LENGTH), "little"), left)
        before = b""
        while left > 0 and (piece := file.read(min(_PIECE, left))):
            left -= len(piece)
            yield line, (before + piece).decode("utf-8" if is_text else "latin-1", errors="replace")
            kept = (before + piece)[-_OVERLAP:]
            line += (before + piece).count(b"\n") - kept.count(b"\n")
            before = kept


def _matches(text: str, patterns: dict[str, str]) -> Iterator[tuple[str, int, str]]:
    """Kind, place and what is told of each finding."""
    for kind, pattern in patterns.items():
        for match in re.finditer(pattern, text):
            told = match[0] if kind in PATHS else f"{match[0][:_MASKED]}..."
            yield kind, match.start(), told
    for match in _NAME_OR_PATH.finditer(text):
        if not is_hub_name(match[1]):
            yield "a folder's name in _name_or_path", match.start(), match[1]
    for variable, value in os.environ.items():
        if _SECRET_VARIABLE.search(variable) and len(value) >= _LEAST_SECRET and value in text:
            yield f"the value of {variable}", text.index(value), f"{value[:2]}..."
