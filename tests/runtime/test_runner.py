"""The module runner: queue, batch, transaction, reply."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import attrs
import pytest
from loguru import logger
from sqlalchemy import event
from uuid_utils import uuid7

from app.runtime.receiving import retry_seconds
from app.runtime.service import IdempotencyKeyReused, Overloaded
from app.storage.errors import CommitOutcomeUnknown, StorageUnavailable
from app.storage.module_store import CLOCK_SKEW_MAX, INBOX_RETENTION
from bus.errors import Invalid
from bus.ids import id_lower_bound
from bus.port import MAX_TRIES, Message
from modules.inventory.events import PricedLine, StockAdjusted, StockReserved
from modules.inventory.state import Product, Reservation, ReservationStatus
from modules.module import CancelTimer, Decision, DecisionOutcome, Scheduled, Unexpected
from modules.orders.events import CancelRequested, OrderCancelled, OrderConfirmed, OrderCreated, OrderTimedOut
from modules.orders.state import Order
from modules.payments.events import ChargeSucceeded
from modules.routes import Rejection, Response
from modules.values import Line, Money
from tests.runtime.harness import (
    CONTEXT,
    NO_CONTENT,
    Harness,
    HurriedClock,
    bus_message,
    harness_at,
    oid,
    product,
    submitted,
    until,
)


def created(order_id: str, quantity: int = 1) -> OrderCreated:
    return OrderCreated(order_id=order_id, customer_id="c-1", items=(Line("A", quantity),), version="v2", shipping_address=None)


def confirmed(order_id: str) -> OrderConfirmed:
    return OrderConfirmed(order_id=order_id, customer_id="c-1", items=(Line("A", 1),), total=Money(100, "EUR"))


def order_answer(outcome: DecisionOutcome) -> Response:
    return Response(202, {"order_id": outcome.states[0].order_id}, {"Location": "there"})  # type: ignore[union-attr]


def submit(harness: Harness, name: str, what: Any, **how: Any) -> asyncio.Task[Any]:
    """Submit *what* to a module without running a step."""
    how = {"id": str(uuid7()), "trace": CONTEXT, "respond": NO_CONTENT, **how}
    return asyncio.create_task(harness.runners[name].submit(what, **how))


async def test_all_queued_items_share_one_transaction(harness: Harness) -> None:
    """Fifty orders that are queued together need one commit."""
    commits: list[Any] = []
    event.listen(harness.database.engine, "commit", commits.append)
    pending = [submit(harness, "orders", submitted()) for _ in range(50)]
    await asyncio.sleep(0)
    await harness.runners["orders"].step()
    await asyncio.gather(*pending)
    assert len(commits) == 1
    assert await harness.rows("SELECT count(*) FROM orders_order") == [(50,)]


async def test_a_reply_means_that_everything_is_committed(harness: Harness, path: Path) -> None:
    """After the reply, any other connection finds the state and the outbox rows."""
    await harness.submit("orders", submitted())
    with sqlite3.connect(path) as other:
        assert other.execute("SELECT count(*) FROM orders_order").fetchone() == (1,)
        assert other.execute("SELECT count(*) FROM orders_outbox").fetchone() == (3,)
    other.close()


async def test_an_event_that_cannot_be_decided_fails_alone(harness: Harness) -> None:
    """The other events of its batch are decided and committed."""
    await harness.submit("inventory", product())
    pending = [
        submit(harness, "inventory", created(oid(1))),
        submit(harness, "inventory", confirmed(oid(3))),
        submit(harness, "inventory", created(oid(2))),
    ]
    await asyncio.sleep(0)
    await harness.runners["inventory"].step()
    await pending[0]
    with pytest.raises(Unexpected):
        await pending[1]
    await pending[2]
    a = await harness.runners["inventory"].get(Product, "A")
    assert a is not None
    assert a.reserved == 2
    assert await harness.runners["inventory"].get(Reservation, oid(3)) is None


async def test_a_decision_whose_event_breaks_its_schema_has_no_effect(harness: Harness) -> None:
    """Neither states nor events nor cancelled timers: those that other events of the batch have set stay."""
    processor = harness.processor("orders")

    def decide(states: Any, what: Any, now: Any) -> Decision:
        if isinstance(what, CancelRequested):
            broken = OrderCreated(order_id=oid(1), customer_id="c-1", items=(), version="v2", shipping_address=None)
            return Decision((attrs.evolve(states[0], customer_id="changed"),), (CancelTimer("timer"), broken))
        decision = wrapped(states, what, now)
        timer = Scheduled(OrderTimedOut(order_id=oid(1)), now + timedelta(hours=1), "timer")
        return Decision(decision.states, (timer,))

    wrapped = processor._module.decide
    processor._module = attrs.evolve(processor._module, decide=decide)
    pending = [
        submit(harness, "orders", submitted(oid(1))),
        submit(harness, "orders", CancelRequested(order_id=oid(1), why=None)),
    ]
    await asyncio.sleep(0)
    await harness.runners["orders"].step()
    await pending[0]
    with pytest.raises(Invalid):
        await pending[1]
    assert await harness.rows("SELECT subject, name FROM orders_outbox") == [("orders.timed_out.v1", "timer")]
    assert await harness.rows("SELECT customer_id FROM orders_order") == [("c-1",)]


async def test_an_event_whose_reply_cannot_be_built_has_no_effect(harness: Harness) -> None:
    """Neither its states nor its events are written."""

    def broken(outcome: DecisionOutcome) -> Response:
        raise ValueError("no answer")

    with pytest.raises(ValueError, match="no answer"):
        await harness.submit("orders", submitted(oid(1)), respond=broken)
    assert await harness.runners["orders"].get(Order, oid(1)) is None
    assert await harness.outbox("orders") == []


async def test_a_decision_sees_the_states_left_by_earlier_events_of_its_batch(harness: Harness) -> None:
    """Of six orders for five pieces in one batch, five get one."""
    await harness.submit("inventory", product(5))
    pending = [submit(harness, "inventory", created(oid(n))) for n in range(6)]
    await asyncio.sleep(0)
    await harness.runners["inventory"].step()
    await asyncio.gather(*pending)
    states = [await harness.runners["inventory"].get(Reservation, oid(n)) for n in range(6)]
    assert [s.status for s in states if s] == [ReservationStatus.HELD] * 5 + [ReservationStatus.REJECTED]


async def test_duplicates_within_a_batch_and_after_it_have_one_effect(harness: Harness) -> None:
    """The inbox recognises an event by its id, however many duplicates arrive at once."""
    await harness.submit("inventory", product())
    message = bus_message(harness, created(oid(1), 3), key=oid(1))
    duplicates = [Message(message.subject, str(uuid7()), message.body, oid(1), message.headers) for _ in range(5)]
    await harness.consume("inventory")
    await asyncio.gather(*(harness.bus.publish(duplicate) for duplicate in duplicates))
    await harness.bus.publish(Message(message.subject, str(uuid7()), message.body, oid(1), message.headers))
    a = await harness.runners["inventory"].get(Product, "A")
    assert a is not None
    assert a.reserved == 3
    assert [row[0] for row in await harness.outbox("inventory")] == ["inventory.reserved.v1"]


async def test_the_inbox_is_purged_whatever_the_ids_look_like(harness: Harness) -> None:
    """Ids from other systems may begin with no time, or with a future one; ids of this service need no index for the purge."""
    ours, ahead = str(uuid7()), id_lower_bound(datetime.now(UTC) + timedelta(days=400))
    ids = [ours, ahead, "!", "0", "0000012345", "Zz", "é", "~", *(f"{digit:x}{uuid4()}"[:36] for digit in range(16))]
    for n, id in enumerate(ids):
        await harness.submit("inventory", created(oid(n)), id=id, is_new=False)
    key = str(uuid7())
    await harness.submit("inventory", created(oid(len(ids))), key=key, fingerprint="f")
    assert len(await harness.rows("SELECT id FROM inventory_inbox")) == len(ids) + 1
    timed = {id for (id,) in await harness.rows("SELECT id FROM inventory_inbox WHERE untimed = 0")}
    assert ours in timed
    assert timed.isdisjoint({key, ahead, "!", "0", "0000012345", "Zz", "é", "~"})
    store, later = harness.stores["inventory"], datetime.now(UTC) + INBOX_RETENTION
    assert await harness.database.write(lambda c: store.purge(c, later - timedelta(minutes=1))) == 0
    while await harness.database.write(lambda c: store.purge(c, later + 2 * CLOCK_SKEW_MAX)):
        pass
    assert await harness.rows("SELECT id FROM inventory_inbox") == []


async def test_two_modules_that_react_to_one_event_emit_different_ids(harness: Harness) -> None:
    """The producer is part of a derived id; otherwise the bus would drop the second event as a duplicate."""
    await harness.submit("inventory", product())
    await harness.submit("inventory", created(oid(1)))
    await harness.submit("payments", _reserved(oid(1)))
    await harness.submit("payments", _charged(oid(1)))
    id = str(uuid7())
    cancelled = OrderCancelled(order_id=oid(1), customer_id="c-1", items=(Line("A", 1),), reason="requested")
    await harness.submit("inventory", cancelled, id=id)
    await harness.submit("payments", cancelled, id=id)
    sql = "SELECT id FROM {}_outbox WHERE causation_id = ?"
    released = await harness.rows(sql.format("inventory"), id)
    refund = await harness.rows(sql.format("payments"), id)
    assert len(released) == len(refund) == 1
    assert released != refund


async def test_deciding_again_gives_the_same_ids(path: Path, tmp_path: Path) -> None:
    """An id is derived from its cause, its producer and its position, and from nothing else."""
    found = []
    for name in ("one.db", "two.db"):
        async with harness_at(tmp_path / name) as harness:
            await harness.submit("orders", submitted(oid(1)), id="0199fe00-0000-7000-8000-000000000001")
            found.append(await harness.rows("SELECT id FROM orders_outbox ORDER BY id"))
    assert found[0] == found[1]


async def test_the_same_key_and_body_get_the_first_reply_again(harness: Harness) -> None:
    """A replay is marked as one, equals the first reply, and changes nothing."""
    first = await harness.submit("orders", submitted(), key="k", fingerprint="f", respond=order_answer)
    again = await harness.submit("orders", submitted(), key="k", fingerprint="f", respond=order_answer)
    assert (first.is_replay, again.is_replay) == (False, True)
    assert again.response == first.response
    assert await harness.rows("SELECT count(*) FROM orders_order") == [(1,)]


async def test_the_same_key_with_another_body_is_rejected(harness: Harness) -> None:
    """An idempotency key belongs to one request."""
    await harness.submit("orders", submitted(), key="k", fingerprint="f")
    with pytest.raises(IdempotencyKeyReused):
        await harness.submit("orders", submitted(), key="k", fingerprint="g")
    assert await harness.rows("SELECT count(*) FROM orders_order") == [(1,)]


async def test_fifty_concurrent_requests_with_one_key_have_one_effect(harness: Harness) -> None:
    """One creates the order, the others are replays."""
    harness.run(harness.runners["orders"].run())
    pending = await asyncio.gather(
        *(submit(harness, "orders", submitted(), key="k", fingerprint="f", respond=order_answer) for _ in range(50))
    )
    assert len({answer.response.body["order_id"] for answer in pending}) == 1
    assert sorted(answer.is_replay for answer in pending) == [False] + [True] * 49
    assert await harness.rows("SELECT count(*) FROM orders_order") == [(1,)]


async def test_requests_with_one_key_in_one_batch_are_answered_in_its_transaction(harness: Harness) -> None:
    """The first is decided, and the others are replays of it; the batch does not fail at the inbox, to be processed one by one."""
    commits: list[Any] = []
    event.listen(harness.database.engine, "commit", commits.append)
    pending = [submit(harness, "orders", submitted(), key="k", fingerprint="f", respond=order_answer) for _ in range(5)]
    await asyncio.sleep(0)
    await harness.runners["orders"].step()
    answers = await asyncio.gather(*pending)
    assert [answer.is_replay for answer in answers] == [False] + [True] * 4
    assert len(commits) == 1


async def test_an_idempotency_key_survives_a_restart(path: Path) -> None:
    """The stored reply is in the database."""
    async with harness_at(path) as harness:
        first = await harness.submit("orders", submitted(), key="k", fingerprint="f", respond=order_answer)
    async with harness_at(path) as harness:
        again = await harness.submit("orders", submitted(), key="k", fingerprint="f", respond=order_answer)
        assert again.is_replay
        assert again.response == first.response


async def test_a_rejection_does_not_use_up_the_key(harness: Harness) -> None:
    """Once the reason is gone, the same request succeeds with the same key."""

    def answer(outcome: DecisionOutcome) -> Response | Rejection:
        return Response(200, "ok") if outcome.states[0] is not None else Rejection(404, "product_not_found", "no")

    restocked = StockAdjusted(product_id="A", quantity=5)
    refused = await harness.submit("inventory", restocked, key="k", fingerprint="f", respond=answer)
    assert isinstance(refused.response, Rejection)
    await harness.submit("inventory", product(1))
    pending = await harness.submit("inventory", restocked, key="k", fingerprint="f", respond=answer)
    assert pending.response == Response(200, "ok")
    assert not pending.is_replay
    a = await harness.runners["inventory"].get(Product, "A")
    assert a is not None
    assert a.on_hand == 6


async def test_a_locked_database_is_unavailable_until_the_lock_is_released(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Submitters get StorageUnavailable; messages from the bus stay queued, spend no try, and are decided afterwards."""
    monkeypatch.setattr("app.storage.sql.sqlite.BUSY_SECONDS", 0.02)
    async with harness_at(path, HurriedClock()) as harness:
        await harness.submit("inventory", product())
        await harness.consume("inventory")
        other = sqlite3.connect(path, isolation_level=None)
        await until(lambda: _lock(other))
        published = harness.bus.publish(bus_message(harness, created(oid(1)), key=oid(1)))
        # The shell meets the lock with the message more often than a message has tries.
        for _ in range(MAX_TRIES + 1):
            with pytest.raises(StorageUnavailable):
                await submit(harness, "inventory", product(99))
        assert not published.done()
        other.execute("ROLLBACK")
        other.close()
        await asyncio.wait_for(published, 30)
        assert await harness.rows("SELECT count(*) FROM inventory_dead_letter") == [(0,)]
        a = await harness.runners["inventory"].get(Product, "A")
        assert a is not None
        assert (a.on_hand, a.reserved) == (10, 1)
        await submit(harness, "inventory", product(20))


