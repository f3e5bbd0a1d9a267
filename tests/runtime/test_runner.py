"""One pass: take, think, save, answer."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import attrs
import pytest
from loguru import logger
from sqlalchemy import event
from uuid_utils import uuid7

from app.runtime.errors import IdempotencyKeyReused, Overloaded
from app.runtime.receiving import retry_seconds
from app.storage.errors import CommitOutcomeUnknown, StorageUnavailable
from app.storage.module_store import CLOCK_SKEW_MAX, INBOX_RETENTION
from bus.ids import id_lower_bound
from bus.port import MAX_TRIES, Message
from modules.inventory.events import PricedLine, Restocked, StockReserved
from modules.inventory.state import Product, Reservation, ReservationStatus
from modules.module import CancelTimer, Decision, DecisionOutcome, Scheduled, Unexpected
from modules.orders.events import CancelRequested, OrderCancelled, OrderConfirmed, OrderCreated, OrderTimedOut
from modules.orders.state import Order
from modules.payments.events import ChargeSucceeded
from modules.routes import Rejection, Response
from modules.values import Line, Money
from tests.runtime.harness import (
    CONTEXT,
    NOTED,
    Harness,
    HurriedClock,
    harness_at,
    oid,
    product,
    said,
    submitted,
    until,
)


def created(order_id: str, quantity: int = 1) -> OrderCreated:
    return OrderCreated(order_id=order_id, customer_id="c-1", items=(Line("A", quantity),), version="v2", shipping_address=None)


def confirmed(order_id: str) -> OrderConfirmed:
    return OrderConfirmed(order_id=order_id, customer_id="c-1", items=(Line("A", 1),), total=Money(100, "EUR"))


def order_answer(outcome: DecisionOutcome) -> Response:
    return Response(202, {"order_id": outcome.states[0].order_id}, {"Location": "there"})  # type: ignore[union-attr]


def tell(harness: Harness, name: str, what: Any, **how: Any) -> asyncio.Task[Any]:
    """Take a seat, and wait there."""
    how = {"id": str(uuid7()), "trace": CONTEXT, "respond": NOTED, **how}
    return asyncio.create_task(harness.runners[name].submit(what, **how))


async def test_all_who_sit_share_one_transaction(harness: Harness) -> None:
    """Fifty orders that wait together are one commit."""
    commits: list[Any] = []
    event.listen(harness.database.engine, "commit", commits.append)
    told = [tell(harness, "orders", submitted()) for _ in range(50)]
    await asyncio.sleep(0)
    await harness.runners["orders"].step()
    await asyncio.gather(*told)
    assert len(commits) == 1
    assert await harness.rows("SELECT count(*) FROM orders_order") == [(50,)]


async def test_an_answer_means_that_it_is_on_the_disk(harness: Harness, path: Path) -> None:
    """Whoever has an answer finds the state and the outbox committed, through any other connection."""
    await harness.tell("orders", submitted())
    with sqlite3.connect(path) as other:
        assert other.execute("SELECT count(*) FROM orders_order").fetchone() == (1,)
        assert other.execute("SELECT count(*) FROM orders_outbox").fetchone() == (3,)
    other.close()


async def test_an_event_that_cannot_be_decided_loses_only_itself(harness: Harness) -> None:
    """Its neighbours in the batch are decided and committed."""
    await harness.tell("inventory", product())
    told = [
        tell(harness, "inventory", created(oid(1))),
        tell(harness, "inventory", confirmed(oid(3))),
        tell(harness, "inventory", created(oid(2))),
    ]
    await asyncio.sleep(0)
    await harness.runners["inventory"].step()
    await told[0]
    with pytest.raises(Unexpected):
        await told[1]
    await told[2]
    a = await harness.runners["inventory"].get(Product, "A")
    assert a is not None
    assert a.reserved == 2
    assert await harness.runners["inventory"].get(Reservation, oid(3)) is None


async def test_an_answer_that_raises_keeps_nothing_of_its_event(harness: Harness) -> None:
    """What is not answered has not happened: neither states nor words of it are written."""

    def broken(outcome: DecisionOutcome) -> Response:
        raise ValueError("no answer")

    with pytest.raises(ValueError, match="no answer"):
        await harness.tell("orders", submitted(oid(1)), respond=broken)
    assert await harness.runners["orders"].get(Order, oid(1)) is None
    assert await harness.outbox("orders") == []


async def test_events_of_one_batch_see_what_came_before_them(harness: Harness) -> None:
    """Of six orders for five pieces in one batch, five get one."""
    await harness.tell("inventory", product(5))
    told = [tell(harness, "inventory", created(oid(n))) for n in range(6)]
    await asyncio.sleep(0)
    await harness.runners["inventory"].step()
    await asyncio.gather(*told)
    states = [await harness.runners["inventory"].get(Reservation, oid(n)) for n in range(6)]
    assert [s.status for s in states if s] == [ReservationStatus.HELD] * 5 + [ReservationStatus.REJECTED]


async def test_copies_in_one_batch_and_after_it_have_one_effect(harness: Harness) -> None:
    """The inbox knows an event by its id, however many copies come at once."""
    await harness.tell("inventory", product())
    message = said(harness, created(oid(1), 3), key=oid(1))
    copies = [Message(message.subject, str(uuid7()), message.body, oid(1), message.headers) for _ in range(5)]
    await harness.listen("inventory")
    await asyncio.gather(*(harness.bus.publish(copy) for copy in copies))
    await harness.bus.publish(Message(message.subject, str(uuid7()), message.body, oid(1), message.headers))
    a = await harness.runners["inventory"].get(Product, "A")
    assert a is not None
    assert a.reserved == 3
    assert [row[0] for row in await harness.outbox("inventory")] == ["inventory.reserved.v1"]


async def test_whatever_it_was_called_what_was_heard_is_forgotten_in_time(harness: Harness) -> None:
    """Also ids from outside that begin with no time, or with one to come; ours need no index for it."""
    ours, ahead = str(uuid7()), id_lower_bound(datetime.now(UTC) + timedelta(days=400))
    ids = [ours, ahead, "!", "0", "0000012345", "Zz", "é", "~", *(f"{digit:x}{uuid4()}"[:36] for digit in range(16))]
    for n, id in enumerate(ids):
        await harness.tell("inventory", created(oid(n)), id=id, is_new=False)
    key = str(uuid7())
    await harness.tell("inventory", created(oid(len(ids))), key=key, fingerprint="f")
    assert len(await harness.rows("SELECT id FROM inventory_inbox")) == len(ids) + 1
    timed = {id for (id,) in await harness.rows("SELECT id FROM inventory_inbox WHERE untimed = 0")}
    assert ours in timed
    assert timed.isdisjoint({key, ahead, "!", "0", "0000012345", "Zz", "é", "~"})
    store, later = harness.stores["inventory"], datetime.now(UTC) + INBOX_RETENTION
    assert await harness.database.write(lambda c: store.purge(c, later - timedelta(minutes=1))) == 0
    while await harness.database.write(lambda c: store.purge(c, later + 2 * CLOCK_SKEW_MAX)):
        pass
    assert await harness.rows("SELECT id FROM inventory_inbox") == []


async def test_two_modules_that_answer_one_event_give_different_ids(harness: Harness) -> None:
    """The speaker is part of an event's id, or the bus would take the second answer for a copy of the first."""
    await harness.tell("inventory", product())
    await harness.tell("inventory", created(oid(1)))
    await harness.tell("payments", _reserved(oid(1)))
    await harness.tell("payments", _charged(oid(1)))
    id = str(uuid7())
    cancelled = OrderCancelled(order_id=oid(1), customer_id="c-1", items=(Line("A", 1),), reason="requested")
    await harness.tell("inventory", cancelled, id=id)
    await harness.tell("payments", cancelled, id=id)
    sql = "SELECT id FROM {}_outbox WHERE causation_id = ?"
    released = await harness.rows(sql.format("inventory"), id)
    refund = await harness.rows(sql.format("payments"), id)
    assert len(released) == len(refund) == 1
    assert released != refund


