"""Several processes on one PostgreSQL database agree on the time, and on who serves it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from app.application import Application
from app.clock import SystemClock
from app.storage import clock_watch
from app.storage.clock_watch import ClockWatch
from app.storage.errors import DatabaseConfigError
from app.storage.sql.claims import AdvisoryLock
from app.storage.sql.database import Database
from config.settings import Settings
from modules.registry import MODULES
from tests.databases import migrated_url
from tests.postgres import PostgresServer
from tests.runtime.harness import Harness, harness_at, submitted

LIMIT = timedelta(minutes=10)


@pytest.fixture
async def harness(postgres: PostgresServer) -> AsyncIterator[Harness]:
    async with harness_at(migrated_url(postgres)) as harness:
        yield harness


async def timers(harness: Harness) -> list[datetime]:
    return [due for (due,) in await harness.rows("SELECT due_at FROM orders_outbox WHERE name IS NOT NULL")]


@pytest.mark.parametrize("ahead", [timedelta(hours=2), timedelta(hours=-2)])
async def test_a_restart_takes_over_the_time_of_the_processes_that_run(harness: Harness, ahead: timedelta) -> None:
    """The machine's clock was set right under them: if the new process moved the timers, all would be due in theirs."""
    store = harness.stores["orders"]
    await harness.submit("orders", submitted())
    before = await timers(harness)
    other = SystemClock()
    other.adjust(ahead)
    await harness.database.write(lambda c: store.heartbeat.resume(c, other.now(), timedelta(days=1)))

    async def beat() -> None:
        while True:
            await asyncio.sleep(0.2)
            await harness.database.write(lambda c: store.heartbeat.beat(c, other.now()))

    running = asyncio.create_task(beat())
    clock = SystemClock()
    watch = ClockWatch({"orders": store}, clock, LIMIT)
    await watch.start()
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    assert abs(clock.now() - other.now()) < timedelta(seconds=10)
    assert await timers(harness) == before
    # A beat is read a moment after it is written.
    assert re.search(r"the clock of the processes that run is (2:00:0\d|1:59:5\d) ", watch.problem)


async def test_a_start_after_a_jump_with_no_other_process_moves_the_timers(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock_watch, "FOLLOW_SECONDS", 0.6)
    store = harness.stores["orders"]
    await harness.submit("orders", submitted())
    [before] = await timers(harness)
    old = datetime.now(UTC) - timedelta(hours=2)
    await harness.database.write(lambda c: store.heartbeat.resume(c, old, timedelta(days=1)))
    clock = SystemClock()
    await ClockWatch({"orders": store}, clock, LIMIT).start()
    [after] = await timers(harness)
    assert abs(after - before - timedelta(hours=2)) < timedelta(seconds=10)
    assert abs(clock.now() - datetime.now(UTC)) < timedelta(seconds=10)


@pytest.fixture
def url(postgres: PostgresServer) -> str:
    return migrated_url(postgres)


def test_a_claim_that_was_lost_is_taken_again_unless_another_process_has_it(postgres: PostgresServer, url: str) -> None:
    """A claim ends with its session, which ends when the server is restarted, or an administrator ends it."""
    engine = Database(url).engine
    claim = AdvisoryLock(engine, "modules", 7, 0.1)
    assert claim.renew()
    assert postgres.disconnect_clients(url)
    assert claim.renew()
    with pytest.raises(DatabaseConfigError, match="another process serves modules"):
        AdvisoryLock(engine, "modules", 7, 0.1)
    assert postgres.disconnect_clients(url)
    other = AdvisoryLock(engine, "modules", 7, 0.1)
    assert not claim.renew()
    other.close()


async def test_a_process_whose_claim_another_one_has_stops(
    postgres: PostgresServer, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With BUS=memory the events of one process reach no other: two must not serve one database."""
    monkeypatch.setattr("app.application.CLAIM_CHECK_SECONDS", 0.05)
    application = Application(Settings(known_modules=MODULES, database_url=url, http_port=0, shutdown_grace_s=1))
    codes: asyncio.Queue[int] = asyncio.Queue()
    application.on_fatal = codes.put_nowait
    await application.start()
    [claim] = application._claims
    assert isinstance(claim, AdvisoryLock)
    pid = claim._connection.exec_driver_sql("SELECT pg_backend_pid()").scalar()
    claim._connection.commit()
    with psycopg.connect(url, autocommit=True) as other:
        number = claim._number
        # The lock passes to the other session the moment that its holder is gone.
        other.execute("SELECT pg_terminate_backend(%s)", (pid,))
        other.execute("SELECT pg_advisory_lock(%s)", (number,))
        try:
            code = await asyncio.wait_for(codes.get(), 10)
            assert code == 3
        finally:
            await application.stop()
