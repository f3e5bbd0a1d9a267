"""
The contract suite of the storage: what every database promises.

A test file provides a fixture ``site`` (see `tests.storage.site.Site`) and a class that inherits `StoreContract`.
"""

from __future__ import annotations

__all__ = ["StoreContract", "outbox_message"]

import asyncio
import threading
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta, timezone
from functools import partial
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from hypothesis import HealthCheck, given, settings
from sqlalchemy import Connection, RootTransaction, event
from sqlalchemy.exc import IntegrityError

from app.messaging.republish import _sent_messages, count
from app.storage.errors import StorageUnavailable
from app.storage.migrations import head, is_current, migrate, version
from app.storage.module_store import HANDOVER_DELAY, ModuleStore
from app.storage.search.timers import read_timers
from app.storage.sql.database import Database, Work
from app.storage.state_rows import StateMapper, to_db_timestamp
from app.storage.tables import DUE_NOW, InboxEntry, OutboxMessage
from bus.ids import derived_id, id_lower_bound
from bus.port import DeadLetter, Message
from modules import inventory
from modules.inventory.state import Product, Reservation, ReservationStatus
from modules.orders.state import Order
from modules.values import Line
from tests.examples import examples
from tests.runtime.harness import CONTEXT, NO_CONTENT, Harness, bus_message, harness_at, oid, product, submitted
from tests.storage.site import Site
from tests.storage.states import STATES, TABLES
from tests.storage.test_migrations import expected

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
LONG_DELAY = timedelta(seconds=1)


def outbox_message(id: str, at: datetime = NOW, timer: str | None = None, body: bytes = b"{}") -> OutboxMessage:
    """Return a row of the outbox: committed *at* that time and due at once, or due *at* that time if it has a *timer*."""
    occurred_at, due_at = (to_db_timestamp(at), DUE_NOW) if timer is None else (to_db_timestamp(NOW), to_db_timestamp(at))
    return OutboxMessage(
        id, id, "orders.created.v1", oid(1), body, timer, "test", id, CONTEXT.traceparent, occurred_at, due_at
    )


def id_made_at(at: datetime, n: int) -> str:
    """Return an id that begins with the time *at*."""
    return f"{id_lower_bound(at)}-7000-8000-{n:012}"


def insert_number(n: int) -> Work[int]:
    """Return work that inserts *n* into the table of unique numbers."""

    def work(connection: Connection) -> int:
        connection.exec_driver_sql(f"INSERT INTO number VALUES ({n})")
        return n

    return work


async def numbers(database: Database) -> list[int]:
    return await database.read(lambda c: [row[0] for row in c.exec_driver_sql("SELECT n FROM number ORDER BY n")])


