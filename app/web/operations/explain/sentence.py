"""The sentence that describes the state of an order, what the order waits for, and until when."""

from __future__ import annotations

__all__ = ["Standing", "summary", "waiting_for"]

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from attrs import field, frozen

from bus.port import WAITS
from modules.values import decimal_text

Json = Mapping[str, Any]

USUAL_DELIVERY = timedelta(seconds=2)
"""The sentence names an event that was published this long ago and is not delivered."""

REASONS: Mapping[str, str] = {
    "insufficient_stock": "there was not enough stock",
    "mixed_currency": "its prices have different currencies",
    "payment_declined": "the payment was declined",
    "payment_unavailable": "the payment provider could not be reached",
    "requested": "a client requested it",
    "timed_out": "it was not finished in time",
    "unknown_product": "there is no such product",
}


@frozen(kw_only=True)
class Standing:
    """What is known of an order, as the API shows each part; None where it is not known."""

    order: Json
    now: datetime
    events: Sequence[Json] = ()
    timers: Sequence[Json] = ()
    payment: Json | None = None
    reservation: Json | None = None
    dead_letters: Sequence[Json] = ()
    gateway: Json | None = None
    """As the overview shows it."""
    unreachable: Sequence[str] = ()
    first_timers: Mapping[str, str] = field(init=False)
    """When the next timer of each kind is due."""

    def __attrs_post_init__(self) -> None:
        due: dict[str, str] = {}
        for timer in sorted(self.timers, key=lambda timer: str(timer["due_at"])):
            due.setdefault(timer["name"].partition(":")[0], timer["due_at"])
        object.__setattr__(self, "first_timers", due)

    def at(self, event: str) -> str | None:
        """Return when the timeline has *event* last."""
        times = [entry["at"] for entry in self.order["timeline"] if entry["event"] == event]
        return str(times[-1]) if times else None

    def shown(self, at: str | None) -> str:
        """Return the time of day in UTC, with the date unless it is that of today."""
        if at is None:
            return "an unknown time"
        moment = datetime.fromisoformat(at).astimezone(UTC)
        return moment.strftime("%H:%M:%S" if moment.date() == self.now.astimezone(UTC).date() else "%Y-%m-%d %H:%M:%S")


def waiting_for(standing: Standing) -> dict[str, Any] | None:
    """Return what the order waits for, since when and until when; None if it waits for nothing."""
    order, until = standing.order, standing.first_timers.get("timeout")
    if order["status"] == "processing":
        return {"what": "stock", "since": order["created_at"], "until": until}
    if order["status"] == "reserved":
        since = standing.at("inventory.reserved") or order["updated_at"]
        what = "person" if standing.payment is not None and standing.payment.get("needs_settling") else "payment"
        return {"what": what, "since": since, "until": until}
    pending = [refund for refund in order.get("refunds", ()) if refund["status"] == "pending"]
    if pending:
        return {"what": "refund", "since": pending[0]["at"], "until": None}
    if standing.payment is not None and standing.payment.get("needs_settling"):
        return {"what": "person", "since": standing.payment["updated_at"], "until": None}
    return None


def summary(standing: Standing) -> str:
    """Return the sentence that describes *standing*."""
    clauses = {"processing": _processing, "reserved": _reserved, "confirmed": _confirmed, "cancelled": _cancelled}
    parts = clauses[standing.order["status"]](standing)
    if standing.unreachable:
        names = " and ".join(standing.unreachable)
        parts = [*parts, f"what {names} would add is not known, because {'it gives' if len(standing.unreachable) == 1 else 'they give'} no answer"]
    return "; ".join(parts) + "."


def _processing(standing: Standing) -> list[str]:
    parts = [f"Accepted at {standing.shown(standing.order['created_at'])}"]
    parts.append(_hindrance(standing, "orders.created") or "waits for the stock to be reserved")
    return [*parts, *_deadline(standing)]


def _reserved(standing: Standing) -> list[str]:
    shown = standing.shown
    parts = [f"Reserved since {shown(standing.at('inventory.reserved') or standing.order['updated_at'])}"]
    subjects = ("inventory.reserved", "payments.charge_requested", "payments.captured", "payments.declined")
    payment = standing.payment or {}
    if payment.get("needs_settling"):
        why = f" ({payment['reason']})" if payment.get("reason") else ""
        parts.append(f"waits for a person: the response of the payment provider contradicts the request{why}; find out at the provider, and settle it")
    elif (dead := _dead(standing, *subjects)) is not None:
        parts.append(dead)
    elif (breaker := _breaker(standing, "charge", "look_up" if payment.get("attempts") else "charge")) is not None:
        parts.append(f"waits for the payment provider, {breaker}")
    elif (retry := standing.first_timers.get("charge")) is not None:
        tried = payment.get("attempts")
        calls = f", which was called {tried} {'time' if tried == 1 else 'times'} so far" if isinstance(tried, int) and tried else ""
        parts.append(f"waits for the payment provider{calls}; the next attempt is at {shown(retry)}")
    elif (undelivered := _undelivered(standing, *subjects)) is not None:
        parts.append(undelivered)
    elif standing.order.get("waiting_for") == "payment":
        parts.append("waits for the payment provider")
    else:
        parts.append("waits for the payment")
    return [*parts, *_deadline(standing)]


