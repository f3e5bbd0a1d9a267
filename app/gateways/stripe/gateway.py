"""
The gateway for Stripe, over Stripe's SDK: PaymentIntents that are created and confirmed in one call, and refunds.

The idempotency key of a charge belongs to its order. So does the metadata entry ``order_id``, by which a charge whose
response got lost is found in Stripe's list. Stripe's list reflects every write at once; its search does not.
"""

from __future__ import annotations

__all__ = ["StripeGateway"]

import logging
from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from math import ceil
from typing import Any

import stripe
from aiohttp import ClientTimeout
from loguru import logger

from app.gateways.port import (
    Captured,
    ChargeDetails,
    ChargeRecord,
    ChargeResult,
    Declined,
    GatewayNotReached,
    GatewayTimeout,
    Pending,
    Refunded,
    RefundPending,
    RefundRejected,
    RefundResult,
    ResponseMismatch,
)
from app.gateways.stripe.charge_lookup import ChargeLookup
from app.gateways.stripe.currencies import from_stripe, to_stripe
from app.gateways.stripe.http_session import CALL_SECONDS, CONNECT_SECONDS, READ_SECONDS, StripeSession, classify_errors
from app.gateways.stripe.list_cursor import ListCursor
from app.gateways.stripe.payment_intent import REASON_MAX, PaymentIntent, charge_result
from bus.ids import time_of_id
from modules.values import Money

PAGE = 100
SMALL_PAGE = 25
"""A compatible server that cannot filter may take seconds for a page of a long list; it must stay below our time limits."""

SKEW_SECONDS = 300
"""How far Stripe's clock and ours may differ."""

REFERENCE_MAX = 255
"""The length of the database column for the provider's ids."""

TEST_KEY = "sk_test_"
TEST_PAYMENT_METHOD = "pm_card_visa"
"""What an order without a payment method is paid with in Stripe's test mode; in live mode it is declined."""

_OPEN_STATUSES = ("requires_action", "requires_confirmation")
_COUNTED_STATUSES = ("succeeded", "pending", "requires_action")
"""The statuses of refunds whose amount Stripe subtracts from what can still be refunded."""


