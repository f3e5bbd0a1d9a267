"""
Orders whose payment waits for the provider say so, also those whose request is still in the bus behind a paused consumer.

When the breaker opens, the payments that nobody has called for yet are looked up and told; those that come while it is
open are told as they come. It is a hint and costs no call: what is lost of it with the process is said again when the
request is in the worker's hands.
"""

from __future__ import annotations

__all__ = ["SWEEP_SECONDS", "DelayNotifier", "no_content"]

import asyncio
from datetime import timedelta
from typing import Any

from loguru import logger

from app.gateways.circuit_breaker import BreakerState, CircuitBreaker
from app.runtime.runner import ModuleRunner
from app.storage.errors import TemporarilyUnavailable
from app.telemetry.trace import TraceContext
from bus.ids import derived_id
from bus.port import Clock
from modules.module import Decision, DecisionOutcome
from modules.payments.events import ChargeDelayed, ChargeRequested
from modules.payments.state import Payment
from modules.routes import Response

SWEEP_SECONDS = 3_600
"""How old an order may be whose payment is looked for; hardly one waits for longer than ORDER_TIMEOUT_S."""

PAGE = 200


def no_content(outcome: DecisionOutcome) -> Response:
    """Answer nothing in particular."""
    return Response(200, None)


class DelayNotifier:
    """Tell payments which charges are delayed."""

    def __init__(self, runner: ModuleRunner, consumer: str, breaker: CircuitBreaker, clock: Clock) -> None:
        self._runner = runner
        self._consumer = consumer
        self._breaker = breaker
        self._clock = clock
        self._tasks: set[asyncio.Task[None]] = set()
        breaker.add_listener(self._changed)

    async def notify(self, order_id: str, context: TraceContext, express: bool) -> None:
        """Tell payments that the charge of *order_id* is delayed; what follows has one id, however often it is told."""
        await self._runner.submit(
            ChargeDelayed(order_id=order_id),
            id=derived_id(order_id, f"{self._consumer}.delayed"),
            trace=context,
            respond=no_content,
            is_express=express,
        )

    def on_commit(self, event: Any, decision: Decision, trace: TraceContext) -> None:
        """Notify payments of a charge that is requested while the breaker is not closed; an `app.runtime.runner.CommitListener`."""
        if self._breaker.state is not BreakerState.CLOSED:
            for each in (event, *decision.events):
                if type(each) is ChargeRequested:
                    self._start(self._notify(each.order_id, trace))

    async def close(self) -> None:
        """Tell no more. Idempotent."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _changed(self, state: BreakerState) -> None:
        if state is BreakerState.OPEN:
            self._start(self._sweep())

    def _start(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _notify(self, order_id: str, context: TraceContext) -> None:
        try:
            await self.notify(order_id, context, express=False)
        except TemporarilyUnavailable:
            pass  # a hint
        except Exception as error:  # it must not go unheard, and must not stop anybody
            logger.warning("a delay could not be told", order_id=order_id, detail=f"{type(error).__name__}: {error}")

    async def _sweep(self) -> None:
        """Tell of every payment that nobody has called for yet."""
        horizon = self._clock.now() - timedelta(seconds=SWEEP_SECONDS)
        after = f"{int(horizon.timestamp() * 1000):012x}"
        after = f"{after[:8]}-{after[8:]}"
        while True:
            try:
                page = await self._runner.list_states(
                    Payment, {"status": "pending"}, after=after, limit=PAGE, newest_first=False
                )
            except TemporarilyUnavailable:
                return
            waiting = [p for p in page if not (p.is_waiting or p.is_cancelled)]
            await asyncio.gather(*(self._notify(p.order_id, _context(p.order_id)) for p in waiting))
            if len(page) < PAGE or self._breaker.state is BreakerState.CLOSED:
                return
            after = page[-1].order_id


def _context(order_id: str) -> TraceContext:
    digits = derived_id(order_id, "delayed").replace("-", "")
    return TraceContext(order_id, f"00-{digits}-{digits[16:]}-01")
