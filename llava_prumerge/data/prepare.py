"""Checks a LLaVA record file before hours are spent on it.

    python -m llava_prumerge.data.prepare check DATA.json --images DIR --tokenizer DIR

Every record is brought to its format, tokenised, masked and its images decoded, by the code that training uses. The
exit code is 1 when a record is bad. Notes are printed and do not fail: a file name that promises another format, a
sample cut to the maximal length.
"""

# ruff: noqa: T201 (a command prints)

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_prumerge.data.conversation import IGNORE_INDEX, TEMPLATES, MaskError, encode_training, truncate
from llava_prumerge.data.images import ImageError, contained_path, load_image, misnamed_format
from llava_prumerge.data.records import RecordError, normalise_record, read_records

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SHOWN = 5
_CHUNK = 32
# Any id outside the vocabulary will do, as no model sees it.
_PLACEHOLDER = -200


@dataclass(frozen=True)
class Finding:
    """One thing to say about a record; `bad` makes the check fail."""

    kind: str
    sample_id: str
    index: int
    detail: str
    bad: bool = True


@dataclass(frozen=True)
class Checked:
    """What became of one record."""

    findings: tuple[Finding, ...]
    images: int = 0
    tokens: int = 0
    supervised: int = 0

    @property
    def bad(self) -> bool:
        return any(finding.bad for finding in self.findings)


@dataclass(frozen=True)
class Checker:
    """Checks single records; plain values only, so that it travels to worker processes."""

    images: str
    tokenizer_path: str
    template: str
    image_tokens: int
    max_length: int
    trusted: tuple[str, ...] = ()

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.tokenizer_path)

    def __call__(self, numbered: tuple[int, Any]) -> Checked:
        """Args: numbered, a record's index and its raw content."""
        index, raw = numbered
        try:
            record = normalise_record(raw, index)
        except RecordError as error:
            return Checked((Finding(error.kind, str(error.sample_id), index, error.reason),))
        found, tokens, supervised = self._check_text(record, index)
        for path in record["image"]:
            found += self._check_image(path, record["id"], index)
        return Checked(tuple(found), len(record["image"]), tokens, supervised)

    def _check_text(self, record: dict[str, Any], index: int) -> tuple[list[Finding], int, int]:
        try:
            encoded = encode_training(self.tokenizer, record, self.template, _PLACEHOLDER, self.image_tokens)
            ids, labels = truncate(encoded["input_ids"], encoded["labels"], _PLACEHOLDER, self.max_length)
        except MaskError as error:
            return [Finding(error.kind, record["id"], index, error.reason)], 0, 0
        found, full = [], len(encoded["input_ids"])
        if len(ids) < full:
            detail = f"cut to length: {full} tokens, max_length {self.max_length}"
            found.append(Finding("cut to length", record["id"], index, detail, bad=False))
        return found, len(ids), sum(label != IGNORE_INDEX for label in labels)

    def _check_image(self, path: str, sample_id: str, index: int) -> list[Finding]:
        try:
            load_image(self.images, path, trusted=self.trusted)
        except ImageError as error:
            return [Finding(error.kind, sample_id, index, error.reason)]
        if found := misnamed_format(contained_path(self.images, path, self.trusted)):
            return [Finding("misnamed", sample_id, index, f"misnamed: {path!r} is {found}", bad=False)]
        return []


def check_records(records: Sequence[Any], checker: Checker, workers: int = 1) -> Iterator[Checked]:
    """Checks records in order, in this process or in `workers` others."""
    if workers <= 1:
        yield from map(checker, enumerate(records))
        return
    import multiprocessing

    # Fork would copy the tokenizer's running threads.
    with multiprocessing.get_context("spawn").Pool(workers, _start_worker, (checker,)) as pool:
        yield from pool.imap(_check_in_worker, enumerate(records), chunksize=_CHUNK)


_worker_checker: Checker | None = None


def _start_worker(checker: Checker) -> None:
    global _worker_checker
    _worker_checker = checker


