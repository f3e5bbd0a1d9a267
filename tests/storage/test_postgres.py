"""PostgreSQL keeps the contract, and what only a shared database has to promise."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from datetime import timedelta
from functools import partial
from typing import Any

import psycopg
import pytest
from attrs import define
from sqlalchemy import Connection

from app.messaging.outbox_relay import SCAN_SECONDS, OutboxRelay
from app.storage.errors import CommitOutcomeUnknown, DatabaseConfigError, StorageUnavailable
from app.storage.migrations import migrate
from app.storage.module_store import HANDOVER_DELAY
from app.storage.sql.database import Database
from app.storage.sql.postgres import Postgres
from app.storage.sql.transactions import ATTEMPTS_MAX
from app.telemetry.metrics import Metrics
from modules.inventory.state import Product
from modules.orders.events import OrderCreated
from modules.values import Line
from tests.clock import VirtualClock
from tests.messaging.test_outbox_relay import Ledger
from tests.postgres import PostgresServer
from tests.runtime.harness import CONTEXT, NO_CONTENT, Harness, harness_at, oid, product, submitted, until
from tests.storage.contract import StoreContract, insert, numbers


@define
class Place:
    """A database of the common server; taken away, the server is down."""

    server: PostgresServer
    url: str

    def take_away(self) -> None:
        self.server.stop()

    def bring_back(self) -> None:
        self.server.start()


@pytest.fixture
def site(postgres: PostgresServer) -> Iterator[Place]:
    yield Place(postgres, postgres.make())
    postgres.start()


class TestPostgres(StoreContract):
    """All of it."""


@pytest.fixture
async def database(site: Place) -> AsyncIterator[Database]:
    """A database with one table of different numbers."""
    database = Database(site.url)
    await database.write(lambda c: c.exec_driver_sql("CREATE TABLE number (n INTEGER PRIMARY KEY)"))
    yield database
    await database.close()


@pytest.fixture
async def replicas(site: Place) -> AsyncIterator[tuple[Harness, Harness]]:
    """Two of everything, on one database."""
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


def cut_first(site: Place, times: int = 1) -> Any:
    """Return work that inserts 1 and whose connection is then cut, the first few *times*."""
    left = [times]

    def work(connection: Connection) -> str:
        insert(1)(connection)
        if left[0]:
            left[0] -= 1
            site.server.cut(site.url)
        insert(2)(connection)
        return "done"

    return work


# Cut and lost


async def test_a_connection_cut_in_mid_transaction_is_nobodys_trouble(site: Place, database: Database) -> None:
    """What was not committed is done again from its beginning, over a new connection; nobody hears of it."""
    assert await database.write(cut_first(site)) == "done"
    assert await numbers(database) == [1, 2]
    assert database.is_healthy


async def test_a_connection_cut_while_idle_is_nobodys_trouble(site: Place, database: Database) -> None:
    """The server was restarted between two transactions: the next ones find out, and connect anew."""
    await database.write(insert(1))
    assert await numbers(database) == [1]
    site.take_away()
    site.bring_back()
    assert await numbers(database) == [1]
    assert await database.write(insert(2)) == 2


async def test_what_is_cut_again_and_again_is_given_up(site: Place, database: Database) -> None:
    """A transaction that never comes to its end is the database's trouble, and leaves nothing behind."""
    with pytest.raises(StorageUnavailable):
        await database.write(cut_first(site, ATTEMPTS_MAX))
    assert await numbers(database) == []


class LostAnswers:
    """The connection ends while it commits, *before* or after the server has done so; the first *times*."""

    def __init__(self, database: Database, *, before: bool, times: int = 1) -> None:
        self._commit = database.engine.dialect.do_commit
        self._before = before
        self._left = times

    def __call__(self, connection: Any) -> None:
        driver = getattr(connection, "driver_connection", connection)
        if self._left and driver.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS:
            self._left -= 1
            if not self._before:
                self._commit(connection)
            driver.close()
            raise psycopg.OperationalError("the server closed the connection unexpectedly")
        self._commit(connection)


