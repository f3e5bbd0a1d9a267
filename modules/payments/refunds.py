"""
What the ledger of a payment makes necessary: refunds, their retries, and cases for a person.

- A cancelled order gets back what is left of its payment: not what the gateway refunded already or is about to refund.
- A refund that has failed for certain is requested again under a new key, after growing delays; see `RETRY_SECONDS`.
  One whose outcome is unknown is requested again under the same key.
- A pending refund is looked up, in case the gateway's notice gets lost; see `LOOK_UP_SECONDS`.
- Nothing is repeated without an end: then, and for a charge that is disputed, a person has to act (`Payment.is_open_case`).
"""

from __future__ import annotations

__all__ = [
    "DISPUTED",
    "OPEN_MAX",
    "concluded",
    "on_dispute",
    "on_order_refund",
    "on_refund_failed",
    "on_refund_processing",
    "on_refund_reported",
    "on_refund_succeeded",
    "with_total",
]

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import attrs

from modules.module import CancelTimer, Decision, Scheduled, evolve, no_change
from modules.orders.events import OrderRefundRequested
from modules.payments.events import (
    DisputeReported,
    RefundFailed,
    RefundProcessing,
    RefundReported,
    RefundRequested,
    RefundSucceeded,
)
from modules.payments.ledger import (
    Dispute,
    DisputeStatus,
    Ledger,
    Refund,
    RefundStatus,
    own_refund,
    with_dispute,
    with_new_refund,
    with_refund,
    with_refund_failed,
    with_refund_tried,
)
from modules.payments.refund_events import money_of, refund_failed, refunds_booked
from modules.payments.state import CANCEL, NO_ANSWER, NO_LEDGER, Payment, PaymentStatus
from modules.values import rfc3339

HOUR = 3600
RETRY_SECONDS = (2, 4, 8, 15, 30, 60, 120, 300, 900, HOUR, 6 * HOUR, 12 * HOUR, 24 * HOUR)
"""Delays of the attempts that follow a definite failure, such as a lack of balance; after the last one a person has to act."""

LOOK_UP_SECONDS = (60, 300, 1800, 2 * HOUR, 6 * HOUR)
"""Delays of the look-ups of a pending refund; the last one is repeated."""

OPEN_MAX = timedelta(days=30)
"""How long a refund without a final status is requested and looked up, and the charge of a cancelled order."""

REASON_MAX = 64
"""The length of the database column for reasons."""

DISPUTED = "disputed"
PENDING_REASON = "refund_pending"


def concluded(before: Payment, after: Payment, now: datetime, *emitted: Any, is_notice: bool = False) -> Decision:
    """
    Return the decision that turns *before* into *after*: its status, its events, and the refunds that become necessary.

    *emitted* are events that come first. After a notice the timers of refunds that it ended are cancelled.
    """
    if after.status not in (PaymentStatus.CAPTURED, PaymentStatus.REFUNDED):
        return Decision((evolve(after, updated_at=now),), emitted)
    events = [*emitted]
    ended = [
        refund
        for refund in _ledger(after).refunds
        if refund.key_number is not None
        and refund.status in (RefundStatus.SUCCEEDED, RefundStatus.FAILED)
        and ((known := own_refund(_ledger(before), refund.key_number)) is None or known.status is not refund.status)
    ]
    if is_notice:
        events += [CancelTimer(_timer(after, refund)) for refund in ended]
    is_refunded = after.kept == 0 and any(each.status is RefundStatus.SUCCEEDED for each in _ledger(after).refunds)
    is_refunded = is_refunded or (after.captured > 0 and after.kept == 0)
    after = evolve(after, status=PaymentStatus.REFUNDED if is_refunded else PaymentStatus.CAPTURED, updated_at=now)
    amount = after.refunded - before.refunded
    returned = [each for each in ended if each.status is RefundStatus.FAILED and _has_succeeded(before, each)]
    events += refunds_booked(after, amount + sum(each.amount for each in returned), ended)
    failed = [each for each in ended if each.status is RefundStatus.FAILED]
    requests: list[Any] = []
    for refund in failed:
        after, retry = _retry(after, refund, now)
        requests += retry
    after, rest = _refund_rest(after, now)
    requests += rest
    is_new_case = after.is_open_case and not before.is_open_case
    is_final = not requests
    for refund in failed:
        reason, has_returned = refund.reason or "", refund in returned
        events.append(refund_failed(after, refund.amount, reason, refund.id, is_final=is_final, has_returned=has_returned))
    if amount < 0 and not failed:
        events.append(refund_failed(after, -amount, "refund_failed", None, is_final=is_final, has_returned=True))
    elif is_new_case and not failed:
        reason = DISPUTED if _is_disputed(after) else NO_ANSWER
        events.append(refund_failed(after, after.refundable or after.pending, reason, None, is_final=True))
    return Decision((evolve(after, reason=_reason(after)),), (*events, *requests))


