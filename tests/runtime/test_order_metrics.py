"""What is counted about orders and payments."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

from loguru import logger

from app.runtime.order_metrics import CASES_MAX, OrderMetrics, count_open_cases, log_payment_cases
from app.telemetry.metrics import Metrics
from modules.filters import Condition
from modules.inventory.events import StockReserved
from modules.module import Decision
from modules.orders.events import CancelRequested, OrderCancelled, OrderConfirmed
from modules.orders.state import Order, Status
from modules.payments.events import DisputeReported, PaymentCaptured, PaymentRefundFailed, RefundFailed
from modules.payments.state import Payment
from modules.registry import load_module
from modules.values import Money
from tests.runtime.harness import CONTEXT, oid

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
EUR = Money(1, "EUR")


async def test_open_cases_are_the_payments_that_the_list_shows_as_such() -> None:
    """The condition is that of ``needs_settling=true``, which an index serves; states that it lets through wrongly do not count."""
    asked: list[Any] = []

    async def search(cls: type, conditions: Sequence[Condition], **page: Any) -> Any:
        asked.append((cls, [(each.filter.name, each.values) for each in conditions], page["limit"]))
        return [SimpleNamespace(is_open_case=True), SimpleNamespace(is_open_case=False)], None

    service: Any = SimpleNamespace(module=load_module("payments"), search=search)
    assert await count_open_cases(service) == 1
    assert asked == [(Payment, [("needs_settling", ("true",))], CASES_MAX)]


def test_the_time_of_an_order_is_that_to_its_first_end() -> None:
    """An order that is cancelled days after it was confirmed was not slow; one that is cancelled at first is timed."""
    metrics = Metrics()
    listen = OrderMetrics(metrics)

    def end(id: str, status: Status, seconds: float, *timeline: str) -> None:
        order = Order(
            order_id=id, customer_id="c", status=status, items=(), is_express=False, created_at=NOW,
            updated_at=NOW + timedelta(seconds=seconds), timeline=tuple({"event": each} for each in timeline),
        )  # fmt: skip
        if status is Status.CONFIRMED:
            confirmed = OrderConfirmed(order_id=id, customer_id="c", items=(), total=EUR)
            listen(PaymentCaptured(order_id=id, amount=EUR, reference="pi"), Decision((order,), (confirmed,)), CONTEXT)
        else:
            cancelled = OrderCancelled(order_id=id, customer_id="c", items=(), reason="requested")
            listen(CancelRequested(order_id=id, why=None), Decision((order,), (cancelled,)), CONTEXT)

    def timed() -> list[float]:
        lines = dict(line.split() for line in metrics.render().decode().splitlines() if line.startswith("order_duration_seconds_"))
        return [float(lines[f"order_duration_seconds_{each}"]) for each in ("count", "sum")]

    end(oid(1), Status.CONFIRMED, 2, "orders.created", "orders.confirmed")
    assert timed() == [1, 2]
    end(oid(1), Status.CANCELLED, 86_400, "orders.created", "orders.confirmed", "orders.cancelled")
    assert timed() == [1, 2]
    end(oid(2), Status.CANCELLED, 5, "orders.created", "orders.cancelled")
    assert timed() == [2, 7]


def test_a_reservation_counts_if_it_changes_the_order() -> None:
    """One that comes late, or for an order that has ended, does not."""
    metrics = Metrics()
    listen = OrderMetrics(metrics)
    event = StockReserved(order_id=oid(1), lines=(), total=EUR)
    listen(event, Decision(), CONTEXT)
    assert metrics.orders.labels("reserved").value == 0
    listen(event, Decision((object(),)), CONTEXT)
    assert metrics.orders.labels("reserved").value == 1


def test_only_what_a_person_has_to_settle_is_logged_as_an_error() -> None:
    """A refund that is made again is none; nor is a dispute that is known already."""

    def logged(event: Any, decision: Decision) -> list[str]:
        lines: list[str] = []
        sink = logger.add(lambda line: lines.append(line.record["level"].name), level="WARNING")
        log_payment_cases(event, decision, CONTEXT)
        logger.remove(sink)
        return lines

    failed = RefundFailed(order_id=oid(1), retry_seconds=1, is_definite=True, reason="expired")
    for is_final in False, True:
        reported = PaymentRefundFailed(order_id=oid(1), refund_id="r-1", amount=EUR, reason="expired", is_final=is_final)
        assert logged(failed, Decision((), (reported,))) == ["ERROR"] * is_final
        assert logged(PaymentCaptured(order_id=oid(1), amount=EUR, reference="pi"), Decision((), (reported,))) == []
    dispute = DisputeReported(order_id=oid(1), reference="pi", dispute_reference="dp", amount=EUR, status="open")
    assert logged(dispute, Decision()) == []
    assert logged(dispute, Decision((object(),))) == ["WARNING"]
