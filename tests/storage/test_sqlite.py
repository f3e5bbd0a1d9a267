"""SQLite fulfils the storage contract."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import define
from sqlalchemy import Connection

from app.messaging.event_registry import all_modules
from app.storage.archive.history_reader import HistoryReader
from app.storage.migrations import migrate
from app.storage.module_store import ModuleStore
from app.storage.sql.database import Database
from app.storage.tables import DUE_NOW
from tests.databases import migrated_file
from tests.storage.archive_contract import ArchiveContract
from tests.storage.contract import StoreContract
from tests.storage.history_contract import HistoryContract
from tests.storage.parquet_contract import ParquetContract
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

    async def test_processes_on_one_file_number_their_histories_together(self, tmp_path: Path) -> None:
        """Also those whose tables are created after the first row of another one."""
        url, modules = f"sqlite:///{tmp_path}/shared.db", {module.name: module for module in all_modules()}
        orders, inventory = (ModuleStore(modules[name], Database(url)) for name in ("orders", "inventory"))
        entry = ["s", "X", "id", "c", False, {}]

        async def number(store: ModuleStore, *, is_next: bool = True) -> int:
            def append(connection: Connection) -> int:
                store.append_history(connection, DUE_NOW, [entry], is_next=is_next)
                return int(connection.exec_driver_sql(f"SELECT max(number) FROM {store.history.name}").scalar_one())

            return await store.database.write(append)

        migrate(orders.database.engine, "orders")
        assert [await number(orders) for _ in range(2)] == [1, 2]
        migrate(inventory.database.engine, "inventory")
        assert [await number(store) for store in (inventory, orders, orders, inventory)] == [3, 4, 5, 6]
        reader = HistoryReader({store.module.name: (orders.database, store.history) for store in (orders, inventory)})
        assert await reader.bounds() == (1, 6)
        await orders.database.close()
        await inventory.database.close()


class TestParquet(ParquetContract):
    """The contract suite of the archive of the history on SQLite."""


class TestArchive(ArchiveContract):
    """The contract suite of the archive on SQLite."""
