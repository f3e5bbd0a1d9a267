"""
The contract suite of the archive: what is old and finished leaves the tables, and nothing else about it changes.

A test file provides a fixture ``site`` and a class that inherits `ArchiveContract`.
"""

from __future__ import annotations

__all__ = ["CANCEL", "KEPT", "PAY", "ArchiveContract", "archive_all", "happen", "place", "shop", "states_of"]

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection

from app.runtime.archiver import SWEEP_SECONDS, build_archivers
from app.storage.archive import state_archive
from app.storage.archive.state_archive import ArchiveTable, StateArchive
from app.storage.module_store import INBOX_RETENTION
from app.storage.sql.database import Database
from app.storage.state_rows import StateMapper
from bus.ids import id_lower_bound
from bus.port import DeadLetter, Message
from modules.inventory.state import Product, Reservation, ReservationStatus
from modules.orders.events import CancelRequested, OrderCancelled, OrderCreated, RefundSubmitted
from modules.orders.state import Order, Status
from modules.payments.events import (
    ChargeDeclined,
    ChargeFailed,
    ChargeMismatch,
    ChargeSucceeded,
    DisputeReported,
    RefundFailed,
    RefundNotified,
    RefundProcessing,
    RefundReported,
    RefundSucceeded,
    SettleRequested,
)
from modules.payments.state import Payment, PaymentStatus
from modules.values import Line, Money
from tests.clock import VirtualClock
from tests.examples import examples
from tests.runtime.harness import Harness, harness_at, product, submitted
from tests.storage.site import Site
from tests.storage.states import MODULES, STATES, TABLES

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
KEPT = timedelta(days=3)
DAY = 86_400.0

CLASSES = (Order, Reservation, Payment)
EUR = partial(Money, currency="EUR")

Event = tuple[str, Any]
"""The module that an event is submitted to, and a function of the order's id that returns the event."""


def charged(id: str) -> ChargeSucceeded:
    return ChargeSucceeded(order_id=id, reference=f"pi-{id}", calls=1)


def disputed(id: str, status: str) -> DisputeReported:
    return DisputeReported(order_id=id, reference=f"pi-{id}", dispute_reference="dp", amount=EUR(200), status=status)


PAY: Event = ("payments", charged)
DECLINE: Event = ("payments", lambda id: ChargeDeclined(order_id=id, reason="card_declined", calls=1))
NO_ANSWER: Event = ("payments", lambda id: ChargeFailed(order_id=id, is_unknown=True, retry_seconds=1, calls=1))
MISMATCH: Event = ("payments", lambda id: ChargeMismatch(order_id=id, reason="wrong_amount", reference="pi-x", calls=1))
CANCEL: Event = ("orders", lambda id: CancelRequested(order_id=id, why="late"))
REFUND: Event = ("orders", lambda id: RefundSubmitted(order_id=id, refund_id="r-1", amount=EUR(50), items=(), why="broken"))
REFUNDED: Event = ("payments", lambda id: RefundSucceeded(order_id=id, reference="re-1", refunded_total=0))
PROCESSING: Event = ("payments", lambda id: RefundProcessing(order_id=id, reference="re-1", key_number=1, refunded_total=0))
FAILED: Event = (
    "payments",
    lambda id: RefundFailed(order_id=id, retry_seconds=1, is_definite=True, reason="charge_for_pending_refund_disputed"),
)
NOTIFIED: Event = (
    "payments", lambda id: RefundNotified(order_id=id, reference=f"pi-{id}", amount=EUR(200), refunded_amount=70)
)  # fmt: skip
REPORTED: Event = (
    "payments",
    lambda id: RefundReported(
        order_id=id, reference=f"pi-{id}", refund_reference="re-9", amount=EUR(30), status="succeeded"
    ),
)
OPENED: Event = ("payments", lambda id: disputed(id, "open"))
WON: Event = ("payments", lambda id: disputed(id, "won"))
LOST: Event = ("payments", lambda id: disputed(id, "lost"))
SETTLE: Event = ("payments", lambda id: SettleRequested(order_id=id, outcome="captured", why="looked it up"))

