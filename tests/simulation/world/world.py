"""The simulated world of one run: the processes, the bus between them, the provider, the clients, and the faults on schedule."""

from __future__ import annotations

__all__ = ["World"]

import asyncio
import gc
import random
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from attrs import define, evolve, field

from app.gateways.breakers.circuit_breaker import BreakerState
from app.gateways.breakers.operations import OperationKind
from app.storage.errors import StorageUnavailable
from app.storage.sql.database import Database
from bus.memory.bus import MemoryBus
from bus.port import Bus, DeadLetters
from modules.module import Decision, Module
from tests.simulation.broker.cluster import Cluster
from tests.simulation.checks.breakers import BreakerWatch
from tests.simulation.checks.deadlines import UNDISTURBED_SECONDS
from tests.simulation.database.replicas import Replicas, sharing
from tests.simulation.disk.faults import open_file, with_refused_row
from tests.simulation.disk.power import Disk
from tests.simulation.provider.bank import Bank
from tests.simulation.world.broker import Broker
from tests.simulation.world.customers import NoAnswer
from tests.simulation.world.loop import ProcessClock, SimulatedLoop, new_uuid
from tests.simulation.world.network import BusFault, FaultyBus
from tests.simulation.world.plan import MODULES, Deployment, Fault, FaultKind, Plan
from tests.simulation.world.process import (
    JUMP_SECONDS,
    Downtime,
    Place,
    Process,
    Seams,
    contracts_of_all,
    descriptors,
    start_process,
)
from tests.simulation.world.scope import Scope
from tests.simulation.world.watch import Watch

KILL_SECONDS_MAX = 5.0
"""A process that passes too few points is killed after this time."""

NAMED_SECONDS_MAX = 30.0
"""The same, if it is to be killed at a point of one kind: calls of the provider can be rare."""

_DISTURBING = (FaultKind.DISK, FaultKind.BUS, FaultKind.BROKER, FaultKind.LINK, FaultKind.PAUSE, FaultKind.DATABASE)


