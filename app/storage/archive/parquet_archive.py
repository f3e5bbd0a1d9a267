"""
The archive of the histories: a folder with the rows of closed days, which are read as those in the tables are.

.. code-block:: text

    rows/module=orders/day=2026-11-27/part-0001.parquet      what the history has
    events/module=orders/day=2026-11-27/part-0001.parquet    what it has published, for other engines
    manifests/orders/2026-11-27.json                         written last: the day is archived

A file never changes once its day has a manifest, so what a reader has read of it stays valid. All methods block: call them in a
thread, and one at a time (`Archive.call`).
"""

from __future__ import annotations

__all__ = ["Archive", "ArchivedHistory", "Archives"]

import asyncio
import fcntl
import os
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from attrs import frozen

from app.storage.archive.history_content import POSITIONS, seq_of
from app.storage.archive.parquet_files import (
    StoredRow,
    events_between,
    joined,
    open_part,
    part_groups,
    read_events,
    read_group,
    verify_part,
)
from app.storage.archive.parquet_manifest import MANIFESTS, ArchiveUnusable, Manifest, Part, in_sequence, read_manifest

T = TypeVar("T")

GROUPS_MAX = 16
"""Row groups that are kept in memory, of 1 MiB of text each."""

FILES_MAX = 16
"""Files that are kept open."""

_Listing = tuple[tuple[str, str, int, int], ...]
"""Module, file name, time of the last change and size of each manifest."""


@frozen
class ArchivedHistory:
    """What the archive has of one module, by day."""

    manifests: Sequence[Manifest] = ()

    @property
    def through(self) -> int:
        """All numbers up to this one are in the archive, and none after it."""
        return self.manifests[-1].through if self.manifests else 0

    @property
    def last(self) -> tuple[int, str] | None:
        """Number and time of the last row; None if it has none."""
        if not self.manifests or self.manifests[-1].last_number is None:
            return None
        return self.manifests[-1].last_number, self.manifests[-1].last_at or ""

    @property
    def first_number(self) -> int | None:
        """The number of the first row; None if it has none."""
        return next((part.first for part in self.parts), None)

    @property
    def parts(self) -> list[Part]:
        """The files with its rows."""
        return [part for manifest in self.manifests for part in manifest.rows]


@frozen
class Archives:
    """What the archive has of all modules at one moment."""

    modules: Mapping[str, ArchivedHistory]
    listing: _Listing

    def of(self, module: str) -> ArchivedHistory:
        """Return what there is of *module*."""
        return self.modules.get(module, ArchivedHistory())


@frozen
class _EventGroup:
    """A row group of a file with events: the least and the greatest `seq` in it, their number, and where it is."""

    first: int
    last: int
    count: int
    module: str
    part: Part
    file: Any
    number: int


