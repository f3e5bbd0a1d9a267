"""Count what a process does: calls of functions, statements and rows of SQLite, and what SQLite writes to the disk."""

from __future__ import annotations

__all__ = ["CallCounter", "SqliteCounter"]

import _sqlite3
import ctypes
import sqlite3
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

ROOT = Path(__file__).parents[2]
PACKAGES = ("app", "bus", "config", "modules")


class CallCounter:
    """
    Counts function calls: ``calls`` of the project's own code, and ``library_calls`` of everything else.

    A call counts as the project's own if a function of the project is called or calls, a function written in C included.
    So its number does not depend on what a library does inside. Calls of the tests do not count.
    """

    def __init__(self, counts: Counter[str]) -> None:
        self._counts = counts
        self._owners: dict[CodeType, str] = {}

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count within this block, in this thread."""
        sys.setprofile(self._on_event)
        try:
            yield
        finally:
            sys.setprofile(None)

    def _on_event(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            owner = self._owner(frame.f_code)
            caller = frame.f_back
            if owner == "tests":
                return
            if owner == "own" or (caller is not None and self._owner(caller.f_code) == "own"):
                self._counts["calls"] += 1
            else:
                self._counts["library_calls"] += 1
        elif event == "c_call" and self._owner(frame.f_code) == "own":
            self._counts["calls"] += 1

    def _owner(self, code: CodeType) -> str:
        owner = self._owners.get(code)
        if owner is None:
            owner = self._owners[code] = _owner_of(code.co_filename)
        return owner


def _owner_of(file: str) -> str:
    """Return whose code *file* has: that of the ``tests``, the project's ``own``, or that of a ``library``."""
    if file.startswith("<attrs generated"):  # methods that attrs has written for a class
        return "own" if file.split()[-1].partition(".")[0] in PACKAGES else "library"
    path = Path(file)
    if not path.is_relative_to(ROOT):
        return "library"
    first = path.relative_to(ROOT).parts[0]
    return "own" if first in PACKAGES else "tests" if first == "tests" else "library"


class SqliteCounter:
    """
    Counts what SQLite does in this process, for connections that are opened after `install`.

    ``statements`` and ``transactions`` come from SQLite's trace, ``rows_read`` and ``rows_written`` from the connections.
    ``fsyncs`` and ``disk_bytes`` come from the methods of SQLite's own files (https://www.sqlite.org/vfs.html), so a
    checkpoint counts as well.
    """

    def __init__(self, counts: Counter[str]) -> None:
        self._counts = counts
        self._connections: list[sqlite3.Connection] = []
        self._kept: list[Any] = []
        """What SQLite has pointers to."""

    def attach(self, connection: sqlite3.Connection) -> None:
        """Count the statements and rows of *connection*."""
        self._connections.append(connection)
        connection.set_trace_callback(self._on_statement)
        connection.row_factory = self._on_row

    def total_changes(self) -> int:
        """Return how many rows the open connections have written so far."""
        total = 0
        for connection in self._connections:
            with suppress(sqlite3.ProgrammingError):  # it is closed
                total += connection.total_changes
        return total

    def _on_statement(self, sql: str) -> None:
        if sql.startswith("BEGIN"):
            return
        self._counts["transactions" if sql == "COMMIT" else "statements"] += 1

    def _on_row(self, cursor: sqlite3.Cursor, row: Any) -> Any:
        self._counts["rows_read"] += 1
        return row

    def install(self) -> None:
        """Wrap the methods that write and sync, of each file that SQLite opens from now on."""
        library = ctypes.CDLL(_sqlite3.__file__)
        library.sqlite3_vfs_find.restype = ctypes.POINTER(_Vfs)
        files = library.sqlite3_vfs_find(None).contents
        open_file = _OPEN(files.xOpen)
        methods_by_address: dict[int, _Methods] = {}

        def opened(vfs: int, name: int, file: int, flags: int, out: int) -> int:
            code = open_file(vfs, name, file, flags, out)
            pointer = ctypes.cast(file, ctypes.POINTER(ctypes.POINTER(_Methods)))
            if code == 0 and pointer.contents:
                address = ctypes.addressof(pointer.contents.contents)
                if address not in methods_by_address:
                    methods_by_address[address] = self._counted(pointer.contents.contents)
                pointer[0] = ctypes.pointer(methods_by_address[address])
            return int(code)

        wrapped = _OPEN(opened)
        self._kept += [open_file, wrapped, methods_by_address]
        files.xOpen = ctypes.cast(wrapped, ctypes.c_void_p).value

    def _counted(self, methods: _Methods) -> _Methods:
        write, sync = _WRITE(methods.xWrite), _SYNC(methods.xSync)

        def written(file: int, data: int, count: int, offset: int) -> int:
            self._counts["disk_bytes"] += count
            return int(write(file, data, count, offset))

        def synced(file: int, flags: int) -> int:
            self._counts["fsyncs"] += 1
            return int(sync(file, flags))

        copy = _Methods.from_buffer_copy(methods)
        callbacks = _WRITE(written), _SYNC(synced)
        self._kept += [write, sync, *callbacks]
        copy.xWrite, copy.xSync = (ctypes.cast(each, ctypes.c_void_p).value for each in callbacks)
        return copy


_OPEN = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p
)
_WRITE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int64)
_SYNC = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int)


class _Vfs(ctypes.Structure):
    """The beginning of ``sqlite3_vfs``."""

    _fields_ = [
        ("iVersion", ctypes.c_int),
        ("szOsFile", ctypes.c_int),
        ("mxPathname", ctypes.c_int),
        ("pNext", ctypes.c_void_p),
        ("zName", ctypes.c_char_p),
        ("pAppData", ctypes.c_void_p),
        ("xOpen", ctypes.c_void_p),
    ]


class _Methods(ctypes.Structure):
    """``sqlite3_io_methods``, version 3."""

    _fields_ = [
        ("iVersion", ctypes.c_int),
        *(
            (name, ctypes.c_void_p)
            for name in (
                "xClose", "xRead", "xWrite", "xTruncate", "xSync", "xFileSize", "xLock", "xUnlock", "xCheckReservedLock",
                "xFileControl", "xSectorSize", "xDeviceCharacteristics", "xShmMap", "xShmLock", "xShmBarrier",
                "xShmUnmap", "xFetch", "xUnfetch",
            )
        ),
    ]  # fmt: skip
