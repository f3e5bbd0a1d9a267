"""
Orders whose payment waits for the provider say so, also those whose request is still in the bus behind a paused consumer.

When the breaker opens, the payments that nobody has called for yet are looked up and told; those that come while it is
open are told as they come. It is a hint and costs no call: what is lost of it with the process is said again when the
request is in the worker's hands.
"""

from __future__ import annotations

__all__ = ["SWEEP_SECONDS", "Delays", "noted"]

import asyncio
from datetime import timedelta
from typing import Any

from loguru import logger

from app.gateways.circuit_breaker import Breaker, BreakerState
from app.runtime.runner import Shell
from app.runtime.service import Context, Shed
from app.runtime.work import Seat
from bus.ids import caused_id
from bus.port import Clock
from modules.module import Decision, Outcome
from modules.payments.events import ChargeDelayed, ChargeRequested
from modules.payments.state import Payment
from modules.route import Answer

SWEEP_SECONDS = 3_600
"""How old an order may be whose payment is looked for; hardly one waits for longer than ORDER_TIMEOUT_S."""

PAGE = 200


def noted(outcome: Outcome) -> Answer:
    """Answer nothing in particular."""
    return Answer(200, None)


class Delays:
    """Tell payments which charges are delayed."""

    def __init__(self, shell: Shell, consumer: str, breaker: Breaker, clock: Clock) -> None:
        self._shell = shell
        self._consumer = consumer
        self._breaker = breaker
        self._clock = clock
        self._tasks: set[asyncio.Task[None]] = set()
        breaker.follow(self._changed)

    async def tell(self, order_id: str, context: Context, express: bool) -> None:
        """Tell payments that the charge of *order_id* is delayed; what follows has one id, however often it is told."""
        await self._shell.tell(
            ChargeDelayed(order_id=order_id),
            id=caused_id(order_id, f"{self._consumer}.delayed"),
            context=context,
            answer=noted,
            express=express,
        )

    def requested(self, event: ChargeRequested, decision: Decision, seat: Seat) -> None:
        """Be told that *event* was said (an `app.runtime.runner.Observer`)."""
        if self._breaker.state is not BreakerState.CLOSED:
            self._start(self._tell(event.order_id, seat.context))

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

    async def _tell(self, order_id: str, context: Context) -> None:
        try:
            await self.tell(order_id, context, express=False)
        except Shed:
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
                page = await self._shell.browse(
                    Payment, {"status": "pending"}, after=after, limit=PAGE, newest_first=False
                )
            except Shed:
                return
            waiting = [p for p in page if not (p.is_waiting or p.is_cancelled)]
            await asyncio.gather(*(self._tell(p.order_id, _context(p.order_id)) for p in waiting))
            if len(page) < PAGE or self._breaker.state is BreakerState.CLOSED:
                return
            after = page[-1].order_id


def _context(order_id: str) -> Context:
    digits = caused_id(order_id, "delayed").replace("-", "")
    return Context(order_id, f"00-{digits}-{digits[16:]}-01")