def _check_in_worker(numbered: tuple[int, Any]) -> Checked:
    return _worker_checker(numbered)


def summarise(results: Sequence[Checked]) -> dict[str, Any]:
    """Counts by kind, the first offenders of each, and what the sound samples amount to."""
    sound = [result for result in results if not result.bad]
    summary: dict[str, Any] = {
        "records": len(results),
        "bad": len(results) - len(sound),
        "images": sum(result.images for result in sound),
        "text_only": sum(not result.images for result in sound),
        "tokens": sum(result.tokens for result in sound),
        "supervised_tokens": sum(result.supervised for result in sound),
        "longest": max((result.tokens for result in sound), default=0),
        "faults": {},
        "notes": {},
    }
    for result in results:
        for finding in result.findings:
            group = summary["faults" if finding.bad else "notes"]
            entry = group.setdefault(finding.kind, {"count": 0, "first": []})
            entry["count"] += 1
            if len(entry["first"]) < _SHOWN:
                entry["first"].append({name: getattr(finding, name) for name in ("sample_id", "index", "detail")})
    return summary


def _print_summary(summary: dict[str, Any]) -> None:
    print(
        f"{summary['records']} records, {summary['bad']} bad; the sound ones: {summary['images']} images, "
        f"{summary['text_only']} without image, {summary['tokens']} tokens ({summary['supervised_tokens']} with loss), "
        f"longest {summary['longest']}"
    )
    for title in ("faults", "notes"):
        for kind, entry in sorted(summary[title].items(), key=lambda item: -item[1]["count"]):
            print(f"{title[:-1]}: {entry['count']} x {kind}")
            for first in entry["first"]:
                print(f"    {first['sample_id']} (record {first['index']}): {first['detail']}")


def _check(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    checker = Checker(
        str(args.images), str(args.tokenizer), args.template, args.image_tokens, args.max_length, tuple(args.trust)
    )
    records = list(read_records(args.data))
    checks = check_records(records, checker, args.workers)
    results = list(tqdm(checks, total=len(records), unit=" records", disable=None))
    summary = summarise(results)
    _print_summary(summary)
    if args.report:
        args.report.write_text(json.dumps({"data": str(args.data), **asdict(checker), **summary}, indent=1) + "\n")
    if args.clean:
        sound = [record for record, result in zip(records, results, strict=True) if not result.bad]
        args.clean.write_text(json.dumps(sound, ensure_ascii=False), encoding="utf-8")
        print(f"{len(sound)} sound records written to {args.clean}")
    return 1 if summary["bad"] or not records else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m llava_prumerge.data.prepare", description=__doc__.split("\n")[0])
    check = parser.add_subparsers(required=True, metavar="COMMAND").add_parser("check", help="check every record")
    check.add_argument("data", type=Path, help="records in LLaVA's format, .json or .jsonl")
    check.add_argument("--images", type=Path, required=True, help="folder that the records' image paths start from")
    check.add_argument("--tokenizer", type=Path, required=True, help="folder of a tokenizer or a checkpoint")
    check.add_argument("--template", default="vicuna_v1", choices=TEMPLATES, help="(default: %(default)s)")
    check.add_argument("--image-tokens", type=int, default=576, help="placeholders per image (default: %(default)s)")
    check.add_argument("--max-length", type=int, default=2048, help="placeholders counted (default: %(default)s)")
    check.add_argument("--trust", action="append", default=[], metavar="DIR", help="links may lead to here; repeatable")
    check.add_argument("--workers", type=int, default=1, help="processes (default: %(default)s)")
    check.add_argument("--report", type=Path, metavar="OUT.json", help="write the summary here")
    check.add_argument("--clean", type=Path, metavar="OUT.json", help="write the sound records here")
    check.set_defaults(command=_check)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; the result is the exit code."""
    parser = _parser()
    args = parser.parse_args(arguments)
    for path in (args.data, args.images, args.tokenizer):
        if not path.exists():
            parser.error(f"{path} does not exist")
    return args.command(args)


if __name__ == "__main__":
    sys.exit(main())
