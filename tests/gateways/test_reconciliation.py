"""Our books beside the provider's list."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import attrs
import pytest

from app.gateways.port import ChargeRecord
from app.gateways.reconciliation import compare
from bus.ids import time_of_id
from modules.payments.state import Payment, PaymentStatus
from modules.values import Money
from tests.runtime.harness import oid

PLACED = time_of_id(oid(0))
assert PLACED is not None
SINCE, UNTIL = PLACED - timedelta(minutes=1), PLACED + timedelta(minutes=1)
CAPTURED, REFUNDED = PaymentStatus.CAPTURED, PaymentStatus.REFUNDED


def ours(n: int, status: PaymentStatus = CAPTURED, amount: int = 100) -> Payment:
    return Payment(
        order_id=oid(n), status=status, amount=amount, currency="EUR", reference=f"pi_{n}", updated_at=SINCE
    )


def theirs(n: int, amount: int = 100, back: int = 0, **changes: Any) -> ChargeRecord:
    fields: dict[str, Any] = {
        "reference": f"pi_{n}",
        "order_id": oid(n),
        "amount": Money(amount, "EUR"),
        "is_captured": True,
        "refunded_amount": back,
        "created_at": UNTIL + timedelta(hours=1),  # long after the order was placed
    }
    return ChargeRecord(**(fields | changes))


async def kinds(payments: list[Payment], *records: ChargeRecord) -> list[tuple[str, str | None]]:
    """Return what differs, and the references."""

    async def listed() -> AsyncIterator[ChargeRecord]:
        for record in records:
            yield record

    report = await compare(payments, listed(), SINCE, UNTIL)
    return [(difference.kind, difference.reference) for difference in report.differences]


async def test_books_that_agree_differ_in_nothing() -> None:
    """Taken, given back, refused and free alike."""
    payments = [
        ours(1),
        ours(2, REFUNDED),
        ours(3, PaymentStatus.DECLINED),
        ours(4, PaymentStatus.PENDING),
        ours(5, amount=0),
    ]
    refused = theirs(3, is_captured=False)
    assert await kinds(payments, theirs(1), theirs(2, back=100), refused) == []


@pytest.mark.parametrize(
    ("payment", "records", "expected"),
    [
        (ours(1), [], [("missing", "pi_1")]),
        (ours(1), [theirs(1, is_captured=False)], [("missing", "pi_1")]),
        (ours(1), [theirs(1, amount=101)], [("amount", "pi_1")]),
        (ours(1), [theirs(1, back=1)], [("refunded", "pi_1")]),
        (ours(1, REFUNDED), [theirs(1)], [("refunded", "pi_1")]),
        (ours(1), [theirs(1), theirs(1, reference="pi_x")], [("extra", "pi_x")]),
        (ours(1), [theirs(1), theirs(1, reference="pi_x", back=100)], []),
        (ours(1), [theirs(1, reference="pi_x")], [("extra", "pi_x"), ("missing", "pi_1")]),
        (ours(1, PaymentStatus.PENDING), [theirs(1)], [("extra", "pi_1")]),
        (ours(1, PaymentStatus.DECLINED), [theirs(1)], [("extra", "pi_1")]),
        (ours(1, PaymentStatus.UNKNOWN), [theirs(1, back=100)], []),
    ],
)
async def test_whatever_differs_is_said(payment: Payment, records: list[ChargeRecord], expected: list[Any]) -> None:
    """Missing, extra, another amount, another refund; what went back as a whole is nobody's money any more."""
    assert await kinds([payment], *records) == expected


async def test_another_currency_is_another_amount() -> None:
    """A hundred cents are not a hundred yen."""
    assert await kinds([ours(1)], attrs.evolve(theirs(1), amount=Money(100, "JPY"))) == [("amount", "pi_1")]


async def test_strangers_count_by_their_own_time() -> None:
    """A charge that names no order of ours, or nothing that could be one."""
    inside, outside = SINCE + timedelta(seconds=1), UNTIL
    for order_id in None, "42":
        stranger = theirs(1, order_id=order_id, created_at=inside)
        assert await kinds([], stranger) == [("extra", "pi_1")]
        assert await kinds([], theirs(1, order_id=order_id, created_at=outside)) == []


async def test_orders_of_another_time_are_left_out() -> None:
    """Their charges are in the list because a charge comes later than its order."""
    later = "0199fe10-0000-7000-8000-000000000001"
    assert await kinds([], theirs(1, order_id=later)) == []


@pytest.mark.parametrize("id", [None, "", "42", "0199fe00-0000-4000-8000-000000000001", "x" * 36])
def test_what_is_no_orders_id_has_no_time(id: str | None) -> None:
    """Only a UUIDv7 begins with the milliseconds."""
    assert time_of_id(id) is None
    assert time_of_id("0199fe00-0000-7000-8000-000000000001") == datetime.fromtimestamp(0x0199FE000000 / 1000, UTC)
