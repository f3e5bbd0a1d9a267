"""Our payments compared with the provider's list."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import attrs
import pytest

from app.gateways.port import ChargeRecord
from app.gateways.reconciliation import compare
from bus.ids import time_of_id
from modules.payments.ledger import Dispute, DisputeStatus, Ledger, Refund, RefundStatus, Settlement
from modules.payments.state import Payment, PaymentStatus
from modules.values import Money
from tests.runtime.harness import oid

PLACED = time_of_id(oid(0))
assert PLACED is not None
SINCE, UNTIL = PLACED - timedelta(minutes=1), PLACED + timedelta(minutes=1)
CAPTURED, REFUNDED = PaymentStatus.CAPTURED, PaymentStatus.REFUNDED


def our_payment(n: int, status: PaymentStatus = CAPTURED, amount: int = 100) -> Payment:
    return Payment(
        order_id=oid(n), status=status, amount=amount, currency="EUR", reference=f"pi_{n}", updated_at=SINCE
    )


def charge_record(n: int, amount: int = 100, refunded: int = 0, **changes: Any) -> ChargeRecord:
    fields: dict[str, Any] = {
        "reference": f"pi_{n}",
        "order_id": oid(n),
        "amount": Money(amount, "EUR"),
        "is_captured": True,
        "refunded_amount": refunded,
        "created_at": UNTIL + timedelta(hours=1),  # long after the order was placed
    }
    return ChargeRecord(**(fields | changes))


async def differences_of(payments: list[Payment], *records: ChargeRecord) -> list[tuple[str, str | None]]:
    """Return the kind and the reference of each difference."""

    async def records_of_provider() -> AsyncIterator[ChargeRecord]:
        for record in records:
            yield record

    report = await compare(payments, records_of_provider(), SINCE, UNTIL)
    return [(difference.kind, difference.reference) for difference in report.differences]


async def test_payments_that_match_the_charges_have_no_differences() -> None:
    """Captured, refunded, declined, pending and free payments match."""
    payments = [
        our_payment(1),
        our_payment(2, REFUNDED),
        our_payment(3, PaymentStatus.DECLINED),
        our_payment(4, PaymentStatus.PENDING),
        our_payment(5, amount=0),
    ]
    declined = charge_record(3, is_captured=False)
    assert await differences_of(payments, charge_record(1), charge_record(2, refunded=100), declined) == []


@pytest.mark.parametrize(
    ("payment", "records", "expected"),
    [
        (our_payment(1), [], [("missing", "pi_1")]),
        (our_payment(1), [charge_record(1, is_captured=False)], [("missing", "pi_1")]),
        (our_payment(1), [charge_record(1, amount=101)], [("amount", "pi_1")]),
        (our_payment(1), [charge_record(1, refunded=1)], [("refunded", "pi_1")]),
        (our_payment(1, REFUNDED), [charge_record(1)], [("refunded", "pi_1")]),
        (our_payment(1), [charge_record(1), charge_record(1, reference="pi_x")], [("extra", "pi_x")]),
        (our_payment(1), [charge_record(1), charge_record(1, reference="pi_x", refunded=100)], []),
        (our_payment(1), [charge_record(1, reference="pi_x")], [("extra", "pi_x"), ("missing", "pi_1")]),
        (our_payment(1, PaymentStatus.PENDING), [charge_record(1)], [("extra", "pi_1")]),
        (our_payment(1, PaymentStatus.DECLINED), [charge_record(1)], [("extra", "pi_1")]),
        (our_payment(1, PaymentStatus.UNKNOWN), [charge_record(1, refunded=100)], []),
    ],
)
async def test_each_difference_is_reported(payment: Payment, records: list[ChargeRecord], expected: list[Any]) -> None:
    """Missing and extra charges, another amount, another refund. A fully refunded charge is no extra charge."""
    assert await differences_of([payment], *records) == expected


def with_ledger(payment: Payment, **changes: Any) -> Payment:
    return attrs.evolve(payment, ledger=Ledger(**changes))


def refund_line(amount: int, status: RefundStatus) -> Refund:
    return Refund(amount=amount, status=status, at="2026-01-01T00:00:00Z", key_number=1, id="cancel")


def dispute_line(status: DisputeStatus) -> Dispute:
    return Dispute(reference="dp_1", amount=100, status=status, at="2026-01-01T00:00:00Z")


PART = with_ledger(our_payment(1), refunds=(refund_line(40, RefundStatus.SUCCEEDED),))
PENDING = with_ledger(our_payment(1), refunds=(refund_line(40, RefundStatus.PENDING),))
SETTLED = with_ledger(
    our_payment(1, REFUNDED),
    refunds=(Refund(amount=100, status=RefundStatus.SUCCEEDED, at="2026-01-01T00:00:00Z"),),
    settled=Settlement(outcome="refunded", reason="given back", at="2026-01-01T00:00:00Z"),
)


@pytest.mark.parametrize(
    ("payment", "record", "kinds"),
    [
        (PART, charge_record(1, refunded=40), []),
        (PART, charge_record(1, refunded=41), ["refunded"]),
        (PENDING, charge_record(1, refunded=0), []),
        (PENDING, charge_record(1, refunded=40), []),
        (PENDING, charge_record(1, refunded=41), ["refunded"]),
        (our_payment(1), charge_record(1, dispute="open"), ["disputed"]),
        (our_payment(1), charge_record(1, dispute="lost"), ["disputed"]),
        (our_payment(1), charge_record(1, dispute="won"), []),
        (with_ledger(our_payment(1), disputes=(dispute_line(DisputeStatus.LOST),)), charge_record(1), ["disputed"]),
        (with_ledger(our_payment(1), disputes=(dispute_line(DisputeStatus.OPEN),)), charge_record(1, dispute="open"), ["disputed"]),
        (with_ledger(our_payment(1), disputes=(dispute_line(DisputeStatus.WON),)), charge_record(1, dispute="open"), []),
        (with_ledger(our_payment(1), disputes=(dispute_line(DisputeStatus.WON),)), charge_record(1, dispute="lost"), ["disputed"]),
        (SETTLED, charge_record(1, amount=110, refunded=110), []),
        (SETTLED, charge_record(1, amount=110, refunded=100), ["amount"]),
    ],
)
async def test_refunds_in_parts_and_disputes_are_compared(payment: Payment, record: ChargeRecord, kinds: list[str]) -> None:
    """A pending refund may exist at the provider or not; a dispute that is open or lost is always reported."""
    assert [kind for kind, _ in await differences_of([payment], record)] == kinds


async def test_a_charge_in_another_currency_has_another_amount() -> None:
    """100 minor units of EUR are not 100 minor units of JPY."""
    assert await differences_of([our_payment(1)], attrs.evolve(charge_record(1), amount=Money(100, "JPY"))) == [("amount", "pi_1")]


async def test_a_charge_that_names_no_order_is_included_by_its_own_time() -> None:
    """The same holds for a charge that names something that cannot be the id of an order."""
    inside, outside = SINCE + timedelta(seconds=1), UNTIL
    for order_id in None, "42":
        record = charge_record(1, order_id=order_id, created_at=inside)
        assert await differences_of([], record) == [("extra", "pi_1")]
        assert await differences_of([], charge_record(1, order_id=order_id, created_at=outside)) == []


async def test_the_period_includes_its_begin_and_not_its_end() -> None:
    """For orders by the time in their id, and for charges without an order by their own time."""
    placed_at, second = UNTIL - timedelta(minutes=1), timedelta(seconds=1)
    periods = (placed_at, UNTIL), (SINCE, placed_at), (placed_at - second, placed_at + second)
    for order_id in oid(1), None:
        record = charge_record(1, order_id=order_id, created_at=placed_at)

        async def records(record: ChargeRecord = record) -> AsyncIterator[ChargeRecord]:
            yield record

        assert [(await compare([], records(), *period)).charges for period in periods] == [1, 0, 1]


async def test_the_charges_of_orders_outside_the_period_are_left_out() -> None:
    """The provider lists them because a charge is made later than its order was placed."""
    later = "0199fe10-0000-7000-8000-000000000001"
    assert await differences_of([], charge_record(1, order_id=later)) == []


@pytest.mark.parametrize("id", [None, "", "42", "0199fe00-0000-4000-8000-000000000001", "x" * 36])
def test_a_text_that_is_not_the_id_of_an_order_has_no_time(id: str | None) -> None:
    """Only a UUIDv7 begins with its time in milliseconds."""
    assert time_of_id(id) is None
    assert time_of_id("0199fe00-0000-7000-8000-000000000001") == datetime.fromtimestamp(0x0199FE000000 / 1000, UTC)
