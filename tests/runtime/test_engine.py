"""The transaction engine: local delivery within one transaction, and delivery over the bus for everything else."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest
from sqlalchemy import event

from app.runtime.engine import LocalRoutes, direct_takers
from app.storage.state_rows import StateMapper
from app.telemetry.trace import child
from bus.errors import Invalid
from bus.ids import derived_id
from modules import payments
from modules.inventory.events import StockReleased, StockReserved
from modules.module import CancelTimer, Decision, Scheduled, Unexpected
from modules.orders.events import CancelRequested, OrderCreated, OrderTimedOut
from modules.payments.events import ChargeSucceeded
from modules.values import Line
from tests.runtime.harness import (
    CONTEXT,
    NO_CONTENT,
    Harness,
    HurriedClock,
    harness_at,
    let_decide,
    oid,
    product,
    submitted,
    until,
)
from tests.storage.history_contract import published

OVER = "SELECT status FROM orders_order ORDER BY order_id"
UNSENT = "SELECT subject FROM {}_outbox WHERE sent_at IS NULL ORDER BY subject"


@pytest.fixture
async def harness(path: Path) -> AsyncIterator[Harness]:
    """A system with local delivery and ten pieces in stock; a test runs each step itself."""
    async with harness_at(path, HurriedClock(), delivers_locally=True) as harness:
        await harness.submit("inventory", product(10))
        yield harness


def commits_of(harness: Harness) -> list[Any]:
    commits: list[Any] = []
    event.listen(harness.database.engine, "commit", commits.append)
    return commits


async def unsent(harness: Harness) -> list[str]:
    """Return the subjects of all outbox rows that the bus still has to accept."""
    return [row[0] for name in harness.runners for row in await harness.rows(UNSENT.format(name))]


async def message_rows(harness: Harness) -> set[tuple[str, str]]:
    """Return the subject of each outbox row, and the event id of each inbox row."""
    found = set()
    for name in harness.runners:
        for table, column in ((f"{name}_outbox", "subject"), (f"{name}_inbox", "id")):
            found |= {(table, row[0]) for row in await harness.rows(f"SELECT {column} FROM {table}")}
    return found


def let_v1_be_consumed_elsewhere(harness: Harness) -> None:
    """Let a consumer outside the modules subscribe to the older version of an order's event."""
    engine = harness.runners["orders"]._engine
    remote = [*harness.contracts.subjects_for(payments.module().workers["payments-gateway"]), "orders.created.v1"]
    engine._routes = LocalRoutes(engine._routes._readers, remote, harness.contracts)


async def run(harness: Harness) -> None:
    """Start the consumers, runners and relays that delivery over the bus needs."""
    for name in harness.runners:
        await harness.consume(name)
        harness.run(harness.relays[name].run())


async def place(harness: Harness) -> None:
    """Place an order while the system runs."""
    await harness.runners["orders"].submit(submitted(oid(1)), id="placed", trace=CONTEXT, respond=NO_CONTENT)


async def test_one_transaction_takes_an_order_to_the_payment_request(harness: Harness) -> None:
    """The order is placed, its stock reserved and its charge requested; only the charge request goes over the bus."""
    commits = commits_of(harness)
    await harness.submit("orders", submitted(oid(1)))
    assert len(commits) == 1
    assert await harness.rows(OVER) == [("reserved",)]
    assert await harness.rows("SELECT on_hand, reserved FROM inventory_product") == [(10, 1)]
    assert await harness.rows("SELECT status, amount FROM payments_payment") == [("pending", 100)]
    assert await unsent(harness) == ["orders.timed_out.v1", "payments.charge_requested.v1"]


async def test_each_event_continues_the_trace_of_its_cause(harness: Harness) -> None:
    """However many modules have decided within the transaction: the row names its own cause, and the request that began it."""
    await harness.submit("orders", submitted(oid(1)), id="placed")
    created = derived_id("placed", "orders.0")
    reserved = derived_id(created, "inventory.0")
    requested = derived_id(reserved, "payments.0")
    trace = child(child(child(CONTEXT.traceparent, created), reserved), requested)
    found = await harness.rows("SELECT event_id, causation_id, correlation_id, traceparent FROM payments_outbox")
    assert found == [(requested, reserved, CONTEXT.correlation_id, trace)]
    assert trace != CONTEXT.traceparent


