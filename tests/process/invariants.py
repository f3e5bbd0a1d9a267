"""
The invariants of the system: what must be true once it is idle, whatever happened before.

I1  every accepted order exists and has a final state
I2  at most one captured charge per order, and no refund above it
I3  per product: the initial and the added stock is on hand or shipped; nothing is reserved
I4  confirmed orders are charged and shipped; cancelled orders hold no stock and no money; timelines are legal
I5  each event is processed once
I6  every event is sent, and is processed or dead-lettered by each of its consumers
"""

from __future__ import annotations

__all__ = ["MODULES", "check_invariants", "rows", "unconsumed", "wait_until_idle"]

import json
import re
import sqlite3
from collections import Counter
from collections.abc import Collection, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg

from bus.subjects import EXPRESS, subject_of
from modules import inventory, orders, payments
from tests.process.client import Client, RequestTarget, eventually

MODULES = ("orders", "inventory", "payments")
CONSUMES = {
    module.name: {subject_of(cls) + lane for cls in module.consumes for lane in ("", EXPRESS)}
    for module in (orders.module(), inventory.module(), payments.module())
}
TERMINAL = {"confirmed", "cancelled"}

_CODES = {
    "orders.created": "c",
    "inventory.reserved": "r",
    "payments.delayed": "d",
    "payments.put_aside": "p",
    "orders.confirmed": "f",
    "orders.cancelled": "x",
    "inventory.released": "l",
    "payments.refunded": "m",
}
_LEGAL = {
    "confirmed": re.compile(r"c(r|[dp]{1,2}r|r[dp]{1,2}|[dp]r[dp])f"),
    "cancelled": re.compile(r"c([dp]{0,2}|(r|[dp]{1,2}r|r[dp]{1,2}|[dp]r[dp])f?)x(l?m?|ml)"),
}


def rows(database: Path | str, query: str) -> list[Any]:
    """Return the rows of *query* on *database*, a SQLite file or an address, opened for reading."""
    if isinstance(database, str):
        with psycopg.connect(database) as connection:
            return connection.execute(query).fetchall()
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=10)) as connection:
        return connection.execute(query).fetchall()


async def check_invariants(
    client: Client,
    accepted: Collection[str],
    stock: Mapping[str, int],
    *,
    lost_responses_max: int = 0,
    dead_letters: int = 0,
    seconds: float = 30.0,
) -> list[Any]:
    """
    Wait until the system is idle, then check I1 to I6; return all orders in the format of the API.

    *accepted* are the ids of all orders answered with 202. *stock* is, per product, the initial plus the added stock.
    Up to *lost_responses_max* more orders may exist, whose response was lost. There must be *dead_letters* dead letters.
    """
    server = client.server
    await wait_until_idle(server, seconds)
    orders = await client.list_all("/v1/orders")
    by_id = {order["order_id"]: order for order in orders}
    assert len(by_id) == len(orders), "I1: the list shows an order twice"
    assert set(accepted) - by_id.keys() == set(), "I1: an accepted order is lost"
    assert len(by_id) <= len(set(accepted)) + lost_responses_max, "I1: there are orders that were not placed"
    for order in orders:
        assert order["status"] in TERMINAL, f"I1: not in a final state: {order}"
    _check_payments(server.database_of("payments"), by_id)
    await _check_stock(client, orders, stock)
    _check_final_states(server.database_of("inventory"), by_id)
    _check_messages(server)
    assert sum(len(_dead_lettered(server, module)) for module in MODULES) == dead_letters, "I6: dead letters"
    return orders


async def wait_until_idle(server: RequestTarget, seconds: float) -> None:
    """
    Wait until no event is unsent or unprocessed and no further event is published.

    The time-out of an order is cancelled when the order ends, so no scheduled event is left either.
    """
    before = -1

    async def remaining() -> list[Any]:
        nonlocal before
        query = "SELECT subject, count(*) FROM {}_outbox WHERE sent_at IS NULL GROUP BY subject"
        unsent = [row for module in MODULES for row in rows(server.database_of(module), query.format(module))]
        if unsent:
            return unsent
        # The databases are read one after the other: the result counts only if no event was added in the meantime.
        last, before = before, sum(len(_published(server, module)) for module in MODULES)
        found = unconsumed(server)
        return [f"{len(found)} unconsumed", *found[:5]] if found else [] if last == before else ["read only once"]

    await eventually(remaining, lambda found: not found, seconds)


