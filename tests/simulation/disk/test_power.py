"""What a loss of power leaves of a SQLite file, at any write: everything that was synced, and a file that is not damaged."""

from __future__ import annotations

import random
import sqlite3
from pathlib import Path

import pytest

from tests.simulation.disk.power import Disk, Images

COMMITS = 12


class Power:
    """Loses the power of the disk at step *number*."""

    def __init__(self, folder: Path, number: int) -> None:
        self.left = number
        self.images: Images | None = None
        self.committed = 0
        self.at_loss = 0
        self.disk = Disk(folder, random.Random(number), self._on_step)
        self.path = folder / "file.db"

    def _on_step(self, path: Path, step: str) -> None:
        self.left -= 1
        if self.left == 0:
            self.images, self.at_loss = self.disk.lose_power([self.path]), self.committed

    def run(self, synchronous: str) -> list[int]:
        """Commit some rows, with the power lost on the way or at the end; return the rows that are left."""
        connection = sqlite3.connect(self.path, isolation_level=None)
        for pragma in ("journal_mode = WAL", f"synchronous = {synchronous}", "wal_autocheckpoint = 6"):
            connection.execute(f"PRAGMA {pragma}")
        connection.execute("CREATE TABLE IF NOT EXISTS entry (number INTEGER PRIMARY KEY, text TEXT)")
        for number in range(COMMITS):
            connection.execute("INSERT INTO entry VALUES (?, ?)", (number, "x" * 3_000))
            self.committed = number + 1
        if self.images is None:
            self.images, self.at_loss = self.disk.lose_power([self.path]), self.committed
        connection.close()
        self.disk.remove()
        self.disk.restore(self.images)
        connection = sqlite3.connect(self.path)
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        has_table = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'entry'").fetchone()
        rows = [row for (row,) in connection.execute("SELECT number FROM entry ORDER BY number")] if has_table else []
        connection.close()
        return rows


@pytest.mark.parametrize("number", range(1, 200, 5))
def test_a_synced_commit_is_left_at_any_write(tmp_path: Path, number: int) -> None:
    """The commit that is under way is there, or not; each before it is, and none is torn."""
    power = Power(tmp_path, number)
    rows = power.run("FULL")
    assert rows == list(range(len(rows)))
    assert power.at_loss <= len(rows) <= power.at_loss + 1


def test_a_commit_that_is_not_synced_can_be_lost(tmp_path: Path) -> None:
    """So the loss is one: with fewer syncs, commits are missing."""
    losses = []
    for number in range(1, 80, 4):
        folder = tmp_path / str(number)
        folder.mkdir()
        power = Power(folder, number)
        rows = power.run("NORMAL")
        losses.append(power.at_loss - len(rows))
    assert max(losses) > 0
