"""The clients of the shop: they repeat each request until it is answered, as HTTP clients with a retry policy do."""

from __future__ import annotations

__all__ = ["Client", "run_customer", "run_restock"]

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Protocol

from app.runtime.service import IdempotencyKeyReused
from app.storage.audit import Audit
from app.storage.errors import CommitOutcomeUnknown, TemporarilyUnavailable
from app.telemetry.trace import TraceContext
from modules.routes import CommandRoute, Rejection, Request
from tests.simulation.world.plan import Customer
from tests.simulation.world.process import Process, descriptors

RETRY_SECONDS = 0.5
ATTEMPTS_MAX = 2_000

_ROUTES: Mapping[str, tuple[str, CommandRoute]] = {
    route.name: (module.name, route) for module in descriptors(900).values() for route in module.routes if isinstance(route, CommandRoute)
}


class NoAnswer(Exception):
    """The process was down, or was killed before it answered."""


class Client(Protocol):
    """What the clients see of the world."""

    def new_id(self, name: str) -> str:
        """Return a new id, as the web layer makes one for each request; *name* is whose it is."""

    async def request(self, module: str, call: Callable[[Process], Coroutine[Any, Any, Any]]) -> Any:
        """
        Call the process of *module*, and return its answer.

        Raises:
            NoAnswer: There is none.
        """

    def note(self, text: str) -> None:
        """Write a line of the trace."""

    def saw(self, situation: str) -> None:
        """Count a situation."""

    def fail(self, text: str) -> None:
        """Note that a promise was broken."""

    def accepted(self, customer: str, order_id: str) -> None:
        """Note an answer 202 to the order of *customer*."""

    def refused(self, customer: str) -> None:
        """Note that *customer*, who has sent one request, got the answer that nothing of it is stored."""

    def restocked(self, product_id: str, quantity: int) -> None:
        """Note that a product has more pieces."""


async def command(client: Client, name: str, route_name: str, path: Mapping[str, str], body: Any, key: str | None = None) -> Any:
    """
    Send one request; return the status and the body of the answer.

    Raises:
        NoAnswer: There is none.
    """
    module, route = _ROUTES[route_name]
    new_id = client.new_id(name)
    request = Request(path, body, new_id, name.replace(" ", "-"))
    audit = Audit("client", route.name, "/".join(path.values()) or new_id, request.correlation_id) if route.is_audited else None
    trace = TraceContext(request.correlation_id, f"00-{new_id.replace('-', '')}-{'0' * 15}1-01")

    async def call(process: Process) -> Any:
        return await process.runners[module].submit(
            route.event(request), id=client.new_id(name), trace=trace, respond=route.respond, is_express=route.express(request),
            key=None if key is None else f"{route.path}/{'/'.join(path.values())}/{key}", fingerprint=repr(body) if key else "",
            sheds_load=route.sheds_load, new_key=new_id, audit=audit,
        )  # fmt: skip

    try:
        reply = await client.request(module, call)
    except TemporarilyUnavailable as error:
        client.saw(f"answer: 503 {error.code}")
        return (503 if not isinstance(error, CommitOutcomeUnknown) else 504), error.retry_after_seconds
    except IdempotencyKeyReused:
        client.saw("answer: 422 key reused")
        return 422, None
    if reply.is_replay:
        client.saw("answer: replayed for its key")
    if isinstance(reply.response, Rejection):
        client.saw(f"answer: {reply.response.status} {reply.response.code}")
        return reply.response.status, reply.response.code
    return reply.response.status, reply.response.body


async def persistent(client: Client, name: str, route_name: str, path: Mapping[str, str], body: Any, key: str | None = None) -> Any:
    """Send a request again and again until it is answered; return status and body."""
    for _ in range(ATTEMPTS_MAX):
        try:
            status, answer = await command(client, name, route_name, path, body, key)
        except NoAnswer:
            client.saw("client: no answer")
            await asyncio.sleep(RETRY_SECONDS)
            continue
        if status in (503, 504):
            await asyncio.sleep(float(answer))
            continue
        return status, answer
    client.fail(f"{name}: {route_name} is not answered")
    return 0, None