class StripeGateway:
    """Charge and refund through Stripe; see `app.gateways.port.Gateway` for what is promised."""

    name = "stripe"

    def __init__(self, api_key: str, api_base: str, calls_max: int = 100) -> None:
        # The SDK logs too much of each call, at DEBUG even the content of responses.
        logging.getLogger("stripe").setLevel(logging.WARNING)
        stripe.enable_telemetry = False
        self._session = StripeSession(calls_max)
        timeout = ClientTimeout(total=CALL_SECONDS, sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS)
        self._client = stripe.StripeClient(
            api_key,
            base_addresses={"api": api_base},
            http_client=stripe.AIOHTTPClient(timeout=timeout, session=self._session),
            max_network_retries=0,
        )
        self._default_payment_method = TEST_PAYMENT_METHOD if api_key.startswith(TEST_KEY) else None
        self._charge_lookup = ChargeLookup(self._list_unread)
        self._can_filter = True
        self._cursor = ListCursor()

    async def charge(self, key: str, order_id: str, amount: Money, details: ChargeDetails) -> ChargeResult:
        """Create a PaymentIntent and confirm it, in one call."""
        if amount.amount == 0:
            return Captured(f"free_{order_id}")
        payment_method = details.payment_method or self._default_payment_method
        if payment_method is None:
            return Declined("payment_method_missing")
        params: Any = {
            "amount": _stripe_amount(amount),
            "currency": amount.currency.lower(),
            "confirm": True,
            "payment_method": payment_method,
            # Other types that are enabled in Stripe's dashboard may redirect the customer to another page.
            "payment_method_types": ["card"],
            "metadata": {"order_id": order_id, "key": key},
        }
        try:
            created = await classify_errors(
                self._client.v1.payment_intents.create_async(params, {"idempotency_key": key})
            )
        except stripe.CardError as error:
            return Declined(_error_code(error))
        except stripe.InvalidRequestError as error:
            logger.warning("the provider rejected a charge as invalid", order_id=order_id, code=_error_code(error))
            return Declined(_error_code(error))
        intent = PaymentIntent.of(_to_json(created))
        intent.check(order_id, amount)
        if intent.status in _OPEN_STATUSES:
            return await self._cancel(intent, order_id, amount)
        return charge_result([intent]) or Pending(intent.id)

    async def find(self, key: str, order_id: str, amount: Money) -> ChargeResult | None:
        """Look for PaymentIntents that name the order in Stripe's list."""
        return await self._look_up(order_id, amount, cancels_open=False)

    async def cancel(self, key: str, order_id: str, amount: Money) -> ChargeResult | None:
        """Do the same as `find`, and cancel a PaymentIntent that waits for a confirmation."""
        return await self._look_up(order_id, amount, cancels_open=True)

    async def refund(self, key: str, order_id: str, reference: str, amount: Money) -> RefundResult:
        """Look for a refund of the PaymentIntent *reference* under *key*, and create one if there is none."""
        if amount.amount == 0:
            return Refunded(reference, 0)
        total = None
        refunds = self._client.v1.refunds
        try:
            listed = await classify_errors(refunds.list_async({"payment_intent": reference, "limit": PAGE}))
            rows = _rows(_to_json(listed))
            total = sum(row["amount"] for row in rows if row.get("status") in _COUNTED_STATUSES)
            for row in rows:
                if _key_of(row) == key:
                    return _refund_result(row, amount, total)
            metadata = {"order_id": order_id, "key": key}
            params: Any = {"payment_intent": reference, "amount": _stripe_amount(amount), "metadata": metadata}
            created = await classify_errors(refunds.create_async(params, {"idempotency_key": key}))
        except stripe.StripeError as error:  # CardError or InvalidRequestError; `classify_errors` converts all others
            return RefundRejected(_error_code(error), refunded_total=total)
        return _refund_result(_to_json(created), amount, total + amount.amount)

    async def records(self, since: datetime, until: datetime) -> AsyncIterator[ChargeRecord]:
        """Yield the PaymentIntents that were created from *since* until *until*."""
        async for row in self._list_intents(int(since.timestamp()), before=ceil(until.timestamp()), with_charges=True):
            record = PaymentIntent.of(row).record()
            if since <= record.created_at < until:
                yield record

    async def order_of(self, reference: str) -> str | None:
        """Return the id of the order that the PaymentIntent *reference* names."""
        row = await self._retrieve(reference)
        return None if row is None else PaymentIntent.of(row).order_id

    async def close(self) -> None:
        """Cancel look-ups and close all connections."""
        await self._charge_lookup.close()
        await self._session.close()

    async def _look_up(self, order_id: str, amount: Money, *, cancels_open: bool) -> ChargeResult | None:
        if amount.amount == 0:
            return Captured(f"free_{order_id}")
        intents = [PaymentIntent.of(row) for row in await self._intents_of(order_id)]
        for intent in intents:
            intent.check(order_id, amount)
        result = charge_result(intents)
        if result is not None:
            return result
        for intent in intents:
            if intent.status == "requires_action" or (cancels_open and intent.status in _OPEN_STATUSES):
                result = await self._cancel(intent, order_id, amount)
        return result

    async def _intents_of(self, order_id: str) -> list[Mapping[str, Any]]:
        """Return all PaymentIntents that name the order, those that an earlier scan has read included."""
        rows = {row.get("id"): row for row in await self._charge_lookup.find(order_id, _earliest_charge(order_id))}
        for id in self._cursor.ids(order_id):
            if id not in rows and (row := await self._retrieve(id)) is not None:
                rows[id] = row
        return list(rows.values())

    async def _cancel(self, intent: PaymentIntent, order_id: str, amount: Money) -> ChargeResult:
        """Cancel *intent*, which waits for the customer, who is no longer present; return what became of it."""
        try:
            response = await classify_errors(self._client.v1.payment_intents.cancel_async(intent.id))
        except stripe.StripeError:
            return Pending(intent.id)  # its status has changed meanwhile; the next look-up finds the new one
        cancelled = PaymentIntent.of(_to_json(response))
        cancelled.check(order_id, amount)
        if cancelled.status == "canceled":
            return Declined("authentication_required" if intent.status == "requires_action" else "canceled")
        return charge_result([cancelled]) or Pending(intent.id)

    async def _retrieve(self, reference: str) -> Mapping[str, Any] | None:
        """Return the present state of a PaymentIntent; None if there is none."""
        try:
            return _to_json(await classify_errors(self._client.v1.payment_intents.retrieve_async(reference)))
        except stripe.StripeError:
            return None

    async def _list_unread(self, since: int) -> AsyncIterator[Mapping[str, Any]]:
        """Yield the PaymentIntents created at *since* or later; if the list cannot be filtered, those after the cursor."""
        first = last = None
        async for row in self._list_intents(since, None if self._can_filter else self._cursor.after):
            if not self._can_filter:
                first, last = first or row, row
                self._cursor.add(row)
            yield row
        if first is not None and last is not None:
            self._cursor.advance(first, last)

    async def _list_intents(
        self, since: int, after: str | None = None, *, before: int | None = None, with_charges: bool = False
    ) -> AsyncIterator[Mapping[str, Any]]:
        """
        Yield all PaymentIntents created at *since* or later, and earlier than *before*, as plain JSON.

        With *after*, the list starts behind the PaymentIntent of that id.
        """
        while True:
            params: Any = {"limit": PAGE if self._can_filter else SMALL_PAGE}
            if with_charges:
                params["expand"] = ["data.latest_charge"]
            if self._can_filter:
                params["created"] = {"gte": since} if before is None else {"gte": since, "lt": before}
            if after is not None:
                params["starting_after"] = after
            try:
                # A raw request: converting the list to the SDK's objects takes three times as long as reading it.
                page = await classify_errors(self._client.raw_request_async("get", "/v1/payment_intents", **params))
            except stripe.StripeError as error:
                if self._can_filter and after is None and error.http_status == 400:
                    self._can_filter = False  # a compatible server that has no filter: read the whole list
                    continue
                raise GatewayTimeout(f"the provider rejected the list request: {_error_code(error)}") from None
            rows = _rows(page.data)
            for row in rows:
                yield row
            if not rows or not page.data.get("has_more"):
                return
            after = str(rows[-1].get("id"))