async def test_load_shedding_rejects_only_new_work(path: Path) -> None:
    """Over the cap an order is rejected before it is queued; a cancellation is accepted."""
    async with harness_at(path, backlog=[SimpleNamespace(pending_events=11)], backlog_max=10) as harness:
        with pytest.raises(Overloaded):
            await harness.submit("orders", submitted(), sheds_load=True)
        await harness.submit("orders", CancelRequested(order_id=oid(1), why=None))
        assert await harness.rows("SELECT count(*) FROM orders_order") == [(0,)]


async def test_queued_submissions_count_as_backlog(path: Path) -> None:
    """While the database is slow, no more submissions wait than the cap allows; the others are rejected."""
    async with harness_at(path, backlog_max=3) as harness:
        pending = [submit(harness, "orders", submitted(oid(n)), sheds_load=True) for n in range(6)]
        await asyncio.sleep(0)
        await harness.runners["orders"].step()
        outcomes = await asyncio.gather(*pending, return_exceptions=True)
        assert [isinstance(outcome, Overloaded) for outcome in outcomes] == [False] * 4 + [True] * 2


async def test_load_shedding_is_logged_once(path: Path) -> None:
    """One line when it begins, and one when the backlog is well below the cap again."""
    relay, lines = SimpleNamespace(pending_events=0), list[str]()
    sink = logger.add(lambda line: lines.append(line.record["message"]), level="INFO", filter="app.runtime.work_queue")
    try:
        async with harness_at(path, backlog=[relay], backlog_max=100) as harness:
            for relay.pending_events in (100, 101, 102, 95, 101, 91, 90, 90):
                with suppress(Overloaded):
                    await harness.submit("orders", submitted(), sheds_load=True)
    finally:
        logger.remove(sink)
    assert lines == ["the backlog is over its cap; new orders are rejected", "new orders are accepted again"]


