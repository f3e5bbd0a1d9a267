"""The replay of a history on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from app.storage.sql.database import Database
from tests.clock import VirtualClock
from tests.databases import migrated_file, migrated_url
from tests.postgres import PostgresServer
from tests.runtime.harness import Harness, harness_at, product, submitted
from tests.runtime.replay_contract import ReplayContract, again, copy_file
from tests.storage.archive_contract import CANCEL, DECLINE, PAY, happen, id_at
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


@pytest.mark.slow
class TestPostgres(ReplayContract):
    """The contract suite on PostgreSQL."""

    @pytest.fixture
    def site(self, postgres: PostgresServer) -> Site:
        self.server, self.url = postgres, migrated_url(postgres)
        return PostgresSite(postgres, self.url)

    async def test_what_replicas_have_decided_at_once_ends_as_it_has(self, site: Site, tmp_path: Path) -> None:
        """They take their numbers in the order in which they lock a state, and may commit in another one."""
        clock = VirtualClock()
        async with harness_at(site.url, clock, delivers_locally=True) as one, harness_at(site.url, clock, delivers_locally=True) as other:
            await one.submit("inventory", product(100))

            async def buy(harness: Harness, first: int) -> None:
                for n in range(first, first + 15):
                    id = id_at(clock.now(), n)
                    await harness.submit("orders", submitted(id, 1 + n % 9), id=id)
                    await happen(harness, id, ([PAY], [DECLINE], [PAY, CANCEL], [CANCEL])[n % 4])

            await asyncio.gather(buy(one, 0), buy(other, 100))
            report = again(one, tmp_path)
            assert report.is_equal, report
            assert report.states["orders", "order"] == 30

    async def copied(self, harness: Harness, folder: Path) -> Database:
        self.server.disconnect_clients(self.url)
        return Database(self.server.create_database(self.url))
