"""
What every database promises, once.

A test file brings a fixture ``site`` (see `tests.storage.site.Site`) and a class that inherits `StoreContract`.
"""

from __future__ import annotations

__all__ = ["StoreContract", "parcel"]

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

from app.messaging.republish import _sent, count
from app.runtime.service import Unavailable
from app.storage.migrations import head, is_current, migrate, version
from app.storage.module_store import GRACE, HEARD_KEPT, SENT_KEPT, Kept, Store
from app.storage.outbox import Parcel
from app.storage.sql.database import Database, Work
from app.storage.state_rows import Rows, instant
from bus.ids import caused_id, id_horizon
from bus.port import DeadLetter, Message
from modules import inventory
from modules.inventory.state import Product, Reservation, ReservationStatus
from modules.orders.state import Order
from modules.values import Line
from tests.runtime.stand import CONTEXT, NOTED, Stand, oid, product, said, stand_at, submitted
from tests.storage.site import Site
from tests.storage.states import STATES, TABLES
from tests.storage.test_migrations import expected

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
GREAT_GRACE = timedelta(seconds=1)


def parcel(id: str, due_at: datetime = NOW, name: str | None = None, body: bytes = b"{}") -> Parcel:
    """Return a row of the outbox."""
    return Parcel(
        id, id, "orders.created.v1", oid(1), body, name, "test", id, CONTEXT.traceparent, instant(NOW), instant(due_at)
    )


