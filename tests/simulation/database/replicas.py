"""Several processes of each module in a simulated world: their database servers, and what is checked about them."""

from __future__ import annotations

__all__ = ["Replicas", "sharing"]

import asyncio
import random
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.storage.sql.database import Database
from bus.port import ACK_WAIT_SECONDS
from modules.orders.state import Status
from tests.databases import migrated_file
from tests.simulation.database.dialect import open_shared
from tests.simulation.database.errors import Row
from tests.simulation.database.server import DatabaseFault, DatabaseServer
from tests.simulation.world.plan import MODULES, Fault, FaultKind
from tests.simulation.world.scope import Scope

if TYPE_CHECKING:
    from tests.simulation.world.process import Place
    from tests.simulation.world.world import World

ANSWER_SECONDS_MAX = 10.0
"""How long a client waits before it asks another process; it waits without an end if there is none."""

STOP_SECONDS_MAX = 5.0
"""A process that passes too few points is stopped after this time."""

LOOK_SECONDS = 3.0
LOOKS = 3
"""How often in turn a process may be seen in a state that its next scan has to end."""

_ORDER = "SELECT status, reason FROM orders_order WHERE order_id = '{}'"


class Replicas:
    """The servers of *world*, by module; none if each module has one process."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._rng = random.Random(f"balancer {world.plan.seed}")
        self.are_several = world.plan.replicas > 1
        self.answer_seconds = ANSWER_SECONDS_MAX if self.are_several else None
        self.servers: dict[str, DatabaseServer] = {}

    def open(self, scope: Scope, module: str, path: Path) -> Database:
        """Return the database of *module* for the process *scope*."""
        if module not in self.servers:
            migrated_file(path)
            self.servers[module] = DatabaseServer(
                module, path, random.Random(f"{self._world.plan.seed}/database {module}"), self._draw_fault,
                self._saw, self._on_commit,
            )  # fmt: skip
        return open_shared(self.servers[module], scope)

    def choose(self, places: list[Place]) -> Place:
        """Return the place that a load balancer chooses: one that runs, if there is one."""
        return self._rng.choice([place for place in places if place.process is not None] or places) if self.are_several else places[0]

    def on_end(self, scope: Scope) -> None:
        """Note that the process *scope* was killed."""
        for server in self.servers.values():
            server.notice_end(scope)

    def close(self) -> None:
        """Close the files."""
        for server in self.servers.values():
            server.end_sessions()

    def _saw(self, what: str) -> None:
        self._world.saw(f"database: {what}")
        if what == "deadlock":
            self._world.fail("two transactions wait for each other, although all lock rows in one order")

    def _on_commit(self, module: str, rows: Collection[Row]) -> None:
        for table, key in rows:
            if table == "orders_order":
                for status, reason in self._world.read("orders", _ORDER.format(key)):
                    self._world.watch.check_order(str(key), Status(status), reason)

    # Faults

    def _draw_fault(self, scope: Scope, possible: Collection[DatabaseFault]) -> DatabaseFault | None:
        world = self._world
        for fault in world.faults[FaultKind.DATABASE]:
            is_here = world.places[fault.process].scope is scope and fault.database in possible
            if is_here and world.rng.random() < fault.share:
                world.saw(f"database: {fault.database}")
                return fault.database
        return None

    def set_down(self, fault: Fault, *, is_down: bool) -> None:
        """Let the server of a module go down or come back, if that is *fault*."""
        server = self.servers.get(self._world.places[fault.process].modules[0])
        if fault.database is DatabaseFault.DOWN and server is not None:
            server.is_down = is_down
            server.end_sessions()
            self._world.saw("database: server down")

    async def pause(self, fault: Fault) -> None:
        """Stop a process at a point, and let it go on later."""
        world, place = self._world, self._world.places[fault.process]
        scope = place.scope
        if scope is None or scope.is_killed:
            return
        stopped = asyncio.Event()
        scope.on_pause = stopped.set
        scope.left, scope.counted, scope.stops = fault.points, fault.point, True
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(STOP_SECONDS_MAX):
                    await stopped.wait()
            scope.pause()
            world.note(f"{scope.name} is stopped")
            for server in self.servers.values():
                server.notice_pause(scope)
            await asyncio.sleep(fault.seconds)
        finally:
            scope.left = None
            if scope.is_paused:
                self._wake(place, scope, fault)

    def _wake(self, place: Place, scope: Scope, fault: Fault) -> None:
        world = self._world
        has_work = place.process is not None and any(place.process.in_memory().values())
        place.disturbed_at = world.now
        world.note(f"{scope.name} goes on{', with work in hand' if has_work else ''}")
        world.saw(f"replica: goes on {'after' if fault.seconds > ACK_WAIT_SECONDS else 'before'} ack_wait{' with work' if has_work else ''}")
        scope.resume()

    def leave_one(self) -> None:
        """Kill all processes but one of each module; they do not start again."""
        world = self._world
        if not world.plan.leaves_one:
            return
        world.saw("replica: one of each is left")
        for module in MODULES:
            kept = self._rng.choice([place for place in world.places if module in place.modules])
            for place in world.places:
                if module in place.modules and place is not kept:
                    place.is_dead = True
                    if place.scope is not None:
                        place.scope.kill("and stays dead")

    async def check_leads(self) -> None:
        """Check again and again, until cancelled, that a process leads only while it has the lock, and keeps it only with a bus."""
        doubtful: Counter[str] = Counter()
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            doubtful = Counter({each: doubtful[each] + 1 for each in self._doubtful()})
            for each, count in doubtful.items():
                if count == LOOKS:
                    self._world.fail(each)

    def _doubtful(self) -> Iterator[str]:
        """Yield what must not be so for long in a process whose database works."""
        hindered = {fault.process for fault in self._world.faults[FaultKind.DATABASE]}
        for place in (each for each in self._world.places if each.number not in hindered):
            for module in place.modules if place.process is not None else ():
                server, relay = self.servers[module], place.process.relays[module]  # type: ignore[union-attr]
                if self._world.now > server.committed_at.get(place.scope, 0.0) + LOOK_SECONDS:
                    continue
                has_lock = self._leader(module) is place.scope
                if relay.is_leader and not has_lock:
                    yield f"two processes lead: {place.scope.name} leads {module} without the lock"  # type: ignore[union-attr]
                if has_lock and not relay._bus.is_connected:
                    yield f"{place.scope.name} keeps the lead of {module} without a bus"  # type: ignore[union-attr]

    def _leader(self, module: str) -> Scope | None:
        session = self.servers[module].leads.get(f"{module} relay")
        return None if session is None else session.scope


class _Sharing:
    """A subscription that fetches messages also while another process leads."""

    def __init__(self, subscription: Any) -> None:
        self._subscription = subscription

    def __getattr__(self, name: str) -> Any:
        return getattr(self._subscription, name)

    async def fetch(self, limit: int, wait_seconds: float, is_standby: bool = False) -> Any:
        return await self._subscription.fetch(limit, wait_seconds)


def sharing(bus: Any) -> Any:
    """Return *bus*, on which all processes of a module fetch its messages."""
    subscribe = bus.subscribe

    async def subscribe_to_all(consumer: str, subjects: Sequence[str]) -> Any:
        return _Sharing(await subscribe(consumer, subjects))

    bus.subscribe = subscribe_to_all
    return bus
