"""What one process knows of itself and of its modules: its part of the overview."""

from __future__ import annotations

__all__ = ["GatewayStatus", "ProcessStatus"]

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any

from attrs import define, field
from sqlalchemy import Connection

from app.gateways.breakers.circuit_breaker import BreakerState, CircuitBreaker
from app.gateways.breakers.operations import Operations
from app.messaging.dead_letters import DeadLetterGroup, DeadLetterStore
from app.messaging.outbox_relay import OutboxRelay
from app.storage.errors import StorageUnavailable
from app.storage.module_store import ModuleStore
from app.storage.search.status_counts import COUNTED_MAX, StatusCounts
from app.telemetry.attention import Attention, AttentionWatch
from app.telemetry.metrics import Metrics
from app.web.endpoints.dead_letters import group_to_json
from app.web.endpoints.health import BUS, CHECK_SECONDS_MAX, DATABASE, OK, Health
from app.web.operations.overview.rates import LAG_COUNT, LAG_SECONDS, WINDOW_SECONDS, Rates, read_counters
from bus.port import Clock
from modules.orders.state import Status, order_table
from modules.values import rfc3339

ORDERS = "orders"
ORDER_MEMBERS = ("by_status", "accepted_per_s", "completed_per_s", "oldest_waiting", "waiting_for_payment")
DEAD_LETTER_GROUPS_MAX = 20
"""Groups that an overview shows, the largest first."""


@define
class GatewayStatus:
    """The payment provider and its circuit breakers by operation."""

    operations: Operations
    clock: Clock
    changed_at: dict[str, datetime] = field(factory=dict)
    """When a breaker changed its state, by operation."""

    def __attrs_post_init__(self) -> None:
        for name, breaker in self.breakers.items():
            breaker.add_listener(partial(self._changed, name))

    @property
    def name(self) -> str:
        """The name of the provider."""
        return self.operations.charge.gateway_name

    @property
    def breakers(self) -> Mapping[str, CircuitBreaker]:
        """The breakers by operation."""
        return {each.kind.value: each.breaker for each in (self.operations.charge, self.operations.refund, self.operations.look_up)}

    def _changed(self, name: str, state: BreakerState) -> None:
        if state is not BreakerState.HALF_OPEN:  # a probe of an open breaker: it is not closed since it has opened
            self.changed_at.setdefault(name, self.clock.now())
        if state is BreakerState.CLOSED:
            del self.changed_at[name]

    def to_json(self) -> dict[str, Any]:
        """Return the state of each breaker, and since when one is not closed."""
        states = {name: breaker.state for name, breaker in self.breakers.items()}
        not_closed = [name for name, state in states.items() if state is not BreakerState.CLOSED]
        return {
            "name": self.name,
            "breakers": {name: state.name.lower() for name, state in states.items()},
            "since": {name: rfc3339(at) for name in not_closed if (at := self.changed_at.get(name)) is not None},
        }