async def test_deciding_again_gives_the_same_ids(path: Path, tmp_path: Path) -> None:
    """An id follows from its cause and its speaker, and from nothing else."""
    found = []
    for name in ("one.db", "two.db"):
        async with harness_at(tmp_path / name) as harness:
            await harness.tell("orders", submitted(oid(1)), id="0199fe00-0000-7000-8000-000000000001")
            found.append(await harness.rows("SELECT id FROM orders_outbox ORDER BY id"))
    assert found[0] == found[1]


async def test_the_same_key_and_body_get_the_first_answer_again(harness: Harness) -> None:
    """A replay says so, answers to the letter as the first time, and changes nothing."""
    first = await harness.tell("orders", submitted(), key="k", fingerprint="f", respond=order_answer)
    again = await harness.tell("orders", submitted(), key="k", fingerprint="f", respond=order_answer)
    assert (first.is_replay, again.is_replay) == (False, True)
    assert again.response == first.response
    assert await harness.rows("SELECT count(*) FROM orders_order") == [(1,)]


async def test_the_same_key_with_another_body_is_refused(harness: Harness) -> None:
    """A key belongs to one request."""
    await harness.tell("orders", submitted(), key="k", fingerprint="f")
    with pytest.raises(IdempotencyKeyReused):
        await harness.tell("orders", submitted(), key="k", fingerprint="g")
    assert await harness.rows("SELECT count(*) FROM orders_order") == [(1,)]


