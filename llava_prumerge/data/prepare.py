"""Gets training data ready: fetches the public sets, and checks records and images before hours are spent on them.

    python -m llava_prumerge.data.prepare download [pretrain] [finetune] [NAME ...]
    python -m llava_prumerge.data.prepare check RECIPE.yaml [key=value ...]
    python -m llava_prumerge.data.prepare check DATA.json --images DIR --tokenizer DIR

download: what is there is verified, what broke off is continued. check: every record is brought to its format, tokenised, masked and its images decoded, by the code that training uses. What has
been checked is remembered: a check that was killed goes on where it stopped, and a second one looks only at what has
changed. The exit code is 1 when a record is bad. Notes are printed and do not fail: a file name that promises another
format, a sample cut to the maximal length.
"""

# ruff: noqa: T201 (a command prints)

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from llava_prumerge.data.audit import Audit, describe, summarise
from llava_prumerge.data.download import SOURCES, Downloader, choose_sets, describe_sets, read_sources
from llava_prumerge.data.image_paths import trusted_folders
from llava_prumerge.data.recipe import REDUCTION_KEYS, RecipeError
from llava_prumerge.data.recipe_data import KEYS, RecipeData, count_image_tokens, read_recipe_data, says_places
from llava_prumerge.data.record_check import Checker
from llava_prumerge.data.record_files import SUFFIXES, read_records
from llava_prumerge.ground.command import Parser, command
from llava_prumerge.ground.files import whole_text, write_text
from llava_prumerge.ground.naming import shown
from llava_prumerge.text.chat_templates import OWN
from llava_prumerge.text.templates import get_template

DATA = Path("playground/data")
TEMPLATE, MAX_LENGTH, IMAGE_TOKENS = "vicuna_v1", 2048, 576


def gather_inputs(args: argparse.Namespace) -> RecipeData:
    """What to check: a record file or a recipe's, the options on top."""
    given = [*args.inputs, *args.settings]
    if not given:
        raise RecipeError("name a recipe, or a file of records")
    if Path(given[0]).suffix in SUFFIXES and args.inputs:
        if len(given) > 1:
            raise RecipeError(f"{given[1]!r}: a record file takes options, a recipe key=value")
        found = RecipeData(data=Path(given[0]))
    else:
        found = read_recipe_data(given)
    options = {"images": args.images, "tokenizer": args.tokenizer, "template": args.template, "videos": args.videos}
    options["max_length"] = args.max_length
    found = replace(found, **{name: value for name, value in options.items() if value is not None})
    for name in ("images", "tokenizer"):
        if getattr(found, name) is None:
            raise RecipeError(f"{found.data}: its {name} folder is not known; give --{name} DIR")
    for path in (found.data, found.images, found.tokenizer):
        if not path.exists():
            hint = "; `download` of this command fetches LLaVA's" if path.is_relative_to(DATA) else ""
            raise RecipeError(f"{path} does not exist{hint}")
    if not found.data.is_file():
        raise RecipeError(f"{found.data} must be a file")
    for folder in (found.images, found.tokenizer, *([found.videos] if found.videos else [])):
        if not folder.is_dir():
            raise RecipeError(f"{folder} must be a folder")
    return found


def make_checker(found: RecipeData, args: argparse.Namespace) -> Checker:
    """The settings of the check, defaults filled in as training does."""
    try:
        template = OWN if found.template == OWN else get_template(found.template or TEMPLATE).name
    except ValueError as error:
        raise RecipeError(str(error)) from error
    image_tokens, model = args.image_tokens, ""
    if image_tokens is None and found.whole and found.backbone is not None and says_places(found.backbone):
        image_tokens, model = 0, str(found.backbone)  # its processor says it of each image
    if image_tokens is None:
        image_tokens = IMAGE_TOKENS if found.backbone is None else count_image_tokens(found.backbone)
    length = MAX_LENGTH if found.max_length is None else found.max_length
    trusted = trusted_folders([*found.trusted, *args.trusted])
    videos = "" if found.videos is None else str(found.videos)
    return Checker(
        str(found.images), str(found.tokenizer), template, image_tokens, length, trusted, model, videos, found.frames
    )


