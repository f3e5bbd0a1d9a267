"""
Stripe, over its own SDK: PaymentIntents that are made and confirmed in one call, and refunds.

The idempotency key of a charge belongs to its order, and so does the metadatum ``order_id``, under which a charge whose
answer got lost is found again in Stripe's list. Listing is consistent with what was just written; searching is not.
"""

from __future__ import annotations

__all__ = ["StripeGateway"]

import logging
from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from typing import Any

import stripe
from aiohttp import ClientTimeout
from loguru import logger

from app.gateways.port import (
    Captured,
    ChargeRecord,
    ChargeResult,
    Declined,
    GatewayRejected,
    GatewayTimeout,
    Pending,
    ResponseMismatch,
)
from app.gateways.stripe.charge_lookup import ChargeLookup
from app.gateways.stripe.http_session import CALL_SECONDS, CONNECT_SECONDS, READ_SECONDS, StripeSession, classify_errors
from app.gateways.stripe.list_cursor import ListCursor
from app.gateways.stripe.payment_intent import REASON_MAX, PaymentIntent, charge_result
from bus.ids import time_of_id
from modules.values import Money

PAGE = 100
SMALL_PAGE = 25
"""A look-alike that cannot filter may take seconds for a page of its long list, and must not take all that we wait."""

SKEW_SECONDS = 300
"""How far Stripe's clock and ours may be apart."""

TEST_KEY = "sk_test_"
TEST_PAYMENT_METHOD = "pm_card_visa"
"""What an order pays with that names nothing, in Stripe's test mode; with real money it is declined."""

_OPEN = ("requires_action", "requires_confirmation")


