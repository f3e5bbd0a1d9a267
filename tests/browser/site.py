"""A server with data of every kind: orders in each status, what is low, dead letters, and a payment for a person."""

from __future__ import annotations

__all__ = ["KEYS", "ORDER_TO_SETTLE", "Site", "started"]

import asyncio
import json
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from attrs import frozen

from app.bootstrap import build_parts
from app.storage.state_rows import StateMapper
from config.settings import Settings
from modules.payments.state import Payment, PaymentStatus, payment_table
from modules.registry import MODULES
from tests.console.letters import BODY, dead_letter, order_id
from tests.process.server import Server

KEYS = {role: f"{role}-key-0123456789" for role in ("operator", "viewer", "stock", "shop")}
"""Keys by their roles; each is also the name of its role."""

ORDER_TO_SETTLE = order_id(900)
"""The order whose payment waits for a person."""

PRODUCTS = {
    "COFFEE-250": (3, 799, "Coffee, 250 g"),
    "CUP-BLUE": (0, 650, "Cup, blue"),
    "POT-1L": (500, 2490, "Teapot, 1 l"),
    "TEA-100": (2000, 1250, "Tea, 100 g"),
}
"""Products by id: pieces on hand, price in cents, name."""


@frozen
class Site:
    """A running server, and requests to its API."""

    server: Server

    def url_of(self, path: str) -> str:
        """Return the URL of *path*."""
        return self.server.url_of(path)

    def request(self, method: str, path: str, body: Any = None, role: str = "operator") -> Any:
        """Return the decoded answer of the API to the key of *role*."""
        headers = {"Authorization": f"Bearer {KEYS[role]}", "Content-Type": "application/json"}
        content = None if body is None else json.dumps(body).encode()
        sent = urllib.request.Request(self.url_of(path), content, headers, method=method)
        with urllib.request.urlopen(sent, timeout=60) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def place(self, product_id: str = "TEA-100", quantity: int = 1, customer_id: str = "ada") -> str:
        """Place an order, and return its id."""
        items = [{"product_id": product_id, "quantity": quantity}]
        found: str = self.request("POST", "/v1/orders", {"customer_id": customer_id, "items": items})["order_id"]
        return found

    def placed_and_ended(self, product_id: str = "TEA-100", quantity: int = 1, customer_id: str = "ada") -> str:
        """Place an order, and return its id once it has reached its last status."""
        found = self.place(product_id, quantity, customer_id)
        headers = {"Authorization": f"Bearer {KEYS['operator']}"}
        stream = urllib.request.Request(self.url_of(f"/v1/orders/{found}/stream"), headers=headers)
        with urllib.request.urlopen(stream, timeout=60) as events:
            events.read()  # the stream ends with the order
        return found


@contextmanager
def started(folder: Path) -> Iterator[Site]:
    """Start a server in *folder* with the data, and kill it at the end."""
    keys = folder / "keys"
    keys.write_text("".join(f"{role}:{role}:{key}\n" for role, key in KEYS.items()))
    keys.chmod(0o600)
    database = f"sqlite:///{folder}/site.db"
    with ThreadPoolExecutor(1) as thread:  # in this one, Playwright may run an event loop of its own
        thread.submit(lambda: asyncio.run(_fill(database))).result()
    server = Server(folder, AUTH="keys", API_KEYS_FILE=str(keys), DATABASE_URL=database, SIMULATED_DECLINE_OVER="5000", LOG_LEVEL="ERROR")
    try:
        site = Site(server.start())
        for product_id, (on_hand, cents, name) in PRODUCTS.items():
            body = {"on_hand": on_hand, "unit_price": {"amount": cents, "currency": "EUR"}, "name": name}
            site.request("PUT", f"/v1/inventory/{product_id}", body)
        for n in range(4):
            site.placed_and_ended("TEA-100", 1 + n % 3, f"customer-{n}")
        site.placed_and_ended("POT-1L", 3, "grace")  # declined: it costs more than the limit
        site.placed_and_ended("CUP-BLUE", 1, "ada")  # out of stock
        yield site
    finally:
        server.end()


async def _fill(database: str) -> None:
    """Store what no request makes: dead letters of three causes, and a payment whose outcome is unknown."""
    now = datetime.now(UTC)
    parts = build_parts(Settings(known_modules=MODULES, database_url=database))
    try:
        await asyncio.to_thread(parts.storage.require_tables)
        for n in range(1, 6):
            lacking = {**BODY, "order_id": order_id(n), "items": [{"product_id": "TEA-100"}]}
            await parts.dead_letters.add(dead_letter(n, lacking, '/items/0: the member "quantity" is missing', error="invalid", at=now))
        for n in range(6, 9):
            await parts.dead_letters.add(dead_letter(n, {**BODY, "order_id": order_id(n)}, "TimeoutError: no answer within 30 s", at=now))
        charge = {"order_id": order_id(20), "reason": "requested"}
        await parts.dead_letters.add(
            dead_letter(20, charge, "AssertionError: amount", consumer="payments", subject="orders.cancelled.v1", at=now)
        )
        payment = Payment(
            order_id=ORDER_TO_SETTLE, status=PaymentStatus.UNKNOWN, amount=4999, currency="EUR", attempts=8, reference=None,
            reason="no_answer", updated_at=now,
        )  # fmt: skip
        store = parts.storage.stores["payments"]
        mapper = StateMapper(Payment, payment_table, store.database.dialect)
        await store.database.write(lambda connection: mapper.save(connection, [payment], {payment.order_id}))
    finally:
        await parts.storage.close()
