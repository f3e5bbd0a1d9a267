"""
What every database promises, once.

A test file brings a fixture ``site`` (see `tests.storage.site.Site`) and a class that inherits `StoreContract`.
"""

from __future__ import annotations

__all__ = ["StoreContract", "outbox_message"]

import asyncio
import threading
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from hypothesis import HealthCheck, given, settings
from sqlalchemy import Connection, event
from sqlalchemy.exc import IntegrityError

from app.messaging.republish import _sent_messages, count
from app.storage.errors import StorageUnavailable
from app.storage.migrations import head, is_current, migrate, version
from app.storage.module_store import HANDOVER_DELAY, INBOX_RETENTION, OUTBOX_RETENTION, InboxEntry, ModuleStore
from app.storage.outbox import OutboxMessage
from app.storage.sql.database import Database, Work
from app.storage.state_rows import StateMapper, to_db_timestamp
from bus.ids import derived_id, id_lower_bound
from bus.port import DeadLetter, Message
from modules import inventory
from modules.inventory.state import Product, Reservation, ReservationStatus
from modules.orders.state import Order
from modules.values import Line
from tests.runtime.harness import CONTEXT, NO_CONTENT, Harness, bus_message, harness_at, oid, product, submitted
from tests.storage.site import Site
from tests.storage.states import STATES, TABLES
from tests.storage.test_migrations import expected

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
GREAT_GRACE = timedelta(seconds=1)


def outbox_message(id: str, due_at: datetime = NOW, name: str | None = None, body: bytes = b"{}") -> OutboxMessage:
    """Return a row of the outbox."""
    return OutboxMessage(
        id, id, "orders.created.v1", oid(1), body, name, "test", id, CONTEXT.traceparent, to_db_timestamp(NOW), to_db_timestamp(due_at)
    )


def born(at: datetime, n: int) -> str:
    """Return an id that was made at *at*."""
    return f"{id_lower_bound(at)}-7000-8000-{n:012}"


def insert(n: int) -> Work[int]:
    """Return work that inserts *n* into the table of different numbers."""

    def work(connection: Connection) -> int:
        connection.exec_driver_sql(f"INSERT INTO number VALUES ({n})")
        return n

    return work


async def numbers(database: Database) -> list[int]:
    return await database.read(lambda c: [row[0] for row in c.exec_driver_sql("SELECT n FROM number ORDER BY n")])


