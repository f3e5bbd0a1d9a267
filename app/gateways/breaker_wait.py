"""Where calls wait while the circuit breaker lets nobody through."""

from __future__ import annotations

__all__ = ["BreakerWait"]

import asyncio

from app.gateways.circuit_breaker import BreakerState, CircuitBreaker
from bus.port import Clock


class BreakerWait:
    """Wake those who wait for the breaker when it changes, and when its time is over."""

    def __init__(self, breaker: CircuitBreaker, clock: Clock) -> None:
        self._breaker = breaker
        self._clock = clock
        self._news = asyncio.Event()
        self._alarm: asyncio.Task[None] | None = None
        self._is_open_for_good = False
        self.waiting = 0
        """How many calls wait here; they are the next to be tried."""
        breaker.add_listener(self._changed)

    async def until_retry(self) -> None:
        """Return when it is worth asking the breaker again."""
        self.waiting += 1
        try:
            await self._until_news()
        finally:
            self.waiting -= 1

    async def until_permit(self) -> None:
        """Return when there is a place for a call that nobody who waits already is about to take; not while closing."""
        while self._breaker.state is not BreakerState.CLOSED and (self.waiting or self._breaker.wait_seconds > 0):
            if self._is_open_for_good:
                await asyncio.get_running_loop().create_future()
            await self._until_news()

    def shutdown(self) -> None:
        """Send everybody home who waits, and who comes."""
        self._is_open_for_good = True
        self._cancel_timer()
        self._notify()

    async def _until_news(self) -> None:
        if self._is_open_for_good:
            return
        if self._alarm is None or self._alarm.done():
            self._alarm = asyncio.create_task(self._sleep(max(self._breaker.wait_seconds, 0.01)))
        await self._news.wait()

    async def _sleep(self, seconds: float) -> None:
        await self._clock.sleep(seconds)
        self._notify()

    def _changed(self, state: BreakerState) -> None:
        self._cancel_timer()
        self._notify()

    def _cancel_timer(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _notify(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()
