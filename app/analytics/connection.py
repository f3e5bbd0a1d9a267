"""Open the DuckDB file, closed off from everything else, and explain what DuckDB reports."""

from __future__ import annotations

__all__ = ["connect", "unusable"]

import re
import shutil
from pathlib import Path

import duckdb

from app.analytics.errors import FileInUse, FileUnusable

LOG_SIZE = "256MB"
"""How large the log grows before it is written into the file: each time, blocks that are not full are written again."""

SPILLED_GB_MAX = 10.0
"""What queries put into the folder beside the file at most, or half of the free disk if that is less."""


def connect(
    path: Path | None, memory: str, *, is_writing: bool = True, threads: int | None = None
) -> duckdb.DuckDBPyConnection:
    """
    Open the file at *path*, or a database in memory; the connection reaches no other file, and no setting can be changed.

    A query uses up to *threads* threads, by default one for each processor. A database in memory writes nothing to the disk.

    Raises:
        FileInUse: Another process has it open.
        FileUnusable: It is damaged, of a newer release of DuckDB, or cannot be opened.
    """
    config: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": memory,
        "temp_directory": "" if path is None else f"{path}.tmp",
        "max_temp_directory_size": _spilled_max(path),
        "autoinstall_known_extensions": False,
        "checkpoint_threshold": LOG_SIZE,
        "TimeZone": "UTC",
    }
    if threads is not None:
        config["threads"] = threads
    try:
        if is_writing and path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists() and not path.stat().st_size:
                path.unlink()  # a process that was killed before it had written anything
        connection = duckdb.connect(":memory:" if path is None else str(path), read_only=not is_writing, config=config)
        connection.execute("SET enable_external_access = false")
        connection.execute("SET lock_configuration = true")
    except OSError as error:
        raise FileUnusable(f"{path}: {error.strerror}: correct the permissions, or name another file") from None
    except duckdb.Error as error:
        if isinstance(error, duckdb.IOException) and " lock " in str(error):
            raise FileInUse(f"{path}: another process has it open{_process(error)}: end that first") from None
        raise unusable(path, error) from None
    return connection


def unusable(path: Path | None, error: duckdb.Error) -> FileUnusable:
    """Return what to do about *error*, with which DuckDB has refused to open, to read or to write the file."""
    first = str(error).partition("\n")[0]
    text = first.lower()
    if "no space left" in text or "out of disk" in text or "file too large" in text:
        return FileUnusable(f"{path}: the disk is full: free some space and start again; nothing is lost ({first})")
    if "newer version" in text or "version number" in text:
        return FileUnusable(f"{path}: was written by a newer release of DuckDB: install that, or name another file ({first})")
    if "corrupt" in text or "not a valid" in text or "enough bytes" in text or isinstance(error, duckdb.FatalException):
        advice = "move it away and start again, and it is made anew from the histories"
        return FileUnusable(f"{path}: is damaged: {advice} ({first})")
    return FileUnusable(f"{path}: cannot be used: {first}")


def _spilled_max(path: Path | None) -> str:
    """Return what may be spilled beside *path*: DuckDB itself would take nine tenths of the disk, which the databases may be on."""
    most = int(SPILLED_GB_MAX * 10**9)
    if path is not None and path.parent.exists():
        most = min(most, shutil.disk_usage(path.parent).free // 2)
    return f"{most}B"


def _process(error: Exception) -> str:
    found = re.search(r"PID [0-9]+", str(error))
    return f" ({found[0]})" if found else ""