def born(at: datetime, n: int) -> str:
    """Return an id that was made at *at*."""
    return f"{id_horizon(at)}-7000-8000-{n:012}"


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
    def store(self, database: Database) -> Store:
        return Store(inventory.module(), database)

    @pytest.fixture
    async def stand(self, site: Site) -> AsyncIterator[Stand]:
        async with stand_at(site.url) as stand:
            yield stand

    # States

    def test_every_state_is_tried(self) -> None:
        """A new state class joins the round trip."""
        assert set(STATES) == set(TABLES)

    @pytest.mark.parametrize("cls", STATES, ids=lambda cls: cls.__name__)
    def test_a_state_comes_back_as_it_was(self, cls: type, site: Site) -> None:
        """Whatever is in its fields: every text, every moment to the microsecond, every count that fits."""
        database = Database(site.url)
        rows = Rows(cls, TABLES[cls], database.dialect)
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
                assert rows.browse(connection, {}, None, 1, False) == [min(states, key=lambda s: rows.key_of(s).encode())]
                transaction.rollback()

        round_trip()
        database.engine.dispose()

    @staticmethod
    def _lists_of(cls: type, rows: Rows) -> Any:
        from hypothesis import strategies as st

        return st.lists(STATES[cls].filter(lambda s: rows.key_of(s) != "nobody"), min_size=1, max_size=20, unique_by=rows.key_of)

    @pytest.mark.parametrize("count", [0, 1, 2, 3, 5, 127, 128, 129, 300, 1000])
    async def test_any_number_of_rows_goes(self, count: int, store: Store) -> None:
        """No row is lost or doubled where a statement ends and the next begins."""
        rows = store.rows[Reservation]
        states = [Reservation(order_id=f"o-{n}", status=ReservationStatus.HELD, lines=(Line("A", n + 1),)) for n in range(count)]
        keys = [state.order_id for state in states]
        await store.database.write(lambda c: rows.save(c, states, set(keys)))
        assert await store.database.write(lambda c: rows.lock(c, [*keys, "nobody"])) == {s.order_id: s for s in states}
        found = await store.database.read(lambda c: c.exec_driver_sql("SELECT count(*) FROM inventory_reservation").scalar())
        assert found == count

    async def test_a_later_state_replaces_an_earlier_one(self, store: Store) -> None:
        """One key, one row; whether it was new is no matter to those that come after."""
        rows = store.rows[Reservation]
        for status in ReservationStatus:
            await store.database.write(partial(rows.save, states=[Reservation(order_id="o", status=status)]))
        assert await store.database.read(lambda c: rows.load(c, ["o"])) == {"o": Reservation(order_id="o", status=status)}

    async def test_pages_follow_the_bytes_of_the_key(self, store: Store) -> None:
        """Forwards and backwards, each row once: capitals before small letters, and no language's rules."""
        rows = store.rows[Product]
        keys = ["B", "a", "_", "Z", "b-1", "b1", "é", "ab", "A", "10", "9", "ß", "😀"]
        stock = [Product(product_id=k, name=None, on_hand=1, reserved=0, unit_price_amount=1, currency="EUR") for k in keys]
        await store.database.write(lambda c: rows.save(c, stock, set(keys)))
        for newest_first in (False, True):
            found: list[str] = []
            while True:
                after = found[-1] if found else None
                browse = partial(rows.browse, filters={}, after=after, limit=2, newest_first=newest_first)
                page = await store.database.read(browse)
                found += [state.product_id for state in page]
                if len(page) < 2:
                    break
            assert found == sorted(keys, key=str.encode, reverse=newest_first)

    async def test_filters_are_equalities_that_all_hold(self, store: Store) -> None:
        """What fits one of them only is left out."""
        rows = store.rows[Product]
        stock = [
            Product(product_id=f"{n}", name="x" if n % 2 else "y'\"%s?", on_hand=n, reserved=0, unit_price_amount=1, currency=c)
            for n, c in enumerate(["EUR", "EUR", "USD", "USD"])
        ]
        await store.database.write(lambda c: rows.save(c, stock, {state.product_id for state in stock}))
        wanted = {"name": "y'\"%s?", "currency": "USD"}
        assert await store.database.read(lambda c: rows.browse(c, wanted, None, 9, False)) == [stock[2]]
        assert await store.database.read(lambda c: rows.browse(c, wanted, "2", 9, False)) == []

    async def test_what_breaks_a_rule_of_the_table_is_not_written(self, store: Store) -> None:
        """More pieces held than there are: an error of the work, and no sign of a database in trouble."""
        rows = store.rows[Product]
        bad = Product(product_id="A", name=None, on_hand=1, reserved=2, unit_price_amount=1, currency="EUR")
        with pytest.raises(Exception, match="inventory_product_reserved") as caught:
            await store.database.write(lambda c: rows.save(c, [bad], {"A"}))
        assert not isinstance(caught.value, Unavailable)
        assert store.database.is_healthy
        assert await store.database.read(lambda c: rows.load(c, ["A"])) == {}

    # Inbox and outbox

    async def test_what_was_heard_is_known_with_its_answer(self, store: Store) -> None:
        """And nothing else is."""
        heard = [Kept("b", instant(NOW), 1, "f", '{"status": 202}'), Kept("a", instant(NOW), 1, None, None)]
        await store.database.write(lambda c: store.save(c, states={}, heard=heard, withdrawn=(), said=()))
        known = await store.database.write(lambda c: store.known(c, ["a", "b", "c", "B"]))
        assert known == {"a": (None, None), "b": ("f", '{"status": 202}')}

    async def test_what_a_batch_needs_to_know_is_recalled_at_once(self, store: Store) -> None:
        """What was heard, and the states as they are by now; written a moment ago or not."""
        held = Reservation(order_id="o-1", status=ReservationStatus.HELD, lines=(Line("A", 1),))
        shelf = Product(product_id="A", name=None, on_hand=5, reserved=1, unit_price_amount=100, currency="EUR")
        states: dict[type, dict[str, Any]] = {Reservation: {"o-1": held}, Product: {"A": shelf}}
        heard = [Kept("b", instant(NOW), 1, "f", '{"status": 202}'), Kept("a", instant(NOW), 1, None, None)]
        await store.database.write(
            lambda c: store.save(
                c, states=states, new={cls: set(found) for cls, found in states.items()}, heard=heard, withdrawn=(), said=()
            )
        )

        async def recalled(keys: dict[type, set[str]]) -> dict[type, dict[str, Any]]:
            known, world = await store.database.write(lambda c: store.recall(c, ["a", "b", "c"], keys))
            assert known == {"a": (None, None), "b": ("f", '{"status": 202}')}
            return world

        assert await recalled({Reservation: {"o-1", "o-2"}, Product: {"A"}}) == states
        assert await recalled({Reservation: {"o-2"}}) == {Reservation: {}}

    async def test_the_outbox_gives_back_what_is_due(self, store: Store) -> None:
        """Byte for byte, the longest due first; neither what was sent, nor what is due later, nor what was withdrawn."""
        before = [NOW - timedelta(seconds=n) for n in range(10)]
        rows = [
            parcel("p-1", before[5], body=bytes(range(256))),
            parcel("p-2", before[9]),
            parcel("p-3", before[7]),
            parcel("later", NOW + timedelta(seconds=9), "n-1"),
            parcel("was-later", before[0], "n-2"),
            parcel("back", before[6], "n-3"),
            parcel("just-now", before[0]),
        ]
        await self._say(store, rows)
        await self._say(store, [parcel("p-1", NOW, body=b"a copy")])  # known: passed over
        await store.database.write(lambda c: store.save(c, states={}, heard=(), withdrawn=["n-3", "n-9"], said=()))
        await store.database.write(lambda c: store.mark_sent(c, ["p-3", "p-9"], NOW))
        found = await store.database.write(lambda c: store.due(c, NOW, 10, GREAT_GRACE))
        assert [(p.id, p) for p in found] == [("p-2", rows[1]), ("p-1", rows[0]), ("was-later", rows[4])]
        assert await store.database.write(lambda c: store.due(c, NOW, 1, GREAT_GRACE)) == [rows[1]]
        assert await store.database.write(lambda c: store.due(c, NOW, 1, GREAT_GRACE, {"p-2", "p-9"})) == [rows[0]]
        assert await store.database.write(lambda c: store.due_count(c, NOW)) == 4
        assert await store.database.write(lambda c: store.due_oldest_seconds(c, NOW)) == 9.0
        assert await store.database.write(lambda c: store.due_oldest_seconds(c, NOW - timedelta(hours=1))) == 0.0

    async def test_what_nobody_needs_any_more_goes(self, store: Store) -> None:
        """
        Sent events after a day, heard ones two days after they were heard; whatever their ids look like.

        What was never sent stays for ever.
        """
        old, older = NOW - SENT_KEPT - timedelta(seconds=1), NOW - HEARD_KEPT - timedelta(seconds=1)
        rows = [parcel(born(old, 1)), parcel(born(old, 2)), parcel(born(NOW, 3))]
        foreign = [parcel(caused_id(f"from elsewhere {n}", 0)) for n in range(20)]
        heard = [
            Kept(born(older, 4), instant(older), 0, None, None),
            Kept(born(older, 5), instant(old), 0, None, None),
            Kept("any-id", instant(older), 1, "f", None),
            Kept("other-id", instant(old), 1, "f", None),
        ]
        await store.database.write(lambda c: store.save(c, states={}, heard=heard, withdrawn=(), said=rows + foreign))
        await store.database.write(lambda c: store.mark_sent(c, [rows[0].id, *(each.id for each in foreign)], old))
        await store.database.write(lambda c: store.mark_sent(c, [rows[2].id], NOW))
        assert await store.database.write(lambda c: store.purge(c, NOW)) == 3 + len(foreign)
        assert await store.database.write(lambda c: store.purge(c, NOW)) == 0
        left = await store.database.read(lambda c: sorted(c.exec_driver_sql("SELECT id FROM inventory_outbox").scalars()))
        assert left == sorted([rows[1].id, rows[2].id])
        ids = [kept.id for kept in heard]
        assert (await store.database.write(lambda c: store.known(c, ids))).keys() == {born(older, 5), "other-id"}

    async def test_what_was_sent_can_be_sent_again(self, store: Store) -> None:
        """For a stream that was lost: what it was given since then, whole, and nothing else."""
        long_said = parcel("p-2")._replace(occurred_at=instant(NOW - timedelta(hours=9)))
        rows = [parcel("p-1", body=bytes(range(256))), long_said, parcel("p-3"), parcel("unsent")]
        await self._say(store, rows)
        await store.database.write(lambda c: store.mark_sent(c, ["p-1", "p-2"], NOW))
        await store.database.write(lambda c: store.mark_sent(c, ["p-3"], NOW - timedelta(microseconds=1)))
        assert [found async for found in _sent(store, NOW)] == rows[:2]
        assert await count(store, NOW) == 2
        assert await count(store, NOW + timedelta(microseconds=1)) == 0

    async def test_one_process_leads(self, store: Store) -> None:
        """Where there is nobody else, it is always the one that asks."""
        assert await store.database.write(lambda c: store.lead(c, True))
        assert await store.database.write(lambda c: store.lead(c, True))
        assert store.grace(GREAT_GRACE) == (GRACE if store.database.dialect.is_shared else GREAT_GRACE)

    @staticmethod
    async def _say(store: Store, rows: list[Parcel]) -> None:
        await store.database.write(lambda c: store.save(c, states={}, heard=(), withdrawn=(), said=rows))

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
        database.ride(insert(1))
        with pytest.raises(Unavailable):
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

    async def test_an_order_and_its_copies_have_one_effect(self, stand: Stand) -> None:
        """Through shell and store, with a key: the second asker gets the first one's answer."""
        first = await stand.tell("orders", submitted(oid(1)), key="k", fingerprint="f")
        second = await stand.tell("orders", submitted(oid(2)), key="k", fingerprint="f")
        assert (first.is_replay, second.is_replay) == (False, True)
        assert await stand.shells["orders"].get(Order, oid(2)) is None
        found = await stand.shells["orders"].browse(Order, {"customer_id": "c-1"}, after=None, limit=9, newest_first=True)
        assert [order.order_id for order in found] == [oid(1)]
        subjects = [subject for subject, _ in await stand.outbox("orders")]
        assert (subjects.count("orders.created.v1"), subjects.count("orders.timed_out.v1")) == (1, 1)

    async def test_what_a_message_says_of_itself_cannot_poison_a_batch(self, stand: Stand) -> None:
        """NULs, halves of characters, endless ids: either it is kept under an id that stands for it, or put aside alone."""
        await stand.tell("inventory", product(100))
        await stand.listen("inventory")
        odd = ["nul\0", "%00", "\ud800", "x" * 10_000, "ü" * 256, "'; --"]
        for n, id in enumerate(odd):
            message = said(stand, _created(n), key=oid(n))
            headers = {**message.headers, "ce-id": id, "ce-correlationid": id, "traceparent": id.ljust(55)[:55], "ce-time": id}
            twice = [Message(message.subject, f"{id}-{copy}", message.body, id, headers) for copy in (1, 2)]
            await asyncio.gather(*(stand.bus.publish(copy) for copy in twice))
        await stand.bus.publish(Message("orders.created.v1", "bad\0", b"\0", "k\0", {"ce-id": "\0", "x": "\0\ud800"}))
        stock = await stand.shells["inventory"].get(Product, "A")
        assert stock is not None
        assert stock.reserved == len(odd)
        [kept] = await stand.office.list(None, None, None, 10)
        assert (kept.letter.error, kept.letter.message.body) == ("unreadable", b"\0")
        assert await stand.office.replay(kept.letter.id)
        assert len(await stand.rows("SELECT id FROM inventory_outbox WHERE subject LIKE ?", "%orders.created.v1")) == 1

    async def test_dead_letters_are_kept_listed_replayed_and_thrown_away(self, stand: Stand) -> None:
        """To the last byte, page by page, each once."""
        for n in range(5):
            message = Message("orders.created.v1", f"m-{n}", bytes([n, 0, 255]), "k", {"ce-id": f"e-{n}", "x": "ü"})
            await stand.office.add(DeadLetter("", "inventory-express", message, "invalid", "/: is wrong", 1, NOW, NOW))
        pages = []
        after = None
        while page := await stand.office.list("inventory-express", None, after, 2):
            pages.append(len(page))
            after = page[-1].letter.id
        assert pages == [2, 2, 1]
        found = await stand.office.list(None, None, None, 9)
        assert [kept.letter.id for kept in found] == sorted(kept.letter.id for kept in found)
        assert {kept.letter.message.body for kept in found} == {bytes([n, 0, 255]) for n in range(5)}
        assert {(kept.letter.first_seen, kept.letter.message.headers["x"]) for kept in found} == {(NOW, "ü")}
        assert await stand.office.list(None, None, found[2].letter.id, 9, error="invalid") == found[3:]
        assert await stand.office.list("inventory-express", None, None, 9, error="failed") == []
        again = found[0].letter
        await stand.office.add(again)  # the very same
        assert await stand.office.get(again.id) == found[0]
        assert await stand.office.replay_many("inventory-express", None, "invalid", False) == (5, 5)
        assert [kept.replays for kept in await stand.office.list(None, None, None, 9)] == [1] * 5
        assert await stand.office.discard(again.id)
        assert not await stand.office.discard(again.id)

    async def test_the_last_ten_go_to_ten(self, stand: Stand) -> None:
        """Fifty who want one each, in as few batches as they fit: ten are held, and none too many."""
        await stand.tell("inventory", product(10))
        shell = stand.shells["inventory"]
        waiting = [
            asyncio.create_task(shell.tell(_created(n), id=oid(n), context=CONTEXT, answer=NOTED)) for n in range(50)
        ]
        await asyncio.sleep(0)
        while not all(task.done() for task in waiting):
            await shell.step()
            await asyncio.sleep(0)
        stock = await shell.get(Product, "A")
        assert stock is not None
        assert (stock.on_hand, stock.reserved) == (10, 10)
        found = await stand.rows("SELECT status, count(*) FROM inventory_reservation GROUP BY status ORDER BY status")
        assert found == [("held", 10), ("rejected", 40)]


def _created(n: int) -> Any:
    from modules.orders.events import OrderCreated

    return OrderCreated(order_id=oid(n), customer_id="c-1", items=(Line("A", 1),), version="v2", shipping_address=None)
