"""
Report to payments which charges are delayed because the circuit breaker is open.

When the breaker opens, the notifier looks up the payments that no call was made for yet and reports each of them, also
those whose request is still in the bus behind a paused consumer. While the breaker is open, it reports each new charge
request at once. A report is a hint and costs no call to the provider. If the process ends before a hint is stored, the
payment worker reports the delay again once it holds the request.
"""

from __future__ import annotations

__all__ = ["SWEEP_SECONDS", "DelayNotifier"]

import asyncio
from collections.abc import Coroutine
from datetime import timedelta
from typing import Any

from loguru import logger

from app.gateways.breakers.circuit_breaker import BreakerState, CircuitBreaker
from app.runtime.runner import ModuleRunner
from app.storage.errors import TemporarilyUnavailable
from app.telemetry.trace import TraceContext
from bus.ids import derived_id, id_lower_bound
from bus.port import Clock
from modules.module import Decision
from modules.payments.events import ChargeDelayed, ChargeRequested
from modules.payments.state import Payment

SWEEP_SECONDS = 3_600
"""The sweep reads the payments of orders of this age or younger; hardly any order waits longer (ORDER_TIMEOUT_S)."""

PAGE = 200


class DelayNotifier:
    """Submit a `ChargeDelayed` for each charge that the open breaker delays."""

    def __init__(self, runner: ModuleRunner, consumer: str, breaker: CircuitBreaker, clock: Clock) -> None:
        self._runner = runner
        self._consumer = consumer
        self._breaker = breaker
        self._clock = clock
        self._tasks: set[asyncio.Task[None]] = set()
        breaker.add_listener(self._on_state_change)

    async def notify(self, order_id: str, trace: TraceContext, is_express: bool) -> None:
        """Submit that the charge of *order_id* is delayed. The event has the same id each time: a repetition has no effect."""
        await self._runner.submit(
            ChargeDelayed(order_id=order_id),
            id=derived_id(order_id, f"{self._consumer}.delayed"),
            trace=trace,
            is_express=is_express,
            is_new=False,
        )

    def on_commit(self, event: Any, decision: Decision, trace: TraceContext) -> None:
        """Report each requested charge while the breaker is not closed (an `app.runtime.work.CommitListener`)."""
        if self._breaker.state is not BreakerState.CLOSED:
            for each in (event, *decision.events):
                if type(each) is ChargeRequested:
                    self._start(self._try_to_notify(each.order_id, trace))

    async def close(self) -> None:
        """Cancel all reports that are under way. Idempotent."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _on_state_change(self, state: BreakerState) -> None:
        if state is BreakerState.OPEN:
            self._start(self._sweep())

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _try_to_notify(self, order_id: str, trace: TraceContext) -> None:
        try:
            await self.notify(order_id, trace, is_express=False)
        except TemporarilyUnavailable:
            pass  # it is only a hint
        except Exception as error:  # one failed report must be visible, and must not stop the others
            logger.warning("cannot report a delayed charge", order_id=order_id, detail=f"{type(error).__name__}: {error}")

    async def _sweep(self) -> None:
        """Report every pending payment that no call was made for yet, until the breaker has closed."""
        after = id_lower_bound(self._clock.now() - timedelta(seconds=SWEEP_SECONDS))
        while True:
            try:
                page = await self._runner.list_states(
                    Payment, {"status": "pending"}, after=after, limit=PAGE, newest_first=False
                )
            except TemporarilyUnavailable:
                return
            delayed = [payment.order_id for payment in page if not (payment.is_waiting or payment.is_cancelled)]
            await asyncio.gather(*(self._try_to_notify(order_id, _trace_of(order_id)) for order_id in delayed))
            if len(page) < PAGE or self._breaker.state is BreakerState.CLOSED:
                return
            after = page[-1].order_id


def _trace_of(order_id: str) -> TraceContext:
    """Return a trace derived from *order_id*: the sweep has no message whose trace it could continue."""
    digits = derived_id(order_id, "delayed").replace("-", "")
    return TraceContext(order_id, f"00-{digits}-{digits[16:]}-01")
