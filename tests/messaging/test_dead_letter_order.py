"""With DEAD_LETTER_ORDER=key the events of an order wait behind a dead letter of it, and follow it in their order."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import orjson
import psycopg
import pytest
from attrs import evolve
from sqlalchemy import event
from sqlalchemy.pool import Pool

from app.messaging import outbox_relay
from app.messaging.dead_letters import WaitsForDeadLetter
from app.messaging.dead_letters.line import hold_id
from app.runtime import receiving
from app.storage import module_store
from app.storage.sql.postgres_pipeline import Pipeline
from bus.contracts.versions import VERSIONS
from bus.errors import Invalid
from bus.port import MAX_TRIES, DeadLetter, Message
from modules.inventory.state import Product, Reservation
from modules.orders.events import OrderCancelled, OrderConfirmed, OrderCreated
from modules.values import Line, Money
from tests.databases import migrated_url
from tests.postgres import PostgresServer
from tests.runtime.harness import (
    CONTEXT,
    NO_CONTENT,
    Harness,
    HurriedClock,
    bus_message,
    harness_at,
    let_decide,
    oid,
    product,
    submitted,
    until,
)

Open = Callable[..., AbstractAsyncContextManager[Harness]]

KEY = oid(1)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """An event that fails is delivered again, and the outbox is scanned, after a few milliseconds of the real clock."""
    monkeypatch.setattr(receiving, "RETRY_SECONDS", 0.001)
    monkeypatch.setattr(outbox_relay, "SCAN_SECONDS", 0.01)
    monkeypatch.setattr(module_store, "HANDOVER_DELAY", timedelta(milliseconds=10))


@pytest.fixture(params=["SQLite", pytest.param("PostgreSQL", marks=pytest.mark.slow)])
def open_harness(request: pytest.FixtureRequest, path: Path) -> Open:
    """Open a harness on a database of this test; each further one is a restart, or another process."""
    if request.param == "SQLite":
        where: Path | str = path
    else:
        server: PostgresServer = request.getfixturevalue("postgres")
        where = migrated_url(server)

    def open(**options: Any) -> AbstractAsyncContextManager[Harness]:
        return harness_at(where, HurriedClock(), **{"keeps_order": True, **options})

    return open


@pytest.fixture
async def inventory(open_harness: Open) -> AsyncIterator[Harness]:
    """A running inventory with ten pieces of A, whose retries wait for nothing."""
    async with open_harness() as harness:
        await harness.submit("inventory", product())
        await run_inventory(harness)
        yield harness


async def run_inventory(harness: Harness) -> None:
    await harness.consume("inventory")
    harness.run(harness.relays["inventory"].run())


def created(n: int = 1) -> OrderCreated:
    return OrderCreated(order_id=oid(n), customer_id="c-1", items=(Line("A", 1),), version="v2", shipping_address=None)


def confirmed(n: int = 1) -> OrderConfirmed:
    return OrderConfirmed(order_id=oid(n), customer_id="c-1", items=(Line("A", 1),), total=Money(100, "EUR"))


def cancelled(n: int = 1) -> OrderCancelled:
    return OrderCancelled(order_id=oid(n), customer_id="c-1", items=(Line("A", 1),), reason="requested")


def unreadable(id: str = oid(99)) -> Message:
    return Message("orders.created.v2", id, b"{", KEY, {"ce-id": id})


async def publish(harness: Harness, *events: Any) -> None:
    """Publish *events* of the order `KEY`, one after the other, and wait until they are settled."""
    for each in events:
        await harness.bus.publish(each if isinstance(each, Message) else bus_message(harness, each, key=KEY))


async def letters(harness: Harness) -> list[DeadLetter]:
    """Return the dead letters in the order in which they were first seen."""
    found = [each.dead_letter for each in await harness.dead_letter_store.list(None, None, None, 1000)]
    return sorted(found, key=lambda letter: letter.first_seen)


async def errors(harness: Harness) -> list[tuple[str, str]]:
    return [(letter.message.subject, letter.error) for letter in await letters(harness)]


async def history(harness: Harness, n: int = 1) -> list[str]:
    """Return what inventory has decided about the order, in order."""
    state = await harness.runners["inventory"].get(Reservation, oid(n))
    return [] if state is None else [state.status.value, *(line.product_id for line in state.lines)]


async def stock(harness: Harness) -> tuple[int, int]:
    found = await harness.runners["inventory"].get(Product, "A")
    assert found is not None
    return found.on_hand, found.reserved


async def held(harness: Harness) -> list[str]:
    return [id for (id,) in await harness.rows("SELECT id FROM inventory_inbox WHERE id >= 'hold:' AND id < 'hold;'")]


async def test_what_follows_a_dead_letter_waits_without_an_attempt(inventory: Harness) -> None:
    """It is a dead letter of its own kind; another order is processed, and so is this order by another consumer."""
    await inventory.consume("payments")
    await publish(inventory, unreadable(), created(), cancelled())
    first, *waiting = await letters(inventory)
    assert [(letter.error, letter.attempts, letter.detail) for letter in waiting] == [("waits", 0, f"waits for the dead letter {first.id}")] * 2
    assert await history(inventory) == []
    await inventory.bus.publish(bus_message(inventory, created(2), key=oid(2)))
    assert await history(inventory, 2) == ["held", "A"]
    assert {letter.consumer for letter in waiting} == {"inventory"}
    assert (KEY,) in await inventory.rows("SELECT order_id FROM payments_payment")
    assert inventory.metrics.dead_letters.labels("inventory", "orders.created.v2").value == 1


async def test_an_event_whose_tries_have_failed_holds_its_order(inventory: Harness) -> None:
    """Nothing was reserved, so it cannot be confirmed; what follows would change that."""
    await publish(inventory, confirmed(), created(), cancelled())
    assert [error for _, error in await errors(inventory)] == ["failed", "waits", "waits"]
    assert (await letters(inventory))[0].attempts == MAX_TRIES


async def test_a_discard_lets_them_go_in_their_order(inventory: Harness) -> None:
    """Cancelled before it is created, the order would have no reservation with lines. Each decision gets its time."""
    times: list[Any] = []

    def timed(decide: Any, states: Any, what: Any, now: Any) -> Any:
        times.append(now)
        return decide(states, what, now)

    let_decide(inventory, "inventory", timed)
    await publish(inventory, unreadable(), created(), cancelled())
    assert await inventory.dead_letter_store.discard((await letters(inventory))[0].id)
    await until(lambda: is_free(inventory))
    assert await history(inventory) == ["released", "A"]
    assert [type(each) for each in times] == [datetime, datetime]
    assert await letters(inventory) == []


async def test_a_replay_lets_them_go_once_it_has_succeeded(inventory: Harness) -> None:
    """The repaired event is processed first; it stays in the list as each replayed one does, and holds nothing."""
    good = bus_message(inventory, created(), id=oid(98), key=KEY)
    await publish(inventory, evolve(good, body=b"{}"), confirmed(), cancelled())
    [first, *_] = await letters(inventory)
    assert await inventory.dead_letter_store.replay(first.id, body=good.body)
    await until(lambda: is_free(inventory))
    assert (await history(inventory), await stock(inventory)) == (["released", "A"], (10, 0))
    [left] = await inventory.dead_letter_store.list(None, None, None, 10)
    assert (left.dead_letter.id, left.replays, left.is_in_line) == (first.id, 1, False)
    await publish(inventory, created())
    assert len(await letters(inventory)) == 1


async def test_a_replay_that_fails_again_lets_nothing_go(inventory: Harness) -> None:
    await publish(inventory, confirmed(), cancelled())
    [first, _] = await letters(inventory)
    assert await inventory.dead_letter_store.replay(first.id)
    await until(lambda: has_attempts(inventory, first.id, 2 * MAX_TRIES))
    assert [error for _, error in await errors(inventory)] == ["failed", "waits"]
    assert await history(inventory) == []


async def test_one_that_fails_when_its_turn_comes_holds_those_behind_it(inventory: Harness) -> None:
    """It is the first of its line then, and nothing has overtaken it."""
    await publish(inventory, unreadable(), confirmed(), cancelled())
    first, second, _ = await letters(inventory)
    assert await inventory.dead_letter_store.discard(first.id)
    await until(lambda: has_attempts(inventory, second.id, MAX_TRIES))
    assert await errors(inventory) == [("orders.confirmed.v1", "failed"), ("orders.cancelled.v1", "waits")]
    assert (await letters(inventory))[1].detail == f"waits for the dead letter {second.id}"
    assert await inventory.dead_letter_store.discard(second.id)
    await until(lambda: is_free(inventory))
    assert await history(inventory) == ["released"]


async def test_what_has_waited_is_a_dead_letter_if_it_fails_under_its_first_id(open_harness: Open) -> None:
    """The bus did not learn that the event was stored to wait, and has delivered it again when its turn had come."""
    async with open_harness() as harness:
        await harness.consume("inventory")
        await publish(harness, unreadable(), confirmed())
        first, waiting = await letters(harness)
        assert await harness.dead_letter_store.discard(first.id)
        await harness.dead_letter_store.add(evolve(waiting, error="failed", detail="Unexpected: no reservation", attempts=5))
        [failed] = await letters(harness)
        assert (failed.id, failed.error, failed.detail, failed.attempts) == (waiting.id, "failed", "Unexpected: no reservation", 5)


async def test_two_dead_letters_of_one_order_are_replayed_one_after_the_other(inventory: Harness) -> None:
    """Replayed at once, the second waits for the first; what arrived between them is processed between them."""
    one, other = bus_message(inventory, created(), id=oid(97), key=KEY), bus_message(inventory, confirmed(), id=oid(98), key=KEY)
    await publish(inventory, evolve(one, body=b"{}"), created(), evolve(other, body=b"{}"), cancelled())
    first, _, second, _ = await letters(inventory)
    assert [error for _, error in await errors(inventory)] == ["invalid", "waits", "invalid", "waits"]
    assert await inventory.dead_letter_store.replay(second.id, body=other.body)
    assert await history(inventory) == []
    assert await inventory.dead_letter_store.replay(first.id, body=one.body)
    await until(lambda: is_free(inventory))
    assert (await history(inventory), await stock(inventory)) == (["released", "A"], (10, 0))
    subjects = await inventory.rows("SELECT subject FROM inventory_outbox WHERE subject LIKE 'inventory.replay.%' ORDER BY id")
    assert [subject.split(".", 3)[3] for (subject,) in subjects] == [
        *("orders.created.v2", "orders.created.v2", "orders.confirmed.v1", "orders.cancelled.v1")
    ]


async def test_a_dead_letter_that_is_not_the_first_may_be_discarded(inventory: Harness) -> None:
    await publish(inventory, unreadable(), created(), unreadable(oid(96)), cancelled())
    first, waiting, second, _ = await letters(inventory)
    with pytest.raises(WaitsForDeadLetter, match=first.id):
        await inventory.dead_letter_store.replay(waiting.id)
    assert await inventory.dead_letter_store.replay_many("inventory", None, "waits", dry_run=False) == (0, 0)
    assert await inventory.dead_letter_store.discard(second.id)
    assert await inventory.dead_letter_store.discard(waiting.id)
    assert await history(inventory) == []
    assert await inventory.dead_letter_store.discard(first.id)
    await until(lambda: is_free(inventory))
    assert await history(inventory) == ["released"]


async def test_discarding_all_publishes_none_of_them(inventory: Harness) -> None:
    await publish(inventory, unreadable(), created(), confirmed(), cancelled())
    assert await inventory.dead_letter_store.discard_many("inventory", None, None, dry_run=False) == (4, 4)
    assert await held(inventory) == []
    assert await inventory.rows("SELECT subject FROM inventory_outbox WHERE subject LIKE 'inventory.replay.%'") == []
    await publish(inventory, created(), cancelled())
    assert await history(inventory) == ["released", "A"]


async def test_what_arrives_during_a_replay_waits_for_it(inventory: Harness) -> None:
    """The relay has not published the replay yet."""
    good = bus_message(inventory, created(), id=oid(98), key=KEY)
    await publish(inventory, evolve(good, body=b"{}"))
    for task in inventory.tasks[2:]:
        task.cancel()
    [first] = await letters(inventory)
    assert await inventory.dead_letter_store.replay(first.id, body=good.body)
    await publish(inventory, cancelled())
    assert (await errors(inventory))[1] == ("orders.cancelled.v1", "waits")
    inventory.run(inventory.relays["inventory"].run())
    await until(lambda: is_free(inventory))
    assert await history(inventory) == ["released", "A"]


async def test_what_is_to_wait_when_its_order_is_free_is_published_again(inventory: Harness) -> None:
    """Between its delivery and its storage, the dead letter was discarded: the event must not wait for nothing."""
    await publish(inventory, unreadable(), created())
    first, waiting = await letters(inventory)
    assert await inventory.dead_letter_store.discard_many("inventory", None, None, dry_run=False) == (2, 2)
    await inventory.dead_letter_store.add(waiting)
    await until(lambda: is_decided(inventory))
    assert await letters(inventory) == []
    assert first.id != waiting.id


async def test_a_duplicate_of_what_waits_or_was_processed_changes_nothing(inventory: Harness) -> None:
    before, waiting = bus_message(inventory, created(), key=KEY), bus_message(inventory, cancelled(), key=KEY)
    await publish(inventory, before, unreadable(), waiting)
    stored = await letters(inventory)
    await publish(inventory, *(evolve(each, id=f"again-{each.id}", headers={**each.headers, "ce-id": each.id}) for each in (before, waiting)))
    assert await letters(inventory) == stored


async def test_of_an_event_in_two_versions_the_newer_one_waits(inventory: Harness) -> None:
    """The older one arrives first, and is deferred as ever: it must not take the place of the newer one, which has more."""
    newest = bus_message(inventory, created(), id=oid(50), key=KEY)
    newest = evolve(newest, id="newest", headers={**newest.headers, VERSIONS: "v1,v2"})
    body = orjson.dumps({"order_id": KEY, "customer_id": "c-1", "items": [{"product_id": "A", "quantity": 1}], "version": "v1"})
    older = evolve(newest, id="older", subject="orders.created.v1", body=body)
    await publish(inventory, unreadable())
    await asyncio.gather(inventory.bus.publish(older), inventory.bus.publish(newest))
    assert await errors(inventory) == [("orders.created.v2", "unreadable"), ("orders.created.v2", "waits")]


async def test_the_order_survives_a_restart(open_harness: Open) -> None:
    """The next process knows what is held from its first batch on, and lets it go."""
    async with open_harness() as harness:
        await harness.submit("inventory", product())
        await run_inventory(harness)
        await publish(harness, unreadable(), created())
    async with open_harness() as harness:
        await run_inventory(harness)
        await publish(harness, cancelled())
        assert [error for _, error in await errors(harness)] == ["unreadable", "waits", "waits"]
        assert await harness.dead_letter_store.discard((await letters(harness))[0].id)
        await until(lambda: is_free(harness))
        assert await history(harness) == ["released", "A"]


async def test_another_process_knows_at_once_what_is_held(postgres: PostgresServer) -> None:
    """No notice has to reach it: its transaction reads what holds the order."""
    url = migrated_url(postgres)
    async with harness_at(url, HurriedClock(), keeps_order=True) as one, harness_at(url, HurriedClock(), keeps_order=True) as other:
        await one.submit("inventory", product())
        await run_inventory(one)
        await run_inventory(other)
        await publish(one, unreadable())
        await publish(other, created())
        await publish(one, cancelled())
        assert [error for _, error in await errors(other)] == ["unreadable", "waits", "waits"]
        assert await other.dead_letter_store.discard((await letters(one))[0].id)
        await until(lambda: is_free(one))
        assert await history(one) == ["released", "A"]


async def test_two_processes_dead_letter_one_order_at_once(postgres: PostgresServer) -> None:
    """One of them holds it, and both are in its line."""
    url = migrated_url(postgres)
    async with harness_at(url, HurriedClock(), keeps_order=True) as one, harness_at(url, HurriedClock(), keeps_order=True) as other:
        now = one.clock.now()
        for n in range(10):
            found = [DeadLetter.of(Message("orders.created.v2", f"{n}-{m}", b"{", oid(n)), "inventory", "unreadable", "", 1, now, now) for m in range(2)]
            await asyncio.gather(one.dead_letter_store.add(found[0]), other.dead_letter_store.add(found[1]))
        assert await held(one) == [hold_id(oid(n)) for n in range(10)]
        places = await one.rows("SELECT message_key, place FROM inventory_dead_letter ORDER BY message_key, place")
        assert places == [(oid(n), place) for n in range(10) for place in (1, 2)]


async def test_local_delivery_keeps_the_order(open_harness: Open) -> None:
    """In one process on one database: the next event of a held order goes over the bus, and waits; others stay local."""
    async with open_harness(delivers_locally=True) as harness:
        await harness.submit("inventory", product())
        await harness.consume("inventory")
        for name in ("inventory", "orders"):
            harness.run(harness.relays[name].run())
        for name in ("orders", "payments"):
            await harness.consume(name)
        await publish(harness, unreadable())
        await submit_order(harness, 1)
        await until(lambda: is_waiting(harness, 1))
        await submit_order(harness, 2)
        assert (await history(harness), await history(harness, 2)) == ([], ["held", "A"])
        assert await harness.dead_letter_store.discard((await letters(harness))[0].id)
        await until(lambda: is_free(harness))
        assert await history(harness) == ["held", "A"]


async def test_without_the_setting_nothing_waits(open_harness: Open) -> None:
    """A start without it publishes what has waited until then."""
    async with open_harness() as harness:
        await harness.submit("inventory", product())
        await run_inventory(harness)
        await publish(harness, unreadable(), created(), cancelled())
        with pytest.raises(Invalid):
            await harness.dead_letter_store.replay((await letters(harness))[0].id, body=b"{}")
    async with open_harness(keeps_order=False) as harness:
        await harness.dead_letter_store.free_keys()
        assert [error for _, error in await errors(harness)] == ["unreadable"]
        assert await held(harness) == []
        await run_inventory(harness)
        await until(lambda: is_decided(harness))
        await publish(harness, unreadable(oid(95)), created(3))
        assert [error for _, error in await errors(harness)] == ["unreadable", "unreadable"]


async def test_no_statement_is_added_to_a_batch(open_harness: Open) -> None:
    """The select that looks up the events in the inbox looks up what holds their orders, too."""
    counts = []
    for n, keeps_order in enumerate((False, True)):
        with recorded_statements() as statements:
            async with open_harness(keeps_order=keeps_order) as harness:
                await harness.submit("inventory", product())
                await harness.consume("inventory")
                await harness.bus.publish(bus_message(harness, created(2 * n), key=oid(2 * n)))
                statements.clear()
                await harness.bus.publish(bus_message(harness, created(2 * n + 1), key=oid(2 * n + 1)))
                counts.append(len(statements))
    assert counts[0] == counts[1] > 0


@contextmanager
def recorded_statements() -> Iterator[list[str]]:
    """Yield a list of the statements of the connections that are opened within this block."""
    statements: list[str] = []

    def attach(connection: Any, record: Any) -> None:
        if isinstance(connection, sqlite3.Connection):
            connection.set_trace_callback(statements.append)

    queue, execute = Pipeline.queue, psycopg.Cursor.execute

    def queued(pipeline: Pipeline, sql: str, parameters: Any = ()) -> Any:
        statements.append(sql)
        return queue(pipeline, sql, parameters)

    def executed(cursor: Any, query: Any, *more: Any, **options: Any) -> Any:
        statements.append(query)
        return execute(cursor, query, *more, **options)

    event.listen(Pool, "connect", attach)
    try:
        with patch.object(Pipeline, "queue", queued), patch.object(psycopg.Cursor, "execute", executed):
            yield statements
    finally:
        event.remove(Pool, "connect", attach)


async def submit_order(harness: Harness, n: int) -> None:
    await harness.runners["orders"].submit(submitted(oid(n)), id=oid(1000 + n), trace=CONTEXT, respond=NO_CONTENT)


async def is_free(harness: Harness) -> bool:
    return not await held(harness)


async def is_decided(harness: Harness) -> bool:
    return bool(await history(harness))


async def is_waiting(harness: Harness, count: int) -> bool:
    return [error for _, error in await errors(harness)].count("waits") == count


async def has_attempts(harness: Harness, id: str, count: int) -> bool:
    stored = await harness.dead_letter_store.get(id)
    return stored is not None and stored.dead_letter.attempts == count