def with_total(payment: Payment, total: int) -> Payment:
    """Return *payment* joined with *total*, what the gateway has refunded of the charge altogether."""
    ledger = _ledger(payment)
    return payment if total <= ledger.refunded_total else evolve(payment, ledger=attrs.evolve(ledger, refunded_total=total))


def on_refund_succeeded(payment: Payment, event: RefundSucceeded, now: datetime) -> Decision:
    """Book the refund."""
    after = _with_answer(payment, event.key_number, event.reference, RefundStatus.SUCCEEDED, now)
    after = with_total(after, event.refunded_total)
    return no_change() if after == payment else concluded(payment, after, now)


def on_refund_processing(payment: Payment, event: RefundProcessing, now: datetime) -> Decision:
    """Book the refund as pending, and schedule its next look-up."""
    after = _with_answer(payment, event.key_number, event.reference, RefundStatus.PENDING, now)
    after = with_total(after, event.refunded_total)
    refund = own_refund(_ledger(after), event.key_number)
    if refund is None or refund.status is not RefundStatus.PENDING:
        return no_change() if after == payment else concluded(payment, after, now)
    return _again(payment, after, refund, PENDING_REASON, 1, _look_up_seconds(refund), now)


def on_refund_failed(payment: Payment, event: RefundFailed, now: datetime) -> Decision:
    """
    Request the refund again: under the same key while its outcome is unknown, else under a new one.

    A definite failure without a reference means that no refund was made. For a pending refund, only its look-up has failed then.
    """
    after = with_total(_with_line(payment, event.key_number, now), event.refunded_total)
    refund = own_refund(_ledger(after), event.key_number)
    if refund is None or (refund.status is RefundStatus.SUCCEEDED and event.reference is None):
        return no_change()
    is_look_up = refund.status is RefundStatus.PENDING and event.reference is None
    if event.is_definite and not is_look_up:
        if event.reference is not None:
            after = _with_answer(after, event.key_number, event.reference, RefundStatus.FAILED, now, event.reason)
        else:
            after = evolve(after, ledger=with_refund_failed(_ledger(after), event.key_number, event.reason))
        return no_change() if after == payment else concluded(payment, after, now)
    if refund.status is RefundStatus.FAILED:
        return no_change()
    seconds = max(event.retry_seconds, _look_up_seconds(refund)) if event.is_definite else event.retry_seconds
    return _again(payment, after, refund, event.reason, event.calls, seconds, now)


def on_refund_reported(payment: Payment, notice: RefundReported, now: datetime) -> Decision:
    """Join the ledger with the gateway's notice about one refund."""
    reported = Refund(
        amount=notice.amount.amount,
        status=RefundStatus(notice.status),
        at=rfc3339(now),
        key_number=notice.key_number,
        reference=notice.refund_reference,
        reason=None if notice.reason is None else notice.reason[:REASON_MAX],
    )
    after = evolve(payment, ledger=with_refund(_ledger(payment), reported))
    return no_change() if after.ledger == payment.ledger else concluded(payment, after, now, is_notice=True)


