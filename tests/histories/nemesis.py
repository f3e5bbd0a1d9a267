"""Faults of processes, links and servers, which two schedules at the same time determine."""

from __future__ import annotations

__all__ = ["Nemesis"]

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from tests.histories.links.link import Fault, Link
from tests.histories.schedule import Step
from tests.nats import NatsServer
from tests.postgres import PostgresServer
from tests.process.server import READY_SECONDS, Server
from tests.process.test_clock import set_clock
from tests.signals import pause_process
from tests.split.system import System

_UNREACHABLE = 3
"""The exit code of a process that finds no server at its start."""
_SUPERVISOR_SECONDS = 0.5


class Nemesis:
    """
    Disturbs *system* by the steps of *schedules*, whose targets differ.

    *links* are those of each process, and *servers* what they lead to, both by the name of the server. Each fault ends before
    the run does.
    """

    def __init__(
        self,
        system: System,
        links: Mapping[Server, Mapping[str, Link]],
        servers: Mapping[str, NatsServer | PostgresServer],
        schedules: Sequence[Iterator[Step]],
        write: Callable[[str], None],
    ) -> None:
        self._system = system
        self._links = links
        self._servers = servers
        self._schedules = schedules
        self._write = write
        self._processes = list(system)
        self._shifted: set[Server] = set()
        self.done = Counter[str]()

    async def run(self, until: float) -> None:
        """Cause faults until *until* on the monotonic clock, and end them all."""
        async with asyncio.TaskGroup() as group:
            for steps in self._schedules:
                group.create_task(self._repeat(steps, until))
        async with asyncio.TaskGroup() as group:
            for process in self._shifted:  # readiness reports a clock that differs from that of the database server
                group.create_task(self._set_clock(process, 0))

    async def _repeat(self, steps: Iterator[Step], until: float) -> None:
        while time.monotonic() < until:
            step = next(steps)
            await self._do(step)
            await asyncio.sleep(min(step.rest_seconds, max(0.0, until - time.monotonic())))

    async def _do(self, step: Step) -> None:
        if isinstance(step.target, str):
            await self._kill_server(step.target, step.seconds)
            return
        process = self._processes[step.target]
        match step.name:
            case "pause":
                await self._pause(process, step.seconds)
            case "partition":
                await self._partition(process, step)
            case "clock":
                self._shifted.add(process)
                await self._set_clock(process, step.clock_seconds, step.seconds)
            case "kill":
                await self._kill(process, step.seconds)

    async def _kill(self, process: Server, seconds: float) -> None:
        """Kill *process*, and start it again after *seconds*."""
        self._note("kill", process.folder.name)
        await asyncio.to_thread(self._system.kill, process)
        await asyncio.sleep(seconds)
        await self._restart(process)

    async def _set_clock(self, process: Server, clock_seconds: int, seconds: float = 0.0) -> None:
        """Start *process* again with a clock that is ahead of those of the others by *clock_seconds*."""
        self._note("clock", process.folder.name, f"{clock_seconds:+}")
        await asyncio.to_thread(self._system.kill, process)
        await asyncio.sleep(seconds)
        set_clock(process, clock_seconds)
        await self._restart(process)

    async def _pause(self, process: Server, seconds: float) -> None:
        """Stop *process* for longer than ``ack_wait``, and let it continue with what it was doing."""
        self._note("pause", process.folder.name)
        await asyncio.to_thread(pause_process, process.pid)
        await asyncio.sleep(seconds)
        process.send(signal.SIGCONT)

    async def _partition(self, process: Server, step: Step) -> None:
        """Cut, stop or slow one or both links of *process*."""
        self._note(step.fault.name, process.folder.name, "+".join(step.links))
        for name in step.links:
            await self._links[process][name].set(step.fault)
        await asyncio.sleep(step.seconds)
        for name in step.links:
            await self._links[process][name].set(Fault.NONE)

    async def _kill_server(self, name: str, seconds: float) -> None:
        """Kill NATS or PostgreSQL, and start it again after *seconds*."""
        self._note("kill", name)
        await asyncio.to_thread(self._servers[name].kill)
        await asyncio.sleep(seconds)
        await asyncio.to_thread(self._servers[name].start)

    async def _restart(self, process: Server) -> None:
        """Start *process*, as a supervisor does: again if it ends because a server that it needs is down."""
        until = time.monotonic() + READY_SECONDS
        while True:
            try:
                return await asyncio.to_thread(self._system.restart, process)
            except AssertionError:
                if process.wait() != _UNREACHABLE or time.monotonic() >= until:
                    raise
            await asyncio.sleep(_SUPERVISOR_SECONDS)

    def _note(self, name: str, target: str, more: str = "") -> None:
        self.done[name] += 1
        self._write(" ".join(filter(None, (name, more, target))))
