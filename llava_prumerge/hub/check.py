"""Load a release as its users will, ask it one question, and print what happened.

    python -m llava_prumerge.hub.check FOLDER [--image FILE] [--question TEXT]

A process of its own: nothing that wrote the release can help to read it. The last line on stdout is one JSON object.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_prumerge.ground.command import Parser, command
from llava_prumerge.hub.source import BASE_FILE, ReleaseError, Source
from llava_prumerge.methods.plugins import add_plugin_option

if TYPE_CHECKING:
    from PIL.Image import Image

LONGEST = 4096  # pixels of an image that is handed to the checkpoint's processor as it is
QUESTION = "What is in this picture?"
TEMPLATE = "vicuna_v1"
NEW_TOKENS = 32
ROOT = Path(__file__).resolve().parents[2]


def check_release(
    source: Source, folder: Path, image: Path | None, question: str, plugins: Sequence[str] = ()
) -> dict[str, Any]:
    """Check a release folder in a fresh process, which sees no token and no network.

    Args:
        source: what is released.
        folder: the release.
        image, question: what is asked; a drawn image for None.
        plugins: modules or files that register its methods; users of the release need them too.

    Returns:
        class, dtype, question, answer, and how many visual tokens the method kept.

    Raises:
        ReleaseError: it does not load, or does not answer.
    """
    environment = {name: value for name, value in os.environ.items() if not name.endswith("TOKEN")}
    paths = [str(ROOT), *filter(None, [environment.get("PYTHONPATH")])]  # the code that wrote it, wherever we are
    environment |= {"PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}
    with tempfile.TemporaryDirectory() as scratch:
        place = with_local_base(source, folder, Path(scratch)) if (folder / BASE_FILE).is_file() else folder
        command = [sys.executable, "-m", "llava_prumerge.hub.check", str(place.resolve()), "--question", question]
        command += ["--image", str(image.resolve())] if image else []
        command += [word for name in plugins for word in ("--plugin", name)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise ReleaseError(f"{folder} does not work when it is loaded back: {reason}")
    return json.loads(lines[-1])


def with_local_base(source: Source, folder: Path, scratch: Path) -> Path:
    """The released parts by links, with the base.json that names folders of this machine: no network is asked for."""
    from llava_prumerge.model.adapters import read_base, write_base

    for path in folder.iterdir():
        if path.name != BASE_FILE:
            (scratch / path.name).symlink_to(path.resolve())
    write_base(read_base(source.weights), scratch)
    return scratch


def load(folder: Path) -> tuple[Any, Any]:
    """Model and processor: by transformers' Auto classes, or, of parts, by our loader."""
    import llava_prumerge
    from llava_prumerge.model.strict_loading import LoadingError

    try:
        if (folder / BASE_FILE).is_file():
            from llava_prumerge.model.loading import load_model

            dtype = json.loads((folder / "config.json").read_text("utf-8")).get("dtype", "float32")
            return load_model(folder, dtype=dtype)
        from transformers import AutoModelForImageTextToText

        from llava_prumerge.model.family_processors import read_processor

        llava_prumerge.register()  # all that a user of the Auto classes adds
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto")
    except LoadingError as error:
        raise ReleaseError(str(error)) from error
    return model.eval(), read_processor(folder, model.config)


def drawn_image() -> Image:
    """A red disc and a blue square on grey, where no image is given."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (320, 240), (200, 200, 200))
    pen = ImageDraw.Draw(picture)
    pen.ellipse((30, 60, 140, 170), fill=(210, 30, 30))
    pen.rectangle((190, 80, 280, 170), fill=(30, 60, 200))
    return picture


def ask(model: Any, processor: Any, image: Image, question: str) -> dict[str, Any]:
    """One greedy answer.

    Raises:
        ReleaseError: the logits are not finite.
    """
    import torch

    from llava_prumerge.data.conversation import prompt
    from llava_prumerge.model.chat import ChatProcessor, fixed_places

    if fixed_places(model.config) is None:
        made = ChatProcessor(processor, model.config, TEMPLATE)([(question, [image])])
    else:
        made = dict(processor(images=image, text=prompt(TEMPLATE, question, images=1), return_tensors="pt"))
    dtypes = {name: model.dtype if value.is_floating_point() else None for name, value in made.items()}
    inputs = {name: value.to(model.device, dtypes[name]) for name, value in made.items()}
    with torch.inference_mode():
        output = model.generate(
            **inputs,
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
            temperature=None,
            top_p=None,
            top_k=None,
        )
    if not all(torch.isfinite(logits).all() for logits in output.logits):
        raise ReleaseError("the logits are not finite")
    new = output.sequences[0, inputs["input_ids"].shape[1] :]
    statistics = model.reduction_stats()
    return {
        "class": type(model).__name__,
        "dtype": str(model.dtype).removeprefix("torch."),
        "question": question,
        "answer": processor.decode(new, skip_special_tokens=True).strip(),
        "visual_tokens": round(statistics["full_mean"]),
        "kept": round(statistics["kept_mean"], 2),
        "kept_over_layers": round(statistics["equivalent_tokens"], 2),
    }


@command()
def main(words: list[str]) -> None:
    """Run the check."""
    parser = Parser("llava_prumerge.hub.check", __doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--image", type=Path)
    parser.add_argument("--question", default=QUESTION)
    add_plugin_option(parser)
    given = parser.parse_args(words)
    from transformers.utils.logging import disable_progress_bar

    from llava_prumerge.data.images import padded_picture, read_image

    disable_progress_bar()
    model, processor = load(given.folder)
    image = drawn_image() if given.image is None else read_image(given.image)
    if max(image.size) > LONGEST:  # the checkpoint's own processor would make a square of this side first
        image = padded_picture(image, LONGEST, (122, 116, 104))
    sys.stdout.write(json.dumps(ask(model, processor, image, given.question)) + "\n")


if __name__ == "__main__":
    sys.exit(main())
