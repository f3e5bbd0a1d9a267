"""What is counted and logged of orders: each status that one reaches, how long it took to its end, and a line for that."""

from __future__ import annotations

__all__ = ["order_observers"]

from typing import TYPE_CHECKING

from app.runtime.work import WorkItem
from app.telemetry.logs import log_fast
from app.telemetry.metrics import Metrics
from app.telemetry.trace import trace_id
from modules.inventory.events import StockReserved
from modules.module import Decision
from modules.orders.events import OrderCancelled, OrderConfirmed, OrderCreated

if TYPE_CHECKING:
    from app.runtime.runner import CommitListener


def order_observers(metrics: Metrics) -> dict[type, CommitListener]:
    """Return who is to be told of which event that orders hear or say."""
    accepted = metrics.orders.labels("processing")
    reserved = metrics.orders.labels("reserved")
    confirmed = metrics.orders.labels("confirmed")
    cancelled = metrics.orders.labels("cancelled")
    duration = metrics.order_duration_seconds

    def placed(event: OrderCreated, decision: Decision, item: WorkItem) -> None:
        accepted.inc()

    def held(event: StockReserved, decision: Decision, item: WorkItem) -> None:
        if decision.states:  # to the others it is old news
            reserved.inc()

    def over(event: OrderConfirmed | OrderCancelled, decision: Decision, item: WorkItem) -> None:
        (order,) = decision.states
        is_confirmed = isinstance(event, OrderConfirmed)
        (confirmed if is_confirmed else cancelled).inc()
        seconds = (order.updated_at - order.created_at).total_seconds()
        # Who cancels what was confirmed days ago did not wait for it all the time.
        if is_confirmed or not any(entry["event"] == "orders.confirmed" for entry in order.timeline):
            duration.observe(seconds)
        log_fast(
            __name__, "order is over", order_id=order.order_id, status=order.status.value, reason=order.reason,
            seconds=round(seconds, 4), correlation_id=item.origin_trace.correlation_id, trace_id=trace_id(item.origin_trace.traceparent),
        )  # fmt: skip

    return {OrderCreated: placed, StockReserved: held, OrderConfirmed: over, OrderCancelled: over}