FINISHED: Mapping[str, Sequence[Event]] = {
    "confirmed": (PAY,),
    "declined": (DECLINE,),
    "cancelled and refunded": (PAY, CANCEL, REFUNDED),
    "partly refunded": (PAY, REFUND, REFUNDED),
    "refunded by the provider": (PAY, NOTIFIED),
    "dispute won": (PAY, OPENED, WON),
    "dispute lost": (PAY, OPENED, LOST),
}
UNFINISHED: Mapping[str, tuple[Sequence[Event], Sequence[type]]] = {
    "waits for its payment": ((), CLASSES),
    "payment of unknown outcome": ((NO_ANSWER,), CLASSES),
    "payment under review": ((MISMATCH,), CLASSES),
    "cancelled, and the refund is requested": ((PAY, CANCEL), (Payment,)),
    "cancelled, and the refund is pending": ((PAY, CANCEL, PROCESSING), (Payment,)),
    "refund asked for": ((PAY, REFUND), (Order, Payment)),
    "dispute open": ((PAY, OPENED), (Payment,)),
    "disputed, then cancelled": ((PAY, OPENED, LOST, CANCEL), (Payment,)),
}
"""What has happened, and the classes whose states have to stay for that."""

LATE: Mapping[str, Sequence[Event]] = {
    "cancelled": (CANCEL, REFUNDED),
    "refunded by the shop": (REFUND, REFUNDED),
    "refund pending, then failed": (REFUND, PROCESSING, FAILED),
    "refunded at the provider": (NOTIFIED, REPORTED),
    "disputed and lost": (OPENED, LOST, CANCEL),
    "refunded, disputed, cancelled": (REPORTED, OPENED, WON, REFUND, REFUNDED, CANCEL),
    "the first result again": (PAY, NO_ANSWER, DECLINE),
    "settled": (SETTLE,),
}


def id_at(moment: datetime, n: int) -> str:
    """Return the id of the *n*-th order that is placed at *moment*."""
    return f"{id_lower_bound(moment)}-7000-8000-{n:012}"


@asynccontextmanager
async def shop(where: Path | str) -> AsyncIterator[tuple[Harness, VirtualClock]]:
    """A harness whose modules deliver locally, with 100 pieces in stock."""
    clock = VirtualClock(NOW)
    async with harness_at(where, clock, delivers_locally=True) as harness:
        await harness.submit("inventory", product(100))
        yield harness, clock


async def place(harness: Harness, n: int = 1, quantity: int = 2) -> str:
    """Place an order for *quantity* pieces; return its id."""
    id = id_at(harness.clock.now(), n)
    await harness.submit("orders", submitted(id, quantity), id=id_at(harness.clock.now(), n + 10_000))
    return id


async def happen(harness: Harness, id: str, events: Sequence[Event], between: Callable[[], Awaitable[None]] | None = None) -> None:
    """Submit *events* about the order *id*; call *between* before each."""
    for n, (module, make) in enumerate(events):
        if between is not None:
            await between()
        await harness.submit(module, make(id), id=f"{id}-{module}-{n}-{make(id)!r}"[:200])


async def archive_all(harness: Harness, kept: timedelta = KEPT) -> None:
    """Let every module archive what is older than *kept*: one whole sweep."""
    sweeps = harness.dead_letter_store.archive.sweeps()
    for archiver in build_archivers(harness.stores, sweeps, kept.total_seconds(), harness.clock, harness.metrics).values():
        while await archiver.step() < SWEEP_SECONDS:
            pass


async def states_of(harness: Harness, id: str) -> list[Any]:
    """Return the order, the reservation and the payment, wherever they are."""
    modules = ("orders", "inventory", "payments")
    return [await harness.runners[name].get(cls, id) for name, cls in zip(modules, CLASSES, strict=True)]


async def in_tables(harness: Harness, id: str) -> set[type]:
    """Return the classes that have a row of the order *id* in their tables."""
    tables = {cls: TABLES[cls].name for cls in CLASSES}
    return {cls for cls, name in tables.items() if await harness.rows(f"SELECT 1 FROM {name} WHERE order_id = ?", id)}