def on_dispute(payment: Payment, notice: DisputeReported, now: datetime) -> Decision:
    """
    Join the ledger with the gateway's notice about a dispute.

    The customer's bank may state the amount in a currency of its own; then the whole payment is taken as disputed.
    """
    amount = notice.amount.amount if notice.amount.currency == payment.currency else payment.amount or 0
    reported = Dispute(
        reference=notice.dispute_reference,
        amount=amount,
        status=DisputeStatus(notice.status),
        at=rfc3339(now),
    )
    after = evolve(payment, ledger=with_dispute(_ledger(payment), reported))
    return no_change() if after.ledger == payment.ledger else concluded(payment, after, now)


def on_order_refund(payment: Payment, event: OrderRefundRequested, now: datetime) -> Decision:
    """Request from the provider the refund that orders has requested, unless it is more than is left."""
    if any(refund.id == event.refund_id for refund in _ledger(payment).refunds):
        return no_change()
    reason = None
    if _is_disputed(payment):
        reason = DISPUTED
    elif payment.status not in (PaymentStatus.CAPTURED, PaymentStatus.REFUNDED) or event.amount.currency != payment.currency:
        reason = "not_captured"
    elif event.amount.amount > payment.refundable:
        reason = "exceeds_kept"
    if reason is not None:
        return no_change(refund_failed(payment, event.amount.amount, reason, event.refund_id, is_final=True))
    after, request = _request(payment, event.refund_id, event.amount.amount, 0, now)
    return concluded(payment, after, now, request)


def _look_up_seconds(refund: Refund) -> float:
    return LOOK_UP_SECONDS[min(refund.tries, len(LOOK_UP_SECONDS) - 1)]


def _retry(payment: Payment, failed: Refund, now: datetime) -> tuple[Payment, list[Any]]:
    """Return what follows from *failed*, a refund that orders requested; the rest of a cancelled order covers it."""
    if failed.id in (None, CANCEL) or payment.is_cancelled or _is_disputed(payment):
        return payment, []
    return _request_again(payment, str(failed.id), min(failed.amount, payment.refundable), now)


def _refund_rest(payment: Payment, now: datetime) -> tuple[Payment, list[Any]]:
    """Return the refund of what is left of a cancelled order's payment."""
    ledger = _ledger(payment)
    is_free = payment.amount == 0 and not ledger.refunds
    if not payment.is_cancelled or not (payment.refundable or is_free):
        return payment, []
    if ledger.keeps_rest or _is_disputed(payment) or any(each.reason == NO_ANSWER for each in ledger.refunds):
        return payment, []
    return _request_again(payment, CANCEL, payment.refundable, now)


def _request_again(payment: Payment, id: str, amount: int, now: datetime) -> tuple[Payment, list[Any]]:
    """Request a refund for *id*, after the delay that its failed refunds call for; not if there were too many."""
    failures = sum(each.id == id and each.status is RefundStatus.FAILED for each in _ledger(payment).refunds)
    if failures > len(RETRY_SECONDS) or (amount == 0 and payment.amount != 0):
        return payment, []
    payment, request = _request(payment, id, amount, RETRY_SECONDS[failures - 1] if failures else 0, now)
    return payment, [request]


def _request(payment: Payment, id: str, amount: int, seconds: float, now: datetime) -> tuple[Payment, Any]:
    ledger, refund = with_new_refund(_ledger(payment), id, amount, rfc3339(now))
    payment = evolve(payment, ledger=ledger)
    request = _refund_request(payment, refund)
    return payment, Scheduled(request, now + timedelta(seconds=seconds), _timer(payment, refund)) if seconds else request