class StoreContract:
    """The suite."""

    @pytest.fixture
    async def database(self, site: Site) -> AsyncIterator[Database]:
        """A database with inventory's tables, and one of different numbers."""
        database = Database(site.url)
        migrate(database.engine, "inventory")
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

    def test_every_state_is_tried(self) -> None:
        """A new state class joins the round trip."""
        assert set(STATES) == set(TABLES)

    @pytest.mark.parametrize("cls", STATES, ids=lambda cls: cls.__name__)
    def test_a_state_comes_back_as_it_was(self, cls: type, site: Site) -> None:
        """Whatever is in its fields: every text, every moment to the microsecond, every count that fits."""
        database = Database(site.url)
        rows = StateMapper(cls, TABLES[cls], database.dialect)
        module = next(name for name in ("orders", "inventory", "payments") if TABLES[cls].name.startswith(name))
        migrate(database.engine, module)

        @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.differing_executors])
        @given(states=self._lists_of(cls, rows))
        def round_trip(states: list[Any]) -> None:
            with database.engine.connect() as connection, connection.begin() as transaction:
                keys = [rows.key_of(state) for state in states]
                rows.save(connection, states, set(keys))
                rows.save(connection, states)  # written over itself
                assert rows.lock(connection, keys) == dict(zip(keys, states, strict=True))
                assert rows.load(connection, [*keys, "nobody"]).keys() == set(keys)
                assert rows.list_page(connection, {}, None, 1, False) == [min(states, key=lambda s: rows.key_of(s).encode())]
                transaction.rollback()

        round_trip()
        database.engine.dispose()

    @staticmethod
    def _lists_of(cls: type, rows: StateMapper) -> Any:
        from hypothesis import strategies as st

        return st.lists(STATES[cls].filter(lambda s: rows.key_of(s) != "nobody"), min_size=1, max_size=20, unique_by=rows.key_of)

    @pytest.mark.parametrize("count", [0, 1, 2, 3, 5, 127, 128, 129, 300, 1000])
    async def test_any_number_of_rows_goes(self, count: int, store: ModuleStore) -> None:
        """No row is lost or doubled where a statement ends and the next begins."""
        rows = store.mappers[Reservation]
        states = [Reservation(order_id=f"o-{n}", status=ReservationStatus.HELD, lines=(Line("A", n + 1),)) for n in range(count)]
        keys = [state.order_id for state in states]
        await store.database.write(lambda c: rows.save(c, states, set(keys)))
        assert await store.database.write(lambda c: rows.lock(c, [*keys, "nobody"])) == {s.order_id: s for s in states}
        found = await store.database.read(lambda c: c.exec_driver_sql("SELECT count(*) FROM inventory_reservation").scalar())
        assert found == count

    async def test_a_later_state_replaces_an_earlier_one(self, store: ModuleStore) -> None:
        """One key, one row; whether it was new is no matter to those that come after."""
        rows = store.mappers[Reservation]
        for status in ReservationStatus:
            await store.database.write(partial(rows.save, states=[Reservation(order_id="o", status=status)]))
        assert await store.database.read(lambda c: rows.load(c, ["o"])) == {"o": Reservation(order_id="o", status=status)}

    async def test_pages_follow_the_bytes_of_the_key(self, store: ModuleStore) -> None:
        """Forwards and backwards, each row once: capitals before small letters, and no language's rules."""
        rows = store.mappers[Product]
        keys = ["B", "a", "_", "Z", "b-1", "b1", "é", "ab", "A", "10", "9", "ß", "😀"]
        stock = [Product(product_id=k, name=None, on_hand=1, reserved=0, unit_price_amount=1, currency="EUR") for k in keys]
        await store.database.write(lambda c: rows.save(c, stock, set(keys)))
        for newest_first in (False, True):
            found: list[str] = []
            while True:
                after = found[-1] if found else None
                browse = partial(rows.list_page, filters={}, after=after, limit=2, newest_first=newest_first)
                page = await store.database.read(browse)
                found += [state.product_id for state in page]
                if len(page) < 2:
                    break
            assert found == sorted(keys, key=str.encode, reverse=newest_first)

    async def test_filters_are_equalities_that_all_hold(self, store: ModuleStore) -> None:
        """What fits one of them only is left out."""
        rows = store.mappers[Product]
        stock = [
            Product(product_id=f"{n}", name="x" if n % 2 else "y'\"%s?", on_hand=n, reserved=0, unit_price_amount=1, currency=c)
            for n, c in enumerate(["EUR", "EUR", "USD", "USD"])
        ]
        await store.database.write(lambda c: rows.save(c, stock, {state.product_id for state in stock}))
        wanted = {"name": "y'\"%s?", "currency": "USD"}
        assert await store.database.read(lambda c: rows.list_page(c, wanted, None, 9, False)) == [stock[2]]
        assert await store.database.read(lambda c: rows.list_page(c, wanted, "2", 9, False)) == []

    async def test_what_breaks_a_rule_of_the_table_is_not_written(self, store: ModuleStore) -> None:
        """More pieces held than there are: an error of the work, and no sign of a database in trouble."""
        rows = store.mappers[Product]
        bad = Product(product_id="A", name=None, on_hand=1, reserved=2, unit_price_amount=1, currency="EUR")
        with pytest.raises(Exception, match="inventory_product_reserved") as caught:
            await store.database.write(lambda c: rows.save(c, [bad], {"A"}))
        assert not isinstance(caught.value, StorageUnavailable)
        assert store.database.is_healthy
        assert await store.database.read(lambda c: rows.load(c, ["A"])) == {}

    # Inbox and outbox

    async def test_what_was_heard_is_known_with_its_answer(self, store: ModuleStore) -> None:
        """And nothing else is."""
        heard = [InboxEntry("b", to_db_timestamp(NOW), 1, "f", '{"status": 202}'), InboxEntry("a", to_db_timestamp(NOW), 1, None, None)]
        await store.database.write(lambda c: store.save(c, states={}, inbox_entries=heard, cancelled_timers=(), outgoing=()))
        known = await store.database.write(lambda c: store.find_processed(c, ["a", "b", "c", "B"]))
        assert known == {"a": (None, None), "b": ("f", '{"status": 202}')}

    async def test_what_a_batch_needs_to_know_is_recalled_at_once(self, store: ModuleStore) -> None:
        """What was heard, and the states as they are by now; written a moment ago or not."""
        held = Reservation(order_id="o-1", status=ReservationStatus.HELD, lines=(Line("A", 1),))
        shelf = Product(product_id="A", name=None, on_hand=5, reserved=1, unit_price_amount=100, currency="EUR")
        states: dict[type, dict[str, Any]] = {Reservation: {"o-1": held}, Product: {"A": shelf}}
        heard = [InboxEntry("b", to_db_timestamp(NOW), 1, "f", '{"status": 202}'), InboxEntry("a", to_db_timestamp(NOW), 1, None, None)]
        await store.database.write(
            lambda c: store.save(
                c, states=states, new_keys={cls: set(found) for cls, found in states.items()}, inbox_entries=heard, cancelled_timers=(), outgoing=()
            )
        )

        async def recalled(keys: dict[type, set[str]]) -> dict[type, dict[str, Any]]:
            known, world = await store.database.write(lambda c: store.load_with_inbox(c, ["a", "b", "c"], keys))
            assert known == {"a": (None, None), "b": ("f", '{"status": 202}')}
            return world

        assert await recalled({Reservation: {"o-1", "o-2"}, Product: {"A"}}) == states
        assert await recalled({Reservation: {"o-2"}}) == {Reservation: {}}

    async def test_the_outbox_gives_back_what_is_due(self, store: ModuleStore) -> None:
        """Byte for byte, the longest due first; neither what was sent, nor what is due later, nor what was withdrawn."""
        before = [NOW - timedelta(seconds=n) for n in range(10)]
        rows = [
            outbox_message("p-1", before[5], body=bytes(range(256))),
            outbox_message("p-2", before[9]),
            outbox_message("p-3", before[7]),
            outbox_message("later", NOW + timedelta(seconds=9), "n-1"),
            outbox_message("was-later", before[0], "n-2"),
            outbox_message("back", before[6], "n-3"),
            outbox_message("just-now", before[0]),
        ]
        await self._say(store, rows)
        await self._say(store, [outbox_message("p-1", NOW, body=b"a copy")])  # known: passed over
        await store.database.write(lambda c: store.save(c, states={}, inbox_entries=(), cancelled_timers=["n-3", "n-9"], outgoing=()))
        await store.database.write(lambda c: store.mark_sent(c, ["p-3", "p-9"], NOW))
        found = await store.database.write(lambda c: store.fetch_due(c, NOW, 10, GREAT_GRACE))
        assert [(p.id, p) for p in found] == [("p-2", rows[1]), ("p-1", rows[0]), ("was-later", rows[4])]
        assert await store.database.write(lambda c: store.fetch_due(c, NOW, 1, GREAT_GRACE)) == [rows[1]]
        assert await store.database.write(lambda c: store.fetch_due(c, NOW, 1, GREAT_GRACE, {"p-2", "p-9"})) == [rows[0]]
        assert await store.database.write(lambda c: store.count_due(c, NOW)) == 4
        assert await store.database.write(lambda c: store.oldest_due_seconds(c, NOW)) == 9.0
        assert await store.database.write(lambda c: store.oldest_due_seconds(c, NOW - timedelta(hours=1))) == 0.0

    async def test_what_nobody_needs_any_more_goes(self, store: ModuleStore) -> None:
        """
        Sent events after a day, heard ones two days after they were heard; whatever their ids look like.

        What was never sent stays for ever.
        """
        old, older = NOW - OUTBOX_RETENTION - timedelta(seconds=1), NOW - INBOX_RETENTION - timedelta(seconds=1)
        rows = [outbox_message(born(old, 1)), outbox_message(born(old, 2)), outbox_message(born(NOW, 3))]
        foreign = [outbox_message(derived_id(f"from elsewhere {n}", 0)) for n in range(20)]
        heard = [
            InboxEntry(born(older, 4), to_db_timestamp(older), 0, None, None),
            InboxEntry(born(older, 5), to_db_timestamp(old), 0, None, None),
            InboxEntry("any-id", to_db_timestamp(older), 1, "f", None),
            InboxEntry("other-id", to_db_timestamp(old), 1, "f", None),
        ]
        await store.database.write(lambda c: store.save(c, states={}, inbox_entries=heard, cancelled_timers=(), outgoing=rows + foreign))
        await store.database.write(lambda c: store.mark_sent(c, [rows[0].id, *(each.id for each in foreign)], old))
        await store.database.write(lambda c: store.mark_sent(c, [rows[2].id], NOW))
        assert await store.database.write(lambda c: store.purge(c, NOW)) == 3 + len(foreign)
        assert await store.database.write(lambda c: store.purge(c, NOW)) == 0
        left = await store.database.read(lambda c: sorted(c.exec_driver_sql("SELECT id FROM inventory_outbox").scalars()))
        assert left == sorted([rows[1].id, rows[2].id])
        ids = [kept.id for kept in heard]
        assert (await store.database.write(lambda c: store.find_processed(c, ids))).keys() == {born(older, 5), "other-id"}

    async def test_what_was_sent_can_be_sent_again(self, store: ModuleStore) -> None:
        """For a stream that was lost: what it was given since then, whole, and nothing else."""
        long_said = outbox_message("p-2")._replace(occurred_at=to_db_timestamp(NOW - timedelta(hours=9)))
        rows = [outbox_message("p-1", body=bytes(range(256))), long_said, outbox_message("p-3"), outbox_message("unsent")]
        await self._say(store, rows)
        await store.database.write(lambda c: store.mark_sent(c, ["p-1", "p-2"], NOW))
        await store.database.write(lambda c: store.mark_sent(c, ["p-3"], NOW - timedelta(microseconds=1)))
        assert [found async for found in _sent_messages(store, NOW)] == rows[:2]
        assert await count(store, NOW) == 2
        assert await count(store, NOW + timedelta(microseconds=1)) == 0

    async def test_one_process_leads(self, store: ModuleStore) -> None:
        """Where there is nobody else, it is always the one that asks."""
        assert await store.database.write(lambda c: store.acquire_leadership(c, True))
        assert await store.database.write(lambda c: store.acquire_leadership(c, True))
        assert store.handover_delay(GREAT_GRACE) == (HANDOVER_DELAY if store.database.dialect.is_shared else GREAT_GRACE)

    @staticmethod
    async def _say(store: ModuleStore, rows: list[OutboxMessage]) -> None:
        await store.database.write(lambda c: store.save(c, states={}, inbox_entries=(), cancelled_timers=(), outgoing=rows))

    # Transactions

    async def test_what_waits_together_is_committed_together(self, database: Database) -> None:
        """A hundred pieces of work that arrive at once are a few transactions, and each gets its own result."""
        commits: list[Any] = []
        event.listen(database.engine, "commit", commits.append)
        assert await asyncio.gather(*(database.write(insert(n)) for n in range(100))) == list(range(100))
        assert len(commits) <= 3
        assert await numbers(database) == list(range(100))

    async def test_one_failing_piece_does_not_take_the_others_down(self, database: Database) -> None:
        """Each of the others is done once; the failing one keeps nothing, not even what it did before it failed."""

        def half(connection: Connection) -> None:
            insert(50)(connection)
            raise ValueError("half done")

        works = [database.write(insert(1)), database.write(half), database.write(insert(2)), database.write(insert(2))]
        done = await asyncio.gather(*works, return_exceptions=True)
        assert done[0] == 1
        assert isinstance(done[1], ValueError)
        assert done[2] == 2
        assert isinstance(done[3], IntegrityError)
        assert await numbers(database) == [1, 2]

    async def test_a_database_that_is_away_keeps_nothing_and_comes_back(self, site: Site, database: Database) -> None:
        """Whoever asks meanwhile hears so; what rides along waits; nobody has to restart anything."""
        await database.write(insert(0))
        site.take_away()
        database.defer(insert(1))
        with pytest.raises(StorageUnavailable):
            await database.write(insert(2))
        assert not database.is_healthy
        site.bring_back()
        assert (await database.write(insert(3)), database.is_healthy) == (3, True)
        assert await numbers(database) == [0, 1, 3]

    async def test_a_reader_cannot_see_half_a_transaction(self, database: Database) -> None:
        """It sees the last commit while the next is in the making, and does not wait for it."""
        may_go = threading.Event()

        def committing(connection: Connection) -> None:
            assert connection.get_execution_options().get("reading", False) or may_go.wait(20)

        event.listen(database.engine, "commit", committing)
        writing = asyncio.create_task(database.write(insert(1)))
        await asyncio.sleep(0)
        assert await numbers(database) == []
        may_go.set()
        await writing
        assert await numbers(database) == [1]

    # Tables

    @pytest.mark.parametrize("module", ["orders", "inventory", "payments"])
    def test_a_migrated_database_is_what_the_code_describes(self, module: str, site: Site) -> None:
        """Alembic finds nothing to add, drop or alter; a second time there is nothing to do."""
        engine = Database(site.url).engine
        assert not is_current(engine, module)
        assert migrate(engine, module) is True
        assert migrate(engine, module) is False
        assert is_current(engine, module)
        with engine.connect() as connection:
            assert version(connection, module) == head(module)
            context = MigrationContext.configure(connection, opts={"version_table": f"{module}_version", "compare_type": True})
            assert compare_metadata(context, expected(module)) == []
        engine.dispose()

    # The house on top of it

    async def test_an_order_and_its_copies_have_one_effect(self, harness: Harness) -> None:
        """Through shell and store, with a key: the second asker gets the first one's answer."""
        first = await harness.submit("orders", submitted(oid(1)), key="k", fingerprint="f")
        second = await harness.submit("orders", submitted(oid(2)), key="k", fingerprint="f")
        assert (first.is_replay, second.is_replay) == (False, True)
        assert await harness.runners["orders"].get(Order, oid(2)) is None
        found = await harness.runners["orders"].list_states(Order, {"customer_id": "c-1"}, after=None, limit=9, newest_first=True)
        assert [order.order_id for order in found] == [oid(1)]
        subjects = [subject for subject, _ in await harness.outbox("orders")]
        assert (subjects.count("orders.created.v1"), subjects.count("orders.timed_out.v1")) == (1, 1)

    async def test_what_a_message_says_of_itself_cannot_poison_a_batch(self, harness: Harness) -> None:
        """NULs, halves of characters, endless ids: either it is kept under an id that stands for it, or put aside alone."""
        await harness.submit("inventory", product(100))
        await harness.consume("inventory")
        odd = ["nul\0", "%00", "\ud800", "x" * 10_000, "ü" * 256, "'; --"]
        for n, id in enumerate(odd):
            message = bus_message(harness, _created(n), key=oid(n))
            headers = {**message.headers, "ce-id": id, "ce-correlationid": id, "traceparent": id.ljust(55)[:55], "ce-time": id}
            twice = [Message(message.subject, f"{id}-{copy}", message.body, id, headers) for copy in (1, 2)]
            await asyncio.gather(*(harness.bus.publish(copy) for copy in twice))
        await harness.bus.publish(Message("orders.created.v1", "bad\0", b"\0", "k\0", {"ce-id": "\0", "x": "\0\ud800"}))
        stock = await harness.runners["inventory"].get(Product, "A")
        assert stock is not None
        assert stock.reserved == len(odd)
        [kept] = await harness.dead_letter_store.list(None, None, None, 10)
        assert (kept.dead_letter.error, kept.dead_letter.message.body) == ("unreadable", b"\0")
        assert await harness.dead_letter_store.replay(kept.dead_letter.id)
        assert len(await harness.rows("SELECT id FROM inventory_outbox WHERE subject LIKE ?", "%orders.created.v1")) == 1

    async def test_dead_letters_are_kept_listed_replayed_and_thrown_away(self, harness: Harness) -> None:
        """To the last byte, page by page, each once."""
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
        await harness.dead_letter_store.add(again)  # the very same
        assert await harness.dead_letter_store.get(again.id) == found[0]
        assert await harness.dead_letter_store.replay_many("inventory-express", None, "invalid", False) == (5, 5)
        assert [kept.replays for kept in await harness.dead_letter_store.list(None, None, None, 9)] == [1] * 5
        assert await harness.dead_letter_store.discard(again.id)
        assert not await harness.dead_letter_store.discard(again.id)

    async def test_the_last_ten_go_to_ten(self, harness: Harness) -> None:
        """Fifty who want one each, in as few batches as they fit: ten are held, and none too many."""
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