async def test_draining_finishes_the_queue_and_rejects_new_submissions(harness: Harness) -> None:
    """Queued submissions get their reply; a later one is rejected."""
    pending = submit(harness, "orders", submitted())
    await asyncio.sleep(0)
    drained = asyncio.create_task(harness.runners["orders"].drain())
    await asyncio.sleep(0)
    with pytest.raises(StorageUnavailable):
        await submit(harness, "orders", submitted())
    assert not drained.done()
    harness.run(harness.runners["orders"].run())
    await pending
    await asyncio.wait_for(drained, 30)


async def test_a_watcher_is_woken_by_each_change_of_its_state(harness: Harness) -> None:
    """A change of another state does not wake it."""
    await harness.submit("orders", submitted(oid(1)))
    async with harness.runners["orders"].watch(Order, oid(1)) as wakes:
        woken = asyncio.ensure_future(anext(wakes))
        await harness.submit("orders", submitted(oid(2)))
        await asyncio.sleep(0)
        assert not woken.done()
        await harness.submit("orders", CancelRequested(order_id=oid(1), why=None))
        await asyncio.wait_for(woken, 30)


async def test_a_listener_is_called_for_each_decision_once_it_is_committed(harness: Harness) -> None:
    """Whether the event was submitted or came over the bus; not of one that failed, or was processed before."""
    calls: list[tuple[str, str, int, str]] = []

    def listen(what: Any, decision: Decision, trace: Any) -> None:
        calls.append((type(what).__name__, getattr(what, "order_id", ""), len(decision.states), trace.correlation_id))

    harness.runners["inventory"].add_listener(listen)
    await harness.submit("inventory", product())
    await harness.consume("inventory")
    message = bus_message(harness, created(oid(1)), key=oid(1))
    await harness.bus.publish(message)
    await harness.bus.publish(attrs.evolve(message, id="again"))
    with pytest.raises(Unexpected):
        await submit(harness, "inventory", confirmed(oid(9)))
    await submit(harness, "inventory", confirmed(oid(1)))
    assert calls == [("ProductSet", "", 1, "test"), ("OrderCreated", oid(1), 2, "test"), ("OrderConfirmed", oid(1), 2, "test")]


