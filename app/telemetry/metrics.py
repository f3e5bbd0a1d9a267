"""
All metrics at ``/metrics``, under the names of the public contract.

Bind children once and keep them (``sent = metrics.messages_published.labels(subject)``, then ``sent.inc()``); to look
one up costs twice as much as to update it. For a family without labels its only child is the attribute.
"""

from __future__ import annotations

__all__ = ["CONTENT_TYPE", "LAG_BOUNDS", "ORDER_BOUNDS", "Metrics"]

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from aioprometheus.collectors import Registry
from aioprometheus.formats.text import TEXT_CONTENT_TYPE

from app.telemetry import logs, process
from app.telemetry.collectors import Counter, Counters, Family, Formatter, Gauge, Gauges, Histogram, Histograms

if TYPE_CHECKING:
    from app.telemetry.otel.pipeline import OpenTelemetry
    from app.telemetry.otel.tracer import Tracer

CONTENT_TYPE = TEXT_CONTENT_TYPE
"""The content type of what `Metrics.render` returns."""

METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"})

_HTTP = (0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.04, 0.06, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_HANDLE = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
LAG_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
ORDER_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0)


class Metrics:
    """The metrics of one application, in a registry of their registry."""

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
    """By module; from the event's occurrence until it is handled."""
    outbox_pending: Gauges
    """By module; counted over the whole outbox, which replicas may share."""
    outbox_oldest_seconds: Gauges
    """By module."""
    module_leader: Gauges
    """By module."""
    dead_letters: Counters
    """By consumer and subject."""
    orders: Counters
    """By status."""
    orders_cancelled: Counters
    """By reason."""
    order_duration_seconds: Histogram
    circuit_breaker_state: Gauges
    """By gateway."""
    gateway_misconfigured: Gauges
    """By gateway and operation."""
    payment_attempts: Counters
    """By outcome."""
    payments_to_settle: Gauge
    ready: Gauge
    health_check_failed: Gauges
    """By check."""
    bus_connected: Gauge
    bus_reconnects: Counter
    clock_jump_seconds: Gauge
    telemetry_dropped: Counters
    """By signal: spans or metrics."""
    database_wal_bytes: Gauges
    """By module."""
    database_oldest_snapshot_seconds: Gauges
    """By module."""
    database_disk_free: Gauges
    """By module."""
    outbox_cap_used: Gauge
    archived: Counters
    """By module and kind."""

    collector: OpenTelemetry | None = None
    """What sends to a collector; `app.telemetry.otel.start` sets it, before anything is built that keeps the tracer."""

    def __init__(self) -> None:
        registry = self._registry = Registry()
        self.http_requests = Counters(
            registry,
            "http_requests_total",
            "Requests answered, by route template and status.",
            ["method", "route", "status"],
            allowed={"method": METHODS},
        )
        self.http_request_seconds = Histograms(
            registry, "http_request_seconds", "Time from the head of a request to its response.", ["route"], _HTTP
        )
        self.messages_published = Counters(
            registry, "messages_published_total", "Messages published, over the bus or by local delivery.", ["subject"]
        )
        self.messages_handled = Counters(
            registry,
            "messages_handled_total",
            "Messages that a module has handled, by outcome.",
            ["module", "subject", "outcome"],
        )
        self.message_handle_seconds = Histograms(
            registry, "message_handle_seconds", "Time from fetching a message to settling it.", ["module"], _HANDLE
        )
        self.message_lag_seconds = Histograms(
            registry, "message_lag_seconds", "Time from the occurrence of an event to its handling.", ["module"], LAG_BOUNDS
        )
        self.outbox_pending = Gauges(
            registry, "outbox_pending", "Due events in the module's outbox that the bus has not accepted yet.", ["module"]
        )
        self.outbox_oldest_seconds = Gauges(
            registry, "outbox_oldest_seconds", "Time for which the oldest of them has been due; 0 if there is none.", ["module"]
        )
        self.module_leader = Gauges(
            registry, "module_leader", "1 in the process that leads the module, 0 in one on standby.", ["module"]
        )
        self.dead_letters = Counters(
            registry, "dead_letters_total", "Messages that a consumer has dead-lettered.", ["consumer", "subject"]
        )
        self.orders = Counters(registry, "orders_total", "Orders that have reached a status, final or not.", ["status"])
        self.orders_cancelled = Counters(registry, "orders_cancelled_total", "Cancelled orders, by reason.", ["reason"])
        self.order_duration_seconds = Histograms(
            registry, "order_duration_seconds", "Time from the acceptance of an order to its first final status.", [], ORDER_BOUNDS
        ).labels()
        self.circuit_breaker_state = Gauges(registry, "circuit_breaker_state", "0 closed, 1 half-open, 2 open.", ["gateway"])
        self.gateway_misconfigured = Gauges(
            registry,
            "gateway_misconfigured",
            "1 while a payment gateway refuses our key, a permission, the account or a parameter; 0 otherwise.",
            ["gateway", "operation"],
        )
        self.payment_attempts = Counters(
            registry, "payment_attempts_total", "Calls to a payment gateway, by outcome.", ["outcome"]
        )
        self.payments_to_settle = Gauges(
            registry, "payments_to_settle", "Payments that wait for a person; at most 100 are counted."
        ).labels()
        self.ready = Gauges(registry, "ready", "1 while the process accepts requests, 0 otherwise.").labels()
        self.health_check_failed = Gauges(
            registry, "health_check_failed", "1 while a check of readiness finds something wrong, 0 otherwise.", ["check"]
        )
        self.bus_connected = Gauges(registry, "bus_connected", "1 while the bus accepts messages, 0 otherwise.").labels()
        self.bus_reconnects = Counters(
            registry, "bus_reconnects_total", "Reconnections to the bus."
        ).labels()
        self.archived = Counters(
            registry, "archived_total", "Finished states and old dead letters moved to the archive.", ["module", "kind"]
        )
        self.outbox_cap_used = Gauges(
            registry, "outbox_cap_used_ratio", "Share of OUTBOX_CAP that waits to be published; new orders get 503 above 1."
        ).labels()
        self.database_wal_bytes = Gauges(
            registry, "database_wal_bytes", "Size of the -wal file of the module's SQLite database; 0 for PostgreSQL.", ["module"]
        )
        self.database_oldest_snapshot_seconds = Gauges(
            registry, "database_oldest_snapshot_seconds", "Age of the oldest snapshot that a reader holds.", ["module"]
        )
        self.database_disk_free = Gauges(
            registry, "database_disk_free_ratio", "Free share of the disk with the module's SQLite database.", ["module"]
        )
        self.clock_jump_seconds = Gauges(
            registry, "clock_jump_seconds", "By how much the timers were moved at start because the clock had jumped."
        ).labels()

        self.telemetry_dropped = Counters(
            registry, "telemetry_dropped_total", "Spans and exports of metrics that the collector did not take.", ["signal"]
        )
        Counters(
            registry, "log_lines_dropped_total", "Log lines that stdout or the log file did not take."
        ).labels().set_function(logs.dropped)
        Gauges(registry, "process_resident_memory_bytes", "Resident memory of the process.").labels().set_function(
            process.resident_bytes
        )
        Counters(registry, "process_cpu_seconds_total", "CPU time spent, user and system.").labels().set_function(
            process.cpu_seconds
        )
        Gauges(
            registry, "process_start_time_seconds", "Start time of the process in seconds since 1970."
        ).labels().set_function(process.started_at)

    @property
    def tracer(self) -> Tracer | None:
        """What makes spans; None if none are sent."""
        return None if self.collector is None else self.collector.tracer

    @property
    def families(self) -> Mapping[str, Family[Any]]:
        """All metrics by name."""
        return {family.name: family for family in self._registry.get_all() if isinstance(family, Family)}

    def render(self) -> bytes:
        """Return all metrics in the Prometheus text format, version 0.0.4."""
        return Formatter().marshall(self._registry)
