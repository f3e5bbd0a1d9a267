"""
Parquet files of an archive: write the rows and the events of a day, and read rows again.

``rows`` has what a history has, as JSON text: everything can be decided again from it. ``events`` has one row for each published
event, with a column for each of its members, for engines that read Parquet. Both are compressed with Zstandard. A file
has its name once it is complete and on disk.
"""

from __future__ import annotations

__all__ = [
    "DatasetWriter",
    "StoredRow",
    "arrow",
    "at_text",
    "events_between",
    "joined",
    "open_part",
    "part_groups",
    "read_events",
    "read_group",
    "verify_part",
]

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

from app.storage.archive.parquet_manifest import ArchiveUnusable, Part, make_folder, sync_folder

StoredRow = tuple[int, str, bytes]
"""The number of a row, its time as the database stores it, and the JSON text of its entries."""

GROUP_BYTES = {"rows": 2**20, "events": 2**24}
"""Bytes of text in one row group: the least that a reader fetches. Engines want larger ones than a page of the API does."""

PART_BYTES = 2**30
"""Bytes of text from which on a file is complete and the next one begins."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ADVICE = "free space or correct the permissions, and run the command again: the day is not archived yet"


def arrow(name: str = "pyarrow") -> Any:
    """
    Return the Python module *name* of pyarrow.

    Raises:
        ArchiveUnusable: It is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise ArchiveUnusable(
            "the archive of the history needs pyarrow: pip install 'fulfilment[analytics]'"
        ) from error


def _schema(dataset: str) -> Any:
    pa = arrow()
    at = ("at", pa.timestamp("us", "UTC"))
    if dataset == "rows":
        return pa.schema([("number", pa.int64()), at, ("content", pa.string())])
    ids = [(name, pa.string()) for name in ("event_id", "cause_id", "correlation_id", "subject", "key")]
    return pa.schema([("seq", pa.int64()), *ids, at, ("data", pa.string())])


class DatasetWriter:
    """Writes the files of one dataset (``rows`` or ``events``), module and day."""

    def __init__(self, folder: Path, dataset: str, module: str, day: str) -> None:
        """*folder* is that of the archive; files that an interrupted run has left for the day are deleted."""
        self._archive, self._dataset = folder, dataset
        self._folder = folder / dataset / f"module={module}" / f"day={day}"
        self._schema = _schema(dataset)
        self._columns: list[list[Any]] = [[] for _ in self._schema.names]
        self._bytes = self._part_bytes = 0
        self._at = self._schema.names.index("at")
        self._writer: Any = None
        self._file: Any = None
        self._first, self._last, self._count = 0, 0, 0
        self.parts: list[Part] = []
        """The files that are complete."""
        with ArchiveUnusable.on_error(self._folder, _ADVICE):
            for path in self._folder.glob("*") if self._folder.is_dir() else ():
                path.unlink()

    def add(self, values: Sequence[Any], size: int) -> None:
        """Add one row with *values* by column, of about *size* bytes."""
        for column, value in zip(self._columns, values, strict=True):
            column.append(value)
        self._bytes += size
        if self._bytes >= GROUP_BYTES[self._dataset]:
            self._write_group()
            if self._part_bytes >= PART_BYTES:
                self._finish_part()

    def close(self) -> Sequence[Part]:
        """Complete the last file; return all."""
        self._write_group()
        self._finish_part()
        return self.parts

    def abort(self) -> None:
        """Close the file that is not complete, and delete it."""
        if self._file is None:
            return
        if self._writer is not None:
            self._writer.is_open = False  # or it would write the end of the file when it is collected
        with suppress(OSError):  # what is still in its buffer does not fit on the disk either
            self._file.close()
        with suppress(OSError):
            self._path().unlink()
        self._file = self._writer = None

    def _path(self) -> Path:
        return self._folder / f".part-{len(self.parts) + 1:04}.parquet.tmp"

    def _write_group(self) -> None:
        numbers = self._columns[0]
        if not numbers:
            return
        if self._writer is None:
            self._open()
            self._first, self._count = numbers[0], 0
        self._last, self._count = numbers[-1], self._count + len(numbers)
        self._columns[self._at] = [datetime.fromisoformat(at) for at in self._columns[self._at]]
        table = arrow().table(self._columns, schema=self._schema)
        with ArchiveUnusable.on_error(self._path(), _ADVICE):
            self._writer.write_table(table, row_group_size=len(numbers))
        self._part_bytes += self._bytes
        self._columns, self._bytes = [[] for _ in self._columns], 0

    def _open(self) -> None:
        path = self._path()
        with ArchiveUnusable.on_error(path, _ADVICE):
            make_folder(self._folder)
            self._file = path.open("wb")
            # Few values repeat in the other columns; a dictionary for each would be tried, and dropped.
            self._writer = arrow("pyarrow.parquet").ParquetWriter(
                self._file, self._schema, compression="zstd", use_dictionary=["subject"] if self._dataset == "events" else False,
                write_page_checksum=True, write_statistics=[self._schema.names[0], "at"],
            )  # fmt: skip

    def _finish_part(self) -> None:
        if self._writer is None:
            return
        path = self._path()
        final = path.with_name(path.name.removeprefix(".").removesuffix(".tmp"))
        with ArchiveUnusable.on_error(path, _ADVICE):
            self._writer.close()
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            size, sha256 = path.stat().st_size, _sha256(path)
            path.replace(final)
            sync_folder(self._folder)
        relative = final.relative_to(self._archive).as_posix()
        self.parts.append(Part(relative, self._count, size, sha256, self._first, self._last))
        self._writer = self._file = None
        self._part_bytes = 0