def _confirmed(standing: Standing) -> list[str]:
    order, at = standing.order, standing.at("orders.confirmed")
    took = ""
    if at is not None:
        seconds = (datetime.fromisoformat(at) - datetime.fromisoformat(order["created_at"])).total_seconds()
        took = f", {_duration(seconds)} after it was placed"
    return [f"Confirmed at {standing.shown(at)}{took}", *(_refunds(standing) or ["waits for nothing"])]


def _cancelled(standing: Standing) -> list[str]:
    order = standing.order
    reason = REASONS.get(order["reason"], order["reason"])
    parts = [f"Cancelled at {standing.shown(standing.at('orders.cancelled'))} because {reason} ({order['reason']})"]
    if standing.reservation is not None and standing.reservation["status"] == "held":
        parts.append(_hindrance(standing, "orders.cancelled") or "its stock is still held")
    elif standing.reservation is not None and standing.reservation["status"] == "released" and standing.reservation["lines"]:
        parts.append("its stock is released")
    return [*parts, *(_refunds(standing) or _uncharged(standing))]


def _uncharged(standing: Standing) -> list[str]:
    status = None if standing.payment is None else standing.payment["status"]
    return ["nothing was charged"] if status == "declined" or (standing.payment is None and "payments" not in standing.unreachable) else []


def _refunds(standing: Standing) -> list[str]:
    payment, parts = standing.payment or {}, []
    if payment.get("needs_settling"):
        parts.append("its payment waits for a person to settle it")
    refunds = standing.order.get("refunds", ())
    done = [refund for refund in refunds if refund["status"] == "succeeded"]
    if done:
        parts.append(f"{_money(done)} was refunded")
    pending = [refund for refund in refunds if refund["status"] == "pending"]
    if pending:
        retry = standing.first_timers.get("refund")
        breaker = _breaker(standing, "refund")
        how = f", and is tried again at {standing.shown(retry)}" if retry else ""
        how = f", and waits for the payment provider, {breaker}" if breaker else how
        parts.append(f"a refund of {_money(pending)} is pending since {standing.shown(pending[0]['at'])}{how}")
    if any(refund["status"] == "failed" for refund in refunds):
        parts.append("a refund has failed")
    return parts


def _breaker(standing: Standing, *operations: str) -> str | None:
    """Return which breaker of *operations* is not closed, and since when; None if all are closed, or it is not known."""
    gateway = standing.gateway or {}
    for operation in operations:
        state, since = gateway.get("breakers", {}).get(operation, "closed"), gateway.get("since", {}).get(operation)
        if state != "closed":
            how = "is open" if state == "open" else "is tried again"
            return f"whose breaker for {operation.replace('_', '-')}s {how}{f' since {standing.shown(since)}' if since else ''}"
    return None


def _deadline(standing: Standing) -> list[str]:
    due = standing.first_timers.get("timeout")
    return [] if due is None else [f"cancelled at {standing.shown(due)} if nothing comes"]


def _hindrance(standing: Standing, *subjects: str) -> str | None:
    """Return what keeps an event under one of *subjects* from its consumer; None if nothing does."""
    return _dead(standing, *subjects) or _undelivered(standing, *subjects)


def _dead(standing: Standing, *subjects: str) -> str | None:
    for letter in standing.dead_letters:
        if letter["error"] == WAITS and letter["subject"].startswith(subjects):
            return f"{letter['subject']} is not processed by {letter['consumer']}: it {letter['detail']}"
        if letter["subject"].startswith(subjects):
            return (
                f"{letter['consumer']} could not process {letter['subject']}, which is a dead letter ({letter['error']}):"
                " remove the cause and replay it"
            )
    return None


def _undelivered(standing: Standing, *subjects: str) -> str | None:
    for event in reversed(standing.events):
        is_old = standing.now - datetime.fromisoformat(event["at"]) >= USUAL_DELIVERY
        if is_old and event["subject"].startswith(subjects) and event["delivery"] == "pending":
            return f"{event['subject']} is not delivered since {standing.shown(event['at'])}"
    return None


def _money(refunds: Sequence[Json]) -> str:
    total, currency = sum(refund["amount"]["amount"] for refund in refunds), refunds[0]["amount"]["currency"]
    return f"{decimal_text(total, currency)} {currency}"


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
