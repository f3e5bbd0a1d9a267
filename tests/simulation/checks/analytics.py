"""
The analytics of a split system: a process beside the modules that reads their streams into a DuckDB file.

It is killed again and again, and started again. At the end the file must have each event of the streams once.
"""

from __future__ import annotations

__all__ = ["AnalyticsProcess"]

import asyncio
import random
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import define

from app.analytics.analytics_file import AnalyticsFile, Taken
from app.analytics.errors import SourceUnavailable
from app.analytics.ingest import Ingest
from app.analytics.sources.jetstream import JetStreamSource
from app.messaging.nats_session import BrokerOutOfReach, session
from bus.jetstream.servers import Servers
from tests.simulation.world.loop import ProcessClock
from tests.simulation.world.plan import MODULES
from tests.simulation.world.process import contracts_of_all
from tests.simulation.world.scope import Scope

if TYPE_CHECKING:
    from tests.simulation.world.world import World

LIFE_SECONDS_MAX = 60.0
"""A process that passes too few points is killed after this time."""

CATCH_UP_SECONDS_MAX = 120.0
"""When a process that is started at the end has read all streams: each may wait for a connection, and for a lost answer."""


_DIRECT = ("payments.charge_requested.", "payments.refund_requested.")
"""What the payment worker takes from its own process: it is published only if the worker has no room for it."""


class _File(AnalyticsFile):
    """The file of a process that can be killed before and after each commit."""

    def __init__(self, scope: Scope, path: Path) -> None:
        self._scope = scope
        super().__init__(path, contracts_of_all(), memory="200MB")

    def take(self, *args: object, **options: object) -> Taken:
        self._scope.point("before analytics take")
        return super().take(*args, **options)  # type: ignore[arg-type]

    def commit(self) -> None:
        self._scope.point("before analytics commit")
        super().commit()
        self._scope.point("after analytics commit")


@define(eq=False)
class AnalyticsProcess:
    """``analytics run`` in *world*, with one file over all its lives."""

    world: World
    path: Path
    rng: random.Random
    lives: int = 0
    _file: _File | None = None

    async def keep_running(self) -> None:
        """Start the process, kill it after some points, and start it again, until cancelled."""
        while True:
            await self._live(self.rng.randrange(300))
            await asyncio.sleep(self.rng.choice([0.0, 2.0, 15.0]))

    async def check(self) -> None:
        """Read the streams to their ends, and note in the world which events are missing or are stored twice."""
        world = self.world
        began = world.now
        while not await self._live(None):
            if world.now > began + CATCH_UP_SECONDS_MAX:
                world.fail("analytics: the streams cannot be read although everything works")
                return
            await asyncio.sleep(1.0)
        file = AnalyticsFile(self.path, contracts_of_all())
        try:
            self._compare(file)
        finally:
            file.close()

    def _compare(self, file: AnalyticsFile) -> None:
        world = self.world
        assert world.cluster is not None
        stored: set[str] = set()
        for table in file.tables:
            found = [row[0] for row in file.connection.execute(f"SELECT event_id FROM {table.name}").fetchall()]
            if len(found) != len({*found}):
                world.fail(f"analytics: {table.name} has an event twice")
            stored.update(found)
        for module in MODULES:
            rows = world.read(module, f"SELECT event_id, subject, key FROM {module}_outbox WHERE sent_at IS NOT NULL")
            for event_id, subject, key in rows:
                if event_id not in stored and ".replay." not in subject and not subject.startswith(_DIRECT):
                    world.fail(f"analytics: {subject} of {world.label(key)} is missing")

    async def _live(self, points: int | None) -> bool:
        """Run the process until it has passed *points* points or ends; without *points*, return whether it has read all."""
        self.lives += 1
        name = f"analytics {self.lives}"
        scope = Scope(name, lambda point: self._on_kill(name, point))
        scope.left = points
        reading = scope.run(self._read(scope, is_last=points is None))
        killed = asyncio.ensure_future(scope.ended.wait())
        timeout = LIFE_SECONDS_MAX if points is not None else CATCH_UP_SECONDS_MAX
        try:
            await asyncio.wait([reading, killed], timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            killed.cancel()
            has_ended = reading.done() and not reading.cancelled()
            error = reading.exception() if has_ended else None
            if not reading.done():
                scope.kill("while it waits")
            scope.is_killed = True
            await scope.clean_up()
            if self._file is not None:
                self._file.close()
                self._file = None
            if self.world.cluster is not None:
                await self.world.cluster.disconnect(scope)
        if isinstance(error, Exception) and not isinstance(error, SourceUnavailable | BrokerOutOfReach):
            self.world.fail(f"{name} has ended: {error!r}")
        return has_ended and error is None

    def _on_kill(self, name: str, point: str) -> None:
        self.world.note(f"{name} is killed {point}")
        if "analytics" in point:
            self.world.saw(f"analytics: killed {point.replace('analytics ', '')}")

    async def _read(self, scope: Scope, *, is_last: bool) -> None:
        cluster = self.world.cluster
        assert cluster is not None
        host = cluster.link(scope)
        self._file = file = _File(scope, self.path)
        servers = Servers(urls=(f"nats://{host}:4222",))
        async with session(lambda: servers, ProcessClock(lambda: self.world.now)) as connection:
            sources = [JetStreamSource(module, lambda: connection.js, contracts_of_all(), file.id) for module in MODULES]
            self.world.note(f"{scope.name} runs")
            await Ingest(file, sources, lambda progress: None).run(once=is_last)
