"""Suspend calls while the circuit breaker permits none."""

from __future__ import annotations

__all__ = ["BreakerWait"]

import asyncio

from app.gateways.breakers.circuit_breaker import BreakerState, CircuitBreaker
from bus.port import Clock


class BreakerWait:
    """Wake up suspended calls when the breaker changes its state, and when its open period has elapsed."""

    def __init__(self, breaker: CircuitBreaker, clock: Clock) -> None:
        self._breaker = breaker
        self._clock = clock
        self._changed = asyncio.Event()
        self._timer: asyncio.Task[None] | None = None
        self._is_shut_down = False
        self.waiting = 0
        """How many calls are suspended in `until_retry`; the next probe is one of them."""
        breaker.add_listener(self._on_state_change)

    async def until_retry(self) -> bool:
        """Return True once the breaker may have a permit again; False after `shutdown`."""
        self.waiting += 1
        try:
            await self._until_change()
        finally:
            self.waiting -= 1
        return not self._is_shut_down

    async def until_permit(self) -> None:
        """Return once the breaker has a permit that no suspended call is about to take; never return after `shutdown`."""
        while self._breaker.state is not BreakerState.CLOSED and (self.waiting or self._breaker.wait_seconds > 0):
            if self._is_shut_down:
                await asyncio.get_running_loop().create_future()
            await self._until_change()

    def shutdown(self) -> None:
        """Make `until_retry` return at once, for suspended and for later calls."""
        self._is_shut_down = True
        self._cancel_timer()
        self._notify()

    async def _until_change(self) -> None:
        if self._is_shut_down:
            return
        if self._timer is None or self._timer.done():
            self._timer = asyncio.create_task(self._notify_after(max(self._breaker.wait_seconds, 0.01)))
        await self._changed.wait()

    async def _notify_after(self, seconds: float) -> None:
        await self._clock.sleep(seconds)
        self._notify()

    def _on_state_change(self, state: BreakerState) -> None:
        self._cancel_timer()
        self._notify()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _notify(self) -> None:
        """Wake up everything that waits now; what waits from now on waits for the next change."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