class ProcessStatus:
    """
    The state of this process, as JSON.

    `step` is called once a second and takes a sample of the counters. `to_json` reads the databases: indexes only, and a bounded
    number of rows.
    """

    def __init__(
        self,
        bus_name: str,
        health: Health,
        stores: Mapping[str, ModuleStore],
        relays: Mapping[str, OutboxRelay],
        gateways: Sequence[Operations],
        dead_letters: DeadLetterStore,
        metrics: Metrics,
        clock: Clock,
        attention: AttentionWatch,
    ) -> None:
        self._bus_name = bus_name
        self._health = health
        self._stores = stores
        self._relays = relays
        self.gateway = GatewayStatus(gateways[0], clock) if gateways else None
        self._dead_letters = dead_letters
        self._metrics = metrics
        self._clock = clock
        self._attention = attention
        self._rates = Rates(partial(read_counters, metrics))
        self._counts: StatusCounts | None = None
        if ORDERS in stores:
            statuses = [status.value for status in Status]
            database = stores[ORDERS].database
            self._counts = StatusCounts(database, order_table.name, "order_id", statuses, self._reached)

    def step(self) -> None:
        """Take a sample of the counters."""
        self._rates.step()

    async def prepare(self) -> None:
        """Count the orders once, so that the first overview need not wait until many are counted."""
        if self._counts is not None:
            await self._counts.read()

    async def recount(self) -> None:
        """Count the orders again that are too many to be counted each time, if it is time to."""
        if self._counts is not None:
            await self._counts.recount()

    async def to_json(self) -> dict[str, Any]:
        """Return this process's part. What its database does not answer within `CHECK_SECONDS_MAX` is null."""
        checks, orders, groups = await asyncio.gather(self._checks(), self._orders(), self._groups())
        found: dict[str, Any] = {
            "modules": {name: self._module(name) for name in self._relays},
            "bus": {
                "name": self._bus_name,
                "status": checks.get(BUS, OK),
                "problems": {name: what for name, what in checks.items() if not name.startswith(DATABASE) and what != OK},
            },
            "databases": {name: checks.get(f"{DATABASE}:{name}", OK) for name in self._stores},
            "dead_letters": groups,
            "attention": [_attention_to_json(each) for each in self._attention.current],
        }
        if orders is not None:
            found["orders"] = orders
        if self.gateway is not None:
            found["gateway"] = self.gateway.to_json()
        return found

    async def _checks(self) -> Mapping[str, str]:
        try:
            async with asyncio.timeout(CHECK_SECONDS_MAX):
                return await self._health.checks()
        except Exception:  # as the probes do: whatever a check raises, the overview answers
            return {f"{DATABASE}:{name}": "unavailable" for name in self._stores}

    async def _groups(self) -> list[dict[str, Any]] | None:
        groups: Sequence[DeadLetterGroup]
        try:
            async with asyncio.timeout(CHECK_SECONDS_MAX):
                groups = await self._dead_letters.groups(None, None, None)
        except (StorageUnavailable, TimeoutError):
            return None
        return [group_to_json(group) for group in groups[:DEAD_LETTER_GROUPS_MAX]]

    async def _orders(self) -> dict[str, Any] | None:
        if self._counts is None:
            return None
        database = self._stores[ORDERS].database
        try:
            async with asyncio.timeout(CHECK_SECONDS_MAX):
                by_status = await self._counts.read()
                oldest, waiting = await database.read(_oldest_waiting)
                rates = await self._order_rates()
        except (StorageUnavailable, TimeoutError):
            return dict.fromkeys(ORDER_MEMBERS)
        return {"by_status": by_status, **rates, "oldest_waiting": oldest, "waiting_for_payment": waiting}

    async def _order_rates(self) -> dict[str, float]:
        growth, seconds = self._rates.growth()
        accepted, completed = growth["processing"], growth["confirmed"] + growth["cancelled"]
        database = self._stores[ORDERS].database
        if database.dialect.is_shared:  # other processes accept and complete orders, too
            since, seconds = self._clock.now().timestamp() - WINDOW_SECONDS, float(WINDOW_SECONDS)
            accepted, completed = await database.read(lambda connection: _changed_since(connection, since))
        return {"accepted_per_s": round(accepted / seconds, 2), "completed_per_s": round(completed / seconds, 2)}

    def _module(self, name: str) -> dict[str, Any]:
        growth, _ = self._rates.growth()
        count = growth.get(f"{LAG_COUNT}{name}", 0.0)
        relay = self._relays[name]
        return {
            "reachable": True,
            "outbox_pending": relay.pending,
            "outbox_oldest_seconds": round(relay.oldest_seconds, 3),
            # Several processes may share a database that is shared; how many do is not known.
            "replicas": None if self._stores[name].database.dialect.is_shared else 1,
            "lag_seconds": round(growth[f"{LAG_SECONDS}{name}"] / count, 4) if count else None,
        }

    def _reached(self, status: str) -> float:
        return self._metrics.orders.labels(status).value


def _oldest_waiting(connection: Connection) -> tuple[dict[str, Any] | None, int]:
    """Return the oldest order that is not final, and how many wait for their payment."""
    table = order_table.name
    found = []
    for status in Status.PROCESSING, Status.RESERVED:
        sql = f"SELECT order_id FROM {table} WHERE status = '{status.value}' ORDER BY order_id LIMIT 1"
        found += [(order_id, status.value) for (order_id,) in connection.exec_driver_sql(sql)]
    limited = f"SELECT 1 FROM {table} WHERE waiting_for IS NOT NULL LIMIT {COUNTED_MAX}"
    waiting: int = connection.exec_driver_sql(f"SELECT count(*) FROM ({limited}) AS waiting").scalar_one()
    if not found:
        return None, waiting
    order_id, status_of = min(found)
    since = connection.exec_driver_sql(f"SELECT created_at FROM {table} WHERE order_id = '{order_id}'").scalar_one()
    at = datetime.fromisoformat(since) if isinstance(since, str) else since
    return {"order_id": order_id, "status": status_of, "since": rfc3339(at)}, waiting


def _changed_since(connection: Connection, since: float) -> tuple[int, int]:
    """Return how many orders were accepted, and how many have reached an end, since the time *since* (seconds since 1970)."""
    sql = (
        f"SELECT count(*) FILTER (WHERE created_at >= to_timestamp({since:f})),"
        " count(*) FILTER (WHERE status IN ('confirmed', 'cancelled'))"
        f" FROM {order_table.name} WHERE updated_at >= to_timestamp({since:f})"
    )
    accepted, completed = connection.exec_driver_sql(sql).one()
    return accepted, completed


def _attention_to_json(each: Attention) -> dict[str, Any]:
    shown = {"what": each.what, "since": rfc3339(each.since), "do": each.do}
    return {**shown, "name": each.name, "severity": each.severity.value, "guide": each.guide}
