"""The bus between several processes: a `MemoryBus` that is never killed, to which each process has a connection."""

from __future__ import annotations

__all__ = ["Broker"]

import asyncio
from collections.abc import Callable, Sequence

from attrs import define, field

from app.storage.errors import StorageUnavailable
from bus.memory.bus import MemoryBus
from bus.memory.messages import GroupMessage
from bus.port import Bus, DeadLetter, DeadLetters, Message, Subscription
from bus.subjects import module_of
from tests.simulation.world.loop import ProcessClock
from tests.simulation.world.scope import Scope


class _BrokerBus(MemoryBus):
    """A bus whose tasks belong to *scope*, and not to the process that happens to cause them."""

    scope: Scope

    def schedule(self, at: float) -> None:
        self.scope.call(super().schedule, at)

    def dead_letter(self, message: GroupMessage, error: str, detail: str) -> None:
        self.scope.call(super().dead_letter, message, error, detail)


@define(eq=False, slots=False)
class Broker:
    """
    A broker that stores nothing, but is never killed.

    A publish is accepted once every group has settled the message; see `bus.memory.bus`. The dead letters of a consumer go to
    the process that it is in.
    """

    time: Callable[[], float]
    _stores: dict[str, tuple[Scope, DeadLetters]] = field(factory=dict)
    _connections: dict[Scope, list[Subscription]] = field(factory=dict)

    def __attrs_post_init__(self) -> None:
        self._bus = _BrokerBus(ProcessClock(self.time), self)
        self._bus.scope = Scope("broker", lambda point: None)

    def connect(self, scope: Scope, letters: DeadLetters, modules: Sequence[str]) -> Bus:
        """Return the connection of the process *scope* with *modules*, whose dead letters are stored in *letters*."""
        self._stores |= dict.fromkeys(modules, (scope, letters))
        self._connections[scope] = []
        return _Connection(self._bus, self._connections[scope])

    async def disconnect(self, scope: Scope) -> None:
        """Close the connection of a process that has ended: what it had in hand goes to the next one."""
        self._stores = {module: found for module, found in self._stores.items() if found[0] is not scope}
        for subscription in self._connections.pop(scope, ()):
            await subscription.close()

    async def add(self, dead_letter: DeadLetter) -> None:
        """Store *dead_letter* in the process of its consumer; implements `bus.port.DeadLetters`."""
        scope, store = self._stores.get(module_of(dead_letter.consumer), (None, None))
        if scope is None or store is None or scope.is_killed:
            raise StorageUnavailable("the process is down")
        storing = scope.run(store.add(dead_letter))
        await asyncio.wait([storing])
        if storing.cancelled() or not isinstance(storing.exception(), Exception | None):
            raise StorageUnavailable("the process has ended")
        storing.result()


@define(eq=False)
class _Connection:
    """Implements `bus.port.Bus`."""

    bus: MemoryBus
    subscriptions: list[Subscription]

    @property
    def is_connected(self) -> bool:
        return self.bus.is_connected

    @property
    def problems(self) -> Sequence[str]:
        return self.bus.problems

    def publish(self, message: Message) -> asyncio.Future[None]:
        return self.bus.publish(message)

    async def subscribe(self, consumer: str, subjects: Sequence[str]) -> Subscription:
        subscription = await self.bus.subscribe(consumer, subjects)
        self.subscriptions.append(subscription)
        return subscription

    async def close(self, grace_seconds: float = 5.0) -> None:
        """Do nothing: other processes use the bus."""