def unconsumed(server: RequestTarget) -> list[tuple[str, str, str]]:
    """Return the events that a module neither processed nor dead-lettered: module, subject and event id."""
    published = [row for module in MODULES for row in _published(server, module)]
    found = []
    for module in MODULES:
        processed = {
            id for (id,) in rows(server.database_of(module), f"SELECT id FROM {module}_inbox")
        } | _dead_lettered(server, module)
        found += [
            (module, subject, id) for subject, id in published if subject in CONSUMES[module] and id not in processed
        ]
    return found


def _published(server: RequestTarget, module: str) -> list[Any]:
    return rows(server.database_of(module), f"SELECT subject, event_id FROM {module}_outbox")


def _dead_lettered(server: RequestTarget, module: str) -> set[str]:
    """Return the ids of the events that *module* has dead-lettered."""
    found = rows(server.database_of(module), f"SELECT message_id, message_headers FROM {module}_dead_letter")
    return {json.loads(headers).get("ce-id", id) for id, headers in found}


def _check_payments(database: Path | str, orders: Mapping[str, Any]) -> None:
    published = Counter(
        (subject.split(".")[1], key) for subject, key in rows(database, "SELECT subject, key FROM payments_outbox")
    )
    assert [found for found in published.items() if found[0][0] in ("captured", "refunded") and found[1] > 1] == [], (
        "I2"
    )
    payments = {
        row[0]: row[1:] for row in rows(database, "SELECT order_id, status, amount, currency FROM payments_payment")
    }
    assert payments.keys() <= orders.keys()
    for order_id, order in orders.items():
        status, amount, currency = payments.get(order_id, ("none", None, None))
        if order["status"] == "confirmed":
            assert status == "captured", f"I4: confirmed and {status}: {order}"
            assert {"amount": amount, "currency": currency} == order["total"], f"I2: charged {amount}: {order}"
        else:
            assert status in ("none", "declined", "refunded"), f"I4: cancelled and {status}: {order}"


async def _check_stock(client: Client, orders: Collection[Any], stock: Mapping[str, int]) -> None:
    shipped = Counter[str]()
    for order in orders:
        if order["status"] == "confirmed":
            for line in order["items"]:
                shipped[line["product_id"]] += line["quantity"]
    products = {product["product_id"]: product for product in await client.list_all("/v1/inventory")}
    for product_id, count in stock.items():
        product = products[product_id]
        assert product["reserved"] == 0, f"I4: still reserved: {product}"
        assert product["available"] == product["on_hand"] >= 0, f"I3: {product}"
        assert product["on_hand"] + shipped[product_id] == count, (
            f"I3: {shipped[product_id]} shipped of {count}: {product}"
        )


def _check_final_states(database: Path | str, orders: Mapping[str, Any]) -> None:
    reservations = dict(rows(database, "SELECT order_id, status FROM inventory_reservation"))
    assert reservations.keys() == orders.keys(), "I4: inventory has no reservation for some order"
    for order_id, order in orders.items():
        codes = "".join(_CODES[entry["event"]] for entry in order["timeline"])
        assert _LEGAL[order["status"]].fullmatch(codes), f"I4: timeline {codes!r}: {order}"
        times = [entry["at"] for entry in order["timeline"]]
        assert times == sorted(times), f"I4: the timeline is not in order: {order}"
        if order["status"] == "confirmed":
            assert (order["reason"], reservations[order_id]) == (None, "shipped"), (
                f"I4: {reservations[order_id]}: {order}"
            )
        else:
            assert order["reason"], f"I4: cancelled without a reason: {order}"
            assert reservations[order_id] in ("released", "rejected"), f"I4: {reservations[order_id]}: {order}"


def _check_messages(server: RequestTarget) -> None:
    for module in MODULES:
        database = server.database_of(module)
        ((processed, distinct),) = rows(database, f"SELECT count(*), count(DISTINCT id) FROM {module}_inbox")
        assert processed == distinct, f"I5: {module} has processed an event twice"
        # An event that is published in two versions is one event under two subjects.
        query = f"SELECT count(*), count(DISTINCT event_id || ' ' || subject) FROM {module}_outbox"
        ((sent, events),) = rows(database, query)
        ((replays,),) = rows(database, f"SELECT coalesce(sum(replays), 0) FROM {module}_dead_letter")
        assert sent <= events + replays, f"I5: {module} has published an event twice"
