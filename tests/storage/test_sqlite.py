"""SQLite fulfils the storage contract."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import define

from tests.databases import migrated_file
from tests.storage.archive_contract import ArchiveContract
from tests.storage.contract import StoreContract
from tests.storage.history_contract import HistoryContract
from tests.storage.search_contract import SearchContract


@define
class SqliteSite:
    """A file; it is unavailable while another connection holds its write lock."""

    path: Path
    _other: sqlite3.Connection | None = None

    @property
    def url(self) -> str:
        return f"sqlite:///{self.path}"

    def empty_url(self) -> str:
        return f"{self.url}.empty"

    def make_unavailable(self) -> None:
        self._other = sqlite3.connect(self.path, isolation_level=None)
        self._other.execute("BEGIN IMMEDIATE")

    def make_available(self) -> None:
        if self._other is not None:
            self._other.close()
            self._other = None


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SqliteSite]:
    monkeypatch.setattr("app.storage.sql.sqlite.BUSY_SECONDS", 0.02)
    file = SqliteSite(tmp_path / "test.db")
    migrated_file(file.path)
    yield file
    file.make_available()


class TestSqlite(StoreContract):
    """The contract suite on SQLite."""


class TestSearch(SearchContract):
    """The contract suite of searches on SQLite."""


class TestHistory(HistoryContract):
    """The contract suite of the history on SQLite."""


class TestArchive(ArchiveContract):
    """The contract suite of the archive on SQLite."""