def _to_json(response: Any) -> dict[str, Any]:
    """Return an object of the SDK as the JSON that it was made from."""
    if not isinstance(response, stripe.StripeObject):
        raise GatewayTimeout("malformed response: not an object")
    value: dict[str, Any] = response.to_dict()
    return value


def _rows(page: Any) -> list[dict[str, Any]]:
    rows = page.get("data") if isinstance(page, Mapping) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise GatewayTimeout("malformed response: not a list")
    return rows


def _key_of(refund: Mapping[str, Any]) -> str | None:
    """Return the key under which *refund* was made; None if it was not made here. Releases before 0.3 made one per order."""
    metadata = refund.get("metadata") or {}
    key = metadata.get("key")
    if key is None and "order_id" in metadata:
        return f"refund:{metadata['order_id']}"
    return None if key is None else str(key)


def _refund_result(refund: Mapping[str, Any], amount: Money, total: int) -> RefundResult:
    """Return the result that *refund* stands for; *total* is what was refunded of its charge altogether."""
    id, status = _refund_id(refund, amount), refund.get("status")
    if status in ("failed", "canceled"):
        return RefundRejected(f"refund_{status}", refunded_total=total, reference=id)
    return Refunded(id, total) if status == "succeeded" else RefundPending(id, total)


def _refund_id(refund: Mapping[str, Any], amount: Money) -> str:
    """
    Return the id of *refund*.

    Raises:
        ResponseMismatch: It is not a refund, or one of another amount or currency.
    """
    id = refund.get("id")
    if refund.get("object") != "refund" or not isinstance(id, str) or not id.startswith("re_"):
        raise ResponseMismatch("wrong_id", "the response is not a refund")
    if from_stripe(refund.get("amount"), refund.get("currency")) != amount:
        raise ResponseMismatch("wrong_amount", "the refund is for another amount", id[:REFERENCE_MAX])
    return id[:REFERENCE_MAX]


def _error_code(error: stripe.StripeError) -> str:
    """Return the code of an error; never its text."""
    body = error.json_body if isinstance(error.json_body, Mapping) else {}
    value = body.get("error")
    details = value if isinstance(value, Mapping) else {}
    return str(details.get("decline_code") or details.get("code") or details.get("type") or "declined")[:REASON_MAX]


def _stripe_amount(amount: Money) -> int:
    """
    Return *amount* in the units that Stripe counts in.

    Raises:
        GatewayNotReached: It cannot be charged; it comes from a price that was set before prices were checked.
    """
    try:
        return to_stripe(amount)
    except ValueError as error:
        raise GatewayNotReached(f"the amount cannot be charged: {error}") from None


def _earliest_charge(order_id: str) -> int:
    """Return the earliest time at which the order's charge may have been made, in seconds since 1970."""
    placed_at = time_of_id(order_id)
    return 0 if placed_at is None else int(placed_at.timestamp()) - SKEW_SECONDS
