"""PostgreSQL fulfils the storage contract and the promises that only a shared database has."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from datetime import timedelta
from functools import partial
from typing import Any

import orjson
import psycopg
import pytest
from attrs import define
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from app.messaging.outbox_relay import SCAN_SECONDS, OutboxRelay
from app.storage.archive.history_content import PLAIN
from app.storage.errors import CommitOutcomeUnknown, DatabaseConfigError, StorageUnavailable
from app.storage.migrations import migrate
from app.storage.module_store import HANDOVER_DELAY
from app.storage.sql import postgres as postgres_module
from app.storage.sql.database import Database
from app.storage.sql.postgres import Postgres
from app.storage.sql.postgres_pipeline import Pipeline
from app.storage.sql.transactions import ATTEMPTS_MAX
from app.storage.state_rows import StateMapper
from app.telemetry.metrics import Metrics
from modules.inventory.state import Product, ReservationStatus
from modules.orders.events import OrderCreated
from modules.orders.state import Status
from modules.values import Line
from tests.clock import VirtualClock
from tests.databases import migrated_url
from tests.messaging.test_outbox_relay import ManualBus
from tests.postgres import SETTINGS, PostgresServer
from tests.runtime.harness import CONTEXT, NO_CONTENT, Harness, harness_at, oid, product, submitted, until
from tests.signals import pause_process
from tests.storage.archive_contract import (
    CANCEL,
    KEPT,
    PAY,
    ArchiveContract,
    archive_all,
    happen,
    place,
    shop,
    states_of,
)
from tests.storage.contract import StoreContract, insert_number, numbers
from tests.storage.history_contract import HistoryContract, published
from tests.storage.parquet_contract import ParquetContract
from tests.storage.search_contract import SearchContract
from tests.storage.states import TABLES


@define
class PostgresSite:
    """A database on the common server; it is unavailable while the server is stopped."""

    server: PostgresServer
    url: str

    def empty_url(self) -> str:
        return self.server.create_database()

    def make_unavailable(self) -> None:
        self.server.stop()

    def make_available(self) -> None:
        self.server.start()


@pytest.fixture
def site(postgres: PostgresServer) -> Iterator[PostgresSite]:
    yield PostgresSite(postgres, migrated_url(postgres))
    postgres.start()


class TestPostgres(StoreContract):
    """The contract suite on PostgreSQL."""


class TestSearch(SearchContract):
    """The contract suite of searches on PostgreSQL."""


class TestHistory(HistoryContract):
    """The contract suite of the history on PostgreSQL."""

    async def test_a_reader_does_not_pass_a_transaction_that_is_committed_later(self, site: PostgresSite) -> None:
        """Of two processes the one with the smaller number may be slower; what it writes is not missed."""
        entry = ["s", "OrderSubmitted", "id", "c", False, {}, False, "k", [[0, 0, "orders.created.v2", {"n": 1}]]]
        async with shop(site.url) as (harness, _):
            other = Database(site.url)
            with other.engine.connect() as connection:
                connection.exec_driver_sql(
                    "INSERT INTO orders_history SELECT nextval('history_number'), now(), %s", (PLAIN + orjson.dumps([entry]),)
                )
                await place(harness)
                reading = asyncio.create_task(published(harness))
                await asyncio.wait([reading], timeout=0.2)
                assert not reading.done()
                connection.commit()
            events = await reading
            assert [event.subject for event in events][:2] == ["orders.created.v2"] * 2
            assert [event.seq for event in events] == sorted(event.seq for event in events)
            await other.close()

    async def test_numbers_go_on_after_a_module_has_moved_here(self, site: PostgresSite) -> None:
        """Its tables bring their rows along, and the sequence of their old database stays there."""
        async with shop(site.url) as (harness, _):
            await place(harness)
            before = await published(harness)
            await harness.database.write(lambda c: c.exec_driver_sql("DROP SEQUENCE history_number"))
            for store in harness.stores.values():
                harness.database.dialect.prepare_numbers(harness.database.engine, [store.history.name])
            await place(harness, 2)
            events = await published(harness)
            assert (events[: len(before)], len(events)) == (before, 2 * len(before))


@pytest.mark.slow
class TestParquet(ParquetContract):
    """The contract suite of the archive of the history on PostgreSQL."""


class TestArchive(ArchiveContract):
    """The contract suite of the archive on PostgreSQL."""


@pytest.fixture
async def database(site: PostgresSite) -> AsyncIterator[Database]:
    """A database with one table of unique numbers."""
    database = Database(site.url)
    await database.write(lambda c: c.exec_driver_sql("CREATE TABLE number (n INTEGER PRIMARY KEY)"))
    yield database
    await database.close()


@pytest.fixture
async def replicas(site: PostgresSite) -> AsyncIterator[tuple[Harness, Harness]]:
    """Two processes of the application on one database."""
    async with harness_at(site.url) as one, harness_at(site.url) as other:
        yield one, other


def created(n: int, *product_ids: str) -> OrderCreated:
    return OrderCreated(
        order_id=oid(n),
        customer_id="c-1",
        items=tuple(Line(id, 1) for id in product_ids),
        shipping_address=None,
        version="v2",
    )


def disconnected(site: PostgresSite, times: int = 1) -> Any:
    """Return work that inserts 1 and 2; between the two its connection is closed, the first *times* that it runs."""
    left = [times]

    def work(connection: Connection) -> str:
        insert_number(1)(connection)
        if left[0]:
            left[0] -= 1
            site.server.disconnect_clients(site.url)
        insert_number(2)(connection)
        return "done"

    return work


# Broken connections


async def test_a_transaction_whose_connection_breaks_is_repeated(site: PostgresSite, database: Database) -> None:
    """It runs again from its beginning over a new connection; the caller does not notice."""
    assert await database.write(disconnected(site)) == "done"
    assert await numbers(database) == [1, 2]
    assert database.is_healthy


async def test_a_connection_that_broke_while_idle_is_replaced(site: PostgresSite, database: Database) -> None:
    """The server was restarted between two transactions: the next ones connect again."""
    await database.write(insert_number(1))
    assert await numbers(database) == [1]
    site.make_unavailable()
    site.make_available()
    assert await numbers(database) == [1]
    assert await database.write(insert_number(2)) == 2


def test_a_step_of_the_start_whose_connection_breaks_raises_the_error_of_the_driver(site: PostgresSite) -> None:
    """It is explained to the operator in one line; the end of the broken transaction raises no other error."""
    engine = Postgres().engine(site.url)

    def step() -> None:
        with engine.begin() as connection:
            connection.exec_driver_sql("SELECT 1")
            site.server.disconnect_clients(site.url)
            connection.exec_driver_sql("SELECT 1")

    with pytest.raises(DBAPIError):
        step()


async def test_a_transaction_whose_connection_breaks_every_time_is_given_up(site: PostgresSite, database: Database) -> None:
    """The database counts as unavailable, and nothing is stored."""
    with pytest.raises(StorageUnavailable):
        await database.write(disconnected(site, ATTEMPTS_MAX))
    assert await numbers(database) == []


def lose_commit_reply(monkeypatch: pytest.MonkeyPatch, *, before: bool, then: Callable[[], object] = bool) -> None:
    """Break the connection of the next commit *before* or after the server has committed, and call *then*."""
    exchange = Pipeline.exchange
    left = [1]

    def lose(pipeline: Pipeline) -> None:
        if not left[0] or [statement.sql for statement in pipeline._queue][-1:] != ["COMMIT"]:
            exchange(pipeline)
            return
        left[0] -= 1
        if not before:
            exchange(pipeline)
        pipeline._connection.close()
        then()
        raise psycopg.OperationalError("the server closed the connection unexpectedly")

    monkeypatch.setattr(Pipeline, "exchange", lose)


@pytest.mark.parametrize("before", [False, True], ids=["committed", "rolled-back"])
async def test_the_outcome_of_a_commit_whose_reply_is_lost_is_asked_for(
    before: bool, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server records the outcome of every transaction: a committed one is not repeated, a rolled back one is."""
    runs = []

    def work(connection: Connection) -> str:
        runs.append(1)
        insert_number(1)(connection)
        return "done"

    await database.write(insert_number(0))
    lose_commit_reply(monkeypatch, before=before)
    assert await database.write(work) == "done"
    assert await numbers(database) == [0, 1]
    assert len(runs) == (2 if before else 1)


