"""Release a trained model on the Hub.

    bash scripts/release.sh RUN_DIR NAMESPACE/NAME [--merge] [--dry-run] [options]

Writes the release folder with its model card, loads it back in a fresh process and asks it a question, and uploads it
in one commit. --dry-run does all but the upload. docs/release.md tells the rest.
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
from pathlib import Path

from llava_prumerge.ground.command import Parser, command
from llava_prumerge.hub.card import Card
from llava_prumerge.hub.check import QUESTION, check_release
from llava_prumerge.hub.evaluations import RESULTS, find_evaluations
from llava_prumerge.hub.export import check_out, export, stored_dtype
from llava_prumerge.hub.scan import check_clean
from llava_prumerge.hub.source import BASE_KEYS, ReleaseError, Source, find_source
from llava_prumerge.hub.space import check_space, write_space
from llava_prumerge.hub.upload import check_login, upload
from llava_prumerge.methods.plugins import add_plugin_option

logger = logging.getLogger("llava_prumerge.hub")

RELEASES = Path("runs/release")
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = Parser("llava_prumerge.hub", __doc__)
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="a finished run, or a checkpoint")
    parser.add_argument("repository", metavar="NAMESPACE/NAME")
    parser.add_argument("--merge", action="store_true", help="make a complete model of LoRA adapters and projector")
    parser.add_argument("--dry-run", action="store_true", help="all but the upload")
    results = parser.add_mutually_exclusive_group()
    results.add_argument(
        "--results",
        type=Path,
        action="append",
        metavar="DIR",
        help=f"result files to publish (default: those in {RESULTS} that name this checkpoint)",
    )
    results.add_argument("--without-results", action="store_true", help="publish no evaluation")
    parser.add_argument("--license", dest="licence", metavar="ID", help="as the Hub calls it; llama2 for known bases")
    parser.add_argument(
        "--base",
        action="append",
        default=[],
        metavar="KEY=NAMESPACE/NAME",
        help=f"a base on the Hub; KEY is {', '.join(BASE_KEYS)}",
    )
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="of the weights (default: as stored)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help=f"the release folder (default {RELEASES}/NAMESPACE/NAME)"
    )
    parser.add_argument(
        "--space", type=Path, metavar="DIR", help="also write a Space there: app.py, requirements.txt, README.md"
    )
    parser.add_argument("--private", action="store_true", help="a new repository is seen by its owners alone")
    parser.add_argument("--image", type=Path, help="asked about in the check (default: a drawn one)")
    parser.add_argument("--question", default=QUESTION)
    add_plugin_option(parser)
    return parser.parse_args(arguments)


def check_repository(name: str) -> str:
    """A name that is one folder below another, on the Hub and here."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ReleaseError(f"{name!r} is no name on the Hub: {' '.join(str(error).split())}") from error
    if not REPOSITORY.fullmatch(name):
        raise ReleaseError(f"{name!r} is no name on the Hub; it takes NAMESPACE/NAME, such as my-lab/llava-prumerge-7b")
    return name


def parse_bases(words: list[str]) -> dict[str, str]:
    """KEY=NAMESPACE/NAME words."""
    bases = {}
    for word in words:
        key, equals, name = word.partition("=")
        if not equals or key not in BASE_KEYS:
            raise ReleaseError(f"--base {word}: expected KEY=NAMESPACE/NAME with KEY one of {', '.join(BASE_KEYS)}")
        bases[key] = check_repository(name)
    return bases


def write_card(source: Source, given: argparse.Namespace) -> Card:
    """Everything the card says, checked."""
    licence = given.licence or source.licence()
    if licence is None:
        known = ", ".join(Path(path).name for path in source.base_paths.values()) or "its bases"
        raise ReleaseError(
            f"what licence {known} bind the model to is not known; give --license ID, such as apache-2.0"
        )
    if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", licence):
        raise ReleaseError(
            f"--license {licence!r}: the Hub's identifiers are in lower case, such as llama2 or apache-2.0"
        )
    evaluations = [] if given.without_results else find_evaluations(source, given.results)
    return Card(source, given.repository, licence, given.dtype or stored_dtype(source), evaluations)


def release(given: argparse.Namespace) -> str:
    """Do it, and return the last line to print."""
    repository = check_repository(given.repository)
    source = find_source(given.run, given.merge, parse_bases(given.base))
    out = given.out or RELEASES / repository
    check_out(out)
    if given.space is not None:
        check_space(given.space, out)
        if given.plugin:
            raise ReleaseError("--space: the app of a method that --plugin brings has to be written by hand")
    if given.image is not None and not given.image.is_file():
        raise ReleaseError(f"--image {given.image}: no such file")
    if not given.dry_run:
        check_login()
    card = write_card(source, given)
    numbers = ", ".join(item.result["task"] for item in card.evaluations) or "none"
    logger.info("evaluation results in the card: %s", numbers)
    export(source, card, out)
    check_clean(out)
    seen = check_release(source, out, given.image, given.question, given.plugin or ())
    print(
        f"loaded back as {seen['class']} ({seen['dtype']}); {seen['kept']:g} of {seen['visual_tokens']} visual tokens, "
        f"{seen['kept_over_layers']:g} over the layers\n{seen['question']} -> {seen['answer']!r}"
    )
    if given.space is not None:
        command = write_space(given.space, out, repository, card.licence, source.form)
        check_clean(given.space)
        print(f"the Space is in {given.space}; after the release, upload it by: {command}")
    if given.dry_run:
        return f"dry run: {repository} was not uploaded; the release is in {out}"
    return f"uploaded: {upload(out, repository, given.private)}"


@command()
def main(words: list[str]) -> None:
    """Run the command."""
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logger.setLevel(logging.INFO)  # ours; the HTTP client's lines are of no interest here
    print(release(parse(words)))


if __name__ == "__main__":
    sys.exit(main())
