"""JetStream between the processes of a simulated system: a server that stays when they end, and the real adapter in each."""

from __future__ import annotations

__all__ = ["Cluster"]

import asyncio
import random
from collections.abc import Sequence

from attrs import define, field

from app.messaging.consumers import subscriptions
from bus.contracts.registry import ContractRegistry
from bus.jetstream.admin.topology import ADVISORIES, DEAD_LETTERS, Topology, advisory_consumer_plan, stream_name
from bus.jetstream.bus import JetStreamBus
from bus.jetstream.recovery.dead_letter_stream import DeadLetterPublisher
from bus.jetstream.recovery.exhausted_deliveries import ExhaustedDeliveries
from bus.jetstream.servers import Servers
from bus.port import Bus, DeadLetters
from bus.subjects import EXPRESS, module_of
from modules.module import Module
from modules.registry import MODULES
from tests.simulation.broker.faults import begin, begin_on_link, end, end_on_link
from tests.simulation.broker.network import Link, Network
from tests.simulation.broker.server import Server
from tests.simulation.broker.wire import command_ends, command_name
from tests.simulation.world.loop import ProcessClock, SimulatedLoop
from tests.simulation.world.plan import Fault
from tests.simulation.world.scope import Killed, Scope

NOTICE_SECONDS = 40.0
"""How long it takes at most that lost messages are noticed and published again."""


@define(eq=False, slots=False)
class Cluster:
    """The server, and the links of the processes to it. *rng* decides what a real server leaves open."""

    loop: SimulatedLoop
    rng: random.Random
    contracts: ContractRegistry
    links: dict[Scope, Link] = field(factory=dict)

    def __attrs_post_init__(self) -> None:
        clock = ProcessClock(self.loop.time)
        self.server = Server(clock, self.rng)
        self.network = Network(clock, self.rng, self.server)
        self.loop.connect = self.network.connect

    def link(self, scope: Scope) -> str:
        """Connect the host of the process *scope* with the server, and return the name of the host."""
        host = scope.name.replace(" ", "-")
        link = self.links[scope] = self.network.link(host)
        link.before_write, link.before_read = lambda data: _write(scope, data), lambda: not scope.is_killed
        return host

    def connect(self, scope: Scope, clock: ProcessClock, letters: DeadLetters, modules: Sequence[Module]) -> Bus:
        """Return the bus of the process *scope* with *modules*, which connects by itself; dead letters go to *letters*."""
        host = self.link(scope)
        topology = Topology.of(MODULES, subscriptions(modules, self.contracts))
        consumers = topology.with_consumers(advisory_consumer_plan(each.name, topology.consumers) for each in modules).consumers
        published = DeadLetterPublisher(letters, lambda: bus)
        bus = JetStreamBus(
            clock, published, Servers(urls=(f"nats://{host}:4222",)),
            name=host, streams=[*(stream_name(each.name) for each in modules), ADVISORIES, DEAD_LETTERS],
            durables=[each for each in consumers if each.stream == ADVISORIES], rng=random.Random(f"{host}/{self.rng.random()}"),
        )  # fmt: skip
        known = [name for contract in self.contracts for name in (contract.subject, contract.subject + EXPRESS)]
        recoveries = [
            ExhaustedDeliveries(
                bus.js, each.name, [consumer for consumer in consumers if module_of(consumer.name) == each.name],
                [subject for subject in known if subject.startswith(f"{each.name}.")], published, clock,
            )
            for each in modules
        ]  # fmt: skip

        async def run() -> None:
            await bus.connect()
            await asyncio.gather(*(recovery.run() for recovery in recoveries))

        scope.run(run())
        return bus

    def begin(self, fault: Fault, scope: Scope | None) -> bool:
        """Let *fault* of the server, or of the link of the process *scope*, begin; return whether it is such a fault."""
        if fault.broker is not None:
            begin(fault.broker, self.server, fault.seconds)
        if fault.link is not None and scope in self.links:
            begin_on_link(fault.link, self.links[scope])
        return bool(fault.broker or fault.link)

    def end(self, fault: Fault, scope: Scope | None) -> None:
        """Let *fault* end; a process that was started meanwhile has a link of its own."""
        if fault.broker is not None:
            end(fault.broker, self.server)
        if fault.link is not None and scope in self.links:
            end_on_link(self.links[scope])

    def unfinished(self) -> list[str]:
        """Return what is not done yet: the durables with messages, and a loss that may not have been noticed yet."""
        consumers = [each for each in self.server.jetstream.consumers.values() if not each.name.startswith("analytics-")]
        if self.loop.time() < self.server.jetstream.lost_at + NOTICE_SECONDS:
            return ["messages were lost a moment ago"]
        return [f"{each.name} on {each.stream.name} has {each.unsettled} messages" for each in consumers if each.unsettled]

    async def disconnect(self, scope: Scope) -> None:
        """Close the connections of a process that has ended."""
        link = self.links.pop(scope, None)
        for connection in list(link.connections) if link is not None else ():
            connection.close()

    def close(self) -> None:
        """Close all connections, at the end of a run."""
        for link in self.network.links.values():
            for connection in list(link.connections):
                connection.close()


def _write(scope: Scope, data: bytes) -> bytes:
    """Return what *scope* sends of *data*: each command is a point, and one that is killed there sends what came before it."""
    sent = 0
    try:
        for end in command_ends(data):
            scope.point(f"before {command_name(data[sent:end])}")
            sent = end
    except Killed:
        pass
    return data[:sent]
