"""The short way: one transaction carries an order as far as it goes, and what cannot go that way takes the long one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest
from sqlalchemy import event

from app.gateways.payment_worker import HEARS
from app.runtime.local_routing import LocalRoutes
from app.storage.state_rows import StateMapper
from bus.errors import Invalid
from modules.inventory.events import StockReserved
from modules.module import CancelTimer, Decision, Scheduled, Unexpected
from modules.orders.events import CancelRequested, OrderCreated, OrderTimedOut
from modules.payments.events import ChargeSucceeded
from tests.runtime.harness import CONTEXT, NOTED, Harness, HurriedClock, harness_at, oid, product, submitted, until

OVER = "SELECT status FROM orders_order ORDER BY order_id"
UNSENT = "SELECT subject FROM {}_outbox WHERE sent_at IS NULL ORDER BY subject"


@pytest.fixture
async def harness(path: Path) -> AsyncIterator[Harness]:
    """A house whose modules are neighbours, with ten pieces on the shelf; nothing runs that is not turned by hand."""
    async with harness_at(path, HurriedClock(), delivers_locally=True) as harness:
        await harness.tell("inventory", product(10))
        yield harness


def commits_of(harness: Harness) -> list[Any]:
    commits: list[Any] = []
    event.listen(harness.database.engine, "commit", commits.append)
    return commits


async def unsent(harness: Harness) -> list[str]:
    """Return the subjects of all that still has to travel."""
    return [row[0] for name in harness.runners for row in await harness.rows(UNSENT.format(name))]


async def mail(harness: Harness) -> set[tuple[str, str]]:
    """Return what is written in each outbox and, by its event's id, in each inbox."""
    found = set()
    for name in harness.runners:
        for table, column in ((f"{name}_outbox", "subject"), (f"{name}_inbox", "id")):
            found |= {(table, row[0]) for row in await harness.rows(f"SELECT {column} FROM {table}")}
    return found


def let_decide(harness: Harness, name: str, instead: Callable[..., Any]) -> None:
    """Let *instead* decide in a module; it gets the module's own as its first argument."""
    processor = harness.processor(name)
    decide = processor._module.decide
    processor._module = attrs.evolve(processor._module, decide=lambda states, what, now: instead(decide, states, what, now))


def let_v1_be_consumed_elsewhere(harness: Harness) -> None:
    """Let a consumer outside the modules subscribe to the older version of an order's event."""
    engine = harness.runners["orders"]._engine
    remote = [*harness.contracts.subjects_for(HEARS), "orders.created.v1"]
    engine._routes = LocalRoutes(engine._routes._readers, remote, harness.contracts)


async def run(harness: Harness) -> None:
    """Let everything run that the long way needs."""
    for name in harness.runners:
        await harness.listen(name)
        harness.run(harness.relays[name].run())


async def place(harness: Harness) -> None:
    """Place an order while the house runs."""
    await harness.runners["orders"].submit(submitted(oid(1)), id="placed", trace=CONTEXT, respond=NOTED)


async def test_one_transaction_takes_an_order_to_the_payment(harness: Harness) -> None:
    """It is placed, its stock is held and its money asked for; only the request to the gateway has to travel."""
    commits = commits_of(harness)
    await harness.tell("orders", submitted(oid(1)))
    assert len(commits) == 1
    assert await harness.rows(OVER) == [("reserved",)]
    assert await harness.rows("SELECT on_hand, reserved FROM inventory_product") == [(10, 1)]
    assert await harness.rows("SELECT status, amount FROM payments_payment") == [("pending", 100)]
    assert await unsent(harness) == ["orders.timed_out.v1", "payments.charge_requested.v1"]


