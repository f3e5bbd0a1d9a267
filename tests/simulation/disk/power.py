"""
The loss of power: of what was written to a file since it was last synced, any part can be missing.

A disk writes whole sectors, in any order. What SQLite keeps beside a file for its own processes (``-shm``) is lost.
"""

from __future__ import annotations

__all__ = ["SECTOR_BYTES", "Disk", "Images"]

import ctypes
import random
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path

from attrs import define, field

from tests.sqlite_files import observe

SECTOR_BYTES = 512

SHARES = (0.0, 0.5, 1.0)
"""How much of what is not synced has reached the disk, in different losses."""

_BESIDE = ("", "-wal", "-journal")
"""The files of a database, each with this after its path."""

Images = Mapping[Path, bytes | None]
"""The content of files by their paths; None: there is no such file."""


@define(eq=False)
class _File:
    """One file; *unsynced* is what was written since it was last synced: an offset and bytes, or a size to which it was cut."""

    synced: bytearray
    unsynced: list[tuple[int, bytes | None]] = field(factory=list)
    openings: int = 0

    def sync(self) -> None:
        for offset, data in self.unsynced:
            _apply(self.synced, offset, data)
        self.unsynced.clear()

    def left(self, rng: random.Random) -> bytes:
        """Return what a loss of power leaves."""
        content, share = bytearray(self.synced), rng.choice(SHARES)
        for offset, data in self.unsynced:
            if data is None:
                if rng.random() < share:
                    _apply(content, offset, None)
                continue
            end = offset + len(data)
            while offset < end:
                following = min(end, offset - offset % SECTOR_BYTES + SECTOR_BYTES)
                if rng.random() < share:
                    _apply(content, offset, data[len(data) - (end - offset) : len(data) - (end - following)])
                offset = following
        return bytes(content)


def _apply(content: bytearray, offset: int, data: bytes | None) -> None:
    if data is None:
        del content[offset:]
        return
    content.extend(bytes(max(0, offset - len(content))))
    content[offset : offset + len(data)] = data


@define(eq=False)
class _Opening:
    """One opening of *file*."""

    file: _File
    on_step: Callable[[str], None]

    def write(self, offset: int, address: int, count: int) -> None:
        self.on_step("before file write")
        self.file.unsynced.append((offset, ctypes.string_at(address, count)))

    def truncate(self, size: int) -> None:
        self.file.unsynced.append((size, None))

    def sync(self) -> None:
        self.on_step("before file sync")
        self.file.sync()

    def close(self) -> None:
        self.file.openings -= 1


@define(eq=False)
class Disk:
    """The files of SQLite in *folder*, which this process opens from now on until `remove`."""

    folder: Path
    rng: random.Random
    on_step: Callable[[Path, str], None]
    """Called with the path of a file before something is written to it or it is synced; raises nothing."""
    _files: dict[Path, _File] = field(factory=dict)

    def __attrs_post_init__(self) -> None:
        _disks()[self.folder] = self

    def remove(self) -> None:
        """Take no part in files any more."""
        del _disks()[self.folder]

    def open(self, path: Path) -> _Opening:
        file = self._files.get(path)
        if file is None or not file.openings:  # what was closed may have been deleted since
            file = self._files[path] = _File(bytearray(path.read_bytes() if path.exists() else b""))
        file.openings += 1
        return _Opening(file, lambda step: self.on_step(path, step))

    def lose_power(self, databases: Iterable[Path]) -> Images:
        """Return what is left of the files of *databases* if the power is lost now."""
        paths = [path.with_name(path.name + end) for path in databases for end in _BESIDE]
        return {path: self._left(path) if path.exists() else None for path in paths}

    def _left(self, path: Path) -> bytes:
        file = self._files.get(path)
        return file.left(self.rng) if file is not None and file.openings else path.read_bytes()

    def are_open(self, paths: Iterable[Path]) -> bool:
        """Return whether one of *paths* is open."""
        return any(path in self._files and self._files[path].openings for path in paths)

    def restore(self, images: Images) -> None:
        """Give the files the content that was left; none of them may be open."""
        assert not self.are_open(images)
        for path, content in images.items():
            path.with_name(path.name + "-shm").unlink(missing_ok=True)
            if content is None:
                path.unlink(missing_ok=True)
            else:
                path.write_bytes(content)


@cache
def _disks() -> dict[Path, Disk]:
    """Return the disks by their folders, after SQLite's files were put into their hands."""
    disks: dict[Path, Disk] = {}

    def open_file(name: str) -> _Opening | None:
        path = Path(name)
        disk = disks.get(path.parent) if name else None
        return None if disk is None else disk.open(path)

    observe(open_file)
    return disks
