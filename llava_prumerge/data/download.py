"""The public data sets, fetched into LLaVA's tree from the sources that LLaVA documents (sources.yaml)."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from llava_prumerge.data.archive import unpack
from llava_prumerge.data.fetch import fetch
from llava_prumerge.data.listed_images import fetch_listed, names_in_records, read_list
from llava_prumerge.ground.errors import FileError, InputError
from llava_prumerge.ground.files import write_json
from llava_prumerge.ground.naming import not_known
from llava_prumerge.ground.reading import read_json_object
from llava_prumerge.ground.yaml_files import read_yaml

SOURCES = Path(__file__).with_name("sources.yaml")
HUB = "https://huggingface.co/"
ARCHIVES = ".downloads"


@dataclass(frozen=True)
class RemoteFile:
    """A file at an address; `to` or `unpack_to` is where it goes below the data folder."""

    url: str
    to: str | None = None
    unpack_to: str | None = None
    sha256: str | None = None

    @property
    def address(self) -> str:
        """The url, at `$HF_ENDPOINT` where that stands in for the Hub."""
        endpoint = os.environ.get("HF_ENDPOINT")
        return self.url.replace(HUB, f"{endpoint.rstrip('/')}/", 1) if endpoint else self.url


@dataclass(frozen=True)
class PublicSet:
    """One data set.

    Args:
        name: what it is asked for by.
        group: sets that are asked for together.
        what: it is.
        files: that can be fetched.
        listed: `list`, `to` and `only_in`: pictures that a file names one by one.
        by_hand: `path` that must be there and the `page` that has it.
    """

    name: str
    group: str
    what: str
    files: tuple[RemoteFile, ...] = ()
    listed: dict[str, str] | None = None
    by_hand: dict[str, str] | None = None


def read_sources(path: Path = SOURCES) -> dict[str, PublicSet]:
    """The sets of a file like sources.yaml, by name."""
    try:
        content = read_yaml(path)
        sets = {}
        for name, values in content.items():
            files = tuple(RemoteFile(**file) for file in values.get("files", ()))
            sets[name] = PublicSet(name, **{**values, "files": files})
            for place in _places(sets[name]):
                if PurePosixPath(place).is_absolute() or ".." in PurePosixPath(place).parts:
                    raise InputError(f"{path}: {name}: {place!r} is not below the data folder")
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(f"{path} is no file of data sources: {' '.join(str(error).split())}") from error
    return sets


def _places(one: PublicSet) -> list[str]:
    for file in one.files:
        if (file.to is None) == (file.unpack_to is None):
            raise ValueError(f"{file.url} must have either to or unpack_to")
    files = [str(file.to or file.unpack_to) for file in one.files]
    listed = [one.listed[key] for key in ("list", "to", "only_in")] if one.listed else []
    return [*files, *listed, *([one.by_hand["path"]] if one.by_hand else [])]


def choose_sets(sets: dict[str, PublicSet], names: list[str]) -> list[PublicSet]:
    """The sets of these names or groups."""
    chosen: dict[str, PublicSet] = {}
    for name in names:
        found = [one for one in sets.values() if name in (one.name, one.group)]
        if not found:
            groups = dict.fromkeys(one.group for one in sets.values())
            raise InputError(not_known("data set", name, [*groups, *sets]))
        chosen |= {one.name: one for one in found}
    return list(chosen.values())


@dataclass
class Downloader:
    """Fetches sets into a folder.

    Args:
        folder: playground/data, or its like.
        say: told a line for people about everything that is in place.
        bar: makes a progress bar of a title, a total and a unit; see `tqdm`.
        discard_archives: whether zip files are deleted when they are unpacked.
    """

    folder: Path
    say: Callable[[str], object]
    bar: Callable[..., Any]
    discard_archives: bool = False

    def get(self, one: PublicSet) -> bool:
        """Fetches a set. -> whether all of it is there

        Raises:
            FetchError, ArchiveError: the whole command cannot go on.
        """
        for file in one.files:
            if file.to is not None:
                digest = self._fetch(file, self.folder / file.to)
                self.say(f"{one.name}: {self.folder / file.to} is whole (SHA-256 {digest})")
            else:
                self._fetch_and_unpack(one, file)
        if one.by_hand and not (self.folder / one.by_hand["path"]).exists():
            self.say(f"{one.name}: fetch {self.folder / one.by_hand['path']} by hand from {one.by_hand['page']}")
            return False
        return self._get_listed(one) if one.listed else True

    def _fetch(self, file: RemoteFile, target: Path) -> str:
        with self.bar(desc=target.name, unit="B", unit_scale=True, unit_divisor=1024) as bar:

            def report(done: int, total: int | None) -> None:
                if not bar.n:  # what an earlier run fetched says nothing about the time left
                    bar.total, bar.initial, bar.n, bar.last_print_n = total, done, done, done
                bar.update(done - bar.n)

            return fetch(file.address, target, file.sha256, report)

    def _fetch_and_unpack(self, one: PublicSet, file: RemoteFile) -> None:
        folder = self.folder / str(file.unpack_to)
        address = urlsplit(file.url)  # two sets may share an archive
        archive = self.folder / ARCHIVES / f"{address.hostname}{address.path.replace('/', '-')}"
        notes = archive.with_name(f"{archive.name}.{one.name}.json")
        done = read_notes(notes)
        if done is None or not folder.is_dir() or archive.exists():
            digest = self._fetch(file, archive)
            if done is None or done["sha256"] != digest or not folder.is_dir():
                size = archive.stat().st_size
                with self.bar(desc=f"{one.name}: unpacking", total=size, unit="B", unit_scale=True) as bar:
                    done = {"sha256": digest, "files": unpack(archive, folder, bar.update)}
                write_json(notes, done, indent=None)
            if self.discard_archives:
                archive.unlink()
        self.say(f"{one.name}: {folder} holds the {done['files']:,} files of {file.url}")

    def _get_listed(self, one: PublicSet) -> bool:
        listed, records = one.listed or {}, self.folder / (one.listed or {})["only_in"]
        wanted = names_in_records(records, listed["to"]) if records.exists() else None
        addresses = read_list(self.folder / listed["list"], wanted)
        folder = self.folder / listed["to"]
        with self.bar(desc=f"{one.name}: pictures", total=len(addresses), unit="") as bar:
            tally = fetch_listed(addresses, folder, bar.update)
        unlisted = sorted((wanted or set()) - set(addresses))
        tally.failed |= dict.fromkeys(unlisted, f"not in {self.folder / listed['list']}")
        report = (self.folder / listed["list"]).with_name("not_fetched.json")
        write_json(report, tally.failed)
        self.say(
            f"{one.name}: {folder}: {tally.fetched} fetched, {tally.there} there before, {len(tally.failed)} not to be had"
            + (f" (reasons in {report}; the same command tries them again)" if tally.failed else "")
        )
        return not tally.failed


def read_notes(path: Path) -> dict[str, Any] | None:
    """What was noted of an archive that was unpacked; None where nothing is, or nothing that can be read."""
    try:
        noted = read_json_object(path)
    except FileError:
        return None
    return noted if isinstance(noted.get("sha256"), str) and isinstance(noted.get("files"), int) else None


def describe_sets(sets: dict[str, PublicSet]) -> str:
    """A table of what can be fetched."""
    lines = []
    for one in sets.values():
        hand = " (in part by hand)" if one.by_hand and (one.files or one.listed) else " (by hand)" * bool(one.by_hand)
        lines.append(f"{one.group:<10}{one.name:<16}{one.what}{hand}")
    return "\n".join(lines)
