"""
Take part in what SQLite writes to its files in this process, at its interface to the operating system.

The methods of a file are described in https://www.sqlite.org/c3ref/io_methods.html.
"""

from __future__ import annotations

__all__ = ["OpenFile", "observe"]

import _sqlite3
import ctypes
from collections.abc import Callable
from typing import Any, Protocol


class OpenFile(Protocol):
    """Gets each step before it is made. An exception in its methods is printed and has no other effect."""

    def write(self, offset: int, address: int, count: int) -> None:
        """*count* bytes at *address* in memory go to *offset* in the file."""

    def truncate(self, size: int) -> None:
        """The file is cut to *size* bytes."""

    def sync(self) -> None:
        """What was written goes to the disk."""

    def close(self) -> None:
        """Nothing more is written by this opening of the file."""


def observe(open_file: Callable[[str], OpenFile | None]) -> None:
    """
    Call *open_file* with the path of each file that SQLite opens in this process from now on, before it is opened.

    The path is empty for a temporary file. It returns what gets the steps; None: nothing does. There is no way back.
    """
    _KEPT.append(_Observed(open_file))


class _Observed:
    """The default interface of SQLite to files (``sqlite3_vfs``), with each file that it opens in the hands of an `OpenFile`."""

    def __init__(self, open_file: Callable[[str], OpenFile | None]) -> None:
        self._open_file = open_file
        self._files: dict[int, OpenFile] = {}
        """By the address of what SQLite keeps of a file."""
        self._methods: dict[int, _Methods] = {}
        """By the address of the methods that are behind them."""
        self._kept: list[Any] = []
        library = ctypes.CDLL(_sqlite3.__file__)
        library.sqlite3_vfs_find.restype = ctypes.POINTER(_Vfs)
        files = library.sqlite3_vfs_find(None).contents
        self._open = _OPEN(files.xOpen)
        self._opened = _OPEN(self._on_open)
        files.xOpen = ctypes.cast(self._opened, ctypes.c_void_p).value

    def _on_open(self, vfs: int, name: int | None, file: int, flags: int, out: int) -> int:
        observer = self._open_file(ctypes.string_at(name).decode() if name else "")
        code = self._open(vfs, name, file, flags, out)
        pointer = ctypes.cast(file, ctypes.POINTER(ctypes.POINTER(_Methods)))
        if observer is not None and code == 0 and pointer.contents:
            methods = pointer.contents.contents
            address = ctypes.addressof(methods)
            if address not in self._methods:
                self._methods[address] = self._observed(methods)
            self._files[file] = observer
            pointer[0] = ctypes.pointer(self._methods[address])
        elif observer is not None:
            observer.close()
        return int(code)

    def _observed(self, methods: _Methods) -> _Methods:
        files = self._files
        close, write, truncate, sync = (
            kind(address)
            for kind, address in (
                (_CLOSE, methods.xClose), (_WRITE, methods.xWrite), (_TRUNCATE, methods.xTruncate), (_SYNC, methods.xSync),
            )
        )  # fmt: skip

        def closed(file: int) -> int:
            files.pop(file).close()
            return int(close(file))

        def written(file: int, data: int, count: int, offset: int) -> int:
            files[file].write(offset, data, count)
            return int(write(file, data, count, offset))

        def cut(file: int, size: int) -> int:
            files[file].truncate(size)
            return int(truncate(file, size))

        def synced(file: int, flags: int) -> int:
            files[file].sync()
            return int(sync(file, flags))

        copy = _Methods.from_buffer_copy(methods)
        callbacks = _CLOSE(closed), _WRITE(written), _TRUNCATE(cut), _SYNC(synced)
        self._kept += [close, write, truncate, sync, *callbacks]
        copy.xClose, copy.xWrite, copy.xTruncate, copy.xSync = (ctypes.cast(each, ctypes.c_void_p).value for each in callbacks)
        return copy


_KEPT: list[_Observed] = []
"""SQLite has pointers to what they have made."""

_OPEN = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p
)
_CLOSE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)
_WRITE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int64)
_TRUNCATE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int64)
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