async def test_a_commit_without_a_known_outcome_is_reported_as_unknown(
    site: PostgresSite, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server is unreachable after the reply was lost: the caller gets neither success nor failure."""
    await database.write(insert_number(0))
    monkeypatch.setattr("app.storage.sql.postgres.OUTCOME_SECONDS", 0.1)
    lose_commit_reply(monkeypatch, before=False, then=site.make_unavailable)
    with pytest.raises(CommitOutcomeUnknown) as caught:
        await database.write(insert_number(1))
    assert caught.value.code == "outcome_unknown"
    site.make_available()
    assert await numbers(database) == [0, 1]  # here it was committed; the caller could not know


async def test_a_killed_server_recovers_everything_that_was_reported_as_committed(
    site: PostgresSite, database: Database
) -> None:
    """Commits are synchronous: a result is returned once the commit is on disk."""
    committed = []
    for n in range(200):
        if n == 150:
            site.server.kill()
            site.make_available()
        try:
            committed.append(await database.write(insert_number(n)))
        except StorageUnavailable:
            continue
    assert await numbers(database) == committed
    assert len(committed) >= 150


async def test_a_halted_server_counts_as_disconnected(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps its sockets open and does not reply; after a while the connection is closed."""
    monkeypatch.setattr("app.storage.sql.postgres_pipeline.ANSWER_SECONDS", 0.3)
    halted: list[int] = []

    def work(connection: Connection) -> None:
        insert_number(1)(connection)
        if not halted:
            halted.append(connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one())
            pause_process(halted[0])
        insert_number(2)(connection)

    writing = asyncio.create_task(database.write(work))
    await until(lambda: halted)
    try:
        # The halted server process still holds its row lock, so the repeated transaction cannot succeed either.
        with pytest.raises(StorageUnavailable):
            await writing
    finally:
        os.kill(halted[0], signal.SIGCONT)
    assert await database.write(insert_number(3)) == 3
    assert await numbers(database) == [3]


# Concurrent transactions


@pytest.mark.parametrize("state", ["40001", "40P01", "23505"])
async def test_a_transaction_that_conflicts_with_another_is_repeated(state: str, database: Database) -> None:
    """Serialization failures, deadlocks, and a row that another process has just inserted."""
    runs = []

    def work(connection: Connection) -> int:
        runs.append(1)
        insert_number(len(runs))(connection)
        if len(runs) < 3:
            connection.exec_driver_sql(f"DO $$ BEGIN RAISE EXCEPTION 'conflict' USING ERRCODE = '{state}'; END $$")
        return len(runs)

    assert await database.write(work) == 3
    assert await numbers(database) == [3]


async def test_a_state_that_another_process_has_inserted_is_not_overwritten(database: Database) -> None:
    """A key that was looked up and not found is inserted: the transaction is repeated if it exists meanwhile, and finds the state."""
    mapper = StateMapper(Product, TABLES[Product], database.dialect)
    theirs, ours = (Product(product_id="A", name=name, on_hand=1, reserved=0, unit_price_amount=1, currency="EUR") for name in "ab")
    await database.write(lambda c: mapper.save(c, [theirs], {"A"}))
    found: list[dict[str, Any]] = []

    def work(connection: Connection) -> None:
        found.append(mapper.load(connection, ["A"]) if found else {})
        mapper.save(connection, [ours], {"A"} - found[-1].keys())

    await database.write(work)
    assert found == [{}, {"A": theirs}]


async def test_two_transactions_in_a_deadlock_both_succeed(site: PostgresSite, database: Database) -> None:
    """A real deadlock: the server ends one of them, which is repeated."""
    other = Database(site.url)
    await database.write(lambda c: [insert_number(n)(c) for n in (1, 2)])
    both_hold_a_lock = threading.Barrier(2)
    is_first = {database: True, other: True}

    def lock_in_order(database: Database, *order: int) -> Any:
        def work(connection: Connection) -> None:
            for n in order:
                connection.exec_driver_sql(f"SELECT n FROM number WHERE n = {n} FOR UPDATE")
                if is_first[database]:
                    is_first[database] = False
                    both_hold_a_lock.wait(30)

        return work

    await asyncio.gather(database.write(lock_in_order(database, 1, 2)), other.write(lock_in_order(other, 2, 1)))
    await other.close()


async def test_modules_that_share_a_transaction_lock_their_rows_in_one_order(site: PostgresSite, database: Database) -> None:
    """The order of their calls does not matter: two processes with opposite orders do not deadlock."""
    seen: list[str] = []
    may_go = threading.Event()
    blocking = asyncio.create_task(database.write(lambda c: may_go.wait(30)))
    await asyncio.sleep(0)
    order_keys = ["payments", "orders", "inventory", ""]

    def record(connection: Connection, order_key: str) -> None:
        seen.append(order_key)

    waiting = [asyncio.create_task(database.write(partial(record, order_key=key), key)) for key in order_keys]
    await asyncio.sleep(0)
    may_go.set()
    await asyncio.gather(blocking, *waiting)
    assert seen == sorted(order_keys)


async def test_a_lock_that_another_connection_keeps_is_not_waited_for_forever(
    site: PostgresSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database counts as unavailable until the lock is released."""
    monkeypatch.setitem(__import__("app.storage.sql.postgres", fromlist=["x"])._SETTINGS, "lock_timeout", "50ms")
    database = Database(site.url)
    await database.write(lambda c: c.exec_driver_sql("CREATE TABLE number (n INTEGER PRIMARY KEY)"))
    await database.write(insert_number(1))
    with psycopg.connect(site.url) as other:
        other.execute("SELECT n FROM number FOR UPDATE")
        with pytest.raises(StorageUnavailable):
            await database.write(lambda c: c.exec_driver_sql("UPDATE number SET n = 2"))
    await database.write(lambda c: c.exec_driver_sql("UPDATE number SET n = 2"))
    assert await numbers(database) == [2]
    await database.close()


async def test_one_event_at_two_replicas_at_once_has_one_effect(replicas: tuple[Harness, Harness]) -> None:
    """The second replica waits for the first and then finds the event in the inbox."""
    one, other = replicas
    await one.submit("inventory", product(1000))

    async def submit(harness: Harness, n: int) -> None:
        await harness.submit("inventory", created(n, "A"), id=oid(n), is_new=False)

    for n in range(40):
        await asyncio.gather(submit(one, n), submit(other, n))
    stock = await one.runners["inventory"].get(Product, "A")
    assert stock is not None
    assert stock.reserved == 40
    assert await one.rows("SELECT count(*) FROM inventory_inbox") == [(40,)]
    assert await one.rows("SELECT count(*) FROM inventory_outbox") == [(40,)]


async def test_two_replicas_archive_and_cancel_the_same_orders_at_once(site: PostgresSite) -> None:
    """Each state is moved by one of them, and each cancellation meets it: stock and refunds are right, nothing deadlocks."""
    async with shop(site.url) as (one, clock), shop(site.url) as (other, other_clock):
        ids = [await place(one, n) for n in range(30)]
        for id in ids:
            await happen(one, id, (PAY,))
        for each in clock, other_clock:
            await each.advance(KEPT.total_seconds() + 1)

        async def cancel(harness: Harness, ids: Sequence[str]) -> None:
            for id in ids:
                await happen(harness, id, (CANCEL,))

        await asyncio.gather(archive_all(one), cancel(one, ids[:20]), archive_all(other), cancel(other, ids[10:][::-1]))
        for id in ids:
            order, reservation, payment = await states_of(other, id)
            assert (order.status, reservation.status) == (Status.CANCELLED, ReservationStatus.RELEASED)
            assert [refund.amount for refund in payment.ledger.refunds] == [200]
        shelf = await one.runners["inventory"].get(Product, "A")
        assert shelf is not None
        assert (shelf.on_hand, shelf.reserved) == (100, 0)


async def test_an_event_that_another_replica_is_processing_is_waited_for(site: PostgresSite, replicas: tuple[Harness, Harness]) -> None:
    """Not left to chance: another connection has inserted the inbox entry and not committed yet."""
    one, _ = replicas
    await one.submit("inventory", product(10))
    with psycopg.connect(site.url) as other:
        other.execute(f"INSERT INTO inventory_inbox VALUES ('{oid(1)}', now())")
        submitting = asyncio.create_task(one.submit("inventory", created(1, "A"), id=oid(1), is_new=False))
        await until(lambda: site.server.query("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"))
    await submitting
    stock = await one.runners["inventory"].get(Product, "A")
    assert stock is not None
    assert stock.reserved == 0  # the effect is that of the other connection, which wrote none in this test


async def test_orders_for_the_same_products_in_opposite_order_lose_nothing(site: PostgresSite, replicas: tuple[Harness, Harness]) -> None:
    """Two replicas, three products, orders for the last pieces: none too many, none lost, no deadlock."""
    one, other = replicas
    for product_id in "ABC":
        await one.submit("inventory", product(60, product_id))

    async def buy(harness: Harness, start: int, *product_ids: str) -> None:
        runner = harness.runners["inventory"]
        harness.run(runner.run())
        for wave in range(5):
            numbers = range(start + wave * 10, start + wave * 10 + 10)
            await asyncio.gather(
                *(runner.submit(created(n, *product_ids), id=oid(n), trace=CONTEXT, respond=NO_CONTENT) for n in numbers)
            )

    await asyncio.gather(buy(one, 0, "A", "B", "C"), buy(other, 100, "C", "B", "A"))
    for product_id in "ABC":
        stock = await one.runners["inventory"].get(Product, product_id)
        assert stock is not None
        assert (stock.on_hand, stock.reserved) == (60, 60)
    found = await one.rows("SELECT status, count(*) FROM inventory_reservation GROUP BY status ORDER BY status")
    assert found == [("held", 60), ("rejected", 40)]
    name = site.url.partition("?")[0].rpartition("/")[2]
    site.server.query("SELECT pg_stat_force_next_flush()", name)
    assert site.server.query(f"SELECT deadlocks FROM pg_stat_database WHERE datname = '{name}'") == [(0,)]


# One outbox, several relays


@pytest.fixture
async def relays(site: PostgresSite) -> AsyncIterator[tuple[VirtualClock, list[Harness], list[ManualBus], list[OutboxRelay]]]:
    """Two replicas; the test calls `step` of the relays of their module orders."""
    clock = VirtualClock()
    async with AsyncExitStack() as stack:
        harnesses = [await stack.enter_async_context(harness_at(site.url, clock)) for _ in range(2)]
        buses = [ManualBus(), ManualBus()]
        yield clock, harnesses, buses, [
            OutboxRelay(harness.stores["orders"], bus, harness.dead_letter_store, clock, Metrics()) for harness, bus in zip(harnesses, buses, strict=True)
        ]


async def test_two_relays_publish_each_event_once(relays: Any) -> None:
    """A relay does not publish what the other process is publishing; one of them publishes what is left."""
    clock, harnesses, buses, (first, second) = relays
    await harnesses[0].submit("orders", submitted(oid(1)))
    await harnesses[1].submit("orders", submitted(oid(2)))
    store = harnesses[1].stores["orders"]
    both = await harnesses[1].database.read(lambda c: store.fetch_due(c, clock.now(), 10, timedelta(0)))
    second.publish([row for row in both if row.key == oid(2)])  # the first process ended before it published its own
    for _ in range(int(HANDOVER_DELAY.total_seconds() / SCAN_SECONDS)):
        await first.step()
        await second.step()
        assert first.pending == second.pending == len(both)
        await clock.advance(SCAN_SECONDS)
    assert {message.key for message, _ in buses[1].published} == {oid(2)}
    assert buses[0].published == []
    await buses[1].accept()
    async with asyncio.timeout(60):  # a scan may come before the marks of the other process are written
        while (first.pending, second.pending) != (0, 0):
            await second.step()
            await first.step()
            await buses[0].accept()
            await clock.advance(SCAN_SECONDS)
    sent = Counter(message.id for bus in buses for message, _ in bus.published)
    assert sent == {row.id: 1 for row in both}


async def test_the_lead_passes_to_another_process_when_its_holder_fails(relays: Any, site: PostgresSite) -> None:
    """A process without its connection, or without its bus, loses the lead."""
    clock, harnesses, buses, (first, second) = relays
    await harnesses[0].submit("orders", submitted(oid(1)))
    await clock.advance(HANDOVER_DELAY.total_seconds() + 1)
    buses[0].is_connected = True
    await first.step()
    count = len(buses[0].published)
    assert count > 0
    await second.step()
    assert buses[1].published == []
    buses[0].is_connected = False
    await clock.advance(SCAN_SECONDS)
    await first.step()
    await second.step()
    assert len(buses[1].published) == count
    await harnesses[1].database.close()
    buses[0].is_connected = True
    await harnesses[0].submit("orders", submitted(oid(2)))
    await clock.advance(HANDOVER_DELAY.total_seconds() + 1)
    await first.step()
    assert {message.key for message, _ in buses[0].published} == {oid(1), oid(2)}


async def test_a_process_that_is_halted_leads_no_longer(relays: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its connection stays; the server closes the session, which it has not used for too long."""
    monkeypatch.setattr(postgres_module, "LEAD_SECONDS", 1)
    clock, harnesses, buses, (first, second) = relays
    buses[0].is_connected = buses[1].is_connected = True
    await first.step()
    await second.step()
    assert (first.is_leader, second.is_leader) == (True, False)
    await harnesses[1].submit("orders", submitted(oid(1)))
    async with asyncio.timeout(30):
        while not buses[1].published:
            await clock.advance(SCAN_SECONDS)
            await second.step()
    await first.step()
    assert (first.is_leader, second.is_leader) == (False, True)


def test_a_rollback_leaves_the_leader_its_lock_and_its_limit(site: PostgresSite) -> None:
    """PostgreSQL takes back what a rolled back transaction has set, but not the lock that it has taken."""
    engine = Database(site.url).engine
    with engine.connect() as connection, engine.connect() as other:
        dialect = Postgres()
        assert dialect.try_lead(connection, "relay", True)
        connection.rollback()
        assert dialect.try_lead(connection, "relay", True)
        assert connection.exec_driver_sql("SHOW idle_session_timeout").scalar() == f"{postgres_module.LEAD_SECONDS}s"
        connection.commit()
        assert not dialect.try_lead(other, "relay", True)
        assert not dialect.try_lead(connection, "relay", False)
        assert dialect.try_lead(other, "relay", True)


# Configuration


def test_two_processes_that_migrate_at_once_migrate_once(site: PostgresSite) -> None:
    """One waits for the other and then has nothing to do."""
    url = site.empty_url()
    engines = [Database(url).engine for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda engine: [migrate(engine, name) for name in ("orders", "inventory", "payments")], engines))
    assert [sum(column) for column in zip(*found, strict=True)] == [1, 1, 1]


def test_keys_are_compared_byte_by_byte(site: PostgresSite) -> None:
    """Whatever the locale of the database: every text primary key has the collation C."""
    with Database(site.url).engine.connect() as connection:
        found = connection.exec_driver_sql(
            "SELECT c.relname, co.collname FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid"
            " JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = i.indkey[0]"
            " JOIN pg_collation co ON co.oid = a.attcollation"
            " WHERE i.indisprimary AND c.relname NOT LIKE '%%\\_version' AND c.relnamespace = 'public'::regnamespace"
        ).all()
    assert len(found) >= 16  # five tables of each module, and those of their states
    assert {collation for _, collation in found} == {"C"}


def test_the_session_has_the_documented_settings(site: PostgresSite) -> None:
    """Commits wait for the disk, no statement waits forever, times are in UTC."""
    with Database(site.url).engine.connect() as connection:
        found = {
            name: connection.exec_driver_sql(f"SHOW {name}").scalar()
            for name in ("synchronous_commit", "lock_timeout", "idle_in_transaction_session_timeout", "timezone", "application_name")
        }
    assert found == {
        "synchronous_commit": "on",
        "lock_timeout": "2s",
        "idle_in_transaction_session_timeout": "5s",
        "timezone": "UTC",
        "application_name": "fulfilment",
    }


@pytest.mark.slow
def test_the_server_looks_for_a_client_that_is_gone(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Over TCP: a lock or a lead of a machine without power ends within about ten seconds, not after the two hours of Linux."""
    folder, host = tmp_path_factory.mktemp("pg"), f"127.{os.getpid() % 250 + 1}.7.1"
    for each in (folder, *folder.parents[:3]):
        each.chmod(0o755)
    server = PostgresServer(folder, {**SETTINGS, "listen_addresses": host}).start()
    try:
        with Database(f"postgresql://postgres@{host}/postgres").engine.connect() as connection:
            names = ("tcp_keepalives_idle", "tcp_keepalives_interval", "tcp_keepalives_count", "tcp_user_timeout")
            assert [connection.exec_driver_sql(f"SHOW {name}").scalar() for name in names] == ["5", "2", "3", "10000"]
    finally:
        server.stop()


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("postgresql://shop:hunter2@127.0.0.1:1/x", "no server answers there"),
        ("postgresql://postgres@/nosuch?host={host}", "there is no such database on the server"),
    ],
)
def test_an_unreachable_database_is_explained_without_host_and_password(url: str, why: str, postgres: PostgresServer) -> None:
    """In a few words for the operator."""
    dialect = Postgres()
    with pytest.raises(Exception, match="connection") as caught:
        dialect.engine(url.format(host=postgres.folder)).connect()
    assert dialect.explain(caught.value) == why  # type: ignore[arg-type]


def test_an_invalid_url_or_a_missing_driver_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message contains no password; for a missing driver it explains how to install it."""
    with pytest.raises(DatabaseConfigError, match="not a valid PostgreSQL connection string") as caught:
        Database("postgresql://u:hunter2@h/d?no_such_option=1")
    assert "hunter2" not in str(caught.value)
    monkeypatch.delitem(__import__("sys").modules, "app.storage.sql.postgres")
    monkeypatch.setitem(__import__("sys").modules, "psycopg", None)
    with pytest.raises(DatabaseConfigError, match=r"pip install 'fulfilment\[postgres\]'"):
        Database("postgresql://localhost/orders")
