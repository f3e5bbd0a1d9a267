"""
What must be true of the world after whatever happened to it, once it has come to rest.

I1  every accepted order exists and is at its end
I2  at most one captured charge per order, and no refund above it
I3  per product: what there was and what was added is on the shelf or shipped; nothing is held
I4  confirmed means charged and shipped; cancelled means nothing held and nothing kept; timelines are legal
I5  each event counted once
I6  whatever was said has gone out, and was heard by everybody whom it concerns; nothing was given up in silence
"""

from __future__ import annotations

__all__ = ["MODULES", "check_world", "come_to_rest", "rows", "unheard"]

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
from tests.process.client import Answering, Client, eventually

MODULES = ("orders", "inventory", "payments")
HEARS = {
    service.name: {subject_of(cls) + lane for cls in service.consumes for lane in ("", EXPRESS)}
    for service in (orders.module(), inventory.module(), payments.module())
}
TERMINAL = {"confirmed", "cancelled"}

_LETTERS = {
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
    """Return what *query* finds in *database* (a file of SQLite, or an address), which is only looked at."""
    if isinstance(database, str):
        with psycopg.connect(database) as connection:
            return connection.execute(query).fetchall()
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=10)) as connection:
        return connection.execute(query).fetchall()


async def check_world(
    client: Client,
    accepted: Collection[str],
    pieces: Mapping[str, int],
    *,
    unheard_max: int = 0,
    dead: int = 0,
    seconds: float = 30.0,
) -> list[Any]:
    """
    Wait until the world is at rest, then check I1 to I6; return all orders as the API shows them.

    *accepted* are the ids of all 202s. *pieces* says, per product, how many there were at first and how many were added.
    *unheard_max* orders may exist whose answer nobody heard, *dead* dead letters must.
    """
    server = client.server
    await come_to_rest(server, seconds)
    orders = await client.everything("/v1/orders")
    by_id = {order["order_id"]: order for order in orders}
    assert len(by_id) == len(orders), "I1: the list shows an order twice"
    assert set(accepted) - by_id.keys() == set(), "I1: an accepted order is lost"
    assert len(by_id) <= len(set(accepted)) + unheard_max, "I1: there are orders that nobody placed"
    for order in orders:
        assert order["status"] in TERMINAL, f"I1: not at its end: {order}"
    _check_money(server.database_of("payments"), by_id)
    await _check_stock(client, orders, pieces)
    _check_ends(server.database_of("inventory"), by_id)
    _check_mail(server)
    assert sum(len(_dead(server, module)) for module in MODULES) == dead, "I6: dead letters"
    return orders


async def come_to_rest(server: Answering, seconds: float) -> None:
    """
    Wait until nothing is unsent, nothing unheard, and nobody says anything more.

    Time-outs are withdrawn at an order's end, so nothing is left for later either.
    """
    before = -1

    async def left() -> list[Any]:
        nonlocal before
        query = "SELECT subject, count(*) FROM {}_outbox WHERE sent_at IS NULL GROUP BY subject"
        unsent = [row for module in MODULES for row in rows(server.database_of(module), query.format(module))]
        if unsent:
            return unsent
        # The parts are looked at one after the other: only if no word has been added meanwhile was all of it seen.
        last, before = before, sum(len(_said(server, module)) for module in MODULES)
        found = unheard(server)
        return [f"{len(found)} unheard", *found[:5]] if found else [] if last == before else ["looked only once"]

    await eventually(left, lambda found: not found, seconds)


def unheard(server: Answering) -> list[tuple[str, str, str]]:
    """Return whatever was said to a module and neither heard by it nor laid down: the module, the subject, the event."""
    said = [row for module in MODULES for row in _said(server, module)]
    found = []
    for module in MODULES:
        heard = {id for (id,) in rows(server.database_of(module), f"SELECT id FROM {module}_inbox")} | _dead(server, module)
        found += [(module, subject, id) for subject, id in said if subject in HEARS[module] and id not in heard]
    return found


def _said(server: Answering, module: str) -> list[Any]:
    return rows(server.database_of(module), f"SELECT subject, event_id FROM {module}_outbox")


def _dead(server: Answering, module: str) -> set[str]:
    """Return the events that *module* has given up on."""
    letters = rows(server.database_of(module), f"SELECT message_id, message_headers FROM {module}_dead_letter")
    return {json.loads(headers).get("ce-id", id) for id, headers in letters}


def _check_money(database: Path | str, orders: Mapping[str, Any]) -> None:
    said = Counter(
        (subject.split(".")[1], key)
        for subject, key in rows(database, "SELECT subject, key FROM payments_outbox")
    )
    assert [found for found in said.items() if found[0][0] in ("captured", "refunded") and found[1] > 1] == [], "I2"
    payments = {row[0]: row[1:] for row in rows(database, "SELECT order_id, status, amount, currency FROM payments_payment")}
    assert payments.keys() <= orders.keys()
    for order_id, order in orders.items():
        status, amount, currency = payments.get(order_id, ("none", None, None))
        if order["status"] == "confirmed":
            assert status == "captured", f"I4: confirmed and {status}: {order}"
            assert {"amount": amount, "currency": currency} == order["total"], f"I2: charged {amount}: {order}"
        else:
            assert status in ("none", "declined", "refunded"), f"I4: cancelled and {status}: {order}"


async def _check_stock(client: Client, orders: Collection[Any], pieces: Mapping[str, int]) -> None:
    shipped = Counter[str]()
    for order in orders:
        if order["status"] == "confirmed":
            for line in order["items"]:
                shipped[line["product_id"]] += line["quantity"]
    products = {product["product_id"]: product for product in await client.everything("/v1/inventory")}
    for product_id, count in pieces.items():
        product = products[product_id]
        assert product["reserved"] == 0, f"I4: still held: {product}"
        assert product["available"] == product["on_hand"] >= 0, f"I3: {product}"
        assert product["on_hand"] + shipped[product_id] == count, f"I3: {shipped[product_id]} shipped of {count}: {product}"


def _check_ends(database: Path | str, orders: Mapping[str, Any]) -> None:
    held = dict(rows(database, "SELECT order_id, status FROM inventory_reservation"))
    assert held.keys() == orders.keys(), "I4: inventory has not heard of every order"
    for order_id, order in orders.items():
        written = "".join(_LETTERS[entry["event"]] for entry in order["timeline"])
        assert _LEGAL[order["status"]].fullmatch(written), f"I4: timeline {written!r}: {order}"
        moments = [entry["at"] for entry in order["timeline"]]
        assert moments == sorted(moments), f"I4: the timeline goes back: {order}"
        if order["status"] == "confirmed":
            assert (order["reason"], held[order_id]) == (None, "shipped"), f"I4: {held[order_id]}: {order}"
        else:
            assert order["reason"], f"I4: cancelled for no reason: {order}"
            assert held[order_id] in ("released", "rejected"), f"I4: {held[order_id]}: {order}"


def _check_mail(server: Answering) -> None:
    for module in MODULES:
        database = server.database_of(module)
        ((heard, different),) = rows(database, f"SELECT count(*), count(DISTINCT id) FROM {module}_inbox")
        assert heard == different, f"I5: {module} has heard an event twice"
        # An event that is said in two versions is one event under two subjects.
        query = f"SELECT count(*), count(DISTINCT event_id || ' ' || subject) FROM {module}_outbox"
        ((said, events),) = rows(database, query)
        ((replays,),) = rows(database, f"SELECT coalesce(sum(replays), 0) FROM {module}_dead_letter")
        assert said <= events + replays, f"I5: {module} has said an event twice"
