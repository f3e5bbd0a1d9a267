"""SQLite keeps the contract."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import define

from tests.storage.contract import StoreContract


@define
class File:
    """A file; taken away, somebody else holds its lock."""

    path: Path
    _other: sqlite3.Connection | None = None

    @property
    def url(self) -> str:
        return f"sqlite:///{self.path}"

    def take_away(self) -> None:
        self._other = sqlite3.connect(self.path, isolation_level=None)
        self._other.execute("BEGIN IMMEDIATE")

    def bring_back(self) -> None:
        if self._other is not None:
            self._other.close()
            self._other = None


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[File]:
    monkeypatch.setattr("app.storage.sql.sqlite.BUSY_SECONDS", 0.02)
    file = File(tmp_path / "test.db")
    yield file
    file.bring_back()


class TestSqlite(StoreContract):
    """All of it."""