class StoreContract:
    """The suite; inherit it and provide a fixture ``site``."""

    @pytest.fixture
    async def database(self, site: Site) -> AsyncIterator[Database]:
        """A database with the tables of all modules and a table of unique numbers."""
        database = Database(site.url)
        await database.write(lambda c: c.exec_driver_sql("CREATE TABLE number (n INTEGER PRIMARY KEY)"))
        yield database
        await database.close()

    @pytest.fixture
    def store(self, database: Database) -> ModuleStore:
        return ModuleStore(inventory.module(), database)

    @pytest.fixture
    async def harness(self, site: Site) -> AsyncIterator[Harness]:
        async with harness_at(site.url) as harness:
            yield harness

    # States

    def test_every_state_class_has_a_strategy(self) -> None:
        """A new state class joins the round trip."""
        assert set(STATES) == set(TABLES)

    @pytest.mark.parametrize("cls", STATES, ids=lambda cls: cls.__name__)
    def test_a_stored_state_is_loaded_unchanged(self, cls: type, site: Site) -> None:
        """Its fields may contain any text, any time to the microsecond and any integer that fits."""
        database = Database(site.url)
        mapper = StateMapper(cls, TABLES[cls], database.dialect)

        @settings(max_examples=examples(60), deadline=None, suppress_health_check=[HealthCheck.differing_executors])
        @given(states=self._lists_of(cls, mapper))
        def round_trip(states: list[Any]) -> None:
            with database.engine.connect() as connection, connection.begin() as transaction:
                keys = [mapper.key_of(state) for state in states]
                mapper.save(connection, states, set(keys))
                mapper.save(connection, states)  # overwrites them with the same
                assert mapper.lock(connection, keys)() == dict(zip(keys, states, strict=True))
                assert mapper.load(connection, [*keys, "unknown"]).keys() == set(keys)
                assert mapper.list_page(connection, {}, None, 1, False) == [min(states, key=lambda s: mapper.key_of(s).encode())]
                transaction.rollback()

        round_trip()
        database.engine.dispose()

    @staticmethod
    def _lists_of(cls: type, mapper: StateMapper) -> Any:
        from hypothesis import strategies as st

        return st.lists(STATES[cls].filter(lambda s: mapper.key_of(s) != "unknown"), min_size=1, max_size=20, unique_by=mapper.key_of)

    @pytest.mark.parametrize("count", [0, 1, 2, 3, 5, 127, 128, 129, 300, 1000])
    async def test_any_number_of_rows_can_be_saved(self, count: int, store: ModuleStore) -> None:
        """No row is lost or duplicated where one statement ends and the next begins."""
        mapper = store.mappers[Reservation]
        states = [Reservation(order_id=f"o-{n}", status=ReservationStatus.HELD, lines=(Line("A", n + 1),)) for n in range(count)]
        keys = [state.order_id for state in states]
        await store.database.write(lambda c: mapper.save(c, states, set(keys)))
        assert await store.database.write(lambda c: mapper.lock(c, [*keys, "unknown"])()) == {s.order_id: s for s in states}
        found = await store.database.read(lambda c: c.exec_driver_sql("SELECT count(*) FROM inventory_reservation").scalar())
        assert found == count

    async def test_a_later_state_replaces_an_earlier_one(self, store: ModuleStore) -> None:
        """One key, one row; a later write does not depend on whether the key was new."""
        mapper = store.mappers[Reservation]
        for status in ReservationStatus:
            await store.database.write(partial(mapper.save, states=[Reservation(order_id="o", status=status)]))
        assert await store.database.read(lambda c: mapper.load(c, ["o"])) == {"o": Reservation(order_id="o", status=status)}

    async def test_pages_are_in_the_byte_order_of_the_key(self, store: ModuleStore) -> None:
        """In both directions, each row once: capitals before small letters, independent of any locale."""
        mapper = store.mappers[Product]
        keys = ["B", "a", "_", "Z", "b-1", "b1", "é", "ab", "A", "10", "9", "ß", "😀"]
        stock = [Product(product_id=k, name=None, on_hand=1, reserved=0, unit_price_amount=1, currency="EUR") for k in keys]
        await store.database.write(lambda c: mapper.save(c, stock, set(keys)))
        for newest_first in (False, True):
            found: list[str] = []
            while True:
                after = found[-1] if found else None
                list_page = partial(mapper.list_page, filters={}, after=after, limit=2, newest_first=newest_first)
                page = await store.database.read(list_page)
                found += [state.product_id for state in page]
                if len(page) < 2:
                    break
            assert found == sorted(keys, key=str.encode, reverse=newest_first)

    async def test_a_listed_state_equals_every_filter(self, store: ModuleStore) -> None:
        """A state that matches only one of two filters is not listed."""
        mapper = store.mappers[Product]
        stock = [
            Product(product_id=f"{n}", name="x" if n % 2 else "y'\"%s?", on_hand=n, reserved=0, unit_price_amount=1, currency=c)
            for n, c in enumerate(["EUR", "EUR", "USD", "USD"])
        ]
        await store.database.write(lambda c: mapper.save(c, stock, {state.product_id for state in stock}))
        wanted = {"name": "y'\"%s?", "currency": "USD"}
        assert await store.database.read(lambda c: mapper.list_page(c, wanted, None, 9, False)) == [stock[2]]
        assert await store.database.read(lambda c: mapper.list_page(c, wanted, "2", 9, False)) == []

    async def test_a_state_that_violates_a_check_of_the_table_is_not_written(self, store: ModuleStore) -> None:
        """More reserved than on hand: an error of the work; the database stays healthy."""
        mapper = store.mappers[Product]
        bad = Product(product_id="A", name=None, on_hand=1, reserved=2, unit_price_amount=1, currency="EUR")
        with pytest.raises(Exception, match="inventory_product_reserved") as caught:
            await store.database.write(lambda c: mapper.save(c, [bad], {"A"}))
        assert not isinstance(caught.value, StorageUnavailable)
        assert store.database.is_healthy
        assert await store.database.read(lambda c: mapper.load(c, ["A"])) == {}

    # Inbox and outbox

    async def test_an_inbox_entry_is_found_with_its_response(self, store: ModuleStore) -> None:
        """Other ids are not found; ids are case-sensitive."""
        entries = [InboxEntry("b", to_db_timestamp(NOW), 1, "f", '{"status": 202}'), InboxEntry("a", to_db_timestamp(NOW), 1, None, None)]
        await store.database.write(lambda c: store.save(c, states={}, inbox_entries=entries, cancelled_timers=(), outgoing=()))
        processed = await store.database.write(lambda c: store.find_processed(c, ["a", "b", "c", "B"]))
        assert processed == {"a": (None, None), "b": ("f", '{"status": 202}')}

    async def test_inbox_and_states_are_loaded_together(self, store: ModuleStore) -> None:
        """The inbox entries and the current states, whether they were written a moment ago or not."""
        held = Reservation(order_id="o-1", status=ReservationStatus.HELD, lines=(Line("A", 1),))
        shelf = Product(product_id="A", name=None, on_hand=5, reserved=1, unit_price_amount=100, currency="EUR")
        states: dict[type, dict[str, Any]] = {Reservation: {"o-1": held}, Product: {"A": shelf}}
        entries = [InboxEntry("b", to_db_timestamp(NOW), 1, "f", '{"status": 202}'), InboxEntry("a", to_db_timestamp(NOW), 1, None, None)]
        await store.database.write(
            lambda c: store.save(
                c, states=states, new_keys={cls: set(by_key) for cls, by_key in states.items()}, inbox_entries=entries, cancelled_timers=(), outgoing=()
            )
        )

        async def load(keys: dict[type, set[str]]) -> dict[type, dict[str, Any]]:
            processed, found = await store.database.write(lambda c: store.load_with_inbox(c, ["a", "b", "c"], keys))
            assert processed == {"a": (None, None), "b": ("f", '{"status": 202}')}
            return found

        assert await load({Reservation: {"o-1", "o-2"}, Product: {"A"}}) == states
        assert await load({Reservation: {"o-2"}}) == {Reservation: {}}

    async def test_due_messages_are_fetched_in_the_order_of_writing_and_then_timers(self, store: ModuleStore) -> None:
        """Byte for byte, and neither messages that were sent, nor ones that are due later, nor cancelled ones."""
        earlier = [NOW - timedelta(seconds=n) for n in range(10)]
        rows = [
            outbox_message("m-1", earlier[5], body=bytes(range(256))),
            outbox_message("m-2", earlier[9]),
            outbox_message("m-3", earlier[7]),
            outbox_message("later", NOW + timedelta(seconds=9), "t-1"),
            outbox_message("was-later", earlier[0], "t-2"),
            outbox_message("cancelled", earlier[6], "t-3"),
            outbox_message("just-now", earlier[0]),
        ]
        await self._add(store, rows)
        await self._add(store, [outbox_message("m-1", NOW, body=b"a duplicate")])  # ignored
        await store.database.write(lambda c: store.save(c, states={}, inbox_entries=(), cancelled_timers=["t-3", "t-9"], outgoing=()))
        await store.database.write(lambda c: store.mark_sent(c, ["m-3", "m-9"], NOW))
        found = await store.database.write(lambda c: store.fetch_due(c, NOW, 10, LONG_DELAY))
        assert found == [rows[0], rows[1], rows[4]]
        assert await store.database.write(lambda c: store.fetch_due(c, NOW, 1, LONG_DELAY)) == [rows[0]]
        assert await store.database.write(lambda c: store.fetch_due(c, NOW, 1, LONG_DELAY, {"m-1", "m-9"})) == [rows[1]]
        assert await store.database.write(lambda c: store.count_due(c, NOW)) == 4
        assert await store.database.write(lambda c: store.oldest_due_seconds(c, NOW)) == 9.0
        assert await store.database.write(lambda c: store.oldest_due_seconds(c, NOW - timedelta(hours=1))) == 0.0

    async def test_the_timers_are_counted_and_those_due_first_are_read(self, store: ModuleStore) -> None:
        """Ordinary events and timers that have ended are none."""
        timers = [outbox_message(f"t-{n}", NOW + timedelta(hours=n), f"timer-{n}") for n in (3, 1, 2)]
        await self._add(store, [*timers, outbox_message("m-1"), outbox_message("t-9", NOW, "timer-9")])
        await store.database.write(lambda c: store.mark_sent(c, ["t-9"], NOW))
        found = await store.database.read(partial(read_timers, store.module.name, 2))
        assert found.count == 3
        assert [each.due_at for each in found.first] == [NOW + timedelta(hours=n) for n in (1, 2)]
        assert (found.first[0].subject, found.first[0].key) == ("orders.created.v1", oid(1))

    @pytest.mark.parametrize("hours", [-24 * 365, -2, -0.5, 0.5, 2, 24 * 365])
    async def test_a_clock_that_differs_hides_no_message(self, store: ModuleStore, hours: float) -> None:
        """What another process committed, or this one before its clock was set back, is due on every clock."""
        now = NOW + timedelta(hours=hours)
        await self._add(store, [outbox_message("m-1"), outbox_message("m-2", NOW - timedelta(seconds=9))])
        found = await store.database.write(lambda c: store.fetch_due(c, now, 10, LONG_DELAY))
        assert [message.id for message in found] == ["m-1", "m-2"]
        assert await store.database.write(lambda c: store.count_due(c, now)) == 2

    @pytest.mark.parametrize("hours", [-2, -0.5, 0, 0.01, 2])
    async def test_timers_keep_the_time_that_they_had_left(self, store: ModuleStore, hours: float) -> None:
        """After a jump of the clock, or a stop, of more than the limit, in either direction; a short stop is no jump."""
        limit, by = timedelta(minutes=10), timedelta(hours=hours)
        await store.database.write(lambda c: store.heartbeat.resume(c, NOW, limit))
        timers = [outbox_message(f"t-{n}", NOW + timedelta(minutes=10 * n, microseconds=n), f"timer-{n}") for n in range(4)]
        sent = outbox_message("sent", NOW, "timer-9")
        await self._add(store, [*timers, sent, outbox_message("m-1")])
        await store.database.write(lambda c: store.mark_sent(c, ["sent"], NOW))
        is_jump = abs(by) > limit
        found = await store.database.write(lambda c: store.heartbeat.resume(c, NOW + by, limit))
        assert found == ((by, 4) if is_jump else (timedelta(0), 0))
        # A clock that went back makes rows look younger: nothing was skipped.
        assert await store.database.write(lambda c: store.heartbeat.skipped(c, NOW + by)) == (by if by > limit else timedelta(0))
        assert (await store.database.write(lambda c: store.heartbeat.resume(c, NOW + by, limit)))[1] == 0  # only once
        later = NOW + by + timedelta(minutes=25)
        due = await store.database.write(lambda c: store.fetch_due(c, later, 10, LONG_DELAY))
        expected_due = [timer for timer in timers[: 3 if is_jump or hours <= 0 else 4] if is_jump or timer.due_at <= to_db_timestamp(later)]
        assert [message.id for message in due] == ["m-1", *(timer.id for timer in expected_due)]
        if is_jump:
            moved = [to_db_timestamp(datetime.fromisoformat(timer.due_at) + by) for timer in expected_due]
            assert [message.due_at for message in due[1:]] == moved

    async def test_rows_are_purged_after_their_retention(self, store: ModuleStore) -> None:
        """
        Sent messages after a day, inbox entries after two days, whatever form their ids have.

        A message that was never sent stays.
        """
        second = timedelta(seconds=1)
        old, older, kept = NOW - timedelta(days=1) - second, NOW - timedelta(days=2) - second, NOW - timedelta(days=2) + second
        rows = [outbox_message(id_made_at(old, n)) for n in range(3)]
        untimed = [outbox_message(derived_id(f"a foreign id {n}", 0)) for n in range(20)]
        entries = [
            InboxEntry(id_made_at(older, 4), to_db_timestamp(older), 0, None, None),
            InboxEntry(id_made_at(older, 5), to_db_timestamp(kept), 0, None, None),
            InboxEntry("any-id", to_db_timestamp(older), 1, "f", None),
            InboxEntry("other-id", to_db_timestamp(kept), 1, "f", None),
        ]
        await store.database.write(lambda c: store.save(c, states={}, inbox_entries=entries, cancelled_timers=(), outgoing=rows + untimed))
        await store.database.write(lambda c: store.mark_sent(c, [rows[0].id, *(row.id for row in untimed)], old))
        await store.database.write(lambda c: store.mark_sent(c, [rows[2].id], old + 2 * second))
        assert await store.database.write(lambda c: store.purge(c, NOW)) == 3 + len(untimed)
        assert await store.database.write(lambda c: store.purge(c, NOW)) == 0
        left = await store.database.read(lambda c: sorted(c.exec_driver_sql("SELECT id FROM inventory_outbox").scalars()))
        assert left == sorted([rows[1].id, rows[2].id])
        ids = [entry.id for entry in entries]
        assert (await store.database.write(lambda c: store.find_processed(c, ids))).keys() == {id_made_at(older, 5), "other-id"}

    async def test_sent_messages_can_be_read_again(self, store: ModuleStore) -> None:
        """To republish after a stream was lost: all messages sent since then, whole, and no others."""
        scheduled = outbox_message("m-2")._replace(occurred_at=to_db_timestamp(NOW - timedelta(hours=9)))
        rows = [outbox_message("m-1", body=bytes(range(256))), scheduled, outbox_message("m-3"), outbox_message("unsent")]
        await self._add(store, rows)
        await store.database.write(lambda c: store.mark_sent(c, ["m-1", "m-2"], NOW))
        await store.database.write(lambda c: store.mark_sent(c, ["m-3"], NOW - timedelta(microseconds=1)))
        for since in NOW, NOW.astimezone(timezone(timedelta(hours=5))), NOW.astimezone(timezone(-timedelta(hours=5))):
            to_db_timestamp.cache_clear()  # equal moments have one entry, whatever their zones are
            assert [found async for found in _sent_messages(store, since)] == rows[:2]
            assert await count(store, since) == 2
        assert await count(store, NOW + timedelta(microseconds=1)) == 0

    async def test_a_timer_that_has_fired_can_be_read_again(self, store: ModuleStore) -> None:
        """Also if it is cancelled afterwards: it was published, and the stream may lose it."""
        fired, waiting = outbox_message("t-1", NOW, "timer"), outbox_message("t-2", NOW, "timer")
        await self._add(store, [fired, waiting])
        await store.database.write(lambda c: store.mark_sent(c, ["t-1"], NOW))
        await store.database.write(lambda c: store.save(c, states={}, inbox_entries=(), cancelled_timers=["timer"], outgoing=()))
        assert [found async for found in _sent_messages(store, NOW)] == [fired]
        assert await store.database.write(lambda c: store.fetch_due(c, NOW, 10, LONG_DELAY)) == []

    async def test_all_pages_of_sent_messages_are_read(self, store: ModuleStore, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each message once, in the order of the ids and not of the writing, wherever the last page ends."""
        monkeypatch.setattr("app.messaging.republish.PAGE", 2)
        ids = [f"m-{n}" for n in (4, 1, 5, 3, 2, 6)]
        for number, id in enumerate(ids, 1):
            await self._add(store, [outbox_message(id)])
            await store.database.write(lambda c, id=id: store.mark_sent(c, [id], NOW))  # type: ignore[misc]
            assert [found.id async for found in _sent_messages(store, NOW)] == sorted(ids[:number])

    async def test_a_single_process_takes_and_keeps_the_lead(self, store: ModuleStore) -> None:
        """On a database that is not shared, the only process always has it."""
        assert await store.database.write(lambda c: store.acquire_leadership(c, True))
        assert await store.database.write(lambda c: store.acquire_leadership(c, True))
        assert store.handover_delay(LONG_DELAY) == (HANDOVER_DELAY if store.database.dialect.is_shared else LONG_DELAY)

    @staticmethod
    async def _add(store: ModuleStore, rows: list[OutboxMessage]) -> None:
        await store.database.write(lambda c: store.save(c, states={}, inbox_entries=(), cancelled_timers=(), outgoing=rows))

    # Transactions

    async def test_work_that_waits_together_is_committed_together(self, database: Database) -> None:
        """A hundred calls at once are at most three transactions, and each gets its own result."""
        commits: list[Any] = []
        event.listen(database.engine, "commit", commits.append)
        assert await asyncio.gather(*(database.write(insert_number(n)) for n in range(100))) == list(range(100))
        assert len(commits) <= 3
        assert await numbers(database) == list(range(100))

    async def test_work_that_fails_does_not_fail_the_work_beside_it(self, database: Database) -> None:
        """All other work is done once; the failing work leaves nothing, not even what it wrote before it failed."""

        def insert_and_fail(connection: Connection) -> None:
            insert_number(50)(connection)
            raise ValueError("after the insert")

        calls = [database.write(insert_number(1)), database.write(insert_and_fail), database.write(insert_number(2)), database.write(insert_number(2))]
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert results[0] == 1
        assert isinstance(results[1], ValueError)
        assert results[2] == 2
        assert isinstance(results[3], IntegrityError)
        assert await numbers(database) == [1, 2]

    async def test_an_unavailable_database_stores_nothing_and_recovers_without_a_restart(self, site: Site, database: Database) -> None:
        """Work fails meanwhile with `StorageUnavailable`; deferred work waits."""
        await database.write(insert_number(0))
        site.make_unavailable()
        database.defer(insert_number(1))
        with pytest.raises(StorageUnavailable):
            await database.write(insert_number(2))
        assert not database.is_healthy
        site.make_available()
        assert (await database.write(insert_number(3)), database.is_healthy) == (3, True)
        assert await numbers(database) == [0, 1, 3]

    async def test_a_reader_sees_only_committed_data(self, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
        """It reads the last commit while another is in progress, and does not wait for it."""
        may_go = threading.Event()
        commit = RootTransaction.commit

        def held_commit(transaction: RootTransaction) -> None:
            assert transaction.connection.get_execution_options().get("reading", False) or may_go.wait(20)
            commit(transaction)

        monkeypatch.setattr(RootTransaction, "commit", held_commit)
        writing = asyncio.create_task(database.write(insert_number(1)))
        await asyncio.sleep(0)
        assert await numbers(database) == []
        may_go.set()
        await writing
        assert await numbers(database) == [1]

    # Tables

    @pytest.mark.parametrize("module", ["orders", "inventory", "payments"])
    def test_a_migrated_database_has_the_columns_and_indexes_that_the_code_describes(self, module: str, site: Site) -> None:
        """Alembic finds nothing to add, drop or alter; a second migration does nothing."""
        engine = Database(site.empty_url()).engine
        assert not is_current(engine, module)
        assert migrate(engine, module) is True
        assert migrate(engine, module) is False
        assert is_current(engine, module)
        with engine.connect() as connection:
            assert version(connection, module) == head(module)
            context = MigrationContext.configure(connection, opts={"version_table": f"{module}_version", "compare_type": True})
            assert compare_metadata(context, expected(module, connection.dialect.name)) == []
        engine.dispose()

    # Modules on top of the storage

    async def test_two_requests_with_one_idempotency_key_have_one_effect(self, harness: Harness) -> None:
        """The second request gets the response to the first."""
        first = await harness.submit("orders", submitted(oid(1)), key="k", fingerprint="f")
        second = await harness.submit("orders", submitted(oid(2)), key="k", fingerprint="f")
        assert (first.is_replay, second.is_replay) == (False, True)
        assert await harness.runners["orders"].get(Order, oid(2)) is None
        found = await harness.runners["orders"].list_states(Order, {"customer_id": "c-1"}, after=None, limit=9, newest_first=True)
        assert [order.order_id for order in found] == [oid(1)]
        subjects = [subject for subject, _ in await harness.outbox("orders")]
        assert (subjects.count("orders.created.v1"), subjects.count("orders.timed_out.v1")) == (1, 1)

    async def test_strange_headers_of_a_message_cannot_fail_a_batch(self, harness: Harness) -> None:
        """NULs, lone surrogates, ids of any length: the message is stored under a derived id, or dead-lettered alone."""
        await harness.submit("inventory", product(100))
        await harness.consume("inventory")
        odd = ["nul\0", "%00", "\ud800", "x" * 10_000, "ü" * 256, "'; --"]
        for n, id in enumerate(odd):
            message = bus_message(harness, _created(n), key=oid(n))
            headers = {**message.headers, "ce-id": id, "ce-correlationid": id, "traceparent": id.ljust(55)[:55], "ce-time": id}
            duplicates = [Message(message.subject, f"{id}-{number}", message.body, id, headers) for number in (1, 2)]
            await asyncio.gather(*(harness.bus.publish(each) for each in duplicates))
        await harness.bus.publish(Message("orders.created.v1", "bad\0", b"\0", "k\0", {"ce-id": "\0", "x": "\0\ud800"}))
        stock = await harness.runners["inventory"].get(Product, "A")
        assert stock is not None
        assert stock.reserved == len(odd)
        [kept] = await harness.dead_letter_store.list(None, None, None, 10)
        assert (kept.dead_letter.error, kept.dead_letter.message.body) == ("unreadable", b"\0")
        assert await harness.dead_letter_store.replay(kept.dead_letter.id)
        assert len(await harness.rows("SELECT id FROM inventory_outbox WHERE subject LIKE ?", "%orders.created.v1")) == 1

    async def test_dead_letters_are_stored_listed_replayed_and_discarded(self, harness: Harness) -> None:
        """Byte for byte, page by page, each once."""
        for n in range(5):
            message = Message("orders.created.v1", f"m-{n}", bytes([n, 0, 255]), "k", {"ce-id": f"e-{n}", "x": "ü"})
            await harness.dead_letter_store.add(DeadLetter("", "inventory-express", message, "invalid", "/: is wrong", 1, NOW, NOW))
        pages = []
        after = None
        while page := await harness.dead_letter_store.list("inventory-express", None, after, 2):
            pages.append(len(page))
            after = page[-1].dead_letter.id
        assert pages == [2, 2, 1]
        found = await harness.dead_letter_store.list(None, None, None, 9)
        assert [kept.dead_letter.id for kept in found] == sorted(kept.dead_letter.id for kept in found)
        assert {kept.dead_letter.message.body for kept in found} == {bytes([n, 0, 255]) for n in range(5)}
        assert {(kept.dead_letter.first_seen, kept.dead_letter.message.headers["x"]) for kept in found} == {(NOW, "ü")}
        assert await harness.dead_letter_store.list(None, None, found[2].dead_letter.id, 9, error="invalid") == found[3:]
        assert await harness.dead_letter_store.list("inventory-express", None, None, 9, error="failed") == []
        again = found[0].dead_letter
        await harness.dead_letter_store.add(again)  # the same one
        assert await harness.dead_letter_store.get(again.id) == found[0]
        assert await harness.dead_letter_store.replay_many("inventory-express", None, "invalid", False) == (5, 5)
        assert [kept.replays for kept in await harness.dead_letter_store.list(None, None, None, 9)] == [1] * 5
        assert await harness.dead_letter_store.discard(again.id)
        assert not await harness.dead_letter_store.discard(again.id)

    async def test_the_last_ten_pieces_go_to_ten_of_fifty_orders(self, harness: Harness) -> None:
        """Fifty orders for one piece each, in as few batches as possible: ten are reserved, none too many."""
        await harness.submit("inventory", product(10))
        runner = harness.runners["inventory"]
        waiting = [
            asyncio.create_task(runner.submit(_created(n), id=oid(n), trace=CONTEXT, respond=NO_CONTENT)) for n in range(50)
        ]
        await asyncio.sleep(0)
        while not all(task.done() for task in waiting):
            await runner.step()
            await asyncio.sleep(0)
        stock = await runner.get(Product, "A")
        assert stock is not None
        assert (stock.on_hand, stock.reserved) == (10, 10)
        found = await harness.rows("SELECT status, count(*) FROM inventory_reservation GROUP BY status ORDER BY status")
        assert found == [("held", 10), ("rejected", 40)]


def _created(n: int) -> Any:
    from modules.orders.events import OrderCreated

    return OrderCreated(order_id=oid(n), customer_id="c-1", items=(Line("A", 1),), version="v2", shipping_address=None)
