"""
The contract suite of the replay: a history that is decided again gives the events and the states that the database has.

A test file provides a fixture ``site`` and a class that inherits `ReplayContract`.
"""

from __future__ import annotations

__all__ = ["ReplayContract", "again"]

import asyncio
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import orjson
import pytest
from attrs import evolve
from sqlalchemy import Connection

from app.gateways.gateway_request import answer_id
from app.runtime.replay import states
from app.runtime.replay.report import Report
from app.runtime.replay.run import BaselineMismatch, create_state_tables, replay
from app.runtime.replay.source import DatabaseHistory
from app.storage.archive.history_content import decoded
from app.storage.archive.history_reader import HistoryReader
from app.storage.archive.parquet_archive import Archive
from app.storage.archive.parquet_writer import HistoryArchiver
from app.storage.sql.database import Database
from modules import inventory, orders, payments
from modules.inventory.events import StockReserved
from modules.module import Decision, Module, Unexpected, no_change
from modules.orders.events import OrderCreated, created_v1
from modules.orders.state import Order
from modules.payments.events import ChargeSucceeded
from modules.values import Money
from tests.clock import VirtualClock
from tests.runtime.harness import Harness, harness_at, product, submitted, until
from tests.storage.archive_contract import (
    CANCEL,
    DAY,
    DECLINE,
    FINISHED,
    LATE,
    NO_ANSWER,
    PAY,
    UNFINISHED,
    archive_all,
    happen,
    id_at,
    place,
    shop,
)
from tests.storage.history_contract import published
from tests.storage.site import Site

_NUMBERS = count()

Change = Callable[[Any, Sequence[Any], Any, Any], Decision]
"""``change(decide, states, event, now)``"""


def again(
    harness: Harness,
    folder: Path,
    *,
    modules: Sequence[Module] | None = None,
    baseline: Database | None = None,
    limit: int = 100,
    names: Sequence[str] = ("orders", "inventory", "payments"),
    progress: Callable[[], object] = lambda: None,
    archive: Archive | None = None,
) -> Report:
    """Decide the history of *harness* again, into a new file in *folder*; return what is found."""
    modules = [each for each in modules or [runner.module for runner in harness.runners.values()] if each.name in names]
    target = Database(f"sqlite:///{folder}/again-{next(_NUMBERS)}.db")
    create_state_tables(target.engine, modules)
    stores = {name: store for name, store in harness.stores.items() if name in names}
    history = DatabaseHistory(harness.database, stores, harness.clock.now, archive)
    report = Report(limit)
    replay(modules, stores, [history], target, harness.contracts, report, answer_id, baseline=baseline, progress=progress)
    return report


def changed(name: str, change: Change) -> list[Module]:
    """Return the modules; the one called *name* decides as *change* does."""
    modules = [orders.module(timedelta(seconds=900)), inventory.module(), payments.module()]
    return [evolve(each, decide=partial(change, each.decide)) if each.name == name else each for each in modules]


def few_pieces(decide: Any, states: Sequence[Any], event: Any, now: Any) -> Decision:
    """A rule by which no order gets more than two pieces."""
    if type(event).__name__ == "OrderCreated" and event.items[0].quantity > 2:
        states = [states[0], evolve(states[1], on_hand=0, reserved=0)]
    decision: Decision = decide(states, event, now)
    return decision


async def every_kind_of_order(harness: Harness, clock: VirtualClock) -> list[str]:
    """Place orders with each end that there is; return their ids."""
    ids = []
    stories = [*FINISHED.values(), *(events for events, _ in UNFINISHED.values()), *((PAY, *late) for late in LATE.values())]
    for n, events in enumerate(stories):
        ids.append(await place(harness, n, quantity=1 + n % 3))
        await clock.advance(0.25)
        await happen(harness, ids[-1], events, partial(clock.advance, 1))
    ids.append(await place(harness, 99, quantity=1_000))
    return ids


