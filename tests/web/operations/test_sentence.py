"""The sentence that describes an order, for each kind of standing."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from app.web.operations.explain.sentence import Standing, summary, waiting_for

NOW = datetime(2026, 1, 1, 10, 5, tzinfo=UTC)
DAY = "2026-01-01T"
TIMEOUT = {"module": "orders", "name": "timeout:o-1", "subject": "orders.timed_out.v1", "due_at": f"{DAY}10:17:11.000000Z"}
RETRY = {"module": "payments", "name": "charge:o-1", "subject": "payments.charge_requested.v1", "due_at": f"{DAY}10:06:00.000000Z"}
REFUND = {"amount": {"amount": 1250, "currency": "EUR"}, "status": "succeeded", "at": f"{DAY}10:04:00.000000Z"}


def order(status: str, *timeline: tuple[str, str], **more: Any) -> dict[str, Any]:
    entries = [{"event": "orders.created", "at": f"{DAY}10:02:10.000000Z"}]
    entries += [{"event": event, "at": f"{DAY}{at}.000000Z"} for event, at in timeline]
    shown = {"order_id": "o-1", "status": status, "reason": None, "timeline": entries, "created_at": entries[0]["at"]}
    return {**shown, "updated_at": entries[-1]["at"], **more}


RESERVED = order("reserved", ("inventory.reserved", "10:02:11"))
OPEN = {"name": "stripe", "breakers": {"charge": "open"}, "since": {"charge": f"{DAY}10:01:50.000000Z"}}
LOOK_UP = {"name": "stripe", "breakers": {"charge": "closed", "look_up": "open"}, "since": {}}


def letter(consumer: str, subject: str, error: str = "undecidable", detail: str = "") -> dict[str, Any]:
    return {"consumer": consumer, "subject": subject, "error": error, "detail": detail}


def pending(subject: str, at: str) -> dict[str, Any]:
    return {"subject": subject, "delivery": "pending", "at": f"{DAY}{at}.000000Z"}


CASES: list[tuple[str, dict[str, Any], str]] = [
    (
        "the breaker is open", {"order": RESERVED, "timers": [TIMEOUT], "gateway": OPEN},
        "Reserved since 10:02:11; waits for the payment provider, whose breaker for charges is open since 10:01:50;"
        " cancelled at 10:17:11 if nothing comes.",
    ),
    (
        "the breaker of look-ups is open", {"order": RESERVED, "gateway": LOOK_UP, "payment": {"attempts": 1}, "timers": [RETRY]},
        "Reserved since 10:02:11; waits for the payment provider, whose breaker for look-ups is open.",
    ),
    (
        "the next attempt is later", {"order": RESERVED, "timers": [RETRY, TIMEOUT], "payment": {"attempts": 2}},
        "Reserved since 10:02:11; waits for the payment provider, which was called 2 times so far; the next attempt is at 10:06:00;"
        " cancelled at 10:17:11 if nothing comes.",
    ),
    (
        "it is in progress", {"order": RESERVED, "events": [pending("payments.charge_requested.v1", "10:04:59")]},
        "Reserved since 10:02:11; waits for the payment.",
    ),
    (
        "the bus is away", {"order": RESERVED, "events": [pending("inventory.reserved.v1", "10:02:11")], "timers": [TIMEOUT]},
        "Reserved since 10:02:11; inventory.reserved.v1 is not delivered since 10:02:11; cancelled at 10:17:11 if nothing comes.",
    ),
    (
        "a dead letter", {"order": RESERVED, "dead_letters": [letter("payments", "inventory.reserved.v1")]},
        "Reserved since 10:02:11; payments could not process inventory.reserved.v1, which is a dead letter (undecidable):"
        " remove the cause and replay it.",
    ),
    (
        "a dead letter before it", {"order": RESERVED, "dead_letters": [letter("orders", "payments.captured.v1", "waits", "waits for the dead letter 7")]},
        "Reserved since 10:02:11; payments.captured.v1 is not processed by orders: it waits for the dead letter 7.",
    ),
    (
        "a person", {"order": RESERVED, "payment": {"needs_settling": True, "reason": "amount_differs", "updated_at": ""}, "gateway": OPEN},
        "Reserved since 10:02:11; waits for a person: the response of the payment provider contradicts the request (amount_differs);"
        " find out at the provider, and settle it.",
    ),
    (
        "just placed", {"order": order("processing"), "timers": [TIMEOUT]},
        "Accepted at 10:02:10; waits for the stock to be reserved; cancelled at 10:17:11 if nothing comes.",
    ),
    (
        "placed, and inventory is away", {"order": order("processing"), "unreachable": ["inventory"]},
        "Accepted at 10:02:10; waits for the stock to be reserved; what inventory would add is not known, because it gives no answer.",
    ),
    (
        "confirmed", {"order": order("confirmed", ("inventory.reserved", "10:02:10"), ("orders.confirmed", "10:02:12"))},
        "Confirmed at 10:02:12, 2.0 s after it was placed; waits for nothing.",
    ),
    (
        "confirmed, on another day", {"order": order("confirmed", ("orders.confirmed", "10:02:10")), "now": datetime(2026, 1, 2, tzinfo=UTC)},
        "Confirmed at 2026-01-01 10:02:10, 0 ms after it was placed; waits for nothing.",
    ),
    (
        "partly refunded", {"order": order("confirmed", ("orders.confirmed", "10:02:10"), refunds=[REFUND])},
        "Confirmed at 10:02:10, 0 ms after it was placed; 12.50 EUR was refunded.",
    ),
    (
        "cancelled, nothing was charged", {"order": order("cancelled", ("orders.cancelled", "10:02:12"), reason="insufficient_stock")},
        "Cancelled at 10:02:12 because there was not enough stock (insufficient_stock); nothing was charged.",
    ),
    (
        "cancelled, and payments is away",
        {"order": order("cancelled", ("orders.cancelled", "10:02:12"), reason="timed_out"), "unreachable": ["payments", "inventory"]},
        "Cancelled at 10:02:12 because it was not finished in time (timed_out); what payments and inventory would add is not known,"
        " because they give no answer.",
    ),
    (
        "cancelled, the refund waits for the provider",
        {
            "order": order("cancelled", ("orders.cancelled", "10:04:00"), reason="requested", refunds=[{**REFUND, "status": "pending"}]),
            "reservation": {"status": "released", "lines": [{}]}, "payment": {"status": "captured"},
            "gateway": {"breakers": {"refund": "half_open"}, "since": {"refund": f"{DAY}10:03:00.000000Z"}},
        },
        "Cancelled at 10:04:00 because a client requested it (requested); its stock is released; a refund of 12.50 EUR is pending since"
        " 10:04:00, and waits for the payment provider, whose breaker for refunds is tried again since 10:03:00.",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("facts", "sentence"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_the_sentence_describes_the_order(facts: dict[str, Any], sentence: str) -> None:
    """What it waits for, since when, until when, and what to do about it."""
    assert summary(Standing(**{"now": NOW, **facts})) == sentence


@pytest.mark.parametrize(
    ("facts", "what", "since", "until"),
    [
        ({"order": order("processing"), "timers": [TIMEOUT]}, "stock", "10:02:10", "10:17:11"),
        ({"order": RESERVED, "timers": [TIMEOUT]}, "payment", "10:02:11", "10:17:11"),
        ({"order": RESERVED, "payment": {"needs_settling": True}}, "person", "10:02:11", None),
        ({"order": order("confirmed", refunds=[{**REFUND, "status": "pending"}])}, "refund", "10:04:00", None),
    ],
)
def test_what_it_waits_for_is_also_there_for_programs(facts: dict[str, Any], what: str, since: str, until: str | None) -> None:
    """The same as members; an order that waits for nothing has null."""
    found = waiting_for(Standing(now=NOW, **facts))
    assert found == {"what": what, "since": f"{DAY}{since}.000000Z", "until": None if until is None else f"{DAY}{until}.000000Z"}
    assert waiting_for(Standing(now=NOW, order=order("confirmed", refunds=[REFUND]))) is None
