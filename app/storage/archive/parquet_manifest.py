"""
The manifests of an archive: one for each module and day, written after the files of that day are complete.

A manifest covers all numbers from the one that follows *after* to *through*, whether the module has rows under them or not;
*after* is *through* of the manifest before. So days follow each other without a gap, or one is missing. All modules of a database
have the same limits. A day is what its transactions were numbered with: where clocks differ, or a transaction takes long,
a few of its rows have a time of the day before or after.
"""

from __future__ import annotations

__all__ = [
    "FORMAT",
    "MANIFESTS",
    "ArchiveUnusable",
    "Manifest",
    "Part",
    "in_sequence",
    "manifest_path",
    "read_manifest",
    "write_manifest",
]

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from itertools import pairwise
from pathlib import Path

import orjson
from attrs import asdict, frozen

FORMAT = 1
"""The version of the archive's format; a reader refuses a newer one."""

MANIFESTS = "manifests"

_UNREADABLE = "restore the file from a copy"


class ArchiveUnusable(ValueError):
    """A file of the archive cannot be read or written; the message names the file, and what to do."""

    @classmethod
    @contextmanager
    def on_error(cls, path: Path, advice: str) -> Iterator[None]:
        """Raise it for an error of the operating system while the file at *path* is used."""
        try:
            yield
        except OSError as error:
            raise cls(f"{path}: {error.strerror or error}; {advice}") from error


@frozen
class Part:
    """One Parquet file; *first* and *last* are the least and the greatest number (in ``events``: `seq`) in it."""

    path: str
    """Relative to the folder of the archive."""
    count: int
    bytes: int
    sha256: str
    first: int
    last: int


@frozen
class Manifest:
    """What one day of *module* has; the hash of each file is in its *rows* or *events*."""

    module: str
    day: date
    after: int
    through: int
    last_number: int | None
    """The last row of the module up to *through*, also if that is in the file of an earlier day; None before its first row."""
    last_at: str | None
    rows: Sequence[Part]
    events: Sequence[Part]
    incomplete: int = 0
    """Transactions whose events are not in *events*, because a row to which they refer did not exist any more."""

    @property
    def parts(self) -> Sequence[Part]:
        """All files."""
        return (*self.rows, *self.events)

    @property
    def row_count(self) -> int:
        """The rows of all files."""
        return sum(part.count for part in self.rows)

    @property
    def event_count(self) -> int:
        """The events of all files."""
        return sum(part.count for part in self.events)


def manifest_path(folder: Path, module: str, day: date) -> Path:
    """Return where the manifest of *module* and *day* is in the archive at *folder*."""
    return folder / MANIFESTS / module / f"{day.isoformat()}.json"


def read_manifest(path: Path) -> Manifest:
    """
    Return the manifest at *path*.

    Raises:
        ArchiveUnusable: It cannot be read, is damaged, or was written by a newer release.
    """
    with ArchiveUnusable.on_error(path, "make it readable for this user"):
        content = path.read_bytes()
    try:
        document = orjson.loads(content)
        if document["format"] > FORMAT:
            raise ArchiveUnusable(
                f"{path}: has the format {document['format']} of a newer release; read it with that release"
            )
        del document["format"], document["counts"]
        rows, events = ([Part(**part) for part in document.pop(name)] for name in ("rows", "events"))
        document["day"] = date.fromisoformat(document["day"])
        manifest = Manifest(**document, rows=rows, events=events)
    except (LookupError, TypeError, ValueError) as error:
        if isinstance(error, ArchiveUnusable):
            raise
        raise ArchiveUnusable(f"{path}: is damaged ({error!r}); {_UNREADABLE}") from error
    if (manifest.module, manifest.day.isoformat()) != (path.parent.name, path.stem):
        raise ArchiveUnusable(f"{path}: is the manifest of {manifest.module} on {manifest.day}; {_UNREADABLE}")
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> Path:
    """
    Write *manifest*, atomically and durably, and return where it is.

    Raises:
        ArchiveUnusable: It cannot be written.
    """
    path = manifest_path(folder, manifest.module, manifest.day)
    document = {"format": FORMAT, **asdict(manifest), "day": manifest.day.isoformat()}
    document["counts"] = {"rows": manifest.row_count, "events": manifest.event_count}
    with ArchiveUnusable.on_error(path, "free space or correct the permissions, and run the command again"):
        make_folder(path.parent)
        temporary = path.with_name(f".{path.name}.tmp")
        with temporary.open("wb") as file:
            file.write(orjson.dumps(document, option=orjson.OPT_INDENT_2) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    return path


def in_sequence(folder: Path, manifests: Sequence[Manifest]) -> Sequence[Manifest]:
    """
    Return *manifests* of one module by day.

    Raises:
        ArchiveUnusable: A day between them is missing.
    """
    found = sorted(manifests, key=lambda manifest: manifest.day)
    for before, manifest in pairwise(found):
        if manifest.after != before.through:
            raise ArchiveUnusable(
                f"{manifest_path(folder, manifest.module, manifest.day)}: begins after transaction {manifest.after}, but the day"
                f" before it, {before.day}, ends with {before.through}: the manifest of a day between them is missing;"
                " restore it from a copy"
            )
    return found


def make_folder(path: Path) -> None:
    """Create the folder *path* and those above it, durably."""
    missing = [each for each in (path, *path.parents) if not each.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for each in missing:
        sync_folder(each.parent)


def sync_folder(path: Path) -> None:
    """Write the entries of the folder *path* to disk: a file that was renamed there keeps its name after a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
