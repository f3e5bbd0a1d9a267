"""The HTTP routes of payments."""

from __future__ import annotations

__all__ = ["routes", "show"]

from operator import attrgetter
from typing import Any

import attrs

from modules.filters import Filter, Match, created_between
from modules.module import DecisionOutcome
from modules.payments.events import SettleImpossible, SettleRequested
from modules.payments.ledger import Refund
from modules.payments.state import Payment, PaymentStatus
from modules.routes import CommandRoute, GetRoute, ListRoute, Rejection, Request, Response, Route
from modules.values import rfc3339


def show(payment: Payment) -> dict[str, Any] | None:
    """Return the JSON representation of *payment* with its ledger, or None if no charge was ever requested."""
    shown = show_in_list(payment)
    if shown is not None and payment.ledger is not None:
        ledger = payment.ledger
        shown["refunds"] = [_show_refund(refund) for refund in ledger.refunds]
        shown["disputes"] = [attrs.asdict(dispute) for dispute in ledger.disputes]
        if ledger.settled is not None:
            settled = ledger.settled
            shown["settled"] = {"outcome": settled.outcome, "reason": settled.reason, "at": settled.at}
    return shown


def show_in_list(payment: Payment) -> dict[str, Any] | None:
    """Return the JSON representation of *payment* without its ledger, or None if no charge was ever requested."""
    if payment.amount is None:
        return None
    dispute = payment.dispute
    shown: dict[str, Any] = {
        "order_id": payment.order_id,
        "status": payment.status.value,
        "amount": {"amount": payment.amount, "currency": payment.currency},
        "refunded": {"amount": payment.refunded, "currency": payment.currency},
        "refund_status": payment.refund_status,
        "dispute": None if dispute is None else dispute.value,
        "needs_settling": payment.is_open_case,
        "attempts": payment.calls,
        "reference": payment.reference,
        "updated_at": rfc3339(payment.updated_at),
    }
    if payment.reason is not None:
        shown["reason"] = payment.reason
    return shown


def _show_refund(refund: Refund) -> dict[str, Any]:
    """Return *refund* without what concerns only the calls to the gateway."""
    shown = {"amount": refund.amount, "status": refund.status.value, "at": refund.at}
    for name in ("id", "key_number", "reference", "reason"):
        if (value := getattr(refund, name)) is not None:
            shown[name] = value
    return shown


def _to_settle_requested(request: Request) -> SettleRequested:
    return SettleRequested(
        order_id=request.path["order_id"], outcome=request.body["outcome"], why=request.body["reason"]
    )


def _respond_settled(outcome: DecisionOutcome) -> Response | Rejection:
    match outcome.events:
        case (SettleImpossible(code=None),):
            return Rejection(404, "payment_not_found", "There is no payment of this order.")
        case (SettleImpossible(code=str(code), detail=detail),):
            return Rejection(409, code, detail)
    (payment,) = outcome.states
    assert payment is not None
    return Response(200, show(payment))


routes: tuple[Route, ...] = (
    GetRoute(
        name="getPayment",
        path="/v1/payments/{order_id}",
        summary="Show an order's payment",
        roles=("viewer",),
        state=Payment,
        show=show,
        response_schema="Payment",
    ),
    ListRoute(
        name="listPayments",
        path="/v1/payments",
        summary="List payments, the newest orders first",
        roles=("viewer",),
        state=Payment,
        show=show_in_list,
        response_schema="Payment",
        newest_first=True,
        filters=(
            Filter(
                *("needs_settling", {"type": "string", "enum": ["true"]}, "Payments that wait for a person.", Match.PRESENT),
                columns=("reason",),
                is_indexed=True,
                keeps=attrgetter("is_open_case"),
            ),
            Filter(
                *("status", {"type": "string", "enum": [status.value for status in PaymentStatus]}),
                "Several values by commas.",
                takes_list=True,
            ),
            *created_between("Payments of orders placed", "order_id"),
        ),
    ),
    CommandRoute(
        name="settlePayment",
        method="POST",
        path="/v1/payments/{order_id}/settle",
        summary="Close the case of a payment that waits for a person",
        request_schema="SettleRequest",
        event=_to_settle_requested,
        respond=_respond_settled,
        response_schema="Payment",
        rejections=(404, 409),
    ),
)
