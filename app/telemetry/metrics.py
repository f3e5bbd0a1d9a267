"""
Every number that the house shows at ``/metrics``, under the names of the public contract.

Bind children once and keep them (``sent = metrics.messages_published.labels(subject)``, then ``sent.inc()``); looking
one up costs twice as much as filling it. A family without labels has one child, and that is what stands here.
"""

from __future__ import annotations

__all__ = ["CONTENT_TYPE", "Metrics"]

from aioprometheus.collectors import Registry
from aioprometheus.formats.text import TEXT_CONTENT_TYPE

from app.telemetry import process
from app.telemetry.collectors import Counter, Counters, Formatter, Gauge, Gauges, Histogram, Histograms

CONTENT_TYPE = TEXT_CONTENT_TYPE
"""Of what `Metrics.render` returns."""

METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"})

_HTTP = (0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.04, 0.06, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_HANDLE = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
_LAG = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_ORDER = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0)


class Metrics:
    """The metrics of one running application, in a registry of their own."""

    http_requests: Counters
    """By method, route (the template, or "unmatched") and status."""
    http_request_seconds: Histograms
    """By route."""
    messages_published: Counters
    """By subject."""
    messages_handled: Counters
    """By module, subject and outcome."""
    message_handle_seconds: Histograms
    """By module."""
    message_lag_seconds: Histograms
    """By module; from said until handled."""
    outbox_pending: Gauges
    """By module; of its whole table, which replicas may share."""
    outbox_oldest_seconds: Gauges
    """By module."""
    dead_letters: Counters
    """By consumer and subject."""
    orders: Counters
    """By status."""
    order_duration_seconds: Histogram
    circuit_breaker_state: Gauges
    """By gateway."""
    payment_attempts: Counters
    """By outcome."""
    bus_connected: Gauge
    bus_reconnects: Counter

    def __init__(self) -> None:
        own = self._registry = Registry()
        self.http_requests = Counters(
            own,
            "http_requests_total",
            "Requests answered, by route template and status.",
            ["method", "route", "status"],
            allowed={"method": METHODS},
        )
        self.http_request_seconds = Histograms(
            own, "http_request_seconds", "Time from a request's head to its answer.", ["route"], _HTTP
        )
        self.messages_published = Counters(
            own, "messages_published_total", "Messages that have arrived, over the bus or the short way.", ["subject"]
        )
        self.messages_handled = Counters(
            own,
            "messages_handled_total",
            "Messages that a module has seen through, by what became of them.",
            ["module", "subject", "outcome"],
        )
        self.message_handle_seconds = Histograms(
            own, "message_handle_seconds", "Time in hand: from fetched to settled.", ["module"], _HANDLE
        )
        self.message_lag_seconds = Histograms(
            own, "message_lag_seconds", "Time from an event's being said to its being handled.", ["module"], _LAG
        )
        self.outbox_pending = Gauges(
            own, "outbox_pending", "Events in the module's database, due, that the bus has not taken yet.", ["module"]
        )
        self.outbox_oldest_seconds = Gauges(
            own, "outbox_oldest_seconds", "Age of the oldest of them; 0 when there is none.", ["module"]
        )
        self.dead_letters = Counters(
            own, "dead_letters_total", "Messages that a consumer has given up on.", ["consumer", "subject"]
        )
        self.orders = Counters(own, "orders_total", "Orders that have reached a status, if only in passing.", ["status"])
        self.order_duration_seconds = Histograms(
            own, "order_duration_seconds", "Time from an order's acceptance to its first end.", [], _ORDER
        ).labels()
        self.circuit_breaker_state = Gauges(own, "circuit_breaker_state", "0 closed, 1 half-open, 2 open.", ["gateway"])
        self.payment_attempts = Counters(
            own, "payment_attempts_total", "Calls to a payment gateway, by how they ended.", ["outcome"]
        )
        self.bus_connected = Gauges(own, "bus_connected", "1 while a publish has a chance, 0 otherwise.").labels()
        self.bus_reconnects = Counters(
            own, "bus_reconnects_total", "How often the connection to the bus was made anew."
        ).labels()

        Gauges(own, "process_resident_memory_bytes", "Memory that the process occupies.").labels().set_function(
            process.resident_bytes
        )
        Counters(own, "process_cpu_seconds_total", "CPU time spent, user and system.").labels().set_function(
            process.cpu_seconds
        )
        Gauges(
            own, "process_start_time_seconds", "When the process was started, in seconds since 1970."
        ).labels().set_function(process.started_at)

    def render(self) -> bytes:
        """Return everything in Prometheus' text format, version 0.0.4."""
        return Formatter().marshall(self._registry)