async def test_fifty_at_once_under_one_key_have_one_effect(harness: Harness) -> None:
    """One is new, the others are replays of it."""
    harness.run(harness.runners["orders"].run())
    told = await asyncio.gather(
        *(tell(harness, "orders", submitted(), key="k", fingerprint="f", respond=order_answer) for _ in range(50))
    )
    assert len({answer.response.body["order_id"] for answer in told}) == 1
    assert sorted(answer.is_replay for answer in told) == [False] + [True] * 49
    assert await harness.rows("SELECT count(*) FROM orders_order") == [(1,)]


async def test_a_key_outlives_the_process(path: Path) -> None:
    """What was answered under a key is in the database."""
    async with harness_at(path) as harness:
        first = await harness.tell("orders", submitted(), key="k", fingerprint="f", respond=order_answer)
    async with harness_at(path) as harness:
        again = await harness.tell("orders", submitted(), key="k", fingerprint="f", respond=order_answer)
        assert again.is_replay
        assert again.response == first.response


async def test_a_refusal_does_not_use_up_the_key(harness: Harness) -> None:
    """Once the reason is gone, the same request succeeds under the same key."""

    def answer(outcome: DecisionOutcome) -> Response | Rejection:
        return Response(200, "ok") if outcome.states[0] is not None else Rejection(404, "product_not_found", "no")

    restocked = Restocked(product_id="A", quantity=5)
    refused = await harness.tell("inventory", restocked, key="k", fingerprint="f", respond=answer)
    assert isinstance(refused.response, Rejection)
    await harness.tell("inventory", product(1))
    told = await harness.tell("inventory", restocked, key="k", fingerprint="f", respond=answer)
    assert told.response == Response(200, "ok")
    assert not told.is_replay
    a = await harness.runners["inventory"].get(Product, "A")
    assert a is not None
    assert a.on_hand == 6


