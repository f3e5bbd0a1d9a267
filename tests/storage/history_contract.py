"""
The contract suite of the history: every published event, once, in the order of the commits.

A test file provides a fixture ``site`` and a class that inherits `HistoryContract`.
"""

from __future__ import annotations

__all__ = ["HistoryContract", "history_of", "published"]

from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import partial
from importlib import import_module
from typing import Any

import orjson
import pytest
from sqlalchemy import Connection

from app.storage.archive.history_content import (
    POSITIONS,
    Decided,
    HistoryEvent,
    HistoryIncomplete,
    Row,
    TransactionHistory,
    decoded,
)
from app.storage.archive.history_reader import HistoryReader, SeveralDatabases
from app.storage.module_store import INBOX_RETENTION
from app.storage.sql.database import Database
from app.storage.tables import OutboxMessage
from bus.ids import derived_id
from bus.subjects import subject_of
from modules.module import Key, Scheduled
from modules.orders.state import Order
from tests.clock import VirtualClock
from tests.runtime.harness import CONTEXT, NO_CONTENT, Harness, harness_at, oid, product, submitted, until
from tests.storage.archive_contract import CANCEL, DAY, FINISHED, NO_ANSWER, PAY, UNFINISHED, happen, place, shop
from tests.storage.site import Site

CONFIRMED = (
    "orders.created.v2", "inventory.reserved.v1", "payments.charge_requested.v1", "payments.captured.v1", "orders.confirmed.v1"
)  # fmt: skip


def history_of(harness: Harness) -> HistoryReader:
    """Return the history of all modules of *harness*."""
    return HistoryReader({name: (store.database, store.history) for name, store in harness.stores.items()}, harness.clock.now)


async def published(harness: Harness, **query: Any) -> Sequence[HistoryEvent]:
    """Return the events that *query* selects, from all pages."""
    events: list[HistoryEvent] = []
    reader, after = history_of(harness), 0
    while True:
        page = await reader.page(**{"after": after, **query})
        events += page.events
        if page.next_after is None:
            return events
        assert page.next_after > after
        after = page.next_after


def subjects(events: Sequence[HistoryEvent]) -> list[str]:
    return [event.subject for event in events]


async def decisions_of(harness: Harness) -> list[Decided]:
    """Return all decisions, transaction by transaction."""

    def read(connection: Connection) -> list[Decided]:
        tables = [store.history for store in harness.stores.values()]
        numbers = sorted({number for table in tables for number in table.numbers(connection, 0, 2**62, 10_000, harness.clock.now())})
        rows: dict[int, list[Row]] = {number: [] for number in numbers}
        for table in tables:
            for start in range(0, len(numbers), 100):
                for row in table.rows(connection, numbers[start : start + 100]):
                    rows[row.number].append(row)
        return [each for number in numbers for each in TransactionHistory(rows[number]).decisions()]

    return await harness.database.read(read)


def decide_again(harness: Harness, decided: Sequence[Decided]) -> dict[str, dict[Key, Any]]:
    """Return the states of each module after *decided*; what is emitted must be what was."""
    modules = {name: runner.module for name, runner in harness.runners.items()}
    states: dict[str, dict[Key, Any]] = {name: {} for name in modules}
    for each in decided:
        module, known = modules[each.module], states[each.module]
        if "." in each.name:
            event = harness.contracts.decode(each.source, orjson.dumps(each.data))
            assert each.source == each.name
        else:
            cls = getattr(import_module(f"modules.{each.module}.events"), each.name)
            event = harness.contracts.from_plain(dict(each.data), cls)
        found = [known.get(key) for key in module.keys(event)]
        decision = module.decide(found, event, datetime.fromisoformat(each.at))
        known |= {(type(state), harness.stores[each.module].mappers[type(state)].key_of(state)): state for state in decision.states}
        emitted = [each.event if isinstance(each, Scheduled) else each for each in decision.events]
        published = [each for each in emitted if hasattr(each, "__subject__")]
        assert [(e.subject, e.data) for e in each.emitted] == [(subject_of(e), harness.contracts.to_json(e)) for e in published]
        assert each.has_changed == bool(decision.states or published)
    return states