async def test_what_was_made_up_for_a_request_is_not_looked_for(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can have kept anything under an order's id before it has been placed; the product is another matter."""
    looked_for: list[str] = []
    load = StateMapper.load

    def noting(rows: StateMapper, connection: Any, keys: Sequence[str]) -> Any:
        looked_for.extend(keys)
        return load(rows, connection, keys)

    monkeypatch.setattr(StateMapper, "load", noting)
    await harness.tell("orders", submitted(oid(1)), new_key=oid(1))
    assert oid(1) not in looked_for
    assert await harness.rows("SELECT status, amount FROM payments_payment") == [("pending", 100)]
    await harness.tell("orders", submitted(oid(2)))
    assert looked_for.count(oid(2)) == 3  # in each module once


async def test_what_one_transaction_decides_bears_one_time(harness: Harness) -> None:
    """The stock is held in the moment in which the order is taken, and nothing seems to have come before its cause."""
    await harness.tell("orders", submitted(oid(1)))
    ((timeline,),) = await harness.rows("SELECT timeline FROM orders_order")
    assert len(json.loads(timeline)) == 2
    assert len({entry["at"] for entry in json.loads(timeline)}) == 1


async def test_what_is_over_leaves_nothing_in_the_mail(harness: Harness) -> None:
    """Nobody sends it and nobody hears it again: only what is still to come has a row."""
    await harness.tell("orders", submitted(oid(1)))
    assert await mail(harness) == {
        ("orders_outbox", "orders.timed_out.v1"), ("payments_outbox", "payments.charge_requested.v1"),
    }  # fmt: skip


async def test_who_heard_one_version_knows_the_other_when_it_comes(harness: Harness) -> None:
    """Somebody elsewhere hears v1, which goes over the bus; inventory, who has decided about v2, finds it in its inbox."""
    let_v1_be_consumed_elsewhere(harness)
    await run(harness)
    await place(harness)
    [(event_id,)] = await harness.rows("SELECT event_id FROM orders_outbox WHERE subject LIKE 'orders.created%'")
    assert await mail(harness) == {
        ("orders_outbox", "orders.created.v1"), ("orders_outbox", "orders.timed_out.v1"),
        ("inventory_inbox", event_id), ("payments_outbox", "payments.charge_requested.v1"),
    }  # fmt: skip
    await until(lambda: _is_handled(harness, "orders.created.v1", "superseded"))
    assert await harness.rows("SELECT on_hand, reserved FROM inventory_product") == [(10, 1)]


def let_v1_be_unsayable(harness: Harness) -> None:
    """Let whatever is made of an order for v1 break the schema of v1."""
    contract = harness.contracts["orders.created.v2"]
    [(older, down)] = contract.older
    broken = attrs.evolve(older, is_valid_outgoing=lambda value: False)
    harness.contracts._by_subject[contract.subject] = attrs.evolve(contract, older=((broken, down),))


async def test_what_has_to_travel_is_said_in_all_its_versions_or_not_at_all(harness: Harness) -> None:
    """Somebody elsewhere hears v1, and what he would get breaks its schema: nothing has happened."""
    let_v1_be_consumed_elsewhere(harness)
    let_v1_be_unsayable(harness)
    with pytest.raises(Invalid):
        await harness.tell("orders", submitted(oid(1)))
    assert await harness.rows(OVER) == []
    assert await mail(harness) == set()


async def test_what_is_over_is_not_put_into_versions_that_nobody_reads(harness: Harness) -> None:
    """They are counted, for they are said; but a word that travels nowhere is not written out."""
    let_v1_be_unsayable(harness)
    await harness.tell("orders", submitted(oid(1)))
    assert await harness.rows(OVER) == [("reserved",)]
    assert 'messages_published_total{subject="orders.created.v1"} 1' in harness.metrics.render().decode()


async def test_what_the_gateway_said_ends_the_order_at_once(harness: Harness) -> None:
    """Captured, confirmed, taken from the shelf: one transaction, with nothing left to say."""
    await harness.tell("orders", submitted(oid(1)))
    commits = commits_of(harness)
    await harness.tell("payments", ChargeSucceeded(order_id=oid(1), reference="ref", calls=1))
    assert len(commits) == 1
    assert await harness.rows(OVER) == [("confirmed",)]
    assert await harness.rows("SELECT on_hand, reserved FROM inventory_product") == [(9, 0)]
    assert await unsent(harness) == ["payments.charge_requested.v1"]  # the time-out is withdrawn


async def test_a_time_out_that_was_set_and_withdrawn_on_the_way_is_never_written(harness: Harness) -> None:
    """More than there is: the order is placed and cancelled in one transaction."""
    await harness.tell("orders", submitted(oid(1), quantity=11))
    assert await harness.rows(OVER) == [("cancelled",)]
    assert await unsent(harness) == []


async def test_what_is_said_for_later_waits_with_or_without_a_name(harness: Harness) -> None:
    """A refund that is asked for again bears none."""

    def nameless(decide: Any, states: Any, what: Any, now: Any) -> Any:
        decision = decide(states, what, now)
        events = tuple(attrs.evolve(e, timer="") if isinstance(e, Scheduled) else e for e in decision.events)
        return attrs.evolve(decision, events=events)

    let_decide(harness, "orders", nameless)
    await harness.tell("orders", submitted(oid(1)))
    assert await harness.rows(OVER) == [("reserved",)]
    assert await unsent(harness) == ["orders.timed_out.v1", "payments.charge_requested.v1"]


async def test_what_nobody_could_decide_and_is_taken_back_stays_at_home(harness: Harness) -> None:
    """A time-out that is due at once, fails, and is withdrawn two rounds later."""

    def hasty(decide: Any, states: Any, what: Any, now: Any) -> Any:
        match what:
            case OrderTimedOut():
                raise Unexpected("too early")
            case StockReserved():
                return Decision((), (CancelTimer("timer"),))
        placed = decide(states, what, now)
        return Decision(placed.states, (placed.events[0], Scheduled(OrderTimedOut(order_id=oid(1)), now, "timer")))

    let_decide(harness, "orders", hasty)
    member = await harness.bus.subscribe("orders", ["orders.timed_out.v1"])
    await harness.tell("orders", submitted(oid(1)))
    assert await member.fetch(10, 0) == []
    assert await unsent(harness) == ["payments.charge_requested.v1"]


async def test_what_is_counted_is_counted(harness: Harness) -> None:
    """Published and handled, as on the long way; a lower version is superseded."""
    await harness.tell("orders", submitted(oid(1)))
    rendered = harness.metrics.render().decode()
    for line in (
        'messages_published_total{subject="orders.created.v1"} 1',
        'messages_published_total{subject="orders.created.v2"} 1',
        'messages_published_total{subject="inventory.reserved.v1"} 1',
        'messages_handled_total{module="inventory",subject="orders.created.v2",outcome="handled"} 1',
        'messages_handled_total{module="inventory",subject="orders.created.v1",outcome="superseded"} 1',
        'messages_handled_total{module="payments",subject="inventory.reserved.v1",outcome="handled"} 1',
    ):
        assert line in rendered


async def test_what_a_neighbour_cannot_decide_takes_the_long_way(harness: Harness) -> None:
    """The order is accepted all the same; the bus brings the event again, and nothing happens twice."""
    troubles = ["first", "second"]

    def moody(decide: Any, states: Any, what: Any, now: Any) -> Any:
        if isinstance(what, OrderCreated) and troubles:
            raise Unexpected(troubles.pop(0))
        return decide(states, what, now)

    let_decide(harness, "inventory", moody)
    await run(harness)
    await place(harness)
    await until(lambda: _is(harness, "reserved"))
    assert troubles == []
    assert await harness.rows("SELECT on_hand, reserved FROM inventory_product") == [(10, 1)]
    assert await harness.dead_letter_store.list(None, None, None, 10) == []


async def test_only_he_hears_it_again_who_could_not_decide(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others find it in their inbox."""
    monkeypatch.setattr("app.runtime.receiving.RETRY_SECONDS", 0.01)
    heard: list[str] = []

    def noting(decide: Any, states: Any, what: Any, now: Any) -> Any:
        heard.append(type(what).__name__)
        return decide(states, what, now)

    def never(decide: Any, states: Any, what: Any, now: Any) -> Any:
        raise Unexpected("not today")

    let_decide(harness, "orders", noting)
    let_decide(harness, "payments", never)
    await run(harness)
    await place(harness)
    [dead_letter] = await until(lambda: harness.dead_letter_store.list(None, None, None, 10))
    assert (dead_letter.dead_letter.consumer, dead_letter.dead_letter.attempts) == ("payments", 5)
    assert heard == ["OrderSubmitted", "StockReserved"]


async def test_a_neighbour_who_breaks_the_transaction_harms_nobody(harness: Harness) -> None:
    """What he would write is refused by the database: everybody goes on by himself."""

    def broken(decide: Any, states: Any, what: Any, now: Any) -> Any:
        decision = decide(states, what, now)
        return attrs.evolve(
            decision, states=tuple(attrs.evolve(s, reserved=-1) if hasattr(s, "reserved") else s for s in decision.states)
        )

    let_decide(harness, "inventory", broken)
    await harness.tell("orders", submitted(oid(1)))
    assert await harness.rows(OVER) == [("processing",)]
    assert "orders.created.v2" in await unsent(harness)
    assert await harness.rows("SELECT * FROM inventory_reservation") == []


@pytest.mark.parametrize("rounds", [1, 2, 3])
async def test_a_way_that_is_too_long_is_gone_on_the_bus(harness: Harness, monkeypatch: pytest.MonkeyPatch, rounds: int) -> None:
    """Wherever it is cut off."""
    monkeypatch.setattr("app.runtime.engine.ROUNDS_MAX", rounds)
    await run(harness)
    await place(harness)
    await until(lambda: _is(harness, "reserved"))
    await harness.runners["payments"].submit(
        ChargeSucceeded(order_id=oid(1), reference="ref", calls=1), id="charged", trace=CONTEXT, respond=NOTED
    )
    await until(lambda: _is_taken(harness))
    assert await harness.rows(OVER) == [("confirmed",)]


async def test_many_go_together(harness: Harness) -> None:
    """Each gets what is his, and the last piece goes to one."""
    runner = harness.runners["orders"]
    told = [
        asyncio.create_task(runner.submit(submitted(oid(n)), id=f"t-{n}", trace=CONTEXT, respond=NOTED)) for n in range(12)
    ]
    await asyncio.sleep(0)
    commits = commits_of(harness)
    await runner.step()
    await asyncio.gather(*told)
    assert len(commits) == 1
    assert sorted(await harness.rows(OVER)) == [("cancelled",)] * 2 + [("reserved",)] * 10
    assert await harness.rows("SELECT on_hand, reserved FROM inventory_product") == [(10, 10)]
    for n in range(12):
        await harness.tell("orders", CancelRequested(order_id=oid(n), why=None))
    assert await harness.rows("SELECT on_hand, reserved FROM inventory_product") == [(10, 0)]


async def _is_handled(harness: Harness, subject: str, outcome: str) -> bool:
    line = f'messages_handled_total{{module="inventory",subject="{subject}",outcome="{outcome}"}} 1'
    return line in harness.metrics.render().decode()


async def _is(harness: Harness, status: str) -> bool:
    return await harness.rows(OVER) == [(status,)]


async def _is_taken(harness: Harness) -> bool:
    return await harness.rows("SELECT on_hand, reserved FROM inventory_product") == [(9, 0)]
