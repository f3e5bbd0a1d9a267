"""The connection of a process to a bus: publishes that fail, come twice or late, and points for a kill."""

from __future__ import annotations

__all__ = ["BusFault", "FaultyBus"]

import asyncio
import random
from collections.abc import Callable, Sequence
from enum import StrEnum

from attrs import define, evolve

from bus.errors import PublishRetryable
from bus.port import Bus, Delivery, Message, Subscription
from tests.simulation.world.scope import Scope


class BusFault(StrEnum):
    """What happens to a publish."""

    LOST = "publish fails"
    UNKNOWN = "publish fails, and arrives"
    TWICE = "publish arrives twice"
    LATE = "publish arrives late"
    AWAY = "bus away"


DELAY_SECONDS_MAX = 3.0

DrawFault = Callable[[], BusFault | None]
"""Returns what happens to the next publish; None if it goes well."""


@define(eq=False)
class FaultyBus:
    """Implements `bus.port.Bus` on *bus*, as the process *scope* sees it."""

    bus: Bus
    scope: Scope
    draw_fault: DrawFault
    rng: random.Random
    is_away: Callable[[], bool]

    @property
    def is_connected(self) -> bool:
        return self.bus.is_connected and not self.is_away()

    @property
    def problems(self) -> Sequence[str]:
        return self.bus.problems

    def publish(self, message: Message) -> asyncio.Future[None]:
        self.scope.point("before publish")
        fault = BusFault.LOST if self.is_away() else self.draw_fault()
        match fault:
            case BusFault.LOST:
                return _failed()
            case BusFault.UNKNOWN:
                self.bus.publish(message)
                return _failed()
            case BusFault.TWICE:
                # A broker forgets ids, and an event may be published again under another one.
                self.bus.publish(evolve(message, id=f"{message.id}-again"))
            case BusFault.LATE:
                return self.scope.run(self._publish_late(message, self.rng.uniform(0.0, DELAY_SECONDS_MAX)))
        return self.bus.publish(message)

    async def _publish_late(self, message: Message, seconds: float) -> None:
        await asyncio.sleep(seconds)
        self.scope.point("before publish")
        await self.bus.publish(message)

    async def subscribe(self, consumer: str, subjects: Sequence[str]) -> Subscription:
        return _Subscription(await self.bus.subscribe(consumer, subjects), self.scope)

    async def close(self, grace_seconds: float = 5.0) -> None:
        await self.bus.close(grace_seconds)


def _failed() -> asyncio.Future[None]:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    future.set_exception(PublishRetryable("the bus does not answer"))
    future.exception()  # retrieved: a relay that has ended does not look at it
    return future


@define(eq=False)
class _Subscription:
    """A subscription whose deliveries have points."""

    subscription: Subscription
    scope: Scope

    @property
    def consumer(self) -> str:
        return self.subscription.consumer

    @property
    def is_paused(self) -> bool:
        return self.subscription.is_paused

    async def fetch(self, limit: int, wait_seconds: float, is_standby: bool = False) -> list[Delivery]:
        found = await self.subscription.fetch(limit, wait_seconds, is_standby)
        return [_Delivery(each, self.scope) for each in found]

    def pause(self) -> None:
        self.subscription.pause()

    def resume(self) -> None:
        self.subscription.resume()

    async def close(self) -> None:
        await self.subscription.close()


@define(eq=False)
class _Delivery:
    """A delivery whose answers are points."""

    delivery: Delivery
    scope: Scope

    @property
    def message(self) -> Message:
        return self.delivery.message

    @property
    def tries(self) -> int:
        return self.delivery.tries

    async def ack(self) -> None:
        self.scope.point("before ack")
        await self.delivery.ack()

    async def nak(self, delay_seconds: float, *, error: str = "failed", detail: str = "") -> None:
        self.scope.point("before nak")
        await self.delivery.nak(delay_seconds, error=error, detail=detail)

    async def term(self, error: str, detail: str = "") -> None:
        self.scope.point("before term")
        await self.delivery.term(error, detail)

    async def in_progress(self) -> None:
        self.scope.point("before extension")
        await self.delivery.in_progress()