def open_part(folder: Path, part: Part) -> Any:
    """
    Return the `pyarrow.parquet.ParquetFile` of *part* in the archive at *folder*.

    Raises:
        ArchiveUnusable: It is not what the manifest describes.
    """
    path = folder / part.path
    pq = arrow("pyarrow.parquet")
    with _damage(path):
        if path.stat().st_size != part.bytes:
            raise ArchiveUnusable(
                f"{path}: has {path.stat().st_size} bytes, and its manifest {part.bytes}; restore it from a copy"
            )
        return pq.ParquetFile(path, page_checksum_verification=True)


def part_groups(folder: Path, part: Part, file: Any) -> list[tuple[int, int]]:
    """
    Return the least and the greatest number of each row group of *file*, which is *part*.

    Raises:
        ArchiveUnusable: It has other rows than its manifest describes.
    """
    path = folder / part.path
    with _damage(path):
        metadata = file.metadata
        statistics = [metadata.row_group(n).column(0).statistics for n in range(metadata.num_row_groups)]
        groups = [(each.min, each.max) for each in statistics]
        if (metadata.num_rows, groups[0][0], groups[-1][1]) != (part.count, part.first, part.last):
            raise ArchiveUnusable(f"{path}: has other rows than its manifest; restore both from a copy")
        return groups


def read_group(folder: Path, part: Part, file: Any, group: int) -> list[StoredRow]:
    """Return the rows of a row *group* of *file*, which is *part*."""
    pa = arrow()
    with _damage(folder / part.path):
        table = file.read_row_group(group, use_threads=False)
        numbers, contents = table.column("number").to_pylist(), table.column("content").cast(pa.binary()).to_pylist()
        moments = table.column("at").cast(pa.int64()).to_pylist()
        return [(number, at_text(at), content) for number, at, content in zip(numbers, moments, contents, strict=True)]


def read_events(folder: Path, part: Part, file: Any, group: int, module: str) -> Any:
    """Return the events in a row *group* of *file*, which is *part*; *module* is a column."""
    with _damage(folder / part.path):
        table = file.read_row_group(group, use_threads=False)
        return table.append_column("module", arrow().repeat(module, table.num_rows))


def events_between(table: Any, after: int, until: int) -> Any:
    """Return the events in *table* with a `seq` after *after*, up to *until*."""
    pc = arrow("pyarrow.compute")
    is_wanted = pc.and_(pc.greater(table["seq"], after), pc.less_equal(table["seq"], until))
    return table if pc.all(is_wanted).as_py() else table.filter(is_wanted)


def joined(tables: Sequence[Any]) -> Any:
    """Return the rows of *tables* in one; None if there are none."""
    return arrow().concat_tables(tables) if any(table.num_rows for table in tables) else None


def at_text(microseconds: int) -> str:
    """Return a time in *microseconds* since 1970 as the database stores it."""
    return (_EPOCH + timedelta(microseconds=microseconds)).isoformat(timespec="microseconds")


def verify_part(folder: Path, part: Part) -> None:
    """
    Read *part* whole, and compare it with what its manifest has.

    Raises:
        ArchiveUnusable: It is not there, or differs.
    """
    path = folder / part.path
    with _damage(path):
        if _sha256(path) != part.sha256:
            raise ArchiveUnusable(f"{path}: its SHA-256 differs from that in its manifest; restore it from a copy")
    part_groups(folder, part, open_part(folder, part))


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Raise `ArchiveUnusable` for what is wrong with the file at *path*."""
    try:
        yield
    except ArchiveUnusable:
        raise
    except FileNotFoundError as error:
        raise ArchiveUnusable(f"{path}: does not exist, but its manifest does; restore it from a copy") from error
    except PermissionError as error:
        raise ArchiveUnusable(f"{path}: {error.strerror}; make it readable for this user") from error
    except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
        why = (str(error).splitlines() or [repr(error)])[0]
        raise ArchiveUnusable(f"{path}: is damaged ({why}); restore it from a copy") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