async def test_a_locked_database_is_out_of_reach_and_heals_by_itself(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Askers hear Unavailable; what the bus brought is kept, spends no try, and is decided once the lock goes."""
    monkeypatch.setattr("app.storage.sql.sqlite.BUSY_SECONDS", 0.02)
    async with harness_at(path, HurriedClock()) as harness:
        await harness.tell("inventory", product())
        await harness.listen("inventory")
        other = sqlite3.connect(path, isolation_level=None)
        await until(lambda: _lock(other))
        published = harness.bus.publish(said(harness, created(oid(1)), key=oid(1)))
        # The shell meets the lock with the message more often than a message has tries.
        for _ in range(MAX_TRIES + 1):
            with pytest.raises(StorageUnavailable):
                await tell(harness, "inventory", product(99))
        assert not published.done()
        other.execute("ROLLBACK")
        other.close()
        await asyncio.wait_for(published, 20)
        assert await harness.rows("SELECT count(*) FROM inventory_dead_letter") == [(0,)]
        a = await harness.runners["inventory"].get(Product, "A")
        assert a is not None
        assert (a.on_hand, a.reserved) == (10, 1)
        await tell(harness, "inventory", product(20))


async def test_shedding_refuses_only_new_work(path: Path) -> None:
    """Over the cap an order is refused before it sits; a cancellation is let in."""
    async with harness_at(path, backlog=lambda: 11, backlog_max=10) as harness:
        with pytest.raises(Overloaded):
            await harness.tell("orders", submitted(), sheds_load=True)
        await harness.tell("orders", CancelRequested(order_id=oid(1), why=None))
        assert await harness.rows("SELECT count(*) FROM orders_order") == [(0,)]


async def test_who_stands_counts_as_backlog(path: Path) -> None:
    """Where the database takes its time, no more wait for it than the cap allows; then they are told to come again."""
    async with harness_at(path, backlog_max=3) as harness:
        told = [tell(harness, "orders", submitted(oid(n)), sheds_load=True) for n in range(6)]
        await asyncio.sleep(0)
        await harness.runners["orders"].step()
        outcomes = await asyncio.gather(*told, return_exceptions=True)
        assert [isinstance(outcome, Overloaded) for outcome in outcomes] == [False] * 4 + [True] * 2


async def test_the_log_says_once_that_orders_are_refused(path: Path) -> None:
    """And once that they are taken again, when it is safely below the cap."""
    waiting, lines = [0], list[str]()
    sink = logger.add(lambda line: lines.append(line.record["message"]), level="INFO", filter="app.runtime.runner")
    try:
        async with harness_at(path, backlog=lambda: waiting[0], backlog_max=100) as harness:
            for waiting[0] in (100, 101, 102, 95, 101, 91, 90, 90):
                with suppress(Overloaded):
                    await harness.tell("orders", submitted(), sheds_load=True)
    finally:
        logger.remove(sink)
    assert lines == ["the backlog is over its cap; new orders are rejected", "new orders are accepted again"]


async def test_draining_lets_nobody_in_and_everybody_out(harness: Harness) -> None:
    """Who sits is answered; who comes later is turned away."""
    told = tell(harness, "orders", submitted())
    await asyncio.sleep(0)
    drained = asyncio.create_task(harness.runners["orders"].drain())
    await asyncio.sleep(0)
    with pytest.raises(StorageUnavailable):
        await tell(harness, "orders", submitted())
    assert not drained.done()
    harness.run(harness.runners["orders"].run())
    await told
    await asyncio.wait_for(drained, 20)


async def test_whoever_watches_is_woken_by_each_change(harness: Harness) -> None:
    """A change to another state wakes nobody."""
    await harness.tell("orders", submitted(oid(1)))
    async with harness.runners["orders"].watch(Order, oid(1)) as wakes:
        woken = asyncio.ensure_future(anext(wakes))
        await harness.tell("orders", submitted(oid(2)))
        await asyncio.sleep(0)
        assert not woken.done()
        await harness.tell("orders", CancelRequested(order_id=oid(1), why=None))
        await asyncio.wait_for(woken, 20)


async def test_an_express_order_goes_by_the_express_lane(harness: Harness) -> None:
    """Its subjects carry the lane; an order that is not express stays in the other."""
    await harness.tell("orders", submitted(oid(1)))
    await harness.tell("inventory", product())
    await harness.tell("inventory", created(oid(1)), is_express=True)
    assert [row[0] for row in await harness.outbox("inventory")] == ["inventory.reserved.v1.express"]
    subjects = [row[0] for row in await harness.outbox("orders")]
    assert sorted(subjects) == ["orders.created.v1", "orders.created.v2", "orders.timed_out.v1"]


async def test_browsing_pages_by_key_in_either_direction(harness: Harness) -> None:
    """Every state that fits comes once, however small the page."""
    ids = [oid(n) for n in range(7)]
    for order_id in ids:
        await harness.tell("orders", submitted(order_id))
    await harness.tell("orders", CancelRequested(order_id=oid(3), why=None))
    for newest_first in (False, True):
        found: list[str] = []
        while page := await harness.runners["orders"].list_states(
            Order, {"status": "processing"}, after=found[-1] if found else None, limit=2, newest_first=newest_first
        ):
            found += [order.order_id for order in page]
        expected = [id for id in ids if id != oid(3)]
        assert found == (expected[::-1] if newest_first else expected)


def test_retries_wait_longer_each_time() -> None:
    """Doubling, within the jitter, and never beyond the limit."""
    rng = random.Random(1)
    for tries in range(1, 20):
        base = min(0.5 * 2 ** (tries - 1), 30.0)
        assert base * 0.5 <= retry_seconds(tries, rng) <= base * 1.5


def _lock(other: sqlite3.Connection) -> bool:
    try:
        other.execute("BEGIN EXCLUSIVE")
    except sqlite3.OperationalError:
        return False
    return True


def _reserved(order_id: str) -> StockReserved:
    lines = (PricedLine("A", 1, Money(100, "EUR")),)
    return StockReserved(order_id=order_id, lines=lines, total=Money(100, "EUR"))


def _charged(order_id: str) -> ChargeSucceeded:
    return ChargeSucceeded(order_id=order_id, reference="r", calls=1)


async def test_a_database_that_goes_away_among_singles_takes_nothing_back(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch is seen through one by one: who was committed hears so, and only who was not is sent home."""
    write = harness.database.write
    calls = 0

    async def failing(work: Any, *place: str) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise ValueError("a row that the database refuses")
        if calls == 3:
            raise StorageUnavailable("gone")
        return await write(work)

    monkeypatch.setattr(harness.database, "write", failing)
    told = [tell(harness, "orders", submitted(oid(n))) for n in (1, 2)]
    await asyncio.sleep(0)
    await harness.runners["orders"].step()
    first, second = await asyncio.gather(*told, return_exceptions=True)
    assert isinstance(second, StorageUnavailable)
    assert not isinstance(first, BaseException)
    assert await harness.runners["orders"].get(Order, oid(1)) is not None
    assert await harness.runners["orders"].get(Order, oid(2)) is None


async def test_a_database_that_goes_away_among_singles_spends_no_try(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of messages, too: who was not committed sits down again, and the others do not even ask."""
    await harness.tell("inventory", product())
    runner, write = harness.runners["inventory"], harness.database.write
    calls = 0

    async def failing(work: Any, *place: str) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise ValueError("a row that the database refuses")
        if calls == 3:
            raise StorageUnavailable("gone")
        return await write(work)

    harness.run(runner.consume(await harness.bus.subscribe("inventory", ["orders.created.v2"])))
    published = [harness.bus.publish(said(harness, created(oid(n)), key=oid(n))) for n in (1, 2, 3)]
    await until(lambda: len(runner._queue) == 3)
    monkeypatch.setattr(harness.database, "write", failing)
    await runner.step()
    assert [future.done() for future in published] == [True, False, False]
    assert calls == 4  # together, two of them, and whether the database is back
    await runner.step()
    await asyncio.gather(*published)
    handled = [line for line in harness.metrics.render().decode().splitlines() if line.startswith("messages_handled_total{")]
    assert any('outcome="handled"' in line and line.endswith(" 3") for line in handled)
    assert not any('outcome="failed"' in line for line in handled)


async def test_a_commit_of_unknown_outcome_is_told_as_one(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asked hears that nobody knows, not that nothing was stored."""
    write = harness.database.write
    troubles = [CommitOutcomeUnknown("cut in mid-commit")]

    async def failing(work: Any, *place: str) -> Any:
        if troubles:
            raise troubles.pop()
        return await write(work)

    monkeypatch.setattr(harness.database, "write", failing)
    told = tell(harness, "orders", submitted(oid(1)))
    await asyncio.sleep(0)
    await harness.runners["orders"].step()
    with pytest.raises(CommitOutcomeUnknown):
        await told


async def test_what_is_withdrawn_and_said_again_goes_out_at_once(harness: Harness) -> None:
    """The new one is not taken for the one that was taken back."""
    processor = harness.processor("orders")

    def decide(states: Any, what: Any, now: Any) -> Decision:
        timer = Scheduled(OrderTimedOut(order_id=oid(1)), now, "timer")
        return Decision((), (CancelTimer("timer"), timer) if isinstance(what, CancelRequested) else (timer,))

    processor._module = attrs.evolve(processor._module, decide=decide)
    member = await harness.bus.subscribe("orders", ["orders.timed_out.v1"])
    told = [tell(harness, "orders", submitted(oid(1))), tell(harness, "orders", CancelRequested(order_id=oid(1), why=None))]
    await asyncio.sleep(0)
    await harness.runners["orders"].step()
    await asyncio.gather(*told)
    assert len(await member.fetch(10, 0)) == 1
    assert await harness.rows("SELECT count(*) FROM orders_outbox") == [(1,)]