class Archive:
    """The archive in *folder*."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._executor = ThreadPoolExecutor(1, "history-archive")
        self._manifests: dict[tuple[str, str, int, int], Manifest] = {}
        self._archives: Archives | None = None
        self._files: OrderedDict[str, tuple[Any, list[tuple[int, int]]]] = OrderedDict()
        self._groups: OrderedDict[tuple[str, int], list[StoredRow]] = OrderedDict()
        self._begun: dict[tuple[str, int], Any] = {}
        """Row groups of which the last call of `events` has returned a part: at most about one of each module."""

    async def call(self, function: Callable[[], T]) -> T:
        """Call *function* in the thread of this archive: a folder that does not answer delays nothing else."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, function)

    def archives(self) -> Archives:
        """
        Return what the archive has now.

        Raises:
            ArchiveUnusable: The folder or a manifest cannot be read, or a day is missing.
        """
        listing = self._list()
        if self._archives is None or self._archives.listing != listing:
            by_module: dict[str, list[Manifest]] = {}
            for entry in listing:
                if entry not in self._manifests:
                    self._manifests[entry] = read_manifest(self.folder / MANIFESTS / entry[0] / entry[1])
                by_module.setdefault(entry[0], []).append(self._manifests[entry])
            ordered = {module: ArchivedHistory(in_sequence(self.folder, found)) for module, found in by_module.items()}
            self._archives = Archives(ordered, listing)
        return self._archives

    def is_current(self, archives: Archives) -> bool:
        """Return whether nothing was archived since *archives* was returned."""
        return self._list() == archives.listing

    def sizes(self, history: ArchivedHistory, first: int, last: int, count: int) -> dict[int, int]:
        """Return the size in bytes of up to *count* rows of *history*, by number, for the numbers from *first* to *last*."""
        found: dict[int, int] = {}
        for group in self._groups_between(history, first, last):
            start = bisect_left(group, (first,))
            for number, _, content in group[start : start + count - len(found)]:
                if number <= last:
                    found[number] = len(content)
            if len(found) == count:
                break
        return found

    def rows(self, history: ArchivedHistory, numbers: Collection[int]) -> list[StoredRow]:
        """Return the rows in *history* that exist under *numbers*."""
        wanted = sorted(number for number in numbers if number <= history.through)
        if not wanted:
            return []
        chosen = set(wanted)
        groups = self._groups_between(history, wanted[0], wanted[-1])
        return [row for group in groups for row in group if row[0] in chosen]

    def events(self, archives: Archives, modules: Collection[str], after: int, count: int) -> Any:
        """
        Return about *count* events of *modules* that follow the event with the sequence number *after*, as a `pyarrow.Table`.

        It has the columns of the files in ``events``, and ``module``. All events up to the greatest `seq` in it are there, in no
        order. None if there are none, or if those that follow have no file: the day is not archived for all modules yet, or it
        has an incomplete transaction.

        Raises:
            ArchiveUnusable: A file cannot be used.
        """
        until = seq_of(min(_events_through(archives.of(name), after) for name in modules), POSITIONS - 1)
        groups: list[_EventGroup] = []
        parts = [(part, name) for name in modules for each in archives.of(name).manifests for part in each.events]
        for part, name in sorted(parts, key=lambda found: found[0].first):
            if part.last <= after:
                continue
            if part.first > until or sum(group.count for group in groups if group.last < part.first) >= count:
                break
            file, limits = self._opened(part)
            for number, (first, last) in enumerate(limits):
                if last > after:
                    groups.append(_EventGroup(first, last, file.metadata.row_group(number).num_rows, name, part, file, number))
        total = 0
        for group in sorted(groups, key=lambda group: group.last):
            if total < count:
                total += group.count
                last = group.last
        if total >= count:
            until = min(until, last)
        chosen = [group for group in groups if group.first <= until]
        return joined([events_between(table, after, until) for table in self._event_tables(chosen, until)])

    def _event_tables(self, groups: Iterable[_EventGroup], until: int) -> Iterator[Any]:
        """Yield the events of *groups*; those of a group that goes on after *until* stay in memory for the next call."""
        begun, self._begun = self._begun, {}
        for each in groups:
            key = each.part.sha256, each.number
            table = begun[key] if key in begun else read_events(self.folder, each.part, each.file, each.number, each.module)
            if each.last > until:
                self._begun[key] = table
            yield table

    def verify(self, manifest: Manifest) -> None:
        """
        Compare all files of *manifest* with their hashes and counts.

        Raises:
            ArchiveUnusable: One of them differs.
        """
        for part in manifest.parts:
            verify_part(self.folder, part)

    def require_listed(self) -> None:
        """
        Ensure that every file that another engine would read is in a manifest.

        Raises:
            ArchiveUnusable: A file is in no manifest.
        """
        listed = {part.path for found in self.archives().modules.values() for each in found.manifests for part in each.parts}
        for path in sorted(self.folder.rglob("*.parquet")):
            if path.relative_to(self.folder).as_posix() not in listed:
                raise ArchiveUnusable(
                    f"{path}: no manifest has it, and another engine may count its rows twice; run `history archive` again, which finishes"
                    " an interrupted day, or delete it"
                )

    @contextmanager
    def lock(self) -> Iterator[None]:
        """
        Let no other process write to the archive, until the end of the context.

        Raises:
            ArchiveUnusable: Another process is writing to it, or the folder cannot be written.
        """
        path = self.folder / ".lock"
        with ArchiveUnusable.on_error(path, "correct the permissions, or name another folder"):
            self.folder.mkdir(parents=True, exist_ok=True)
            file = path.open("a+")
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.seek(0)
                process = file.read().strip() or "unknown"
                raise ArchiveUnusable(
                    f"{self.folder}: another `history archive` is writing to it (process {process}); wait for its end"
                ) from None
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
            yield

    def _list(self) -> _Listing:
        folder = self.folder / MANIFESTS
        with ArchiveUnusable.on_error(folder, "make it readable for this user, or correct HISTORY_ARCHIVE"):
            if not self.folder.is_dir():
                raise ArchiveUnusable(f"{self.folder}: there is no such folder; create it, or correct HISTORY_ARCHIVE")
            if not folder.exists():
                return ()
            found = []
            for module in sorted(os.listdir(folder)):
                for entry in os.scandir(folder / module):
                    if entry.name.endswith(".json") and not entry.name.startswith("."):
                        status = entry.stat()
                        found.append((module, entry.name, status.st_mtime_ns, status.st_size))
            return tuple(sorted(found))

    def _groups_between(self, history: ArchivedHistory, first: int, last: int) -> Iterator[list[StoredRow]]:
        """Yield the row groups that may have rows with numbers from *first* to *last*."""
        for part in history.parts:
            if part.first <= last and part.last >= first:
                file, limits = self._opened(part)
                for group, (least, greatest) in enumerate(limits):
                    if least <= last and greatest >= first:
                        yield self._group(part, file, group)

    def _opened(self, part: Part) -> tuple[Any, list[tuple[int, int]]]:
        def opened() -> tuple[Any, list[tuple[int, int]]]:
            file = open_part(self.folder, part)
            return file, part_groups(self.folder, part, file)

        return _cached(self._files, part.sha256, FILES_MAX, opened)

    def _group(self, part: Part, file: Any, group: int) -> list[StoredRow]:
        read = partial(read_group, self.folder, part, file, group)
        return _cached(self._groups, (part.sha256, group), GROUPS_MAX, read)


def _events_through(history: ArchivedHistory, after: int) -> int:
    """Return the number up to which the files have all events of *history* that follow *after*."""
    for manifest in history.manifests:
        if manifest.incomplete and seq_of(manifest.through, POSITIONS - 1) > after:
            return manifest.after
    return history.through


K = TypeVar("K")


def _cached(cache: OrderedDict[K, T], key: K, most: int, make: Callable[[], T]) -> T:
    """Return what *cache* has under *key*, or else *make* it; keep the *most* that were used last."""
    if key not in cache:
        cache[key] = make()
        while len(cache) > most:
            cache.popitem(last=False)
    cache.move_to_end(key)
    return cache[key]
