"""A real server and a simulated one, as a test uses either: it may kill, stop or pause it, and start it again."""

from __future__ import annotations

__all__ = ["Broker", "RealBroker", "SimulatedBroker"]

import random
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol, Self

from attrs import define

from app.clock import SystemClock
from bus.port import Clock
from tests.bus.jetstream.harness import JetStreamHarness
from tests.clock import VirtualClock
from tests.nats import NatsServer
from tests.simulation.broker.harness import SimulatedHarness
from tests.simulation.broker.network import Network
from tests.simulation.broker.server import Server
from tests.simulation.broker.virtual_loop import passing, virtual_loop


class Broker(Protocol):
    """A running server, and the clock by which its time passes."""

    @property
    def url(self) -> str:
        """The address of the server."""

    @property
    def clock(self) -> Clock:
        """The clock of this test."""

    def harness(self, **options: Any) -> AbstractAsyncContextManager[Any]:
        """Return a harness of the contract suite on this server, with streams and without consumers."""

    def stop(self) -> None:
        """End it."""

    def kill(self) -> None:
        """End it without a word."""

    def start(self) -> object:
        """Start it again."""

    def restart(self) -> None:
        """Start it again; stop it first if it runs."""

    def pause(self) -> None:
        """Make it hang: its connections stay open, and it does not answer."""

    def resume(self) -> None:
        """End the pause."""


class RealBroker(NatsServer):
    """A real server, in real time."""

    clock: Clock = SystemClock()

    def harness(self, **options: Any) -> AbstractAsyncContextManager[Any]:
        return JetStreamHarness.on(self.urls, **options)


@define
class SimulatedBroker:
    """A simulated server on a virtual clock, which passes by itself."""

    clock: VirtualClock
    network: Network
    server: Server
    url: str = "nats://client:4222"

    @classmethod
    @asynccontextmanager
    async def start_up(cls) -> AsyncIterator[Self]:
        """Start a server, and give the running loop its time until the block ends."""
        clock = VirtualClock()
        server = Server(clock, random.Random(1), keeps_order=True)
        network = Network(clock, random.Random(1), server)
        with virtual_loop(clock, network):
            async with passing(clock):
                yield cls(clock, network, server)

    def harness(self, **options: Any) -> AbstractAsyncContextManager[Any]:
        return SimulatedHarness.on(self.server, self.network, self.clock, is_passing=True, **options)

    def stop(self) -> None:
        self.kill()

    def kill(self) -> None:
        self.server.kill()
        self.resume()

    def start(self) -> None:
        self.server.start()

    def restart(self) -> None:
        self.server.start()

    def pause(self) -> None:
        for link in self.network.links.values():
            link.silence()

    def resume(self) -> None:
        for link in self.network.links.values():
            link.heal()
