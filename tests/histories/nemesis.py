"""Faults of processes, links and servers, in the order and at the times that a seed decides."""

from __future__ import annotations

__all__ = ["Nemesis"]

import asyncio
import random
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

from tests.histories.link import Fault, Link
from tests.nats import NatsServer
from tests.postgres import PostgresServer
from tests.process.server import Server
from tests.process.test_clock import set_clock
from tests.signals import pause_process
from tests.split.system import System

BETWEEN_SECONDS = (0.5, 3.0)
PARTITION_SECONDS_MAX = 8.0
_UNREACHABLE = 3
"""The exit code of a process that finds no server at its start."""
CLOCK_SECONDS = 120


class Nemesis:
    """
    Disturbs *system*, one fault at a time or two that overlap; *links* are those of each process to NATS and PostgreSQL.

    Faults of the same process do not overlap; each ends before the run does.
    """

    def __init__(
        self,
        system: System,
        links: dict[Server, Sequence[Link]],
        broker: NatsServer,
        postgres: PostgresServer,
        rng: random.Random,
        *,
        ack_wait_seconds: float,
        seconds: float,
        write: Callable[[str], None],
    ) -> None:
        self._system = system
        self._links = links
        self._broker = broker
        self._postgres = postgres
        self._rng = rng
        self._ack_wait_seconds = ack_wait_seconds
        self._partition_seconds_max = min(PARTITION_SECONDS_MAX, seconds / 2)
        self._write = write
        self._free = list(system)
        self._servers_are_free = True
        self._shifted: set[Server] = set()
        self.done = Counter[str]()

    async def run(self, until: float) -> None:
        """Cause faults until *until* on the monotonic clock, and end them all."""
        async with asyncio.TaskGroup() as group:
            for _ in range(2):
                group.create_task(self._repeat(until))
        for server in list(self._shifted):  # readiness reports a clock that differs from that of the database server
            await self.kill(0, server)

    async def _repeat(self, until: float) -> None:
        kinds: dict[str, tuple[int, Callable[[], Awaitable[None]]]] = {
            "kill": (3, self.kill),
            "pause": (2, self.pause),
            "partition": (5, self.partition),
            "clock": (1, self.clock),
            "server": (1, self.kill_server),
        }
        while time.monotonic() < until:
            (name,) = self._rng.choices(list(kinds), [weight for weight, _ in kinds.values()])
            await kinds[name][1]()
            await asyncio.sleep(self._rng.uniform(*BETWEEN_SECONDS))

    async def kill(self, clock_seconds: int | None = None, server: Server | None = None) -> None:
        """Kill a process, or *server*; start it again a moment later, with its clock set if *clock_seconds* is given."""
        server = self._take(server)
        self._note("kill" if clock_seconds is None else f"clock {clock_seconds:+}", server)
        await asyncio.to_thread(self._system.kill, server)
        await asyncio.sleep(self._rng.uniform(0, 2.0))
        if clock_seconds is not None:
            set_clock(server, clock_seconds)
            (self._shifted.add if clock_seconds else self._shifted.discard)(server)
        await self._restart(server)
        self._free.append(server)

    async def clock(self) -> None:
        """Let the clock of a process differ from those of the others from its next start on."""
        await self.kill(self._rng.randrange(-CLOCK_SECONDS, CLOCK_SECONDS))

    async def pause(self) -> None:
        """Stop a process for longer than ``ack_wait``, and let it continue with what it was doing."""
        server = self._take()
        self._note("pause", server)
        await asyncio.to_thread(pause_process, server.pid)
        await asyncio.sleep(self._ack_wait_seconds + self._rng.uniform(0.5, 3.0))
        server.send(signal.SIGCONT)
        self._free.append(server)

    async def partition(self) -> None:
        """Cut, stop or slow one or both links of a process."""
        server = self._take()
        links = self._rng.choice((self._links[server][:1], self._links[server][1:], self._links[server]))
        fault = self._rng.choice([each for each in Fault if each is not Fault.NONE])
        names = "+".join(("NATS", "PostgreSQL")[self._links[server].index(link)] for link in links)
        self._note(f"{fault.name} {names}", server)
        for link in links:
            await link.set(fault)
        await asyncio.sleep(self._rng.uniform(0.5, self._partition_seconds_max))
        for link in links:
            await link.set(Fault.NONE)
        self._free.append(server)

    async def kill_server(self) -> None:
        """Kill NATS or PostgreSQL, and start it again."""
        if not self._servers_are_free:
            return
        self._servers_are_free = False
        server = self._rng.choice((self._broker, self._postgres))
        self._note("kill", server)
        await asyncio.to_thread(server.kill)
        await asyncio.sleep(self._rng.uniform(0, 2.0))
        await asyncio.to_thread(server.start)
        self._servers_are_free = True

    async def _restart(self, server: Server) -> None:
        """Start *server*, as a supervisor does: again if it ends because its database is away."""
        while True:
            try:
                return await asyncio.to_thread(self._system.restart, server)
            except AssertionError:
                if server.wait() != _UNREACHABLE:
                    raise
            await asyncio.sleep(0.5)  # the delay of a supervisor

    def _take(self, server: Server | None = None) -> Server:
        return self._free.pop(self._rng.randrange(len(self._free)) if server is None else self._free.index(server))

    def _note(self, what: str, on: Server | NatsServer | PostgresServer) -> None:
        name = on.folder.name if isinstance(on, Server) else "NATS" if isinstance(on, NatsServer) else "PostgreSQL"
        self.done[what.split()[0]] += 1
        self._write(f"{what} {name}")