async def test_events_of_an_express_order_use_the_express_lane(harness: Harness) -> None:
    """Their subjects carry the lane; events of other orders do not."""
    await harness.submit("orders", submitted(oid(1)))
    await harness.submit("inventory", product())
    await harness.submit("inventory", created(oid(1)), is_express=True)
    assert [row[0] for row in await harness.outbox("inventory")] == ["inventory.reserved.v1.express"]
    subjects = [row[0] for row in await harness.outbox("orders")]
    assert sorted(subjects) == ["orders.created.v1", "orders.created.v2", "orders.timed_out.v1"]


@pytest.mark.parametrize("is_express", [False, True])
@pytest.mark.parametrize("decided", [None, False, True])
async def test_a_decision_selects_the_lane_of_its_events(harness: Harness, is_express: bool, decided: bool | None) -> None:
    """If it does not, they stay in the lane of their cause."""
    processor = harness.processor("orders")

    def decide(states: Any, what: Any, now: Any) -> Decision:
        return Decision((), (created(oid(1)),), decided)

    processor._module = attrs.evolve(processor._module, decide=decide)
    await harness.submit("orders", submitted(oid(1)), is_express=is_express)
    lane = ".express" if (is_express if decided is None else decided) else ""
    assert sorted(subject for subject, _ in await harness.outbox("orders")) == [f"orders.created.v1{lane}", f"orders.created.v2{lane}"]