class ArchiveContract:
    """The suite; inherit it and provide a fixture ``site``."""

    async def test_finished_orders_leave_the_tables_and_are_read_as_before(self, site: Site) -> None:
        """All three states are equal to the last member; no list has them; nothing else is counted or changed."""
        async with shop(site.url) as (harness, clock):
            ids = [await place(harness, n) for n in range(len(FINISHED))]
            for id, events in zip(ids, FINISHED.values(), strict=True):
                await happen(harness, id, events)
            before = [await states_of(harness, id) for id in ids]
            shelf = await harness.runners["inventory"].get(Product, "A")
            await clock.advance(KEPT.total_seconds() - 1)
            await archive_all(harness)
            assert [await in_tables(harness, id) for id in ids] == [set(CLASSES)] * len(ids)
            await clock.advance(2)
            await archive_all(harness)
            assert [name for name, id in zip(FINISHED, ids, strict=True) if await in_tables(harness, id)] == []
            assert [await states_of(harness, id) for id in ids] == before
            assert await harness.runners["inventory"].get(Product, "A") == shelf
            for position, (module, cls) in enumerate(zip(("orders", "inventory", "payments"), CLASSES, strict=True)):
                changed = await harness.runners[module].changes.load(cls, [*ids, "unknown"])  # a stream shows them once more
                assert changed == {id: states[position] for id, states in zip(ids, before, strict=True)}
                assert await harness.runners[module].list_states(cls, {}, after=None, limit=9, newest_first=True) == []
                kind = harness.stores[module].archive.kinds[cls]
                shown = harness.metrics.render().decode()
                assert f'archived_total{{module="{module}",kind="{kind}"}} {len(ids)}' in shown

    async def test_what_is_not_finished_stays(self, site: Site) -> None:
        """However old it is: something still happens by itself, or a person has to act."""
        async with shop(site.url) as (harness, clock):
            ids = [await place(harness, n) for n in range(len(UNFINISHED))]
            for id, (events, _) in zip(ids, UNFINISHED.values(), strict=True):
                await happen(harness, id, events)
            await clock.advance(1000 * DAY)
            await archive_all(harness)
            for id, (name, (_, staying)) in zip(ids, UNFINISHED.items(), strict=True):
                assert await in_tables(harness, id) >= set(staying), name

    async def test_what_comes_late_meets_the_archived_state(self, site: Site, tmp_path: Path) -> None:
        """After archiving between any two events, money, stock and events are what they are without an archive."""
        ends: list[dict[str, Any]] = []
        for where, is_archiving in ((tmp_path / "plain.db", False), (site.url, True)):
            async with shop(where) as (harness, clock):

                async def pass_time(harness: Harness = harness, clock: VirtualClock = clock, is_archiving: bool = is_archiving) -> None:
                    await clock.advance(10 * DAY)
                    if is_archiving:
                        await archive_all(harness)

                end: dict[str, Any] = {}
                for n, (name, events) in enumerate(LATE.items()):
                    id = await place(harness, n)
                    await happen(harness, id, (PAY, *events), pass_time)
                    end[name] = await states_of(harness, id), await harness.runners["inventory"].get(Product, "A")
                for module in MODULES:
                    end[module.name] = await harness.rows(f"SELECT subject, event_id FROM {module.name}_outbox ORDER BY event_id")
                ends.append(end)
        assert ends[0] == ends[1]

    async def test_a_state_that_changed_again_is_archived_again(self, site: Site) -> None:
        """The later state takes the place of the earlier one."""
        async with shop(site.url) as (harness, clock):
            id = await place(harness)
            await happen(harness, id, (PAY,))
            await clock.advance(5 * DAY)
            await archive_all(harness)
            await happen(harness, id, (CANCEL, REFUNDED))
            after = await states_of(harness, id)
            assert [each.status for each in after] == [Status.CANCELLED, ReservationStatus.RELEASED, PaymentStatus.REFUNDED]
            await clock.advance(5 * DAY)
            await archive_all(harness)
            assert await in_tables(harness, id) == set()
            assert await states_of(harness, id) == after

    async def test_a_failure_between_the_two_steps_of_a_move_moves_nothing(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        """The copy in the archive is rolled back with the deletion; the next sweep moves the state."""
        async with shop(site.url) as (harness, clock):
            id = await place(harness)
            await happen(harness, id, (PAY,))
            before = await states_of(harness, id)
            await clock.advance(5 * DAY)
            with monkeypatch.context() as patch:
                patch.setattr(StateMapper, "delete", lambda *_: 1 / 0)
                await archive_all(harness)
            assert await harness.rows("SELECT 1 FROM orders_archive") == []
            assert await in_tables(harness, id) == set(CLASSES)
            await archive_all(harness)
            assert await states_of(harness, id) == before

    async def test_a_new_order_costs_no_look_up_in_the_archive(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        """Its id begins with a time of the last day. Also where it comes over the bus, and the module has no state of it yet."""
        looked_up: list[list[str]] = []
        find = ArchiveTable.find

        def counted(self: ArchiveTable, connection: Connection, kind: str, keys: Sequence[str]) -> Any:
            looked_up.append(list(keys))
            return find(self, connection, kind, keys)

        monkeypatch.setattr(ArchiveTable, "find", counted)
        clock = VirtualClock(NOW)
        async with harness_at(site.url, clock) as harness:
            await harness.submit("inventory", product(100))
            new, old = id_at(NOW - timedelta(hours=23), 1), id_at(NOW - timedelta(hours=25), 2)
            for id in (new, old):
                await harness.submit("inventory", created(id))
                await harness.submit("payments", OrderCancelled(order_id=id, customer_id="c", items=(), reason="requested"))
            assert looked_up == [[old], [old]]

    async def test_a_batch_examines_a_limited_number_of_rows(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        """A sweep goes on after the rows that stay, also if a part has no other, and reaches the last one."""
        monkeypatch.setattr(state_archive, "EXAMINED_MAX", 3)
        async with shop(site.url) as (harness, clock):
            ids = [await place(harness, n, 1) for n in range(10)]
            finished = ids[1], ids[7]
            for id in finished:
                await happen(harness, id, (PAY,))
            await clock.advance(5 * DAY)
            archivers = build_archivers(harness.stores, {}, KEPT.total_seconds(), clock, harness.metrics)
            steps = [await archivers["orders"].step() for _ in range(4)]
            assert [step == SWEEP_SECONDS for step in steps] == [False, False, False, True]
            assert await harness.rows("SELECT order_id FROM orders_order ORDER BY 1") == [(id,) for id in ids if id not in finished]

    async def test_after_a_jump_of_the_clock_nothing_is_archived(self, site: Site) -> None:
        """As the purge, the archiver waits for a whole retention: only the clock shows that the order is old."""
        async with shop(site.url) as (harness, clock):
            id = await place(harness)
            await happen(harness, id, (PAY,))
            resume = harness.stores["orders"].heartbeat.resume
            await harness.database.write(lambda c: resume(c, clock.now(), timedelta(minutes=10)))
            await clock.advance(5 * DAY)
            await harness.database.write(lambda c: resume(c, clock.now(), timedelta(minutes=10)))
            await archive_all(harness)
            assert await in_tables(harness, id) == {Order}
            await clock.advance(INBOX_RETENTION.total_seconds() + 1)
            await archive_all(harness)
            assert await in_tables(harness, id) == set()

    @pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
    def test_an_archived_state_is_loaded_unchanged(self, cls: type, site: Site) -> None:
        """Any text, any time to the microsecond, any integer that fits; pages come in the order of the keys."""
        database = Database(site.url)
        module = next(each for each in MODULES if cls in each.tables)
        mappers = {each: StateMapper(each, table, database.dialect) for each, table in module.tables.items()}
        mapper, kept = mappers[cls], StateArchive(module, mappers, database.dialect)
        old = st.builds(lambda state, n: archived_id(state, n), STATES[cls], st.integers(0, 10**6))

        @settings(max_examples=examples(12), deadline=None, suppress_health_check=[HealthCheck.differing_executors])
        @given(states=st.lists(old, min_size=1, max_size=6, unique_by=mapper.key_of))
        def round_trip(states: list[Any]) -> None:
            by_key = {mapper.key_of(state): state for state in states}
            with database.engine.connect() as connection, connection.begin() as transaction:
                mapper.save(connection, states, set(by_key))
                kept._is_finished = {cls: lambda state, before: True}
                assert sorted(kept.move(cls, connection, "", NOW).keys) == sorted(by_key)
                assert mapper.load(connection, list(by_key)) == {}
                assert kept.load(connection, cls, [*by_key, "unknown"]) == by_key
                assert kept.page(connection, cls, "", 99) == [by_key[key] for key in sorted(by_key)]
                transaction.rollback()

        round_trip()
        database.engine.dispose()

    async def test_an_old_dead_letter_goes_with_its_order_and_comes_back(self, site: Site) -> None:
        """While the order has a state in the module, it stays. It can be shown, replayed and discarded by its id."""
        async with shop(site.url) as (harness, clock):
            store = harness.dead_letter_store
            open_id, ended_id = await place(harness, 1), await place(harness, 2)
            await happen(harness, ended_id, (PAY,))
            for n, id in enumerate((open_id, ended_id, "")):
                message = Message("orders.created.v1", f"m-{n}", b"\x00\xff{", id, {"ce-id": f"e-{n}"})
                await store.add(DeadLetter.of(message, "inventory", "unreadable", "?", 5, NOW, NOW))
            letters = {stored.dead_letter.message.key: stored for stored in await store.list(None, None, None, 9)}
            await clock.advance(5 * DAY)
            held = "UPDATE inventory_dead_letter SET place = {} WHERE message_key = ''"  # what waits behind it would wait for ever
            await harness.database.write(lambda c: c.exec_driver_sql(held.format(1)))
            await archive_all(harness)
            assert {each.dead_letter.message.key for each in await store.list(None, None, None, 9)} == {open_id, ""}
            await harness.database.write(lambda c: c.exec_driver_sql(held.format("NULL")))
            await archive_all(harness)
            assert await store.list(None, None, None, 9) == [letters[open_id]]
            gone = letters[ended_id].dead_letter.id, letters[""].dead_letter.id
            for id, key in zip(gone, (ended_id, ""), strict=True):
                assert await store.get(str(id)) == letters[key]
            assert await store.replay(str(gone[0]), dry_run=True)
            assert len(await store.list(None, None, None, 9)) == 1
            assert [(group.count, group.pattern) for group in await store.groups(None, None, None)] == [(1, "?")]
            created = {"order_id": ended_id, "customer_id": "c", "items": [{"product_id": "A", "quantity": 1}], "version": "v1"}
            edited = orjson.dumps(created)
            assert await store.replay(str(gone[0]), body=edited)
            replayed = await store.get(str(gone[0]))
            assert replayed is not None
            assert (replayed.dead_letter, replayed.replays) == (letters[ended_id].dead_letter, 1)
            assert replayed.edited_body == edited
            assert await store.discard(str(gone[1]))
            assert not await store.discard(str(gone[1]))
            assert await store.get(str(gone[1])) is None
            await archive_all(harness)
            assert await store.get(str(gone[0])) == replayed

    async def test_a_dead_letter_that_comes_back_meanwhile_is_found(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        """It leaves the archive between the look into the table and the look into the archive."""
        async with shop(site.url) as (harness, clock):
            store = harness.dead_letter_store
            message = Message("orders.created.v1", "m-1", b"{", "", {"ce-id": "e-1"})
            await store.add(DeadLetter.of(message, "inventory", "unreadable", "?", 5, NOW, NOW))
            [letter] = await store.list(None, None, None, 9)
            id, get = letter.dead_letter.id, store.archive.get
            await clock.advance(5 * DAY)
            await archive_all(harness)
            assert await store.list(None, None, None, 9) == []

            async def get_after_return(id: str) -> Any:
                monkeypatch.setattr(store.archive, "get", get)
                await store.archive.bring_back(id)
                return await get(id)

            monkeypatch.setattr(store.archive, "get", get_after_return)
            assert await store.get(id) == letter


def created(id: str) -> OrderCreated:
    return OrderCreated(order_id=id, customer_id="c", items=(Line("A", 1),), version="v2", shipping_address=None)


def archived_id(state: Any, n: int) -> Any:
    """Return *state* with the id of an old order."""
    from attrs import evolve

    return evolve(state, order_id=id_at(NOW - timedelta(days=9), n))