class ReplayContract:
    """The suite; inherit it and provide a fixture ``site``."""

    @pytest.mark.slow
    async def test_what_follows_again_is_what_the_database_has(self, site: Site, tmp_path: Path) -> None:
        """Each event, and each member of each state, archived or not."""
        async with shop(site.url) as (harness, clock):
            ids = await every_kind_of_order(harness, clock)
            await clock.advance(5 * DAY)
            await archive_all(harness)
            await place(harness, 200)
            report = again(harness, tmp_path)
            assert report.is_equal, report
            assert report.decisions > 5 * len(ids)
            kinds = {("orders", "order"): len(ids) + 1, ("inventory", "reservation"): len(ids) + 1}
            assert {kind: report.states[kind] for kind in kinds} == kinds
            assert report.states["inventory", "product"] == 1
            assert not report.before

    @pytest.mark.slow
    async def test_random_orders_end_as_they_have(self, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Express, declined, cancelled, refunded, late: in any order, with few states in memory, some of them archived."""
        monkeypatch.setattr(states, "STATES_MAX", 3)
        rng = random.Random(7)
        events = [PAY, DECLINE, NO_ANSWER, CANCEL, *(event for each in LATE.values() for event in each)]
        async with shop(site.url) as (harness, clock):
            ids: list[str] = []
            for n in range(60):
                if n % 3 == 0:
                    order = evolve(submitted(id_at(clock.now(), n), rng.randint(1, 40)), is_express=rng.random() < 0.5)
                    await harness.submit("orders", order, id=id_at(clock.now(), n + 10_000))
                    ids.append(order.order_id)
                module, make = rng.choice(events)
                id = rng.choice(ids)
                with suppress(Unexpected):  # the decision was refused, and has left nothing
                    await harness.submit(module, make(id), id=f"{id}-{n}")
                await clock.advance(rng.choice([0.001, 1, DAY]))
                if rng.random() < 0.1:
                    await archive_all(harness)
            report = again(harness, tmp_path)
            assert report.is_equal, report
            assert report.states["orders", "order"] == len(ids)

    @pytest.mark.slow
    async def test_events_of_the_bus_and_timers_are_decided_again(self, site: Site, tmp_path: Path) -> None:
        """Where each module consumes from the bus; an order that is cancelled in time leaves no time-out."""
        async with harness_at(site.url, VirtualClock()) as harness:
            clock: Any = harness.clock
            await harness.submit("inventory", product(10))
            for name in harness.runners:
                await harness.consume(name)
                harness.run(harness.relays[name].run())
            ids = [id_at(clock.now(), n) for n in range(3)]
            for id in ids:
                await harness.submit("orders", submitted(id), id=id)
            await clock.advance(10)
            await happen(harness, ids[1], (CANCEL,))
            await clock.advance(901)

            async def ended() -> bool:
                await clock.advance(0.1)
                found = await harness.rows("SELECT status FROM inventory_reservation")
                return sorted(found) == [("released",)] * 3

            await until(ended)
            report = again(harness, tmp_path)
            assert report.is_equal, report
            for name in harness.stores:
                alone = again(harness, tmp_path, names=[name])
                assert alone.is_equal, alone

    @pytest.mark.slow
    async def test_orders_that_are_placed_meanwhile_are_in_both_or_in_neither(self, site: Site, tmp_path: Path) -> None:
        """The database stays in use: what is compared is of one moment."""
        async with shop(site.url) as (harness, _):
            for n in range(3):
                await place(harness, n)
            loop, numbers = asyncio.get_running_loop(), iter(range(10, 30))

            async def another() -> None:
                if n := next(numbers, 0):
                    await happen(harness, await place(harness, n), (PAY, CANCEL)[: n % 3])

            report = await asyncio.to_thread(
                again, harness, tmp_path, progress=lambda: asyncio.run_coroutine_threadsafe(another(), loop).result(30)
            )
            assert report.is_equal, report
            assert 4 <= report.states["orders", "order"] <= 23
            assert report.transactions > 4

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["orders", "inventory", "payments"])
    async def test_one_module_can_be_decided_again_alone(self, site: Site, tmp_path: Path, name: str) -> None:
        """With the events of the others as the history has them."""
        async with shop(site.url) as (harness, clock):
            await every_kind_of_order(harness, clock)
            report = again(harness, tmp_path, names=[name])
            assert report.is_equal, report
            assert {module for module, _ in report.states} == {name}

    async def test_a_changed_rule_is_named_with_its_orders(self, site: Site, tmp_path: Path) -> None:
        """The event that differs, what does not follow from it any more, and the orders that end differently."""
        async with shop(site.url) as (harness, clock):
            ids = [await place(harness, n, quantity=1 + n % 3) for n in range(6)]
            for request in await published(harness, subject="payments.charge_requested.v1"):
                await clock.advance(1)
                answer = PAY[1](request.key)
                await harness.submit("payments", answer, id=answer_id(request.event_id, "payments-gateway", answer))
            report = again(harness, tmp_path, modules=changed("inventory", few_pieces))
            hit = {ids[2], ids[5]}
            assert report.affected == hit
            roots = report.differences
            assert {each.key for each in roots} == hit
            assert {(each.module, each.cause, each.was, each.now) for each in roots} == {
                ("inventory", "orders.created.v2", "inventory.reserved.v1", "inventory.rejected.v1")
            }
            followed = {(each.module, each.was, each.now) for each in report.consequences if each.key == ids[2]}
            assert ("payments", "payments.charge_requested.v1", None) in followed
            assert ("orders", None, "orders.cancelled.v1") in followed
            ends = {each.key: each.members["status"] for each in report.ends if each.kind == "order"}
            assert {id: (was.value, now.value) for id, (was, now) in ends.items()} == dict.fromkeys(hit, ("confirmed", "cancelled"))
            assert "insufficient_stock" in report.ends[0].detail
            payments = {each.key: each.detail for each in report.ends if each.kind == "payment"}
            assert payments.keys() == hit
            assert all('status "captured" -> "declined"' in each for each in payments.values()), "nothing is charged"
            assert not report.is_equal

    async def test_a_changed_rule_is_followed_over_the_bus(self, site: Site, tmp_path: Path) -> None:
        """As within one transaction: what a consumer got is replaced by what it would get."""
        async with harness_at(site.url, VirtualClock()) as harness:
            clock: Any = harness.clock
            await harness.submit("inventory", product(10))
            for name in harness.runners:
                await harness.consume(name)
                harness.run(harness.relays[name].run())
            id = id_at(clock.now(), 1)
            await harness.submit("orders", submitted(id, 3), id=id)

            async def is_requested() -> bool:
                await clock.advance(0.1)
                return await harness.rows("SELECT status FROM payments_payment") == [("pending",)]

            await until(is_requested)
            report = again(harness, tmp_path, modules=changed("inventory", few_pieces))
            assert [each.key for each in report.ends if each.kind == "order"] == [id]
            assert [each.now for each in report.differences] == ["inventory.rejected.v1"]
            assert report.count > report.root_count == 1

    @pytest.mark.parametrize("is_local", [True, False])
    async def test_an_event_with_other_data_is_followed(self, site: Site, tmp_path: Path, is_local: bool) -> None:
        """Its consumers decide about today's data, within a transaction and over the bus."""

        def dearer(decide: Any, states: Sequence[Any], event: Any, now: Any) -> Decision:
            decision: Decision = decide(states, event, now)
            reserved: Any = decision.events[0] if decision.events else None
            if isinstance(reserved, StockReserved):
                decision.events = (evolve(reserved, total=Money(999, "EUR")),)  # type: ignore[misc]
            return decision

        async with harness_at(site.url, VirtualClock(), delivers_locally=is_local) as harness:
            clock: Any = harness.clock
            for name in harness.runners:
                await harness.consume(name)
                harness.run(harness.relays[name].run())
            await harness.submit("inventory", product(10))
            id = id_at(clock.now(), 1)
            await harness.submit("orders", submitted(id, 2), id=id)

            async def is_requested() -> bool:
                await clock.advance(0.1)
                return await harness.rows("SELECT status FROM payments_payment") == [("pending",)]

            await until(is_requested)
            report = again(harness, tmp_path, modules=changed("inventory", dearer))
            [root] = report.differences
            assert root.detail == "inventory.reserved.v1 differs: total.amount 200 -> 999"
            assert [each.detail for each in report.consequences] == [
                "payments.charge_requested.v1 differs: amount.amount 200 -> 999"
            ]
            assert {each.text() for each in (*report.ends, *report.other_states)} == {
                f"order {id}: total_amount 200 -> 999", f"payment {id}: amount 200 -> 999"
            }  # fmt: skip
            assert report.end_count == 0

    async def test_a_rule_that_only_changes_states_is_found(self, site: Site, tmp_path: Path) -> None:
        """The states are compared, not only the events."""

        def mute(decide: Any, states: Sequence[Any], event: Any, now: Any) -> Decision:
            decision: Decision = decide(states, event, now)
            if isinstance(event, StockReserved) and decision.states and isinstance(decision.states[0], Order):
                decision.states = (evolve(decision.states[0], unit_prices=None),)
            return decision

        async with shop(site.url) as (harness, _):
            id = await place(harness)
            await happen(harness, id, (PAY,))
            report = again(harness, tmp_path, modules=changed("orders", mute))
            assert (report.count, report.state_count, report.end_count) == (0, 1, 0)
            [difference] = report.other_states
            assert difference.members == {"unit_prices": ((100,), None)}
            assert difference.text() == f"order {id}: unit_prices [100] -> null"

    async def test_a_rule_that_no_longer_changes_a_state_is_found(self, site: Site, tmp_path: Path) -> None:
        """Although neither then nor today an event follows."""

        def ignore(decide: Any, states: Sequence[Any], event: Any, now: Any) -> Decision:
            found: Decision = no_change() if isinstance(event, StockReserved) else decide(states, event, now)
            return found

        async with shop(site.url) as (harness, _):
            await place(harness)
            report = again(harness, tmp_path, modules=changed("orders", ignore))
            assert [each.detail for each in report.differences] == ["changes no state today, and did"]

    async def test_a_decision_that_fails_today_is_named(self, site: Site, tmp_path: Path) -> None:
        """And what follows from the others is decided."""

        def strict(decide: Any, states: Sequence[Any], event: Any, now: Any) -> Decision:
            if isinstance(event, ChargeSucceeded) and event.order_id == failing:
                raise ValueError("no")
            found: Decision = decide(states, event, now)
            return found

        async with shop(site.url) as (harness, _):
            ids = [await place(harness, n) for n in range(3)]
            for id in ids:
                await happen(harness, id, (PAY,))
            failing = ids[1]
            report = again(harness, tmp_path, modules=changed("payments", strict))
            assert report.affected == {failing}
            assert report.differences[0].detail == "fails today: ValueError: no"
            assert [each.key for each in report.ends if each.kind == "order"] == [failing]

    async def test_another_timeout_is_counted_apart(self, site: Site, tmp_path: Path) -> None:
        """A setting that has changed shifts every timer; the events are the same."""
        async with shop(site.url) as (harness, _):
            for n in range(3):
                await happen(harness, await place(harness, n), (PAY,))
            modules = [orders.module(timedelta(seconds=600)), inventory.module(), payments.module(timedelta(seconds=600))]
            report = again(harness, tmp_path, modules=modules)
            assert report.shifted == {("orders", "orders.timed_out.v1", -300.0): 3}
            assert (report.count, report.state_count) == (0, 0)
            assert not report.is_equal

    @pytest.mark.slow
    async def test_what_begins_before_the_history_is_counted_and_is_no_difference(self, site: Site, tmp_path: Path) -> None:
        """After a purge; a copy of the database from before gives the states."""
        async with shop(site.url) as (harness, clock):
            old = [await place(harness, n) for n in range(3)]
            await clock.advance(DAY)
            baseline = await self.copied(harness, tmp_path)
            await happen(harness, old[0], (PAY,))
            await clock.advance(5 * DAY)
            for store in harness.stores.values():
                store.history.kept = timedelta(days=5, seconds=60)
            await happen(harness, old[1], (PAY,))
            await clock.advance(61)
            for id in (await place(harness, 10), await place(harness, 11)):
                await happen(harness, id, (PAY,))
            assert (await harness.rows("SELECT count(*) FROM orders_history"))[0][0] > 5
            with_baseline = again(harness, tmp_path, baseline=baseline)
            assert with_baseline.is_equal, with_baseline
            assert not with_baseline.before
            assert with_baseline.states["orders", "order"] == 4
            for store in harness.stores.values():
                await harness.database.write(partial(store.purge, now=clock.now()))
                store.history.kept = timedelta(days=3)
            report = again(harness, tmp_path)
            assert report.is_equal, report
            assert report.before["orders", "order"] == 3
            assert report.states["orders", "order"] == 2
            assert set(report.before_examples["orders", "order"]) == set(old)
            assert report.before["inventory", "product"] == 1
            assert report.states["payments", "payment"] == 2
            with pytest.raises(BaselineMismatch, match="does not reach back"):
                again(harness, tmp_path, baseline=baseline)
            await baseline.close()

    @pytest.mark.parametrize("is_archived", [True, False])
    async def test_a_database_that_is_older_than_its_history_is_not_taken_as_whole(
        self, site: Site, tmp_path: Path, is_archived: bool
    ) -> None:
        """Also where the numbers of the history begin with the first one, as after a migration."""
        async with shop(site.url) as (harness, clock):
            old = await place(harness)
            await happen(harness, old, (PAY,))

            def forget(connection: Connection) -> None:
                for name in harness.stores:
                    connection.exec_driver_sql(f"DELETE FROM {name}_history")

            await harness.database.write(forget)
            await clock.advance(5 * DAY)
            if is_archived:
                await archive_all(harness)
            await harness.submit("inventory", product(7, "B"))
            await clock.advance(61)
            await happen(harness, await place(harness, 2), (PAY,))
            if not is_archived:
                await happen(harness, old, (CANCEL,))
            report = again(harness, tmp_path)
            assert report.is_equal, report
            assert (report.before["orders", "order"], report.states["orders", "order"]) == (1, 1)

    async def test_a_history_without_its_first_rows_is_not_taken_as_whole(self, site: Site, tmp_path: Path) -> None:
        """Although no order is older: a product may be."""
        async with shop(site.url) as (harness, clock):
            await harness.submit("inventory", product(7, "B"))
            await harness.database.write(lambda c: c.exec_driver_sql("DELETE FROM inventory_history WHERE number = 1"))
            for store in harness.stores.values():
                store.history.kept = timedelta(days=30)
            await clock.advance(61)
            await happen(harness, await place(harness), (PAY,))
            report = again(harness, tmp_path)
            assert report.is_equal, report
            assert report.before == {("inventory", "product"): 2, ("inventory", "reservation"): 1}

    @pytest.mark.slow
    async def test_what_is_archived_as_files_is_decided_again(self, site: Site, tmp_path: Path) -> None:
        """Archive and tables are one history; a copy of a database that has purged what is archived is a baseline as well."""
        async with shop(site.url) as (harness, clock):
            (tmp_path / "archive").mkdir()
            archive = Archive(tmp_path / "archive")

            async def days(purges: bool) -> None:
                await clock.advance(2 * DAY)
                histories = {name: (store.database, store.history) for name, store in harness.stores.items()}
                source = await HistoryReader(histories, clock.now, archive=archive).source(*harness.stores)
                archiver = HistoryArchiver(source, archive)
                assert [day async for day in archiver.archive()]
                if purges:
                    assert [day async for day in archiver.purge([*harness.stores], None)]

            for n in range(3):
                await happen(harness, await place(harness, n), (PAY,))
            await days(purges=False)
            await happen(harness, await place(harness, 10), (PAY, CANCEL))
            await days(purges=True)
            assert (await harness.rows("SELECT count(*) FROM orders_history"))[0][0] == 1
            old = await place(harness, 20)
            report = again(harness, tmp_path, archive=archive)
            assert report.is_equal, report
            assert (report.first or (0,))[0] == 1
            assert report.states["orders", "order"] == 5
            assert not report.before
            without = again(harness, tmp_path)
            assert without.before["orders", "order"] >= 4
            baseline = await self.copied(harness, tmp_path)
            await days(purges=True)
            await happen(harness, old, (PAY,))
            await happen(harness, await place(harness, 30), (PAY,))
            report = again(harness, tmp_path, archive=archive, baseline=baseline)
            assert report.is_equal, report
            assert (report.transactions, report.states["orders", "order"]) == (3, 2)
            assert again(harness, tmp_path, archive=archive).is_equal
            await baseline.close()

    async def test_a_baseline_must_be_a_copy_of_the_database(self, site: Site, tmp_path: Path) -> None:
        """Another database has other states."""
        async with shop(site.url) as (harness, clock), shop(tmp_path / "other.db") as (other, _):
            await clock.advance(1)
            await place(harness)
            await place(other)
            with pytest.raises(BaselineMismatch, match="no earlier copy"):
                again(harness, tmp_path, baseline=other.database)

    async def copied(self, harness: Harness, folder: Path) -> Database:
        """Return a copy of the database of *harness*."""
        raise NotImplementedError

    @pytest.mark.parametrize("content", [b"\x07[]", b"\x01[[", b"\x01[[1]]", b'\x01[["s"]]'])
    async def test_a_damaged_row_is_named_and_the_other_modules_go_on(self, site: Site, tmp_path: Path, content: bytes) -> None:
        """With its module and its number; what was found before it is not lost."""
        async with shop(site.url) as (harness, _):
            for n in range(3):
                await happen(harness, await place(harness, n), (PAY,))
            last = (await harness.rows("SELECT max(number) FROM payments_history"))[0][0]
            sql = harness.database.dialect.to_driver_sql("UPDATE payments_history SET content = ? WHERE number = ?")
            await harness.database.write(lambda c: c.exec_driver_sql(sql, (content, last)))
            report = again(harness, tmp_path)
            assert set(report.stopped) <= {"payments", "orders"}
            assert report.stopped["payments"].startswith(f"transaction {last}: ")
            assert not report.is_equal
            assert (report.count, report.state_count) == (0, 0)
            assert report.states["inventory", "reservation"] == 3

    async def test_a_missing_producer_stops_its_consumers_only(self, site: Site, tmp_path: Path) -> None:
        """The rows of the orders are in another database."""
        async with shop(site.url) as (harness, _):
            await place(harness)
            await harness.database.write(lambda c: c.exec_driver_sql("DELETE FROM orders_history"))
            report = again(harness, tmp_path)
            assert set(report.stopped) == {"inventory"}, report
            assert "it refers to an event that no history in this database has" in report.stopped["inventory"]

    async def test_old_orders_that_were_deleted_from_the_archive_are_counted(self, site: Site, tmp_path: Path) -> None:
        """An operator deletes a range of their ids; one that is missing among the others is a difference."""
        async with shop(site.url) as (harness, clock):
            ids = []
            for n in range(6):
                ids.append(await place(harness, n))
                await happen(harness, ids[-1], (PAY,) if n != 1 else ())
                await clock.advance(1)
            await clock.advance(5 * DAY)
            await archive_all(harness)
            sql = harness.database.dialect.to_driver_sql

            def delete(connection: Connection) -> None:
                for name, kind in (("orders", "order"), ("inventory", "reservation"), ("payments", "payment")):
                    connection.exec_driver_sql(sql(f"DELETE FROM {name}_archive WHERE id < ?"), (f"{kind}:{ids[3]}",))
                connection.exec_driver_sql(sql("DELETE FROM orders_archive WHERE id = ?"), (f"order:{ids[4]}",))

            await harness.database.write(delete)
            report = again(harness, tmp_path)
            kinds = (("orders", "order"), ("inventory", "reservation"), ("payments", "payment"))
            assert report.deleted == dict.fromkeys(kinds, 2)
            assert [each.text() for each in report.ends] == [f"order {ids[4]}: follows from the history and is not in the database"]
            assert (report.state_count, report.count) == (1, 0)

    @pytest.mark.parametrize("names", [("orders", "inventory", "payments"), ("inventory",)])
    async def test_an_older_version_of_an_event_is_compared_as_the_newer_one(
        self, site: Site, tmp_path: Path, names: Sequence[str]
    ) -> None:
        """A row that an earlier release has written has the version that it published."""
        async with shop(site.url) as (harness, _):
            await place(harness)
            number, content = (await harness.rows("SELECT number, content FROM orders_history"))[0]
            entries: Any = decoded(content)
            [created, *_] = entries[0][-1]
            event: Any = harness.contracts.from_plain(created[3], OrderCreated)
            created[2], created[3] = "orders.created.v1", harness.contracts.to_json(created_v1(event))
            sql = harness.database.dialect.to_driver_sql("UPDATE orders_history SET content = ? WHERE number = ?")
            await harness.database.write(lambda c: c.exec_driver_sql(sql, (b"\x01" + orjson.dumps(entries), number)))
            report = again(harness, tmp_path, names=names)
            assert report.is_equal, report
            created[3]["items"][0]["quantity"] = 7
            await harness.database.write(lambda c: c.exec_driver_sql(sql, (b"\x01" + orjson.dumps(entries), number)))
            if "orders" in names:
                [difference] = again(harness, tmp_path, names=names).differences
                assert difference.detail == "orders.created.v1 differs: items.0.quantity 7 -> 2"

    async def test_an_empty_database_is_equal(self, site: Site, tmp_path: Path) -> None:
        """There is nothing to decide."""
        async with harness_at(site.url, VirtualClock()) as harness:
            assert again(harness, tmp_path).is_equal

    async def test_a_state_that_was_edited_by_hand_is_named(self, site: Site, tmp_path: Path) -> None:
        """Also one that was deleted, or written without a decision."""
        async with shop(site.url) as (harness, _):
            ids = [await place(harness, n) for n in range(3)]
            sql = harness.database.dialect.to_driver_sql
            await harness.database.write(
                lambda c: c.exec_driver_sql(sql("UPDATE inventory_product SET on_hand = ?"), (7,))
            )
            await harness.database.write(lambda c: c.exec_driver_sql(sql("DELETE FROM orders_order WHERE order_id = ?"), (ids[0],)))
            copy = "INSERT INTO inventory_product SELECT ?, name, on_hand, reserved, unit_price_amount, currency FROM inventory_product"
            await harness.database.write(lambda c: c.exec_driver_sql(sql(copy), ("B",)))
            report = again(harness, tmp_path)
            assert {each.text() for each in (*report.ends, *report.other_states)} == {
                "product A: on_hand 7 -> 100",
                "product B: is in the database and does not follow from the history",
                f"order {ids[0]}: follows from the history and is not in the database",
            }


def copy_file(harness: Harness, folder: Path) -> Database:
    """Return a copy of the SQLite file of *harness*."""
    path = folder / "copy.db"
    with harness.database.engine.connect() as connection:
        driver: Any = connection.connection.driver_connection
        driver.execute(f"VACUUM INTO '{path}'")
    return Database(f"sqlite:///{path}")