class HistoryContract:
    """The suite; inherit it and provide a fixture ``site``."""

    async def test_an_order_leaves_its_events_in_the_order_of_their_causes(self, site: Site) -> None:
        """With local delivery, too: each with its id, its cause, its correlation id, its key, its moment and its data."""
        async with shop(site.url) as (harness, clock):
            began_at = clock.now()
            id = await place(harness)
            await clock.advance(1)
            await happen(harness, id, (PAY,))
            events = await published(harness)
            assert subjects(events) == [*CONFIRMED]
            created, reserved, requested, captured, confirmed = events
            assert created.cause_id == f"{id[:-12]}{10_001:012}"
            assert created.event_id == derived_id(created.cause_id, "orders.0")
            assert [reserved.cause_id, requested.cause_id] == [created.event_id, reserved.event_id]
            assert confirmed.cause_id == captured.event_id
            assert {event.correlation_id for event in events} == {CONTEXT.correlation_id}
            assert {event.key for event in events} == {id}
            assert [event.module for event in events] == ["orders", "inventory", "payments", "payments", "orders"]
            moments = [(began_at + timedelta(seconds=n)).isoformat(timespec="microseconds") for n in (0, 0, 0, 1, 1)]
            assert [event.at for event in events] == moments
            order = await harness.runners["orders"].get(Order, id)
            assert order is not None
            shown = {each["at"].replace("Z", "+00:00") for each in order.timeline}
            assert shown == {*moments}, "an order's events are found by the moments of its timeline"
            assert captured.data == {"order_id": id, "amount": {"amount": 200, "currency": "EUR"}, "reference": f"pi-{id}"}
            numbers = [event.seq for event in events]
            assert numbers == sorted(set(numbers))

    async def test_what_the_bus_carries_is_equal_to_what_is_delivered_locally(self, site: Site) -> None:
        """The same events with the same ids, data and causes."""
        found = []
        for delivers_locally in (True, False):
            clock = VirtualClock()
            async with harness_at(site.url, clock, delivers_locally=delivers_locally) as harness:
                await harness.submit("inventory", product(5, f"P{delivers_locally}"))
                for name in harness.runners:
                    await harness.consume(name)
                    harness.run(harness.relays[name].run())
                id = oid(1 + delivers_locally)
                order = submitted(id, product_id=f"P{delivers_locally}")
                await harness.runners["orders"].submit(order, id=id, trace=CONTEXT, respond=NO_CONTENT)

                async def is_requested(harness: Harness = harness, clock: VirtualClock = clock, id: str = id) -> list[HistoryEvent]:
                    await clock.advance(0.1)
                    events = [event for event in await published(harness) if event.key == id]
                    return events if len(events) == 3 else []

                events = await until(is_requested)
                shown = [(each.subject, each.data, each.event_id, each.cause_id) for each in events]
                found.append(repr(shown).replace(id, "ID").replace(f"P{delivers_locally}", "P"))
                ids = [each.event_id for each in events]
                assert [each.cause_id for each in events] == [id, *ids[:2]]
                assert ids == [derived_id(cause, f"{each.module}.0") for cause, each in zip([id, *ids], events, strict=False)]
        assert subjects(events) == [*CONFIRMED[:3]]

    async def test_a_timer_comes_before_its_effects(self, site: Site) -> None:
        """Also where its order cancels it while it is published; one that was cancelled before is not there."""
        async with harness_at(site.url, VirtualClock()) as harness:
            clock: Any = harness.clock
            await harness.submit("inventory", product(10))
            for name in harness.runners:
                await harness.consume(name)
                harness.run(harness.relays[name].run())
            for id in (oid(1), oid(2)):
                await harness.submit("orders", submitted(id), id=id)
            await clock.advance(10)
            await happen(harness, oid(2), (CANCEL,))
            await clock.advance(901)

            async def ended() -> Sequence[HistoryEvent]:
                await clock.advance(0.1)
                events = [event for event in await published(harness) if event.key == oid(1)]
                return events if len(events) == 6 else []

            events = await until(ended)
            assert subjects(events)[3] == "orders.timed_out.v1"
            assert set(subjects(events)[4:]) == {"orders.cancelled.v1", "inventory.released.v1"}
            assert "orders.timed_out.v1" not in {event.subject for event in await published(harness) if event.key == oid(2)}
            await self.assert_causes_come_first(harness)

    async def test_a_timer_is_there_once_however_the_process_ends(self, site: Site) -> None:
        """A scan that finds it notes it, before it is published; a later one publishes it again and notes nothing."""
        async with harness_at(site.url, VirtualClock()) as harness:
            clock: Any = harness.clock
            store = harness.stores["orders"]
            await harness.submit("orders", submitted(oid(1)), id=oid(1))
            await clock.advance(901)

            def scan(connection: Connection) -> list[OutboxMessage]:
                return store.end_timers(connection, store.fetch_due(connection, clock.now(), 10, timedelta(0)), clock.now())

            before = clock.now()
            subjects_of_scans = []
            for _ in range(2):  # the process ends after each of them, and nothing is published
                subjects_of_scans.append({row.subject for row in await harness.database.write(scan)})
                assert await harness.database.read(lambda c: store.oldest_due_seconds(c, before)) <= 902
                await clock.advance(5)
            assert subjects_of_scans == [{"orders.created.v1", "orders.created.v2", "orders.timed_out.v1"}] * 2
            (timed_out,) = (await published(harness))[1:]
            assert (timed_out.subject, timed_out.key) == ("orders.timed_out.v1", oid(1))
            assert (timed_out.cause_id, timed_out.event_id) == (oid(1), derived_id(oid(1), "orders.1"))
            assert timed_out.at == before.isoformat(timespec="microseconds")
            await happen(harness, oid(1), (CANCEL,))
            rows = await harness.database.read(lambda c: store.fetch_due(c, clock.now(), 10, timedelta(0)))
            assert "orders.timed_out.v1" not in {row.subject for row in rows}, "it can be cancelled until it is published"

    async def test_a_timer_that_is_published_now_is_no_old_message(self, site: Site) -> None:
        """It was decided long ago, which is no delay."""
        async with harness_at(site.url, VirtualClock()) as harness:
            clock: Any = harness.clock
            store = harness.stores["orders"]
            await harness.submit("orders", submitted(oid(1)), id=oid(1))
            rows = await harness.database.read(lambda c: store.fetch_due(c, clock.now(), 10, timedelta(0)))
            await harness.database.write(lambda c: store.mark_sent(c, [row.id for row in rows], clock.now()))
            await clock.advance(901)

            def scan(connection: Connection) -> float:
                store.end_timers(connection, store.fetch_due(connection, clock.now(), 10, timedelta(0)), clock.now())
                return store.oldest_due_seconds(connection, clock.now())

            assert await harness.database.write(scan) < 2

    async def assert_causes_come_first(self, harness: Harness) -> None:
        """Each cause that is an event of the history stands before its effects."""
        seen: dict[str, int] = {}
        events = await published(harness)
        for event in events:
            seen.setdefault(event.event_id, event.seq)
        assert len(seen) == len(events), "each event once"
        assert all(seen.get(event.cause_id, 0) < event.seq for event in events)

    async def test_deciding_again_gives_the_states_and_the_events(self, site: Site) -> None:
        """A history has everything that a decision needs: what it was about, in which order, and when."""
        async with shop(site.url) as (harness, clock):
            for n, events in enumerate([*FINISHED.values(), *(events for events, _ in UNFINISHED.values())]):
                id = await place(harness, n, quantity=1 + n % 3)
                await clock.advance(0.25)
                await happen(harness, id, events, partial(clock.advance, 1))
            await place(harness, 99, quantity=1_000)
            decided = await decisions_of(harness)
            assert len(decided) > 100
            for name, states in decide_again(harness, decided).items():
                for (cls, key), state in states.items():
                    assert await harness.runners[name].get(cls, key) == state
                for cls, mapper in harness.stores[name].mappers.items():
                    count = await harness.rows(f"SELECT count(*) FROM {mapper.table.name}")
                    assert count == [(sum(found is cls for found, _ in states),)]

    async def test_pages_and_filters_leave_nothing_out(self, site: Site) -> None:
        """Pages of any size together are the whole; a filter selects from it."""
        async with shop(site.url) as (harness, clock):
            for n in range(9):
                id = await place(harness, n)
                await happen(harness, id, ((PAY, NO_ANSWER, CANCEL)[n % 3],))
                await clock.advance(0.001)
            whole = await published(harness)
            assert len(whole) > 3 * 9
            for limit in (1, 2, 7):
                assert await published(harness, limit=limit) == whole
            for module in harness.stores:
                assert await published(harness, module=module, limit=2) == [each for each in whole if each.module == module]
            chosen = await published(harness, subject="orders.confirmed.v1", limit=1)
            assert chosen == [each for each in whole if each.subject == "orders.confirmed.v1"]
            assert len(chosen) == 3
            assert await published(harness, subject="orders.nothing.v1") == []
            assert await published(harness, after=whole[5].seq) == whole[6:]
            assert await published(harness, after=whole[-1].seq + 10 * POSITIONS) == []

    async def test_a_rare_subject_is_found_over_several_pages(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        """A page that examines as much as it may shows where to go on."""
        monkeypatch.setattr("app.storage.archive.history_reader.EXAMINED_MAX", 2_000)
        async with shop(site.url) as (harness, _):
            for n in range(12):
                await place(harness, n)
            id = await place(harness, 12)
            await happen(harness, id, (PAY,))
            page = await history_of(harness).page(subject="orders.confirmed.v1")
            assert page.events == []
            assert page.next_after is not None
            assert page.next_after < 8 * POSITIONS
            assert subjects(await published(harness, subject="orders.confirmed.v1")) == ["orders.confirmed.v1"]

    async def test_all_events_and_all_transactions_are_read_from_any_of_them_on(
        self, site: Site, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What is read in parts is the whole, whatever the parts; a transaction has the rows of all that took part."""
        monkeypatch.setattr("app.storage.archive.history_reader.READ_MAX", 3)
        async with shop(site.url) as (harness, _):
            for n in range(5):
                await happen(harness, await place(harness, n), (PAY,))
            whole, reader = await published(harness), history_of(harness)
            for start in (0, whole[0].seq, whole[7].seq, whole[-1].seq):
                found = [event async for part in reader.events(after=start) for event in part]
                assert found == [event for event in whole if event.seq > start]
            chosen = [event async for part in reader.events(module="orders", subject=CONFIRMED[-1]) for event in part]
            assert chosen == [event for event in whole if event.subject == CONFIRMED[-1]]
            transactions = [each async for part in reader.transactions() for each in part]
            assert [event for each in transactions for event in each.events()] == whole
            numbers = [each.number for each in transactions]
            assert numbers == sorted(set(numbers))
            between = [each.number async for part in reader.transactions(after=numbers[1], until=numbers[-2]) for each in part]
            assert between == numbers[2:-1]
            after = whole[7].seq
            stored = [row async for part in reader.contents(after=after) if part is not None for row in part.rows]
            decided = [Row(module, number, at, decoded(content)) for module, number, at, content in stored]
            expected = [row for each in transactions if each.number >= after // POSITIONS for row in each.rows]
            assert sorted(decided, key=str) == sorted(expected, key=str)
            assert reader.groups() == [[*harness.stores]]

    async def test_what_is_rolled_back_is_not_in_the_history(self, site: Site) -> None:
        """A decision that fails leaves nothing, and its number is not missed."""
        async with shop(site.url) as (harness, _):
            store = harness.stores["orders"]

            def fail(connection: Any) -> None:
                store.append_history(connection, "2026-01-01T12:00:00.000000+00:00", [["s", "X", "i", "c", False, {}]], is_next=True)
                raise LookupError

            with pytest.raises(LookupError):
                await harness.database.write(fail)
            await place(harness)
            assert subjects(await published(harness)) == [*CONFIRMED[:3]]

    async def test_the_history_is_purged_at_its_age_and_keeps_its_last_row(self, site: Site) -> None:
        """By default nothing is; numbers go on after everything else is gone."""
        async with shop(site.url) as (harness, clock):
            await place(harness)
            before = await published(harness)

            async def purge() -> None:
                for store in harness.stores.values():
                    for _ in range(3):
                        await harness.database.write(partial(store.purge, now=clock.now()))

            await clock.advance(5 * DAY)
            await purge()
            assert await published(harness) == before
            await place(harness, 2)
            newer = (await published(harness))[3:]
            for store in harness.stores.values():
                store.history.kept = timedelta(days=3)
            assert timedelta(days=3) > INBOX_RETENTION
            await purge()
            assert await published(harness) == newer
            await clock.advance(5 * DAY)
            await purge()
            assert await published(harness) == []
            assert await harness.rows("SELECT count(*) FROM orders_history") == [(1,)]
            await place(harness, 3)
            assert min(each.seq for each in await published(harness)) > max(each.seq for each in newer)

    @pytest.mark.parametrize("purged", [["orders"], ["inventory", "payments"], ["orders", "inventory", "payments"], []])
    async def test_the_history_can_be_read_while_some_modules_have_purged_theirs(self, site: Site, purged: list[str]) -> None:
        """A row that others refer to is deleted once they are not shown; the last row of a module stays, and is not shown."""
        async with shop(site.url) as (harness, clock):
            for store in harness.stores.values():
                store.history.kept = timedelta(days=3)
            id = await place(harness)
            await clock.advance(DAY)
            await happen(harness, id, (PAY,))
            await clock.advance(2 * DAY - 10)
            assert len(await published(harness)) == 5
            for seconds in (20, 3_500, 600):
                await clock.advance(seconds)
                for name in purged:
                    await harness.database.write(partial(harness.stores[name].purge, now=clock.now()))
                assert subjects(await published(harness)) == [*CONFIRMED[3:]]
                for name in harness.stores:
                    await published(harness, module=name)
            assert await harness.rows("SELECT count(*) FROM orders_history") == [(1 if "orders" in purged else 2,)]
            assert await harness.rows("SELECT count(*) FROM inventory_history") == [(1 if "inventory" in purged else 3,)]

    @pytest.mark.parametrize(("content", "error"), [(b"\x07[]", "format 07"), (b"", "format none"), (b"\x01[[", "damaged"), (b"\x02[]", "damaged")])
    async def test_a_row_that_cannot_be_read_is_an_error(self, site: Site, content: bytes, error: str) -> None:
        """It is never left out: an event would be missing."""
        async with shop(site.url) as (harness, _):
            await place(harness)
            sql = harness.database.dialect.to_driver_sql("UPDATE inventory_history SET content = ?")
            await harness.database.write(lambda c: c.exec_driver_sql(sql, (content,)))
            with pytest.raises(ValueError, match=error):
                await published(harness)

    async def test_a_missing_producer_is_an_error(self, site: Site) -> None:
        """The event itself is in the history of the module that has published it. The error has the number to go on after."""
        async with shop(site.url) as (harness, _):
            await place(harness)
            await harness.database.write(lambda c: c.exec_driver_sql("DELETE FROM orders_history"))
            await place(harness, 2)
            with pytest.raises(HistoryIncomplete, match=r"inventory refers to an event that no history in this database has") as error:
                await published(harness, module="inventory")
            after = int(str(error.value).rpartition(" ")[2])
            assert subjects(await published(harness, after=after)) == [*CONFIRMED[:3]]

    async def test_a_process_reads_the_rows_of_modules_that_it_does_not_run(self, site: Site) -> None:
        """What several modules have decided in one transaction stays readable when each has a process of its own."""
        async with shop(site.url) as (harness, _):
            id = await place(harness)
            await happen(harness, id, (PAY,))
            whole = await published(harness)
            for name, store in harness.stores.items():
                reader = HistoryReader({name: (store.database, store.history)}, harness.clock.now)
                assert (await reader.page()).events == [each for each in whole if each.module == name]
                assert reader.modules == {name}

    async def test_rows_of_different_transactions_with_one_number_are_not_mixed(self, site: Site) -> None:
        """A module that moves to a database brings numbers that are in use there."""
        async with shop(site.url) as (harness, _):
            await place(harness)
            sql = harness.database.dialect.to_driver_sql("UPDATE orders_history SET at = ?")
            await harness.database.write(lambda c: c.exec_driver_sql(sql, ("2025-01-01T12:00:00.000000+00:00",)))
            assert subjects(await published(harness, subject="orders.created.v2", module="orders", limit=1)) == ["orders.created.v2"]
            with pytest.raises(HistoryIncomplete):
                await published(harness, module="inventory")

    async def test_modules_of_several_databases_are_listed_one_by_one(self, site: Site, tmp_path: Any) -> None:
        """Their numbers have nothing to do with each other."""
        async with shop(site.url) as (harness, _):
            await place(harness)
            other = Database(f"sqlite:///{tmp_path}/other.db")
            store = harness.stores["orders"]
            reader = HistoryReader({"orders": (store.database, store.history), "payments": (other, harness.stores["payments"].history)})
            with pytest.raises(SeveralDatabases, match="name one module"):
                await reader.page()
            assert subjects((await reader.page(module="orders")).events) == ["orders.created.v2"]
            await other.close()


