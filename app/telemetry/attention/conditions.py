"""
The table of all conditions that need attention.

``python -m app new documents`` writes Prometheus' rules, the panels with their thresholds and the table in the documents
from it, and `app.telemetry.attention.watch` checks it within the process. Add a row here, and nowhere else.
"""

from __future__ import annotations

__all__ = ["CONDITIONS"]

from app.telemetry.attention.checks import Increase, Level, Quantile, Scraped, Share
from app.telemetry.attention.condition import Condition, Severity
from app.telemetry.metrics import LAG_BOUNDS, ORDER_BOUNDS

_OPERATE = "howto/operate"
_NATS = "howto/operate-on-nats"
_PAYMENTS = "howto/payments"

_MINUTE = 60.0


def _failing(check: str, by: tuple[str, ...] = ("instance",)) -> Level:
    """Return what holds while the *check* of readiness, a regular expression of its name, finds something wrong."""
    return Level(metric="health_check_failed", by=by, where={"check": check}, comparison="==", threshold=1)


CONDITIONS: tuple[Condition, ...] = (
    Condition(
        name="ProcessAway",
        severity=Severity.PAGE,
        check=Scraped(measured='up{job="fulfilment"}', comparison="==", threshold=0),
        for_seconds=_MINUTE,
        sentence="{instance} does not answer.",
        do="See why it ended: exit code 3 is a dependency at its start.",
        guide=(_OPERATE, "When the server does not start"),
    ),
    Condition(
        name="NotReady",
        severity=Severity.PAGE,
        check=Level(metric="ready", worst="min", comparison="==", threshold=0),
        for_seconds=_MINUTE,
        sentence="{instance} runs and accepts no requests.",
        do="Read /readyz: it names the check that fails.",
        guide=(_OPERATE, "When a process is not ready"),
    ),
    Condition(
        name="DatabaseUnavailable",
        severity=Severity.PAGE,
        check=_failing("database:.*", by=("instance", "check")),
        for_seconds=30.0,
        sentence="{check} of {instance} is out of reach, cannot be written, or refuses work.",
        do="Read /readyz and the log: make room, end the lock, or correct the database.",
        guide=(_OPERATE, "When a database is unavailable"),
    ),
    Condition(
        name="OutboxStuck",
        severity=Severity.PAGE,
        check=Level(metric="outbox_oldest_seconds", by=("module",), threshold=60),
        for_seconds=_MINUTE,
        sentence="The oldest unsent event of {module} has waited {duration} for the bus.",
        do="Check NATS; nothing is lost.",
        guide=(_NATS, "NATS is unavailable"),
    ),
    Condition(
        name="OutboxFilling",
        severity=Severity.PAGE,
        check=Level(metric="outbox_cap_used_ratio", threshold=0.2),
        for_seconds=30.0,
        sentence="{share} of OUTBOX_CAP wait at {instance}; at 100 % new orders get 503.",
        do="Find out what holds the bus or its consumers up.",
        guide=(_OPERATE, "When orders are answered with 503 overloaded"),
    ),
    Condition(
        name="OldSnapshot",
        severity=Severity.TICKET,
        check=Level(metric="database_oldest_snapshot_seconds", by=("module",), threshold=300),
        for_seconds=_MINUTE,
        sentence="A reader of the database of {module} has held a snapshot for {duration}.",
        do="End the reader: files grow meanwhile.",
        guide=(_OPERATE, "When a transaction stays open for long"),
    ),
    Condition(
        name="DiskLow",
        severity=Severity.TICKET,
        check=Level(metric="database_disk_free_ratio", by=("module",), worst="min", comparison="<", threshold=0.05),
        for_seconds=5 * _MINUTE,
        sentence="{share} of the disk with the database of {module} are free.",
        do="Make room, or keep less.",
        guide=(_OPERATE, "When the disk is full"),
    ),
    Condition(
        name="ClockJumped",
        severity=Severity.TICKET,
        check=Level(metric="clock_jump_seconds", comparison="!=", threshold=0),
        sentence="The clock of {instance} was off by {duration} at its start; timers were moved.",
        do="Set the machine's clock right, then restart.",
        guide=(_OPERATE, "When the clock jumps"),
    ),
    Condition(
        name="ClockWrong",
        severity=Severity.TICKET,
        check=_failing("clock"),
        for_seconds=_MINUTE,
        sentence="The clock of {instance} does not agree with another one, or has jumped.",
        do="Set the machine's clock right, then restart.",
        guide=(_OPERATE, "When the clock jumps"),
    ),
    Condition(
        name="DeadLetters",
        severity=Severity.TICKET,
        check=Increase(
            metric="dead_letters_total", by=("consumer", "subject"), window_seconds=10 * _MINUTE, threshold=0,
            begins_with_first=True,
        ),
        sentence="{consumer} has a new dead letter with the subject {subject}.",
        do="Look at the groups; remove the cause, then replay them.",
        guide=(_OPERATE, "Handle dead letters"),
    ),
    Condition(
        name="BreakerOpen",
        severity=Severity.PAGE,
        check=Level(metric="circuit_breaker_state", by=("gateway",), comparison="==", threshold=2),
        for_seconds=_MINUTE,
        sentence="Calls to the payment provider {gateway} are suspended; orders or refunds wait.",
        do="Ask the provider; orders wait and continue by themselves.",
        guide=(_OPERATE, "When the circuit breaker is open"),
    ),
    Condition(
        name="GatewayMisconfigured",
        severity=Severity.PAGE,
        check=Level(metric="gateway_misconfigured", by=("gateway", "operation"), comparison="==", threshold=1),
        for_seconds=_MINUTE,
        sentence="{gateway} refuses our key, a permission, the account or a parameter ({operation}); /readyz names it.",
        do="Correct the key or the account; orders wait.",
        guide=(_PAYMENTS, "When Stripe does not accept the configuration"),
    ),
    Condition(
        name="PaymentsFailing",
        severity=Severity.TICKET,
        check=Share(
            metric="payment_attempts_total", where={"outcome": "unavailable|unknown"}, total="payment_attempts_total",
            by=(), window_seconds=5 * _MINUTE, threshold=0.2,
        ),
        for_seconds=5 * _MINUTE,
        sentence="{share} of the calls to the payment provider fail.",
        do="Ask the provider.",
        guide=(_PAYMENTS, "While the provider is unavailable"),
    ),
    Condition(
        name="PaymentsToSettle",
        severity=Severity.TICKET,
        check=Level(metric="payments_to_settle", by=(), threshold=0),
        for_seconds=5 * _MINUTE,
        sentence="Payments that wait for a person: {number}.",
        do="Find out at the provider where the money is, and settle them.",
        guide=(_PAYMENTS, "Settle payments by hand"),
    ),
    Condition(
        name="BusAway",
        severity=Severity.PAGE,
        check=Level(metric="bus_connected", worst="min", comparison="==", threshold=0),
        for_seconds=_MINUTE,
        sentence="{instance} has no connection to the bus; orders are accepted and wait.",
        do="Check NATS and its network.",
        guide=(_NATS, "NATS is unavailable"),
    ),
    Condition(
        name="BusUnsteady",
        severity=Severity.TICKET,
        check=Increase(metric="bus_reconnects_total", window_seconds=15 * _MINUTE, threshold=5),
        sentence="{instance} has reconnected to the bus {number} times in 15 minutes.",
        do="Check NATS and its network.",
        guide=(_NATS, "NATS is unavailable"),
    ),
    Condition(
        name="TopologyDrift",
        severity=Severity.TICKET,
        check=_failing("topology"),
        for_seconds=_MINUTE,
        sentence="A stream or a consumer at NATS is not as {instance} needs it.",
        do="Read /readyz for the fields that differ; correct them with the topology command.",
        guide=(_NATS, "The topology is not as planned"),
    ),
    Condition(
        name="RetiredVersionNeeded",
        severity=Severity.TICKET,
        check=_failing("retired_versions"),
        for_seconds=_MINUTE,
        sentence="{instance} still publishes a retired version of an event, because a consumer reads no newer one.",
        do="Read /readyz for the consumer; have it read the newer version, or delete it.",
        guide=("howto/change-an-event", "Retire the old version"),
    ),
    Condition(
        name="WorkStalled",
        severity=Severity.PAGE,
        check=_failing("work"),
        for_seconds=_MINUTE,
        sentence="Work waits at {instance} and makes no progress.",
        do="Read /readyz: it names what waits, and for how long.",
        guide=(_NATS, "Work makes no progress"),
    ),
    Condition(
        name="MessagesLate",
        severity=Severity.TICKET,
        check=Quantile(
            metric="message_lag_seconds", quantile=0.99, bounds=LAG_BOUNDS, by=("module",), window_seconds=5 * _MINUTE,
            threshold=10,
        ),
        for_seconds=5 * _MINUTE,
        sentence="{module} processes messages {duration} after they were published.",
        do="Start more replicas of that module.",
        guide=(_OPERATE, "When orders are slow"),
    ),
    Condition(
        name="OrdersSlow",
        severity=Severity.TICKET,
        check=Quantile(
            metric="order_duration_seconds", quantile=0.99, bounds=ORDER_BOUNDS, by=(), window_seconds=5 * _MINUTE, threshold=5
        ),
        for_seconds=5 * _MINUTE,
        sentence="The slowest hundredth of the orders takes {duration}.",
        do="Find the module with the lag.",
        guide=(_OPERATE, "When orders are slow"),
    ),
    Condition(
        name="StockOut",
        severity=Severity.TICKET,
        check=Share(
            metric="orders_cancelled_total", where={"reason": "insufficient_stock"},
            total="orders_total", total_where={"status": "processing"}, by=(), window_seconds=15 * _MINUTE, threshold=0.05,
        ),
        sentence="{share} of the orders are cancelled because a product is out of stock.",
        do="See which products are out of stock, and add stock.",
        guide=(_OPERATE, "When products are out of stock"),
    ),
    Condition(
        name="ServerErrors",
        severity=Severity.PAGE,
        check=Share(
            metric="http_requests_total", where={"status": "5.."}, total="http_requests_total",
            window_seconds=5 * _MINUTE, threshold=0.05,
        ),
        for_seconds=5 * _MINUTE,
        sentence="{share} of the responses of {instance} are 5xx.",
        do="Read /readyz; mostly it is the database.",
        guide=(_OPERATE, "When a process is not ready"),
    ),
    Condition(
        name="LogLinesDropped",
        severity=Severity.TICKET,
        check=Increase(metric="log_lines_dropped_total", window_seconds=5 * _MINUTE, threshold=0),
        sentence="{instance} has dropped {number} log lines: is its disk full, and is its stdout read?",
        do="Free the disk; see what reads stdout.",
        guide=(_OPERATE, "Rotate the log, replace keys"),
    ),
    Condition(
        name="TelemetryDropped",
        severity=Severity.TICKET,
        check=Increase(metric="telemetry_dropped_total", by=("instance", "signal"), window_seconds=15 * _MINUTE, threshold=0),
        sentence="The collector does not take the {signal} of {instance}: {number} were dropped.",
        do="See whether the collector runs and takes what is sent; orders are not affected.",
        guide=("howto/telemetry", "When the collector takes no data"),
    ),
)  # fmt: skip
"""By urgency of what they concern: processes, databases, the provider, the bus, then speed and the rest."""