@define(eq=False, slots=False)
class World:
    """One run of *plan*; the files are in *folder*."""

    plan: Plan
    folder: Path
    lines: list[str] = field(factory=list)
    situations: Counter[str] = field(factory=Counter)
    failures: list[str] = field(factory=list)
    names: dict[str, str] = field(factory=dict)
    """The name of whose each id of an order is."""
    orders: dict[str, str] = field(factory=dict)
    """The orders that were answered with 202, with the name of the customer."""
    refusals: set[str] = field(factory=set)
    """The customers whose order must not exist."""
    placed_at: dict[str, float] = field(factory=dict)
    stock: Counter[str] = field(factory=Counter)
    """The initial and the added stock of each product."""
    healed_at: float = 0.0
    """When the last fault has ended."""
    delay_seconds: float = 0.0
    """By how much the timers may be late, because clocks were set back."""
    _ids: Counter[str] = field(factory=Counter)
    _loop: asyncio.AbstractEventLoop = field(factory=asyncio.get_running_loop)

    def __attrs_post_init__(self) -> None:
        self.rng = random.Random(f"world {self.plan.seed}")
        self.modules = descriptors(self.plan.timeout_seconds)
        self.watch = Watch(self)
        self.breakers = BreakerWatch(self.fail)
        self.bank = Bank(self)
        self.broker = Broker(self._loop.time) if self.plan.deployment is Deployment.SPLIT else None
        self.cluster: Cluster | None = None
        if self.plan.deployment is Deployment.JETSTREAM:
            assert isinstance(self._loop, SimulatedLoop)
            self.cluster = Cluster(self._loop, random.Random(f"{self.plan.seed}/broker"), contracts_of_all())
        self.places = [Place(number, modules) for number, modules in enumerate(self.plan.deployment.processes * self.plan.replicas)]
        self.replicas = Replicas(self)
        self._readers: dict[Path, sqlite3.Connection] = {}
        self.faults: dict[FaultKind, list[Fault]] = defaultdict(list)
        has_losses = any(fault.loses_power for fault in self.plan.faults)
        self.disk = Disk(self.folder, random.Random(f"{self.plan.seed}/disk"), self._on_file_step) if has_losses else None
        self._poisons = {(each.module, each.event, each.customer): (each.times, each.breaks_row) for each in self.plan.poisons}

    # What happens

    @property
    def now(self) -> float:
        """The time since the beginning of the run."""
        return self._loop.time()

    def note(self, text: str) -> None:
        self.lines.append(f"{self.now:9.3f} {text}")

    def saw(self, situation: str) -> None:
        self.situations[situation] += 1

    def fail(self, text: str) -> None:
        self.failures.append(text)
        self.note(f"FAILED {text}")

    def label(self, order_id: str) -> str:
        """Return the name of the order *order_id*, which is the same in each run."""
        return self.names.get(order_id, order_id)

    # The clients' side

    def new_id(self, name: str) -> str:
        self._ids[name] += 1
        id = new_uuid(self.now, f"{self.plan.seed}/{name}/{self._ids[name]}")
        self.names[id] = name
        return id

    def accepted(self, customer: str, order_id: str) -> None:
        self.orders[order_id] = customer
        self.placed_at.setdefault(order_id, self.now)

    def refused(self, customer: str) -> None:
        self.refusals.add(customer)

    def restocked(self, product_id: str, quantity: int) -> None:
        self.stock[product_id] += quantity

    async def request(self, module: str, call: Callable[[Process], Coroutine[Any, Any, Any]]) -> Any:
        place = self.replicas.choose(self.places_of(module))
        if place.process is None or place.process.scope.is_killed:
            raise NoAnswer
        scope = place.process.scope
        task = scope.run(call(place.process))
        await asyncio.wait([task], timeout=self.replicas.answer_seconds)
        if not task.done():
            task.add_done_callback(lambda task: task.cancelled() or task.exception())
            raise NoAnswer
        if task.cancelled() or not isinstance(task.exception(), Exception | None):
            if scope.is_stopped and not self.is_disturbed(module, UNDISTURBED_SECONDS):
                self.fail(f"{scope.name} was stopped, and has not answered a request to {module}")
            raise NoAnswer
        return task.result()

    def read(self, module: str, sql: str) -> list[Any]:
        """Return the rows of *sql* in the file of *module*, as committed."""
        file = self.file_of(module)
        if file not in self._readers:
            self._readers[file] = sqlite3.connect(file, isolation_level=None)
        return self._readers[file].execute(sql).fetchall()

    def close(self) -> None:
        """Close the files."""
        for reader in self._readers.values():
            reader.close()
        if self.disk is not None:
            self.disk.remove()
        self.replicas.close()
        if self.cluster is not None:
            self.cluster.close()

    def places_of(self, module: str) -> list[Place]:
        """Return where *module* runs."""
        return [place for place in self.places if module in place.modules]

    # Processes

    async def keep_running(self, place: Place) -> None:
        """Run the process of *place*, and start it again after each end, as a supervisor does."""
        while not place.is_dead:
            await self._live(place)
            await self._restore(place)
            seconds, jump = place.down.seconds, place.down.jump_seconds
            place.down = Downtime()
            await asyncio.sleep(seconds)
            place.skew_seconds += jump
            if jump:
                self.saw(f"clock: {'ahead' if jump > 0 else 'back'} by {'much' if abs(jump) > 60 else 'little'}")
                self.watch.clock_was_set(jump)
                self.delay_seconds += abs(jump) if abs(jump) <= JUMP_SECONDS else 0.0

    async def _live(self, place: Place) -> None:
        """Start the process of *place*, and return once it was killed and cleaned up."""
        place.lives += 1
        name = f"process {place.number}.{place.lives}"
        place.scope = scope = Scope(name, partial(self._on_kill, place, name))
        clock = ProcessClock(self._loop.time, place.skew_seconds)
        seed = f"{self.plan.seed}/{name}"
        seams = Seams(
            partial(self._make_bus, place, seed), self.bank.provider.gateway, partial(self._open_database, place),
            partial(self._on_breaker, scope), {module: partial(self.watch.on_commit, module) for module in MODULES}, self._decide,
        )  # fmt: skip
        modules: list[Module] = [self.modules[module] for module in place.modules]
        starting = scope.starting = scope.run(
            start_process(scope, clock, modules, self.files(place), seams, keeps_order=self.plan.keeps_order, seed=seed)
        )
        await asyncio.wait([starting])
        scope.starting = None
        process: Process | None = None
        if not starting.cancelled() and starting.exception() is None:
            process = place.process = starting.result()
            self.note(f"{name} runs")
            self._begin(place)
            await scope.ended.wait()
        else:
            error = None if starting.cancelled() else starting.exception()
            if isinstance(error, StorageUnavailable):
                self.saw("process: start fails without its database")
            elif isinstance(error, Exception):
                self.fail(f"{name} does not start: {error!r}")
            if not scope.is_killed:
                self.note(f"{name} does not start: {error!r}")
                scope.kill("start")
        await scope.clean_up()
        self.replicas.on_end(scope)
        place.process, place.down_since = None, self.now if place.down_since is None else place.down_since
        if process is not None:
            process.forget()
        if (broker := self.broker or self.cluster) is not None:
            await broker.disconnect(scope)

    def _begin(self, place: Place) -> None:
        if place.down_since is not None:
            place.down_seconds += self.now - place.down_since
        place.down_since, place.disturbed_at, place.starts = None, self.now, place.starts + 1
        if "payments" in place.modules:
            self.watch.old_requests_are_rechecked()

    def is_disturbed(self, module: str, seconds: float) -> bool:
        """Return whether a process of *module* does not run, or a fault has hindered it within the last *seconds*."""
        faults = [each for kind in _DISTURBING for each in self.faults[kind]]
        if any(each.kind is FaultKind.BROKER for each in faults):
            return True
        disturbed = {each.process for each in faults}
        places = [place for place in self.places_of(module) if not place.is_dead]
        return any(each.number in disturbed or each.process is None or self.now < each.disturbed_at + seconds for each in places)

    def files(self, place: Place) -> dict[str, Path]:
        """Return the file of each module of *place*."""
        is_one = self.plan.deployment is Deployment.LOCAL
        return {module: self.folder / ("system.db" if is_one else f"{module}.db") for module in place.modules}

    def file_of(self, module: str) -> Path:
        """Return the file of *module*."""
        return self.files(self.places_of(module)[0])[module]

    def _open_database(self, place: Place, scope: Scope, module: str, path: Path) -> Database:
        if self.replicas.are_several:
            return self.replicas.open(scope, module, path)
        return open_file(path, scope, partial(self._draw_fault, FaultKind.DISK, place.number, self.rng))

    def _make_bus(self, place: Place, seed: str, scope: Scope, clock: ProcessClock, letters: DeadLetters) -> Bus:
        if self.cluster is not None:
            connected = self.cluster.connect(scope, clock, letters, [self.modules[name] for name in place.modules])
            return sharing(connected) if self.plan.shares_load else connected
        bus: Bus = MemoryBus(clock, letters) if self.broker is None else self.broker.connect(scope, letters, place.modules)
        if not self.plan.has_faulty_bus:
            return bus
        rng = random.Random(f"{seed}/bus")
        return FaultyBus(bus, scope, partial(self._draw_fault, FaultKind.BUS, place.number, rng), rng, partial(self._is_bus_away, place.number))

    def _on_kill(self, place: Place, process: str, point: str) -> None:
        if self.disk is None or not place.down.loses_power:
            self.note(f"{process} is killed {point}")
            self.saw(f"kill: {point}")
            return
        self.note(f"{process} loses its power {point}")
        self.saw(f"power lost: {point}")
        place.images = self.disk.lose_power(set(self.files(place).values()))

    def _on_file_step(self, path: Path, step: str) -> None:
        for place in self.places:
            if place.scope is not None and any(path.name.startswith(file.name) for file in self.files(place).values()):
                place.scope.pass_within(step)

    async def _restore(self, place: Place) -> None:
        """Give the files of *place* what a loss of power has left of them."""
        if self.disk is not None and place.images is not None:
            for file in set(self.files(place).values()):
                if (reader := self._readers.pop(file, None)) is not None:
                    reader.close()
            while self.disk.are_open(place.images):  # what the process was opening at its end is closed with the last that knows it
                await asyncio.sleep(0)
                gc.collect()
            self.disk.restore(place.images)
            place.images = None

    def _on_breaker(self, scope: Scope, kind: OperationKind, state: BreakerState) -> None:
        self.breakers.on_change(scope, kind, state)
        self.saw(f"breaker: {kind.value} {state.name.lower()}")
        self.note(f"breaker of {kind.value} is {state.name.lower()}")
        if kind is OperationKind.CHARGE:
            self.watch.old_requests_are_rechecked()

    def _decide(self, module: str, decide: Any, states: Sequence[Any], event: Any, now: Any) -> Decision:
        name = self.label(getattr(event, "order_id", ""))
        key = module, type(event).__name__, name
        times, breaks_row = self._poisons.get(key, (0, False))
        if times:
            self._poisons[key] = times - 1, breaks_row
            self.saw(f"handler raises: {module} {type(event).__name__}")
            if not breaks_row:
                raise RuntimeError(f"the handler of {type(event).__name__} fails for {name}")
        decision: Decision = decide(states, event, now)
        if times and (refused := with_refused_row(decision.states)):
            self.saw(f"row: {module} is refused one")
            return evolve(decision, states=refused)
        return decision

    # Faults

    async def cause(self, fault: Fault) -> None:
        """Let *fault* begin and end when it is its time."""
        await asyncio.sleep(fault.at)
        if fault.kind in (FaultKind.KILL, FaultKind.STOP):
            await (self._kill if fault.kind is FaultKind.KILL else self._stop)(fault)
            return
        what = fault.spell.answer.value if fault.spell is not None else str(fault.disk or fault.bus or fault.broker or fault.link or fault.database or "stop")
        self.note(f"begin of {fault.kind}: {what} ({fault.spell.share if fault.spell else fault.share:.0%}, {fault.seconds:g} s)")
        if fault.bus is BusFault.AWAY:
            self.saw("bus: away")
        self.faults[fault.kind].append(fault)
        self._disturb(fault)
        self.replicas.set_down(fault, is_down=True)
        if fault.spell is not None:
            self.bank.weather.spells.append(fault.spell)
        scope = self.places[fault.process].scope
        if self.cluster is not None and self.cluster.begin(fault, scope):
            self.saw(f"{fault.kind}: {what}")
        try:
            await (self.replicas.pause(fault) if fault.kind is FaultKind.PAUSE else asyncio.sleep(fault.seconds))
        finally:
            self.replicas.set_down(fault, is_down=False)
            if self.cluster is not None:
                self.cluster.end(fault, scope)
            self.faults[fault.kind].remove(fault)
            self._disturb(fault)
            if fault.spell is not None:
                self.bank.weather.spells.remove(fault.spell)
            self.note(f"end of {fault.kind}: {what}")

    def _disturb(self, fault: Fault) -> None:
        for place in self.places:
            if fault.kind in _DISTURBING and (fault.process == place.number or fault.kind is FaultKind.BROKER):
                place.disturbed_at = self.now

    async def _kill(self, fault: Fault) -> None:
        place = self.places[fault.process]
        scope = place.scope
        if scope is None or scope.is_killed:
            return
        place.down = Downtime(fault.seconds, fault.jump_seconds, fault.loses_power)
        scope.left, scope.counted, scope.stops = fault.points, fault.point, False
        with suppress(TimeoutError):
            async with asyncio.timeout(NAMED_SECONDS_MAX if fault.point else KILL_SECONDS_MAX):
                await scope.ended.wait()
        if not scope.is_killed:
            scope.kill("while it is idle")

    async def _stop(self, fault: Fault) -> None:
        """Stop a process as an operator does, and start it again later."""
        place = self.places[fault.process]
        process = place.process
        if process is None or process.scope.is_killed or place.is_stopping:
            return
        place.is_stopping, place.down = True, Downtime(fault.seconds)
        self.note(f"{process.scope.name} is to stop")
        stopping = process.scope.run(process.stop())
        try:
            await asyncio.wait([stopping, asyncio.ensure_future(process.scope.ended.wait())], return_when=asyncio.FIRST_COMPLETED)
        finally:  # also if everything heals meanwhile
            place.is_stopping = False
            if not process.scope.ended.is_set():
                process.scope.is_stopped = stopping.done()
                process.scope.kill("after a stop")
        if process.scope.is_stopped and (error := stopping.exception()) is not None:
            self.fail(f"{process.scope.name} does not stop: {error!r}")

    def heal(self) -> None:
        """End every fault that has no end of its own: kills that are to come, and handlers that raise."""
        self.note("everything heals")
        self.healed_at = self.now
        self._poisons.clear()
        for place in self.places:
            if place.scope is not None:
                place.scope.left = None
        self.replicas.leave_one()

    def poison(self, module: str, event: str, name: str, times: int, *, breaks_row: bool = False) -> None:
        """Let the handler of *module* fail for the next *times* events of a class about the order *name*; see `Poison`."""
        self._poisons[module, event, name] = times, breaks_row

    def _draw_fault(self, kind: FaultKind, process: int, rng: random.Random) -> Any:
        for fault in self.faults[kind]:
            if fault.process == process and fault.bus is not BusFault.AWAY and rng.random() < fault.share:
                found = fault.disk or fault.bus
                self.saw(f"{kind}: {found}")
                return found
        return None

    def _is_bus_away(self, process: int) -> bool:
        return any(each.bus is BusFault.AWAY and each.process == process for each in self.faults[FaultKind.BUS])