async def test_a_generated_key_is_not_looked_up(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """No state can exist under the id of a new order; the product has to be loaded."""
    loaded: list[str] = []
    load = StateMapper.load

    def noting(rows: StateMapper, connection: Any, keys: Sequence[str]) -> Any:
        loaded.extend(keys)
        return load(rows, connection, keys)

    monkeypatch.setattr(StateMapper, "load", noting)
    await harness.submit("orders", submitted(oid(1)), new_key=oid(1))
    assert oid(1) not in loaded
    assert await harness.rows("SELECT status, amount FROM payments_payment") == [("pending", 100)]
    await harness.submit("orders", submitted(oid(2)))
    assert loaded.count(oid(2)) == 3  # in each module once


async def test_all_decisions_of_a_transaction_have_the_same_time(harness: Harness) -> None:
    """The stock is reserved at the time at which the order is placed, so no event seems to precede its cause."""
    await harness.submit("orders", submitted(oid(1)))
    ((timeline,),) = await harness.rows("SELECT timeline FROM orders_order")
    assert len(json.loads(timeline)) == 2
    assert len({entry["at"] for entry in json.loads(timeline)}) == 1


async def test_a_locally_delivered_event_leaves_no_rows(harness: Harness) -> None:
    """Only events that are still to be delivered have an outbox row."""
    await harness.submit("orders", submitted(oid(1)))
    assert await message_rows(harness) == {
        ("orders_outbox", "orders.timed_out.v1"), ("payments_outbox", "payments.charge_requested.v1"),
    }  # fmt: skip


async def test_the_inbox_recognises_another_version_of_a_locally_delivered_event(harness: Harness) -> None:
    """A consumer elsewhere needs v1, so v1 goes over the bus; inventory has decided about v2 and recognises v1."""
    let_v1_be_consumed_elsewhere(harness)
    await run(harness)
    await place(harness)
    [(event_id,)] = await harness.rows("SELECT event_id FROM orders_outbox WHERE subject LIKE 'orders.created%'")
    assert await message_rows(harness) == {
        ("orders_outbox", "orders.created.v1"), ("orders_outbox", "orders.timed_out.v1"),
        ("inventory_inbox", event_id), ("payments_outbox", "payments.charge_requested.v1"),
    }  # fmt: skip
    await until(lambda: _is_handled(harness, "orders.created.v1", "superseded"))
    assert await harness.rows("SELECT on_hand, reserved FROM inventory_product") == [(10, 1)]


def let_v1_break_its_schema(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the conversion of an order's event to v1 break the schema of v1."""
    contract = harness.contracts["orders.created.v2"]
    [(older, down)] = contract.older
    broken = attrs.evolve(older, is_valid_outgoing=lambda value: False)
    monkeypatch.setitem(harness.contracts._contracts, contract.subject, attrs.evolve(contract, older=((broken, down),)))


async def test_an_event_whose_remote_version_breaks_its_schema_has_no_effect(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A consumer elsewhere needs v1, and v1 breaks its schema: the order is not placed."""
    let_v1_be_consumed_elsewhere(harness)
    let_v1_break_its_schema(harness, monkeypatch)
    with pytest.raises(Invalid):
        await harness.submit("orders", submitted(oid(1)))
    assert await harness.rows(OVER) == []
    assert await message_rows(harness) == set()


async def test_a_version_without_consumers_is_counted_but_not_encoded(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its event is delivered locally, so a broken older version does no harm."""
    let_v1_break_its_schema(harness, monkeypatch)
    await harness.submit("orders", submitted(oid(1)))
    assert await harness.rows(OVER) == [("reserved",)]
    assert 'messages_published_total{subject="orders.created.v1"} 1' in harness.metrics.render().decode()


async def test_a_captured_payment_confirms_the_order_in_one_transaction(harness: Harness) -> None:
    """Payment captured, order confirmed, stock shipped, and no event left to publish."""
    await harness.submit("orders", submitted(oid(1)))
    commits = commits_of(harness)
    await harness.submit("payments", ChargeSucceeded(order_id=oid(1), reference="ref", calls=1))
    assert len(commits) == 1
    assert await harness.rows(OVER) == [("confirmed",)]
    assert await harness.rows("SELECT on_hand, reserved FROM inventory_product") == [(9, 0)]
    assert await unsent(harness) == ["payments.charge_requested.v1"]  # the time-out is withdrawn


async def test_a_timer_that_is_set_and_cancelled_in_one_transaction_is_never_written(harness: Harness) -> None:
    """The order exceeds the stock: it is placed and cancelled in one transaction."""
    await harness.submit("orders", submitted(oid(1), quantity=11))
    assert await harness.rows(OVER) == [("cancelled",)]
    assert await unsent(harness) == []


async def test_a_scheduled_event_waits_with_and_without_a_timer_name(harness: Harness) -> None:
    """A repeated refund request has no timer name."""

    def nameless(decide: Any, states: Any, what: Any, now: Any) -> Any:
        decision = decide(states, what, now)
        events = tuple(attrs.evolve(e, timer="") if isinstance(e, Scheduled) else e for e in decision.events)
        return attrs.evolve(decision, events=events)

    let_decide(harness, "orders", nameless)
    await harness.submit("orders", submitted(oid(1)))
    assert await harness.rows(OVER) == [("reserved",)]
    assert await unsent(harness) == ["orders.timed_out.v1", "payments.charge_requested.v1"]


async def test_an_event_keeps_the_key_of_what_was_decided_in_the_history(harness: Harness) -> None:
    """Also where it is not the ``order_id`` of the event, as in a module whose states belong to no order."""

    def releasing(decide: Any, states: Any, what: Any, now: Any) -> Any:
        return attrs.evolve(decide(states, what, now), events=(StockReleased(order_id=oid(9), lines=(Line("A", 1),)),))

    let_decide(harness, "inventory", releasing)
    await harness.submit("inventory", product(20))
    assert [(each.subject, each.key) for each in await published(harness)] == [("inventory.released.v1", "A")]


@pytest.mark.parametrize("fails", [True, False])
async def test_an_event_whose_timer_is_cancelled_is_published_if_a_module_has_decided_about_it(harness: Harness, fails: bool) -> None:
    """A time-out that is due at once is cancelled two rounds later; the bus never carries it, and the history shows the difference."""

    def hasty(decide: Any, states: Any, what: Any, now: Any) -> Any:
        match what:
            case OrderTimedOut() if fails:
                raise Unexpected("too early")
            case OrderTimedOut():
                return Decision()
            case StockReserved():
                return Decision((), (CancelTimer("timer"),))
        placed = decide(states, what, now)
        return Decision(placed.states, (placed.events[0], Scheduled(OrderTimedOut(order_id=oid(1)), now, "timer")))

    let_decide(harness, "orders", hasty)
    member = await harness.bus.subscribe("orders", ["orders.timed_out.v1"])
    await harness.submit("orders", submitted(oid(1)))
    assert await member.fetch(10, 0) == []
    assert await unsent(harness) == ["payments.charge_requested.v1"]
    assert ("orders.timed_out.v1" in {each.subject for each in await published(harness)}) is not fails


async def test_locally_delivered_events_are_counted(harness: Harness) -> None:
    """Published and handled, as over the bus; an older version counts as superseded."""
    await harness.submit("orders", submitted(oid(1)))
    rendered = harness.metrics.render().decode()
    for line in (
        'messages_published_total{subject="orders.created.v1"} 1',
        'messages_published_total{subject="orders.created.v2"} 1',
        'messages_published_total{subject="inventory.reserved.v1"} 1',
        'messages_handled_total{module="inventory",subject="orders.created.v2",outcome="handled"} 1',
        'messages_handled_total{module="inventory",subject="orders.created.v1",outcome="superseded"} 1',
        'messages_handled_total{module="payments",subject="inventory.reserved.v1",outcome="handled"} 1',
        'message_lag_seconds_count{module="inventory"} 1',
        'message_lag_seconds_count{module="payments"} 1',
    ):
        assert line in rendered


async def test_each_version_is_counted_once_wherever_it_is_delivered(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine counts what it delivers locally, and the relay what the bus carries."""
    monkeypatch.setattr(harness.relays["orders"], "publish", lambda rows: None)
    let_v1_be_consumed_elsewhere(harness)
    await harness.submit("orders", submitted(oid(1)))
    rendered = harness.metrics.render().decode()
    assert 'messages_published_total{subject="orders.created.v2"} 1' in rendered
    assert 'messages_published_total{subject="orders.created.v1"}' not in rendered


async def test_what_a_worker_subscribes_to_is_published_at_the_commit(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not wait for a scan of the outbox, which would find it later."""
    published: list[Any] = []
    monkeypatch.setattr(harness.relays["payments"], "publish", published.extend)
    await harness.submit("orders", submitted(oid(1)))
    assert [row.subject for row in published] == ["payments.charge_requested.v1"]


async def test_an_event_that_a_subscriber_cannot_decide_goes_over_the_bus(harness: Harness) -> None:
    """The order is accepted nevertheless; the bus delivers the event again, and nothing happens twice."""
    failures = ["first", "second"]

    def moody(decide: Any, states: Any, what: Any, now: Any) -> Any:
        if isinstance(what, OrderCreated) and failures:
            raise Unexpected(failures.pop(0))
        return decide(states, what, now)

    let_decide(harness, "inventory", moody)
    await run(harness)
    await place(harness)
    await until(lambda: _is(harness, "reserved"))
    assert failures == []
    assert await harness.rows("SELECT on_hand, reserved FROM inventory_product") == [(10, 1)]
    assert await harness.dead_letter_store.list(None, None, None, 10) == []


@pytest.mark.parametrize("is_by_rounds", [False, True])
async def test_what_fails_locally_goes_over_the_bus_beside_what_others_subscribe_to(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, is_by_rounds: bool
) -> None:
    """One version has a consumer elsewhere, and the module that reads the other one cannot decide, or has no round left: the bus carries both."""
    published: list[Any] = []
    monkeypatch.setattr(harness.relays["orders"], "publish", published.extend)
    let_v1_be_consumed_elsewhere(harness)
    if is_by_rounds:
        monkeypatch.setattr("app.runtime.engine.ROUNDS_MAX", 1)
    else:
        let_decide(harness, "inventory", never)
    await harness.submit("orders", submitted(oid(1)))
    assert [each for each in await unsent(harness) if each.startswith("orders.created")] == ["orders.created.v1", "orders.created.v2"]
    assert sorted(row.subject for row in published) == ["orders.created.v1", "orders.created.v2"]


async def test_what_fails_locally_is_published_at_the_commit(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not wait for a scan of the outbox, although no consumer outside the modules reads any version."""
    published: list[Any] = []
    monkeypatch.setattr(harness.relays["orders"], "publish", published.extend)
    let_decide(harness, "inventory", never)
    await harness.submit("orders", submitted(oid(1)))
    assert "orders.created.v2" in {row.subject for row in published}


async def test_an_event_in_several_versions_is_published_whole_although_a_worker_takes_its_class(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker gets one message; the rows of the other versions would wait for a scan of the outbox."""
    published: list[Any] = []
    monkeypatch.setattr(harness.relays["orders"], "publish", published.extend)
    runner = harness.runners["orders"]
    runner.takers = {OrderCreated: lambda event: None}
    runner._engine._routes = LocalRoutes({}, (), harness.contracts)
    runner._engine.delivers_locally = False
    await harness.submit("orders", submitted(oid(1)))
    assert sorted(row.subject for row in published) == ["orders.created.v1", "orders.created.v2"]


def test_a_worker_takes_an_event_directly_only_if_nothing_else_consumes_it() -> None:
    """Another worker, or a module, of this process or of another one: then the bus carries it."""

    def take(event: Any) -> None:
        return None

    module = attrs.evolve(payments.module(), consumes=(), workers={"one": (OrderCreated, StockReserved)})
    assert direct_takers([module], {"one": take}) == {OrderCreated: take, StockReserved: take}
    assert direct_takers([module], {"other": take}) == {}
    beside = attrs.evolve(module, workers={"one": (OrderCreated, StockReserved), "other": (StockReserved,)})
    assert direct_takers([beside], {"one": take}) == {OrderCreated: take}
    reader = attrs.evolve(module, name="reader", workers={}, consumes=(OrderCreated,))
    assert direct_takers([module, reader], {"one": take}) == {StockReserved: take}
    reads_both = attrs.evolve(reader, consumes=(OrderCreated, StockReserved))
    assert direct_takers([beside, reads_both], {"one": take, "other": take}) == {}


def never(decide: Any, states: Any, what: Any, now: Any) -> Any:
    """Decide nothing."""
    raise Unexpected("not today")


async def test_only_the_failed_subscriber_processes_the_event_again(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other subscribers find it in their inbox."""
    monkeypatch.setattr("app.runtime.receiving.RETRY_SECONDS", 0.01)
    decided: list[str] = []

    def noting(decide: Any, states: Any, what: Any, now: Any) -> Any:
        decided.append(type(what).__name__)
        return decide(states, what, now)

    let_decide(harness, "orders", noting)
    let_decide(harness, "payments", never)
    await run(harness)
    await place(harness)
    [dead_letter] = await until(lambda: harness.dead_letter_store.list(None, None, None, 10))
    assert (dead_letter.dead_letter.consumer, dead_letter.dead_letter.attempts) == ("payments", 5)
    assert decided == ["OrderSubmitted", "StockReserved"]


async def test_a_subscriber_that_breaks_the_transaction_does_not_affect_the_others(harness: Harness) -> None:
    """The database rejects its row; each module then commits by itself."""

    def broken(decide: Any, states: Any, what: Any, now: Any) -> Any:
        decision = decide(states, what, now)
        return attrs.evolve(
            decision, states=tuple(attrs.evolve(s, reserved=-1) if hasattr(s, "reserved") else s for s in decision.states)
        )

    let_decide(harness, "inventory", broken)
    await harness.submit("orders", submitted(oid(1)))
    assert await harness.rows(OVER) == [("processing",)]
    assert "orders.created.v2" in await unsent(harness)
    assert await harness.rows("SELECT * FROM inventory_reservation") == []


@pytest.mark.parametrize("rounds", [1, 2, 3])
async def test_events_beyond_the_last_round_go_over_the_bus(harness: Harness, monkeypatch: pytest.MonkeyPatch, rounds: int) -> None:
    """This holds for every number of rounds."""
    monkeypatch.setattr("app.runtime.engine.ROUNDS_MAX", rounds)
    await run(harness)
    await place(harness)
    await until(lambda: _is(harness, "reserved"))
    await harness.runners["payments"].submit(
        ChargeSucceeded(order_id=oid(1), reference="ref", calls=1), id="charged", trace=CONTEXT, respond=NO_CONTENT
    )
    await until(lambda: _is_taken(harness))
    assert await harness.rows(OVER) == [("confirmed",)]


async def test_a_batch_of_orders_is_delivered_together(harness: Harness) -> None:
    """Each order gets its own stock, and the last piece goes to one order."""
    runner = harness.runners["orders"]
    pending = [
        asyncio.create_task(runner.submit(submitted(oid(n)), id=f"t-{n}", trace=CONTEXT, respond=NO_CONTENT)) for n in range(12)
    ]
    await asyncio.sleep(0)
    commits = commits_of(harness)
    await runner.step()
    await asyncio.gather(*pending)
    assert len(commits) == 1
    assert 'messages_published_total{subject="orders.created.v2"} 12' in harness.metrics.render().decode()
    assert sorted(await harness.rows(OVER)) == [("cancelled",)] * 2 + [("reserved",)] * 10
    assert await harness.rows("SELECT on_hand, reserved FROM inventory_product") == [(10, 10)]
    for n in range(12):
        await harness.submit("orders", CancelRequested(order_id=oid(n), why=None))
    assert await harness.rows("SELECT on_hand, reserved FROM inventory_product") == [(10, 0)]


async def _is_handled(harness: Harness, subject: str, outcome: str) -> bool:
    line = f'messages_handled_total{{module="inventory",subject="{subject}",outcome="{outcome}"}} 1'
    return line in harness.metrics.render().decode()


async def _is(harness: Harness, status: str) -> bool:
    return await harness.rows(OVER) == [(status,)]


async def _is_taken(harness: Harness) -> bool:
    return await harness.rows("SELECT on_hand, reserved FROM inventory_product") == [(9, 0)]
