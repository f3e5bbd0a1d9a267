"""
Count and log what the modules commit.

Of orders each status that an order reaches, the time to its end, and one log line for the end; of payments each one that is
left to a person.
"""

from __future__ import annotations

__all__ = ["CASES_MAX", "OrderMetrics", "count_open_cases", "log_payment_cases"]

from collections.abc import Callable
from typing import Any

from loguru import logger

from app.runtime.service import ModuleService
from app.telemetry.logs import log_fast
from app.telemetry.metrics import Metrics
from app.telemetry.trace import TraceContext, trace_id
from modules.filters import Condition
from modules.inventory.events import StockReserved
from modules.module import Decision
from modules.orders.events import OrderCancelled, OrderConfirmed, OrderCreated, OrderRefundRequested
from modules.payments.events import (
    DisputeReported,
    PaymentRefundFailed,
    RefundFailed,
    RefundProcessing,
    RefundReported,
)
from modules.payments.state import Payment
from modules.routes import ListRoute

_CAUSES = frozenset({OrderCancelled, OrderRefundRequested, DisputeReported, RefundFailed, RefundProcessing, RefundReported})
"""The events that may lead to such a case. All others, which are nearly all, are skipped."""

CASES_MAX = 100
"""Payments that wait for a person, and that are counted; more do not change what is to be done."""


class OrderMetrics:
    """A commit listener of the module ``orders``."""

    def __init__(self, metrics: Metrics) -> None:
        self._processing = metrics.orders.labels("processing")
        self._reserved = metrics.orders.labels("reserved")
        self._confirmed = metrics.orders.labels("confirmed")
        self._cancelled = metrics.orders.labels("cancelled")
        self._by_reason = metrics.orders_cancelled
        self._duration_seconds = metrics.order_duration_seconds
        self._handlers: dict[type, Callable[[Any, Decision, TraceContext], None]] = {
            OrderCreated: self._on_created,
            StockReserved: self._on_stock_reserved,
            OrderConfirmed: self._on_end,
            OrderCancelled: self._on_end,
        }

    def __call__(self, event: Any, decision: Decision, trace: TraceContext) -> None:
        """Count what *event* and the events of its *decision* mean for an order."""
        handlers = self._handlers
        if (handler := handlers.get(type(event))) is not None:
            handler(event, decision, trace)
        for each in decision.events:
            if (handler := handlers.get(type(each))) is not None:
                handler(each, decision, trace)

    def _on_created(self, event: OrderCreated, decision: Decision, trace: TraceContext) -> None:
        self._processing.inc()

    def _on_stock_reserved(self, event: StockReserved, decision: Decision, trace: TraceContext) -> None:
        if decision.states:  # a stale event changes nothing
            self._reserved.inc()

    def _on_end(self, event: OrderConfirmed | OrderCancelled, decision: Decision, trace: TraceContext) -> None:
        (order,) = decision.states
        is_confirmed = isinstance(event, OrderConfirmed)
        (self._confirmed if is_confirmed else self._cancelled).inc()
        if not is_confirmed:
            self._by_reason.labels(order.reason or "").inc()
        seconds = (order.updated_at - order.created_at).total_seconds()
        # An order that is cancelled after it was confirmed had reached its end before: only the first end is timed.
        if is_confirmed or not any(entry["event"] == "orders.confirmed" for entry in order.timeline):
            self._duration_seconds.observe(seconds)
        log_fast(
            __name__, "order finished", order_id=order.order_id, status=order.status.value, reason=order.reason,
            seconds=round(seconds, 4), correlation_id=trace.correlation_id, trace_id=trace_id(trace.traceparent),
        )  # fmt: skip


def log_payment_cases(event: Any, decision: Decision, trace: TraceContext) -> None:
    """Log a dispute, and a refund that failed finally: a commit listener of the module ``payments``."""
    if type(event) not in _CAUSES:
        return
    for each in decision.events:
        if isinstance(each, PaymentRefundFailed) and each.is_final:
            logger.error(
                "a refund failed finally, and a person has to act: see `payments list --needs-settling`",
                order_id=each.order_id, refund_id=each.refund_id, amount=each.amount.amount,
                currency=each.amount.currency, reason=each.reason, correlation_id=trace.correlation_id,
            )  # fmt: skip
    if isinstance(event, DisputeReported) and decision.states:
        logger.warning(
            "the customer disputes a charge", order_id=event.order_id, status=event.status,
            reference=event.dispute_reference, amount=event.amount.amount, currency=event.amount.currency,
            correlation_id=trace.correlation_id,
        )  # fmt: skip


async def count_open_cases(service: ModuleService) -> int:
    """
    Return how many payments of *service*, the module ``payments``, wait for a person; at most `CASES_MAX`.

    Raises:
        StorageUnavailable: The database is out of reach.
    """
    filters = [each for route in service.module.routes if isinstance(route, ListRoute) for each in route.filters]
    (needs_settling,) = (each for each in filters if each.name == "needs_settling")
    wanted = [Condition(needs_settling, ("true",))]
    found, _ = await service.search(Payment, wanted, after=None, limit=CASES_MAX, newest_first=True)
    return sum(payment.is_open_case for payment in found)
