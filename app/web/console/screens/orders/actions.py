"""What a person may do with one order: each action has a page with a button that confirms it, and is in the audit with the name of the key."""

from __future__ import annotations

__all__ = ["ACTIONS", "DONE", "Action", "action_pages"]

from collections.abc import Awaitable, Callable, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any
from urllib.parse import quote

from aiohttp import hdrs, web
from attrs import frozen
from uuid_utils import uuid7

from app.web.console.frame import Page, Screen, Visit, body_of
from app.web.console.rendering import minor_digits
from app.web.operations.module_api import ApiAnswer
from app.web.requests.command import IDEMPOTENCY_KEY
from app.web.responses.problems import ProblemError
from bus.subjects import module_of
from config.api_keys import OPERATOR, ApiKey

DONE: Mapping[str, str] = {
    "cancel": "The order is cancelled. Its stock goes back, and what was paid is refunded.",
    "refund": "The refund is requested. The payment below shows when the provider has made it.",
    "settle": "The payment is settled.",
    "replay": "The dead letter is replayed. It is shown here again if it fails again.",
}
"""The message of the page after an action."""

Read = Callable[[ApiKey, str], Awaitable[ApiAnswer]]


@frozen
class Action:
    """Something that a person may do with an order."""

    name: str
    title: str
    roles: tuple[str, ...]
    """Who may do it beside the operator."""
    is_possible: Callable[[Mapping[str, Any]], bool]
    """Whether the explanation of the order leaves it open."""
    request: Callable[[str, Mapping[str, str], Mapping[str, Any]], tuple[str, Any]]
    """Returns path and body of the request, from the order's path, the form and the explanation; may raise `ProblemError`."""
    is_danger: bool = False
    is_idempotent: bool = False
    """The request takes an idempotency key: a form that is sent twice counts once."""

    def is_offered(self, key: ApiKey, found: Mapping[str, Any]) -> bool:
        """Return whether *key* may do it now, with the order as *found*."""
        return (key.role == OPERATOR or key.role in self.roles) and self.is_possible(found)


def _cancel(path: str, form: Mapping[str, str], found: Mapping[str, Any]) -> tuple[str, Any]:
    reason = form.get("reason", "")
    return f"{path}/cancel", {"reason": reason} if reason else {}


def _refund(path: str, form: Mapping[str, str], found: Mapping[str, Any]) -> tuple[str, Any]:
    body: dict[str, Any] = {"reason": form.get("reason", "")}
    lines = found["order"]["items"]
    items = [(line["product_id"], form.get(f"quantity-{number}", "")) for number, line in enumerate(lines)]
    items = [(product_id, quantity) for product_id, quantity in items if quantity not in ("", "0")]
    if form.get("what") == "amount":
        currency = found["order"]["total"]["currency"]
        body["amount"] = {"amount": minor_units(form.get("amount", ""), currency), "currency": currency}
    elif form.get("what") == "items":
        if not items or not all(quantity.isascii() and quantity.isdecimal() for _, quantity in items):
            raise ProblemError(400, "invalid_form", "Give the quantity of one item at least, as a whole number.")
        body["items"] = [{"product_id": product_id, "quantity": int(quantity)} for product_id, quantity in items]
    return f"{path}/refund", body


def _settle(path: str, form: Mapping[str, str], found: Mapping[str, Any]) -> tuple[str, Any]:
    return path.replace("/v1/orders/", "/v1/payments/") + "/settle", {
        "outcome": form.get("outcome", ""),
        "reason": form.get("reason", ""),
    }


def _is_paid(found: Mapping[str, Any]) -> bool:
    payment, order = found.get("payment"), found.get("order")
    if payment is None or order is None or order.get("total") is None:
        return False
    return bool(payment["status"] == "captured" and payment["refunded"]["amount"] < payment["amount"]["amount"])


ACTIONS = (
    Action(
        *("cancel", "Cancel the order", ("shop",)),
        is_possible=lambda found: found["status"] in ("processing", "reserved", "confirmed"),
        request=_cancel,
        is_danger=True,
    ),
    Action(*("refund", "Refund", ()), is_possible=_is_paid, request=_refund, is_danger=True, is_idempotent=True),
    Action(
        *("settle", "Settle the payment", ()),
        is_possible=lambda found: bool((found.get("payment") or {}).get("needs_settling")),
        request=_settle,
    ),
)
"""Every action, in the order of the buttons."""