class StripeGateway:
    """Take money through Stripe; see `app.gateways.port.Gateway` for what is promised."""

    name = "stripe"

    def __init__(self, api_key: str, api_base: str, calls_max: int = 100) -> None:
        # It says too much of each call, at DEBUG even what the answers hold.
        logging.getLogger("stripe").setLevel(logging.WARNING)
        stripe.enable_telemetry = False
        self._wire = StripeSession(calls_max)
        timeout = ClientTimeout(total=CALL_SECONDS, sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS)
        self._client = stripe.StripeClient(
            api_key,
            base_addresses={"api": api_base},
            http_client=stripe.AIOHTTPClient(timeout=timeout, session=self._wire),
            max_network_retries=0,
        )
        self._default_payment_method = TEST_PAYMENT_METHOD if api_key.startswith(TEST_KEY) else None
        self._lookups = ChargeLookup(self._looked_through)
        self._can_filter = True
        self._trail = ListCursor()

    async def charge(self, key: str, order_id: str, amount: Money, payment_method: str | None) -> ChargeResult:
        """Make a PaymentIntent and confirm it, in one call."""
        if amount.amount == 0:
            return Captured(f"free_{order_id}")
        payment_method = payment_method or self._default_payment_method
        if payment_method is None:
            return Declined("payment_method_missing")
        params: Any = {
            "amount": amount.amount,
            "currency": amount.currency.lower(),
            "confirm": True,
            "payment_method": payment_method,
            # Whatever else is switched on in Stripe's dashboard may want to send the customer to another page.
            "payment_method_types": ["card"],
            "metadata": {"order_id": order_id, "key": key},
        }
        try:
            made = await classify_errors(self._client.v1.payment_intents.create_async(params, {"idempotency_key": key}))
        except stripe.CardError as error:
            return Declined(_reason(error))
        except stripe.InvalidRequestError as error:
            logger.warning("the provider will not have the request", order_id=order_id, code=_reason(error))
            return Declined(_reason(error))
        intent = PaymentIntent.of(_plain(made))
        intent.check(order_id, amount)
        if intent.status in _OPEN:
            return await self._closed(intent, order_id, amount)
        return charge_result([intent]) or Pending(intent.id)

    async def find(self, key: str, order_id: str, amount: Money) -> ChargeResult | None:
        """Look through the list for PaymentIntents that name the order."""
        return await self._found(order_id, amount, is_to_close=False)

    async def cancel(self, key: str, order_id: str, amount: Money) -> ChargeResult | None:
        """Do as `find`, and cancel what waits for a confirmation."""
        return await self._found(order_id, amount, is_to_close=True)

    async def refund(self, key: str, order_id: str, reference: str, amount: Money) -> str:
        """Look whether it went back already, and give it back."""
        if amount.amount == 0:
            return reference
        refunds = self._client.v1.refunds
        try:
            listed = await classify_errors(refunds.list_async({"payment_intent": reference, "limit": PAGE}))
            for each in _rows(_plain(listed)):
                if each.get("status") in ("succeeded", "pending", "requires_action"):
                    return _checked_refund(each, amount)
            wanted: Any = {"payment_intent": reference, "amount": amount.amount, "metadata": {"order_id": order_id}}
            made = await classify_errors(refunds.create_async(wanted, {"idempotency_key": key}))
        except stripe.StripeError as error:  # only Stripe's refusals get here
            raise GatewayRejected(_reason(error)) from None
        refund = _plain(made)
        if refund.get("status") in ("failed", "canceled"):
            raise GatewayRejected(f"refund_{refund['status']}")
        return _checked_refund(refund, amount)

    async def records(self, since: datetime, until: datetime) -> AsyncIterator[ChargeRecord]:
        """Yield the PaymentIntents that were made from *since* until *until*."""
        async for each in self._intents(int(since.timestamp()), with_charges=True):
            record = PaymentIntent.of(each).record()
            if since <= record.created_at < until:
                yield record

    async def order_of(self, reference: str) -> str | None:
        """Return the order that the PaymentIntent *reference* names."""
        row = await self._shown(reference)
        return None if row is None else PaymentIntent.of(row).order_id

    async def close(self) -> None:
        """Hang up."""
        await self._lookups.close()
        await self._wire.close()

    async def _found(self, order_id: str, amount: Money, *, is_to_close: bool) -> ChargeResult | None:
        if amount.amount == 0:
            return Captured(f"free_{order_id}")
        rows = {row.get("id"): row for row in await self._lookups.find(order_id, _since(order_id))}
        for id in self._trail.ids(order_id):
            if id not in rows and (row := await self._shown(id)) is not None:
                rows[id] = row
        intents = [PaymentIntent.of(row) for row in rows.values()]
        for intent in intents:
            intent.check(order_id, amount)
        answer = charge_result(intents)
        if answer is not None:
            return answer
        for intent in intents:
            if intent.status == "requires_action" or (is_to_close and intent.status in _OPEN):
                answer = await self._closed(intent, order_id, amount)
        return answer

    async def _closed(self, intent: PaymentIntent, order_id: str, amount: Money) -> ChargeResult:
        """Cancel *intent*, which waits for a customer who is not here; return what became of it."""
        try:
            cancelled = await classify_errors(self._client.v1.payment_intents.cancel_async(intent.id))
        except stripe.StripeError:
            return Pending(intent.id)  # it has moved on meanwhile: the next look tells where to
        after = PaymentIntent.of(_plain(cancelled))
        after.check(order_id, amount)
        if after.status == "canceled":
            return Declined("authentication_required" if intent.status == "requires_action" else "canceled")
        return charge_result([after]) or Pending(intent.id)

    async def _shown(self, reference: str) -> Mapping[str, Any] | None:
        """Return a PaymentIntent as it is now; None: there is none."""
        try:
            return _plain(await classify_errors(self._client.v1.payment_intents.retrieve_async(reference)))
        except stripe.StripeError:
            return None

    async def _looked_through(self, since: int) -> AsyncIterator[Mapping[str, Any]]:
        """Yield what was made at *since* or later; where the list cannot be filtered, what was not yielded before."""
        first = last = None
        async for row in self._intents(since, None if self._can_filter else self._trail.after):
            if not self._can_filter:
                first, last = first or row, row
                self._trail.read(row)
            yield row
        if first is not None and last is not None:
            self._trail.ended(first, last)

    async def _intents(
        self, since: int, after: str | None = None, *, with_charges: bool = False
    ) -> AsyncIterator[Mapping[str, Any]]:
        """Yield all PaymentIntents made at *since* or later, those behind *after* in the list, as plain JSON."""
        while True:
            params: Any = {"limit": PAGE if self._can_filter else SMALL_PAGE}
            if with_charges:
                params["expand"] = ["data.latest_charge"]
            if self._can_filter:
                params["created"] = {"gte": since}
            if after is not None:
                params["starting_after"] = after
            try:
                # The list as it comes: to make objects of it takes three times as long as to read it.
                page = await classify_errors(self._client.raw_request_async("get", "/v1/payment_intents", **params))
            except stripe.StripeError as error:
                if self._can_filter and after is None and error.http_status == 400:
                    self._can_filter = False  # a look-alike that cannot: then we look through all there is
                    continue
                raise GatewayTimeout(f"the provider will not list: {_reason(error)}") from None
            rows = _rows(page.data)
            for row in rows:
                yield row
            if not rows or not page.data.get("has_more"):
                return
            after = str(rows[-1].get("id"))


def _plain(answer: Any) -> dict[str, Any]:
    """Return an object of the SDK as the JSON that it was."""
    if not isinstance(answer, stripe.StripeObject):
        raise GatewayTimeout("the answer is nonsense: no object")
    found: dict[str, Any] = answer.to_dict()
    return found


def _rows(page: Any) -> list[dict[str, Any]]:
    rows = page.get("data") if isinstance(page, Mapping) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise GatewayTimeout("the answer is nonsense: no list")
    return rows


def _checked_refund(refund: Mapping[str, Any], amount: Money) -> str:
    id = refund.get("id")
    if refund.get("object") != "refund" or not isinstance(id, str) or not id.startswith("re_"):
        raise ResponseMismatch("wrong_id", "the answer is no refund")
    if refund.get("amount") != amount.amount or str(refund.get("currency")).upper() != amount.currency:
        raise ResponseMismatch("wrong_amount", "the refund is of another amount", id[:255])
    return id[:255]


def _reason(error: stripe.StripeError) -> str:
    """Return the code of a refusal; never its words."""
    body = error.json_body if isinstance(error.json_body, Mapping) else {}
    said = body.get("error")
    said = said if isinstance(said, Mapping) else {}
    return str(said.get("decline_code") or said.get("code") or said.get("type") or "declined")[:REASON_MAX]


def _since(order_id: str) -> int:
    """Return from when on the order's charge may have been made, in seconds since 1970."""
    placed = time_of_id(order_id)
    return 0 if placed is None else int(placed.timestamp()) - SKEW_SECONDS