@pytest.mark.parametrize("before", [False, True], ids=["committed", "undone"])
async def test_a_commit_whose_answer_is_lost_is_asked_about(
    before: bool, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server remembers how every transaction ended: what is there is not done twice, what is not is done again."""
    done = []

    def work(connection: Connection) -> str:
        done.append(1)
        insert(1)(connection)
        return "done"

    await database.write(insert(0))
    monkeypatch.setattr(database.engine.dialect, "do_commit", LostAnswers(database, before=before))
    assert await database.write(work) == "done"
    assert await numbers(database) == [0, 1]
    assert len(done) == (2 if before else 1)


async def test_a_commit_that_nobody_can_be_asked_about_is_neither_success_nor_failure(
    site: Place, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server is gone with the answer: whoever waited is told that nobody knows."""
    await database.write(insert(0))
    lost = LostAnswers(database, before=False)

    def gone(connection: Any) -> None:
        try:
            lost(connection)
        except psycopg.OperationalError:
            site.take_away()
            raise

    monkeypatch.setattr("app.storage.sql.postgres.OUTCOME_SECONDS", 0.1)
    monkeypatch.setattr(database.engine.dialect, "do_commit", gone)
    with pytest.raises(CommitOutcomeUnknown) as caught:
        await database.write(insert(1))
    assert caught.value.code == "outcome_unknown"
    site.bring_back()
    assert await numbers(database) == [0, 1]  # this time it was; the promise was only not to claim either


async def test_a_server_that_is_killed_comes_back_with_everything_that_was_answered(
    site: Place, database: Database
) -> None:
    """Synchronous commits: what was answered is on its disk."""
    answered = []
    for n in range(200):
        if n == 150:
            site.server.kill()
            site.bring_back()
        try:
            answered.append(await database.write(insert(n)))
        except StorageUnavailable:
            continue
    assert await numbers(database) == answered
    assert len(answered) >= 150


async def test_a_server_that_stands_still_is_given_up(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps its sockets open and says nothing: after a while it counts as cut off."""
    monkeypatch.setattr("app.storage.sql.postgres.ANSWER_SECONDS", 0.3)
    halted: list[int] = []

    def work(connection: Connection) -> None:
        insert(1)(connection)
        if not halted:
            halted.append(connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one())
            os.kill(halted[0], signal.SIGSTOP)
        insert(2)(connection)

    writing = asyncio.create_task(database.write(work))
    await until(lambda: halted)
    try:
        # The halted one has its row locked: nobody gets past it, and whoever asked is told that he cannot be served now.
        with pytest.raises(StorageUnavailable):
            await writing
    finally:
        os.kill(halted[0], signal.SIGCONT)
    assert await database.write(insert(3)) == 3
    assert await numbers(database) == [3]


# Meeting others


@pytest.mark.parametrize("state", ["40001", "40P01", "23505"])
async def test_whoever_met_another_does_all_of_it_again(state: str, database: Database) -> None:
    """Serialization failures, deadlocks, and a row that somebody else has just inserted."""
    tries = []

    def work(connection: Connection) -> int:
        tries.append(1)
        insert(len(tries))(connection)
        if len(tries) < 3:
            connection.exec_driver_sql(f"DO $$ BEGIN RAISE EXCEPTION 'met' USING ERRCODE = '{state}'; END $$")
        return len(tries)

    assert await database.write(work) == 3
    assert await numbers(database) == [3]


async def test_two_who_wait_for_each_other_both_get_through(site: Place, database: Database) -> None:
    """A real deadlock: the server picks one, who tries again."""
    other = Database(site.url)
    await database.write(lambda c: [insert(n)(c) for n in (1, 2)])
    meeting = threading.Barrier(2)
    is_first = {database: True, other: True}

    def locking(who: Database, *order: int) -> Any:
        def work(connection: Connection) -> None:
            for n in order:
                connection.exec_driver_sql(f"SELECT n FROM number WHERE n = {n} FOR UPDATE")
                if is_first[who]:
                    is_first[who] = False
                    meeting.wait(10)

        return work

    await asyncio.gather(database.write(locking(database, 1, 2)), other.write(locking(other, 2, 1)))
    await other.close()


async def test_modules_that_share_a_transaction_take_their_rows_in_one_order(site: Place, database: Database) -> None:
    """However they came in: two processes whose batches arrived in opposite order do not wait in a circle."""
    seen: list[str] = []
    may_go = threading.Event()
    blocking = asyncio.create_task(database.write(lambda c: may_go.wait(10)))
    await asyncio.sleep(0)
    places = ["payments", "orders", "inventory", ""]

    def note(connection: Connection, place: str) -> None:
        seen.append(place)

    waiting = [asyncio.create_task(database.write(partial(note, place=place), place)) for place in places]
    await asyncio.sleep(0)
    may_go.set()
    await asyncio.gather(blocking, *waiting)
    assert seen == sorted(places)


async def test_a_lock_that_somebody_keeps_is_not_waited_for_for_ever(
    site: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It counts as a database out of reach, and heals when the other one lets go."""
    monkeypatch.setitem(__import__("app.storage.sql.postgres", fromlist=["x"])._SETTINGS, "lock_timeout", "50ms")
    database = Database(site.url)
    await database.write(lambda c: c.exec_driver_sql("CREATE TABLE number (n INTEGER PRIMARY KEY)"))
    await database.write(insert(1))
    with psycopg.connect(site.url) as other:
        other.execute("SELECT n FROM number FOR UPDATE")
        with pytest.raises(StorageUnavailable):
            await database.write(lambda c: c.exec_driver_sql("UPDATE number SET n = 2"))
    await database.write(lambda c: c.exec_driver_sql("UPDATE number SET n = 2"))
    assert await numbers(database) == [2]
    await database.close()


async def test_one_event_told_to_two_replicas_at_once_has_one_effect(replicas: tuple[Harness, Harness]) -> None:
    """Whoever comes second waits for the first, and then knows what it did."""
    one, other = replicas
    await one.submit("inventory", product(1000))

    async def told(harness: Harness, n: int) -> None:
        await harness.submit("inventory", created(n, "A"), id=oid(n), is_new=False)

    for n in range(40):
        await asyncio.gather(told(one, n), told(other, n))
    stock = await one.runners["inventory"].get(Product, "A")
    assert stock is not None
    assert stock.reserved == 40
    assert await one.rows("SELECT count(*) FROM inventory_inbox") == [(40,)]
    assert await one.rows("SELECT count(*) FROM inventory_outbox") == [(40,)]


async def test_an_event_in_the_making_elsewhere_is_waited_for(site: Place, replicas: tuple[Harness, Harness]) -> None:
    """Not a race that may or may not happen: the other one has written it and not yet committed."""
    one, _ = replicas
    await one.submit("inventory", product(10))
    with psycopg.connect(site.url) as other:
        other.execute(f"INSERT INTO inventory_inbox VALUES ('{oid(1)}', now())")
        telling = asyncio.create_task(one.submit("inventory", created(1, "A"), id=oid(1), is_new=False))
        await until(lambda: site.server.ask("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"))
    await telling
    stock = await one.runners["inventory"].get(Product, "A")
    assert stock is not None
    assert stock.reserved == 0  # the other one, who has the effect to himself, wrote none in this test


async def test_the_same_products_in_opposite_order_lose_nothing(site: Place, replicas: tuple[Harness, Harness]) -> None:
    """Two replicas, three products, orders for the last pieces: none too many, none forgotten, nobody in a circle."""
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
    site.server.ask("SELECT pg_stat_force_next_flush()", name)
    assert site.server.ask(f"SELECT deadlocks FROM pg_stat_database WHERE datname = '{name}'") == [(0,)]


# The outbox of several


@pytest.fixture
async def relays(site: Place) -> AsyncIterator[tuple[VirtualClock, list[Harness], list[Ledger], list[OutboxRelay]]]:
    """Two replicas whose orders' relays are turned by hand."""
    clock = VirtualClock()
    async with AsyncExitStack() as stack:
        stands = [await stack.enter_async_context(harness_at(site.url, clock)) for _ in range(2)]
        buses = [Ledger(), Ledger()]
        yield clock, stands, buses, [
            OutboxRelay(harness.stores["orders"], bus, clock, Metrics()) for harness, bus in zip(stands, buses, strict=True)
        ]


async def test_two_relays_send_each_event_once(relays: Any) -> None:
    """What one has in hand the other leaves alone; what nobody has is found by one of them."""
    clock, stands, buses, (first, second) = relays
    await stands[0].tell("orders", submitted(oid(1)))
    await stands[1].tell("orders", submitted(oid(2)))
    store = stands[1].stores["orders"]
    both = await stands[1].database.read(lambda c: store.fetch_due(c, clock.now(), 10, timedelta(0)))
    second.publish([row for row in both if row.key == oid(2)])  # the first one's process "died" before it could
    for _ in range(int(HANDOVER_DELAY.total_seconds() / SCAN_SECONDS)):
        await first.step()
        await second.step()
        assert first.pending == second.pending == len(both)
        await clock.advance(SCAN_SECONDS)
    assert {message.key for message, _ in buses[1].published} == {oid(2)}
    assert buses[0].published == []
    await buses[1].answer()
    for _ in range(3):
        await second.step()
        await first.step()
        await buses[0].answer()
        await clock.advance(SCAN_SECONDS)
    sent = Counter(message.id for bus in buses for message, _ in bus.published)
    assert sent == {row.id: 1 for row in both}
    assert (first.pending, second.pending) == (0, 0)


async def test_the_lead_passes_on_when_its_owner_goes(relays: Any, site: Place) -> None:
    """Whoever has lost its connection, or its bus, leads no more; the other one goes on."""
    clock, stands, buses, (first, second) = relays
    await stands[0].tell("orders", submitted(oid(1)))
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
    await stands[1].database.close()
    buses[0].is_connected = True
    await stands[0].tell("orders", submitted(oid(2)))
    await clock.advance(HANDOVER_DELAY.total_seconds() + 1)
    await first.step()
    assert {message.key for message, _ in buses[0].published} == {oid(1), oid(2)}


# Setting up


def test_two_who_migrate_at_once_do_it_once(site: Place) -> None:
    """One waits for the other and then has nothing to do; nobody sees half of it."""
    engines = [Database(site.url).engine for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda engine: [migrate(engine, name) for name in ("orders", "inventory", "payments")], engines))
    assert [sum(column) for column in zip(*found, strict=True)] == [1, 1, 1]


def test_keys_are_compared_byte_by_byte(site: Place) -> None:
    """Whatever language the database was made for: every primary key that is a text."""
    engine = Database(site.url).engine
    for module in ("orders", "inventory", "payments"):
        migrate(engine, module)
    with engine.connect() as connection:
        found = connection.exec_driver_sql(
            "SELECT c.relname, co.collname FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid"
            " JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = i.indkey[0]"
            " JOIN pg_collation co ON co.oid = a.attcollation"
            " WHERE i.indisprimary AND c.relname NOT LIKE '%%\\_version' AND c.relnamespace = 'public'::regnamespace"
        ).all()
    assert len(found) == 13
    assert {collation for _, collation in found} == {"C"}


def test_the_session_is_what_the_manual_says(site: Place) -> None:
    """Commits wait for the disk; nobody waits for ever; times are UTC."""
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


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("postgresql://shop:hunter2@127.0.0.1:1/x", "no server answers there"),
        ("postgresql://postgres@/nosuch?host={host}", "there is no such database on the server"),
    ],
)
def test_what_is_out_of_reach_is_explained_without_host_and_password(url: str, why: str, postgres: PostgresServer) -> None:
    """For the operator, in a few words."""
    dialect = Postgres()
    with pytest.raises(Exception, match="connection") as caught:
        dialect.engine(url.format(host=postgres.folder)).connect()
    assert dialect.explain(caught.value) == why  # type: ignore[arg-type]


def test_an_address_that_nobody_can_read_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """And one that nobody can speak to for want of the driver, which says how to get it."""
    with pytest.raises(DatabaseConfigError, match="not a valid PostgreSQL connection string") as caught:
        Database("postgresql://u:hunter2@h/d?no_such_option=1")
    assert "hunter2" not in str(caught.value)
    monkeypatch.delitem(__import__("sys").modules, "app.storage.sql.postgres")
    monkeypatch.setitem(__import__("sys").modules, "psycopg", None)
    with pytest.raises(DatabaseConfigError, match=r"pip install 'fulfilment\[postgres\]'"):
        Database("postgresql://localhost/orders")