def check(args: argparse.Namespace) -> int:
    """The command `check`. -> exit code"""
    from tqdm import tqdm

    found = gather_inputs(args)
    checker = make_checker(found, args)
    if sys.stderr.isatty():
        print(f"reading {found.data} (a minute for a gigabyte, the first time)", file=sys.stderr)
    audit = Audit(found.data, checker)
    with tqdm(total=audit.records, unit=" records", disable=None) as bar:
        chunks = audit.run(args.workers, bar.update)
    summary = summarise(chunks)
    text = describe(summary)
    report = args.report or audit.journal.with_suffix(".report.json")
    settings = {"data": str(found.data), "sha256": audit.digest, **asdict(checker)}
    write_text(report, json.dumps({**settings, **summary}, indent=1) + "\n")
    write_text(report.with_suffix(".txt"), f"{found.data}\n{text}\n")
    print(f"{text}\nreport: {report}")
    if args.clean:
        sound = sound_records(found.data, {bad["index"] for bad in summary["bad_records"]})
        print(f"{write_records(args.clean, sound)} sound records written to {args.clean}")
    return 1 if summary["bad"] or not summary["records"] else 0


def download(args: argparse.Namespace) -> int:
    """The command `download`. -> exit code"""
    from tqdm import tqdm

    sets = read_sources(args.sources)
    if not args.names:
        print(describe_sets(sets))
        return 0
    chosen = choose_sets(sets, args.names)
    downloader = Downloader(args.to, print, partial(tqdm, disable=None), args.discard_archives)
    missing = [one.name for one in chosen if not downloader.get(one)]
    return 1 if missing else 0


def sound_records(data: Path, bad: set[int]) -> Iterator[Any]:
    """The raw records that are not bad."""
    return (record for index, record in enumerate(read_records(data)) if index not in bad)


def write_records(path: Path, records: Iterator[Any]) -> int:
    """Writes records one by one, as a list or as lines. -> their number"""
    lines, count = path.suffix == ".jsonl", 0
    with whole_text(path) as file:
        for record in records:
            opening = "" if lines else ",\n" if count else "[\n"
            file.write(opening + json.dumps(record, ensure_ascii=False) + "\n" * lines)
            count += 1
        if not lines:
            file.write("\n]\n" if count else "[]\n")
    return count


def json_path(text: str) -> Path:
    """A path that a list of records or a report can have."""
    if Path(text).suffix not in SUFFIXES:
        raise argparse.ArgumentTypeError(f"{text!r} must end in .json")
    return Path(text)


def positive(text: str) -> int:
    """A number of something, which fits into an index."""
    if not re.fullmatch("[0-9]{1,7}", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(
            f"{shown(text, 40)} must be a whole number, 1 or more, of seven digits at most"
        )
    return int(text)


def make_parser() -> Parser:
    """The command line."""
    parser = Parser("llava_prumerge.data.prepare", __doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    checking = commands.add_parser("check", help="check every record and image", settings=(*KEYS, *REDUCTION_KEYS))
    add = checking.add_argument
    what = "a recipe with its key=value, or a file of records, .json or .jsonl"
    add("inputs", nargs="*", metavar="INPUT", help=what)
    add("--images", type=Path, metavar="DIR", help="folder that the records' image paths start from")
    add("--videos", type=Path, metavar="DIR", help="folder that their video paths start from (default: that of images)")
    add("--tokenizer", type=Path, metavar="DIR", help="folder of a tokenizer or a checkpoint")
    add("--template", help=f"conversation template (default: the recipe's, else {TEMPLATE})")
    add(
        "--image-tokens",
        type=positive,
        metavar="N",
        help=f"placeholders per image (default: the model's, else {IMAGE_TOKENS})",
    )
    add(
        "--max-length",
        type=positive,
        metavar="N",
        help=f"placeholders counted (default: the recipe's, else {MAX_LENGTH})",
    )
    where = "links in the image folder may lead to here; repeatable (a recipe's key: trusted)"
    add("--trusted", "--trust", action="append", default=[], metavar="DIR", help=where)
    add("--workers", type=positive, default=available_cores(), help="processes (default: the cores, here %(default)s)")
    add(
        "--report",
        type=json_path,
        metavar="OUT.json",
        help="the report's path (default: in the cache); OUT.txt is for people",
    )
    add("--clean", type=json_path, metavar="OUT.json", help="write the sound records here")
    checking.set_defaults(command=check)
    fetching = commands.add_parser("download", help="fetch public data sets into LLaVA's tree")
    add = fetching.add_argument
    add("names", nargs="*", metavar="NAME", help="sets or groups of them; none: list them")
    add("--to", type=Path, default=DATA, metavar="DIR", help="(default: %(default)s)")
    add("--discard-archives", action="store_true", help="delete zip files once they are unpacked")
    add("--sources", type=Path, default=SOURCES, metavar="YAML", help="other sets, in the form of sources.yaml")
    fetching.set_defaults(command=download)
    return parser


def available_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@command(interrupted="stopped; the same command goes on from here")
def main(words: list[str]) -> int:
    """Entry point. -> exit status: 0 all is well, 1 something is not"""
    args = make_parser().parse_args(words)
    return args.command(args)


if __name__ == "__main__":
    sys.exit(main())
