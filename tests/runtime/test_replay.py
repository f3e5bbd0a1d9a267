"""The replay of a history on SQLite and on PostgreSQL."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.storage.sql.database import Database
from tests.databases import migrated_file, migrated_url
from tests.postgres import PostgresServer
from tests.runtime.harness import Harness
from tests.runtime.replay_contract import ReplayContract, copy_file
from tests.storage.site import Site
from tests.storage.test_postgres import PostgresSite
from tests.storage.test_sqlite import SqliteSite


class TestSqlite(ReplayContract):
    """The contract suite on SQLite."""

    @pytest.fixture
    def site(self, tmp_path: Path) -> Site:
        file = SqliteSite(tmp_path / "test.db")
        migrated_file(file.path)
        return file

    async def copied(self, harness: Harness, folder: Path) -> Database:
        return copy_file(harness, folder)


class TestPostgres(ReplayContract):
    """The contract suite on PostgreSQL."""

    @pytest.fixture
    def site(self, postgres: PostgresServer) -> Site:
        self.server, self.url = postgres, migrated_url(postgres)
        return PostgresSite(postgres, self.url)

    async def copied(self, harness: Harness, folder: Path) -> Database:
        self.server.disconnect_clients(self.url)
        return Database(self.server.create_database(self.url))