async def test_a_list_is_paged_by_key_in_either_direction(harness: Harness) -> None:
    """Every matching state is listed once, however small the page."""
    ids = [oid(n) for n in range(7)]
    for order_id in ids:
        await harness.submit("orders", submitted(order_id))
    await harness.submit("orders", CancelRequested(order_id=oid(3), why=None))
    for newest_first in (False, True):
        found: list[str] = []
        while page := await harness.runners["orders"].list_states(
            Order, {"status": "processing"}, after=found[-1] if found else None, limit=2, newest_first=newest_first
        ):
            found += [order.order_id for order in page]
        expected = [id for id in ids if id != oid(3)]
        assert found == (expected[::-1] if newest_first else expected)


def test_retries_wait_longer_each_time() -> None:
    """The delay doubles within the jitter, and never exceeds the limit."""
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


async def test_an_outage_while_failures_are_isolated_undoes_no_commit(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first item stays committed; the second is rejected as unavailable."""
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
    pending = [submit(harness, "orders", submitted(oid(n))) for n in (1, 2)]
    await asyncio.sleep(0)
    await harness.runners["orders"].step()
    first, second = await asyncio.gather(*pending, return_exceptions=True)
    assert isinstance(second, StorageUnavailable)
    assert not isinstance(first, BaseException)
    assert await harness.runners["orders"].get(Order, oid(1)) is not None
    assert await harness.runners["orders"].get(Order, oid(2)) is None


async def test_an_outage_while_failures_are_isolated_spends_no_try(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Uncommitted messages are queued again, and the remaining ones are not attempted."""
    await harness.submit("inventory", product())
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
    published = [harness.bus.publish(bus_message(harness, created(oid(n)), key=oid(n))) for n in (1, 2, 3)]
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


@pytest.mark.parametrize("count", [1, 3])
async def test_a_message_that_the_database_refuses_waits_and_spends_no_try(path: Path, count: int) -> None:
    """A table is missing: that is the database's fault, of one message as of a batch. Once it is back, all are handled."""
    failures: list[str] = []
    sink = logger.add(lambda text: failures.append(str(text)), filter=lambda record: record["message"] == "message failed")
    async with harness_at(path, HurriedClock()) as harness:
        await harness.submit("inventory", product(10))
        await harness.database.write(lambda c: c.exec_driver_sql("ALTER TABLE inventory_reservation RENAME TO away"))
        await harness.consume("inventory")
        published = [harness.bus.publish(bus_message(harness, created(oid(n)), key=oid(n))) for n in range(count)]
        await until(lambda: harness.database.is_refused)
        await asyncio.sleep(0.1)
        assert not any(each.done() for each in published)
        with closing(sqlite3.connect(path)) as other:
            other.execute("ALTER TABLE away RENAME TO inventory_reservation")
        await asyncio.wait_for(asyncio.gather(*published), 30)
        assert await harness.dead_letter_store.list(None, None, None, 10) == []
    logger.remove(sink)
    assert failures == []


async def test_a_commit_with_unknown_outcome_is_reported_as_unknown(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """The submitter learns that the outcome is unknown, not that nothing was stored."""
    write = harness.database.write
    failures = [CommitOutcomeUnknown("cut in mid-commit")]

    async def failing(work: Any, *place: str) -> Any:
        if failures:
            raise failures.pop()
        return await write(work)

    monkeypatch.setattr(harness.database, "write", failing)
    pending = submit(harness, "orders", submitted(oid(1)))
    await asyncio.sleep(0)
    await harness.runners["orders"].step()
    with pytest.raises(CommitOutcomeUnknown):
        await pending


async def test_a_timer_that_is_cancelled_and_set_again_in_one_batch_is_published(harness: Harness) -> None:
    """The new event is not mistaken for the cancelled one."""
    processor = harness.processor("orders")

    def decide(states: Any, what: Any, now: Any) -> Decision:
        timer = Scheduled(OrderTimedOut(order_id=oid(1)), now, "timer")
        return Decision((), (CancelTimer("timer"), timer) if isinstance(what, CancelRequested) else (timer,))

    processor._module = attrs.evolve(processor._module, decide=decide)
    member = await harness.bus.subscribe("orders", ["orders.timed_out.v1"])
    pending = [submit(harness, "orders", submitted(oid(1))), submit(harness, "orders", CancelRequested(order_id=oid(1), why=None))]
    await asyncio.sleep(0)
    await harness.runners["orders"].step()
    await asyncio.gather(*pending)
    assert len(await member.fetch(10, 0)) == 1
    assert await harness.rows("SELECT count(*) FROM orders_outbox") == [(1,)]