def _again(
    before: Payment, after: Payment, refund: Refund, reason: str, calls: int, seconds: float, now: datetime
) -> Decision:
    """Return the decision to request *refund* again under the same key, or to give it up after `OPEN_MAX`."""
    assert refund.key_number is not None
    is_given_up = now - datetime.fromisoformat(refund.at) > OPEN_MAX
    ledger = with_refund_tried(_ledger(after), refund.key_number, calls, NO_ANSWER if is_given_up else reason)
    after = evolve(after, ledger=ledger)
    decision = concluded(before, after, now)
    if is_given_up:
        return decision
    tried = own_refund(ledger, refund.key_number)
    assert tried is not None
    again = Scheduled(_refund_request(after, tried), now + timedelta(seconds=seconds), _timer(after, refund))
    return Decision(decision.states, (*decision.events, again))


def _with_line(payment: Payment, key_number: int, now: datetime) -> Payment:
    """Return *payment* with the refund that a release without ledgers has requested, if there is no other."""
    if key_number != 1 or _ledger(payment).refunds:
        return payment
    ledger, _ = with_new_refund(_ledger(payment), CANCEL, payment.kept, rfc3339(now))
    return payment if payment.status is PaymentStatus.REFUNDED else evolve(payment, ledger=ledger)


def _with_answer(
    payment: Payment, key_number: int, reference: str, status: RefundStatus, now: datetime, reason: str | None = None
) -> Payment:
    """Return *payment* joined with the gateway's answer to a request."""
    payment = _with_line(payment, key_number, now)
    ledger = _ledger(payment)
    own = own_refund(ledger, key_number)
    if own is None:
        return payment
    reported = attrs.evolve(own, status=status, reference=reference, reason=reason)
    return evolve(payment, ledger=with_refund(ledger, reported))


def _refund_request(payment: Payment, refund: Refund) -> RefundRequested:
    assert payment.reference is not None
    assert refund.key_number is not None
    return RefundRequested(
        order_id=payment.order_id,
        amount=money_of(payment, refund.amount),
        reference=payment.reference,
        attempt=refund.tries + 1,
        key_number=refund.key_number,
    )


def _has_succeeded(payment: Payment, refund: Refund) -> bool:
    """Return whether *refund*, one of our own, has succeeded in *payment*."""
    assert refund.key_number is not None
    known = own_refund(_ledger(payment), refund.key_number)
    return known is not None and known.status is RefundStatus.SUCCEEDED


def _is_disputed(payment: Payment) -> bool:
    """Return whether a person has to decide about refunds: while a dispute is open, after a lost one, and in such a case."""
    is_case = payment.is_cancelled and payment.reason == DISPUTED
    return is_case or _ledger(payment).dispute in (DisputeStatus.OPEN, DisputeStatus.LOST)


def _reason(payment: Payment) -> str | None:
    """Return the code of the refund that is missing; None if there is none. A case for a person always has one."""
    if payment.status is PaymentStatus.REFUNDED:
        return None
    if payment.is_open_case and _is_disputed(payment):
        return DISPUTED
    return _missing_reason(payment) or ("refund_failed" if payment.is_open_case else None)


def _missing_reason(payment: Payment) -> str | None:
    last = next((each for each in reversed(_ledger(payment).refunds) if each.key_number is not None), None)
    if last is None or last.status is RefundStatus.SUCCEEDED:
        return None
    return last.reason or next(_reasons(payment, last), None)


def _reasons(payment: Payment, last: Refund) -> Iterator[str]:
    """Yield the reasons of the earlier attempts of *last*, the newest first."""
    for each in reversed(_ledger(payment).refunds):
        if each.id == last.id and each.reason is not None:
            yield each.reason


def _ledger(payment: Payment) -> Ledger:
    return payment.ledger or NO_LEDGER


def _timer(payment: Payment, refund: Refund) -> str:
    return f"refund:{payment.order_id}:{refund.key_number}"