async def run_customer(client: Client, customer: Customer) -> None:
    """Do what *customer* does."""
    await asyncio.sleep(customer.at)
    items = [{"product_id": product, "quantity": quantity} for product, quantity in customer.lines]
    body = {"customer_id": customer.name, "items": items} | ({"priority": "express"} if customer.is_express else {})
    client.note(f"{customer.name} orders {dict_text(customer.lines)}{' express' if customer.is_express else ''}")
    order_id = await _place(client, customer, body)
    if order_id is None:
        return
    client.accepted(customer.name, order_id)
    async with asyncio.TaskGroup() as group:
        if customer.cancels_after is not None:
            group.create_task(_cancel(client, customer, order_id))
        for number, (after, amount) in enumerate(customer.refunds):
            group.create_task(_refund(client, customer, order_id, number, after, amount))
        if customer.changes_body and customer.has_key:
            group.create_task(_change_body(client, customer, body))


async def _place(client: Client, customer: Customer, body: Any) -> str | None:
    if not customer.has_key:  # such a client cannot repeat its request
        try:
            status, answer = await command(client, customer.name, "placeOrder", {}, body)
        except NoAnswer:
            client.saw("client: gives up without a key")
            return None
        if status == 202:
            return str(answer["order_id"])
        if status == 503:
            client.refused(customer.name)
        if status not in (503, 504):
            client.fail(f"{customer.name}: {status} to an order")
        return None
    posts = [persistent(client, customer.name, "placeOrder", {}, body, customer.name) for _ in range(customer.posts)]
    answers = await asyncio.gather(*posts)
    for status, answer in answers:
        if status != 202:
            client.fail(f"{customer.name}: {status} {answer} to an order")
            return None
    ids = {answer["order_id"] for _, answer in answers}
    if len(ids) > 1:
        client.fail(f"{customer.name}: one key gives {len(ids)} orders")
    return str(min(ids))


async def _cancel(client: Client, customer: Customer, order_id: str) -> None:
    assert customer.cancels_after is not None
    await asyncio.sleep(customer.cancels_after)
    status, answer = await persistent(client, customer.name, "cancelOrder", {"order_id": order_id}, {"reason": "no longer wanted"})
    client.note(f"{customer.name} cancels: {status}")
    if status != 202 or answer["status"] != "cancelled":
        client.fail(f"{customer.name}: {status} {answer} to a cancellation")


async def _refund(client: Client, customer: Customer, order_id: str, number: int, after: float, amount: int) -> None:
    await asyncio.sleep(after)
    body: dict[str, Any] = {"reason": "damaged"} | ({"amount": {"amount": amount, "currency": "EUR"}} if amount else {})
    status, answer = await persistent(client, customer.name, "refundOrder", {"order_id": order_id}, body, f"refund {number}")
    client.note(f"{customer.name} asks for {amount or 'all'} back: {status} {'' if status == 202 else answer}")
    if status not in (202, 409):
        client.fail(f"{customer.name}: {status} {answer} to a refund")


async def _change_body(client: Client, customer: Customer, body: Any) -> None:
    status, answer = await persistent(client, customer.name, "placeOrder", {}, body | {"customer_id": "another"}, customer.name)
    if status != 422:
        client.fail(f"{customer.name}: {status} {answer} to another order under its key")


async def run_restock(client: Client, product_id: str, number: int, at: float, quantity: int) -> None:
    """Add to the stock of a product, once."""
    await asyncio.sleep(at)
    name = f"restock {product_id} {number}"
    status, answer = await persistent(client, name, "restockProduct", {"product_id": product_id}, {"quantity": quantity}, name)
    client.note(f"{name}: {quantity} pieces: {status}")
    if status == 200:
        client.restocked(product_id, quantity)
    else:
        client.fail(f"{name}: {status} {answer}")


def dict_text(lines: tuple[tuple[str, int], ...]) -> str:
    """Return order lines as a short text."""
    return " ".join(f"{quantity}x{product}" for product, quantity in lines)