def action_pages(screen: Screen, path: str, read: Read) -> tuple[Page, ...]:
    """Return the pages that confirm an action, and those that act; *path* is that of an order, and *read* returns its explanation."""
    found: list[Page] = []
    for action in ACTIONS:
        pages = _ActionPages(action, read)
        found += (
            Page(hdrs.METH_GET, f"{path}/{action.name}", pages.ask, screen, action.roles, is_scoped="shop" in action.roles),
            Page(hdrs.METH_POST, f"{path}/{action.name}", pages.act, screen, action.roles, is_scoped="shop" in action.roles),
        )
    replay = _ReplayPages(read)
    return (
        *found,
        Page(hdrs.METH_GET, f"{path}/replay/{{letter}}", replay.ask, screen, roles=()),
        Page(hdrs.METH_POST, f"{path}/replay/{{letter}}", replay.act, screen, roles=()),
    )


class _ActionPages:
    def __init__(self, action: Action, read: Read) -> None:
        self._action = action
        self._read = read

    async def ask(self, visit: Visit) -> web.StreamResponse:
        """Show what is going to happen, and the form that does it."""
        return self._page(visit, await self._found(visit), {}, None)

    async def act(self, visit: Visit) -> web.StreamResponse:
        """Send the request; show the form again with the reason if it is refused."""
        found, form, order_id = await self._found(visit), visit.form, visit.path["order_id"]
        try:
            path, body = self._action.request(f"/v1/orders/{quote(order_id, safe='')}", form, found)
            headers = {IDEMPOTENCY_KEY: form["request"]} if self._action.is_idempotent and form.get("request") else {}
            await visit.ask("POST", path, body=body, headers=headers)
        except ProblemError as problem:
            return self._page(visit, found, form, problem)
        return visit.redirect(f"/console/orders/{quote(order_id, safe='')}", done=self._action.name)

    async def _found(self, visit: Visit) -> Any:
        return body_of(await self._read(visit.key, visit.path["order_id"]))

    def _page(self, visit: Visit, found: Any, form: Mapping[str, str], problem: ProblemError | None) -> web.Response:
        return visit.page(
            "orders/action.html",
            200 if problem is None else problem.status,
            action=self._action,
            is_possible=self._action.is_possible(found),
            order_id=visit.path["order_id"],
            found=found,
            order=found.get("order"),
            form=form,
            request_id=form.get("request") or str(uuid7()),
            problem=problem,
        )


class _ReplayPages:
    def __init__(self, read: Read) -> None:
        self._read = read

    async def ask(self, visit: Visit) -> web.StreamResponse:
        """Show the dead letter, and the form that replays it."""
        return visit.page("orders/replay.html", order_id=visit.path["order_id"], letter=await self._letter(visit))

    async def act(self, visit: Visit) -> web.StreamResponse:
        """Replay the dead letter."""
        letter = await self._letter(visit)
        path = f"/v1/dead-letters/{quote(letter['id'], safe='')}/replay"
        await visit.ask("POST", path, module=module_of(letter["consumer"]))
        return visit.redirect(f"/console/orders/{quote(visit.path['order_id'], safe='')}", done="replay")

    async def _letter(self, visit: Visit) -> Any:
        found = body_of(await self._read(visit.key, visit.path["order_id"]))
        for letter in found["dead_letters"]:
            if letter["id"] == visit.path["letter"]:
                return letter
        raise ProblemError(404, "not_found", "The order has no such dead letter; it was replayed or discarded meanwhile.")


def minor_units(text: str, currency: str) -> int:
    """
    Return the amount *text* in minor units of *currency*: ``12.50`` is 1250 of EUR.

    Raises:
        ProblemError: 400, it is no positive amount of that currency.
    """
    digits = minor_digits(currency)
    try:
        amount = Decimal(text.replace(",", ".")).scaleb(digits)
        if amount.is_finite() and amount == amount.to_integral_value() and 0 < amount < 10**18:
            return int(amount)
    except InvalidOperation:
        pass
    raise ProblemError(400, "invalid_form", f"The amount must be a number of {currency} with at most {digits} digits behind the point.")
