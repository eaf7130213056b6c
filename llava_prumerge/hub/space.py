"""The files of a Space that shows a release as a Gradio app: app.py, requirements.txt, and README.md with the Space's metadata."""

from __future__ import annotations

from pathlib import Path

from llava_prumerge.ground.errors import FileError
from llava_prumerge.ground.files import whole_folder, write_text
from llava_prumerge.ground.revision import code_revision
from llava_prumerge.hub.source import PARTS, ReleaseError

GRADIO = "6.31.0"
"""The release of Gradio that the app was tried with."""
PYTHON = "3.11"
CODE = "https://github.com/llava-prumerge/llava-prumerge"
FILES = ("app.py", "requirements.txt", "README.md")
MODULE = "llava_prumerge.viz.gradio_app"
SMALL = 2 << 30  # bytes of weights that a Space's free CPU answers with

WHOLE = '''"""A page to ask {name} about images."""

from {module} import launch

launch("{name}")
'''
OF_PARTS = '''"""A page to ask {name} about images."""

from huggingface_hub import snapshot_download
from {module} import launch

launch(snapshot_download("{name}"), name="{name}")
'''
README = """# {title}

Ask [{name}](https://huggingface.co/{name}) about an image, and see which visual tokens answer: each method of visual-token
reduction beside all tokens, with the tokens that every layer sees, the attention map, and what was merged into what.

The code is [llava_prumerge]({code}). On a machine of your own: `pip install -r requirements.txt`, then `python app.py`.
"""


def check_space(folder: Path, release: Path) -> None:
    """Refuse a folder that is no earlier Space of this command, before any work is done.

    Raises:
        ReleaseError: something else is there, or it is the release's own folder.
    """
    if folder.resolve() == release.resolve():
        raise ReleaseError(f"--space {folder} is the release's own folder; give another one")
    if not folder.exists():
        return
    inside = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else [folder.name]
    ours = (
        set(inside) <= set(FILES) and "app.py" in inside and MODULE in (folder / "app.py").read_text("utf-8", "replace")
    )
    if inside and not ours:
        raise ReleaseError(
            f"--space {folder} holds {inside[0]}, and is no Space that this command wrote; give another folder"
        )


def write_space(folder: Path, release: Path, repository: str, licence: str, form: str) -> str:
    """Write the Space, whole or not at all.

    Args:
        folder: where to.
        release: the release's folder.
        repository: the release's name on the Hub.
        licence: as the Hub calls it.
        form: of the release, see `Source`.

    Returns:
        The command that uploads it.

    Raises:
        ReleaseError: it cannot be written.
    """
    try:
        with whole_folder(folder, replace=True) as working:
            text = (OF_PARTS if form == PARTS else WHOLE).format(name=repository, module=MODULE)
            write_text(working / "app.py", text)
            write_text(working / "requirements.txt", f"{requirement()}\n")
            title = f"{repository.split('/')[1]}, visual tokens"
            front = metadata(title, repository, licence, hardware(release, form))
            about = README.format(title=title, name=repository, code=CODE)
            write_text(working / "README.md", f"---\n{front}\n---\n\n{about}")
    except FileError as error:
        raise ReleaseError(str(error)) from error
    return f"hf upload {repository}-demo {folder} . --repo-type space"


def requirement() -> str:
    """What pip installs: this package with the app's extra, at the commit that wrote the Space where that is known."""
    revision = code_revision()
    at = f"@{revision.commit}" if revision is not None and not revision.changed else ""
    return f"llava-prumerge[demo] @ git+{CODE}{at}"


def hardware(release: Path, form: str) -> str:
    """The Space's machine, by the size of the weights: the free CPU, or a GPU with 24 GB."""
    size = sum(path.stat().st_size for path in release.glob("*.safetensors"))
    return "cpu-basic" if form != PARTS and size < SMALL else "l4x1"


def metadata(title: str, repository: str, licence: str, machine: str) -> str:
    """The YAML block at the top of the Space's README.md."""
    from huggingface_hub import SpaceCardData

    data = SpaceCardData(
        title=title,
        sdk="gradio",
        sdk_version=GRADIO,
        python_version=PYTHON,
        app_file="app.py",
        license=licence,
        colorFrom="blue",
        colorTo="red",
        emoji="🔍",
        pinned=False,
        short_description="Ask about an image, see which visual tokens answer",
        suggested_hardware=machine,
        models=[repository],
        tags=["llava", "visual-token-reduction"],
    )
    return str(data.to_yaml())
