"""What one run does, drawn from its seed before it begins: the shop, what its clients do, and the faults."""

from __future__ import annotations

__all__ = ["MODULES", "Customer", "Deployment", "Fault", "FaultKind", "Plan", "Poison", "Stock", "draw_plan"]

import random
from enum import StrEnum
from typing import TypeVar

from attrs import evolve, frozen

from tests.simulation.broker.faults import BrokerFault, LinkFault
from tests.simulation.database.server import DatabaseFault
from tests.simulation.disk.faults import DiskFault
from tests.simulation.provider.ledger import Traits
from tests.simulation.provider.weather import Answer, Call, Spell
from tests.simulation.world.network import BusFault

T = TypeVar("T")

REPLICAS_SECONDS = 25.0
"""How long a run with several processes of each module lasts at most; it takes some times as much as others."""

_PAYMENT_POINTS = ("charge", "look-up", "refund")
_LOSE_MESSAGES = (BrokerFault.TAIL_LOST, BrokerFault.STREAM_DELETED)

MODULES = ("orders", "inventory", "payments")


class Deployment(StrEnum):
    """How the modules are spread over processes and files."""

    LOCAL = "one process, one file"
    SEPARATE = "one process, three files"
    SPLIT = "three processes"
    JETSTREAM = "three processes on JetStream"

    @property
    def processes(self) -> tuple[tuple[str, ...], ...]:
        """The modules of each process."""
        return tuple((name,) for name in MODULES) if self in (Deployment.SPLIT, Deployment.JETSTREAM) else (MODULES,)


@frozen
class Stock:
    """A product, and when more of it comes."""

    product_id: str
    on_hand: int
    price: int
    currency: str
    restocks: tuple[tuple[float, int], ...] = ()


@frozen
class Customer:
    """Places one order at *at*, repeats the request until it is answered, and may do more with the order later."""

    name: str
    at: float
    lines: tuple[tuple[str, int], ...]
    is_express: bool = False
    has_key: bool = True
    posts: int = 1
    """How many equal requests are sent at once."""
    changes_body: bool = False
    """Uses the key for another body later, which is an error."""
    cancels_after: float | None = None
    refunds: tuple[tuple[float, int], ...] = ()
    """Requests for a part of the payment: when after the answer, and how many minor units; 0 means all that is left."""


class FaultKind(StrEnum):
    """What a fault concerns."""

    KILL = "kill"
    STOP = "stop"
    PROVIDER = "provider"
    DISK = "disk"
    BUS = "bus"
    BROKER = "broker"
    LINK = "link"
    PAUSE = "pause"
    DATABASE = "database"


@frozen
class Fault:
    """
    Begins at second *at* and lasts for *seconds*.

    A kill or a pause comes after *points* points of process *process*, which is down or stopped then.
    """

    kind: FaultKind
    at: float
    seconds: float
    process: int = 0
    points: int = 0
    point: str = ""
    """Only points with this in their names count."""
    jump_seconds: float = 0.0
    """By how much the clock of the process is set when it is started again."""
    loses_power: bool = False
    """The process is killed by a loss of power, which leaves of its files what was synced, and any part of the rest."""
    spell: Spell | None = None
    disk: DiskFault | None = None
    bus: BusFault | None = None
    broker: BrokerFault | None = None
    link: LinkFault | None = None
    database: DatabaseFault | None = None
    share: float = 0.0


@frozen
class Poison:
    """
    The handler of *module* fails for the first *times* events of a class about the order of *customer*.

    It raises an error; with *breaks_row* it returns a state that the database refuses, which fails the whole transaction.
    """

    module: str
    event: str
    customer: str
    times: int
    breaks_row: bool = False


@frozen
class Plan:
    """One run."""

    seed: int
    deployment: Deployment
    replicas: int
    """Processes of each module; if several, they share the database of the module."""
    shares_load: bool
    """Whether all processes of a module fetch its messages, also those that do not lead."""
    leaves_one: bool
    """Whether at the end one process of each module is healed, and the others are dead."""
    has_faulty_bus: bool
    keeps_order: bool
    has_webhooks: bool
    decides_again: bool
    """Whether the history is decided again at the end, which takes long."""
    has_analytics: bool
    """Whether a process beside the modules reads their streams into a file, and is killed again and again."""
    timeout_seconds: float
    traits: Traits
    stock: tuple[Stock, ...]
    customers: tuple[Customer, ...]
    faults: tuple[Fault, ...]
    poisons: tuple[Poison, ...]
    seconds: float
    """How long the faults last."""


def draw_plan(seed: int) -> Plan:
    """Return the run of *seed*."""
    plan = _draw_plan(seed)
    # Drawn apart, so that the other runs stay what they are.
    rng = random.Random(f"replicas {seed}")
    plan = evolve(plan, faults=tuple(sorted([*plan.faults, *_stops(seed, plan)], key=lambda fault: fault.at)))
    replicas = rng.choice([1, 2, 2, 3]) if plan.deployment is Deployment.JETSTREAM else 1
    return with_replicas(plan, replicas, rng) if replicas > 1 else _with_power_losses(plan, random.Random(f"power {seed}"))


def _stops(seed: int, plan: Plan) -> list[Fault]:
    """Return stops of single processes, as those of a deployment: each ends what it has begun, and is started again."""
    rng = random.Random(f"stops {seed}")
    processes = len(plan.deployment.processes)
    return [
        Fault(FaultKind.STOP, rng.uniform(0.0, plan.seconds), rng.choice([0.1, 2.0]), rng.randrange(processes))
        for _ in range(rng.choice([0, 0, 1, 3]))
    ]


def _with_power_losses(plan: Plan, rng: random.Random) -> Plan:
    """Return *plan*, in half of the plans with a loss of power in place of each kill, often while something is written."""
    if rng.random() < 0.5:
        return plan
    points = [("file sync", 6), ("file sync", 2), ("file write", 30), ("write commit", 4), ("", 30)]
    faults = [
        evolve(fault, loses_power=True, point=point, points=rng.randrange(most)) if fault.kind is FaultKind.KILL else fault
        for fault, (point, most) in ((fault, rng.choice(points)) for fault in plan.faults)
    ]
    return evolve(plan, faults=tuple(faults))


def _draw_plan(seed: int) -> Plan:
    rng = random.Random(f"plan {seed}")
    deployment = rng.choice([*Deployment])
    seconds = rng.choice([12.0, 25.0, 45.0, 90.0])
    stock = _stock(rng, seconds)
    starts = _starts(rng, rng.choice([3, 8, 14, 24]), seconds)
    customers = tuple(_customer(rng, f"customer {number}", at) for number, at in enumerate(starts))
    traits = _traits(rng)
    return Plan(
        seed=seed,
        deployment=deployment,
        replicas=1,
        shares_load=False,
        leaves_one=False,
        has_faulty_bus=deployment is not Deployment.LOCAL or rng.random() < 0.3,
        keeps_order=rng.random() < 0.3,
        # A call that takes effect late is known by its webhook alone.
        has_webhooks=rng.random() < 0.5 or traits.remembers_charges or traits.pending_refunds > 0,
        decides_again=seed % 4 == 0,
        has_analytics=deployment is Deployment.JETSTREAM and random.Random(f"analytics {seed}").random() < 0.3,
        # On JetStream a message that was on its way over a connection that ends comes again after 30 seconds.
        timeout_seconds=max(rng.choice([20.0, 60.0, 150.0]), 60.0 if deployment is Deployment.JETSTREAM else 0.0),
        traits=traits,
        stock=stock,
        customers=customers,
        faults=tuple(sorted(_faults(rng, deployment, seconds), key=lambda fault: fault.at)),
        poisons=_poisons(rng, customers),
        seconds=seconds,
    )


def _traits(rng: random.Random) -> Traits:
    return Traits(
        remembers_charges=rng.random() < 0.6,
        limit=rng.choice([400, 900, 10**9, 10**9]),
        soft_declines=rng.choice([0.0, 0.0, 0.0, 0.3]),
        pending_charges=rng.choice([0.0, 0.0, 0.3]),
        pending_refunds=rng.choice([0.0, 0.0, 0.5]),
        failing_refunds=rng.choice([0.0, 0.3]),
    )


def _stock(rng: random.Random, seconds: float) -> tuple[Stock, ...]:
    scarce = rng.choice([5, 12, 60, 60])
    found = [Stock("A", scarce, 100, "EUR"), Stock("B", 60, 250, "EUR"), Stock("C", 60, 90, "USD")]
    restocks = tuple((rng.uniform(0.0, seconds), rng.randint(1, 9)) for _ in range(rng.choice([0, 0, 2, 4])))
    found[0] = Stock("A", scarce, 100, "EUR", restocks)
    return tuple(found)


def _starts(rng: random.Random, count: int, seconds: float) -> list[float]:
    """Return when each customer comes: spread over the run, early, or all at once, so that their orders share transactions."""
    end = seconds * rng.choice([0.2, 0.9])
    burst = rng.uniform(0.0, seconds / 2) if rng.random() < 0.3 else None
    return [rng.uniform(0.0, end) if burst is None else burst + rng.choice([0.0, 0.01]) for _ in range(count)]


def _customer(rng: random.Random, name: str, at: float) -> Customer:
    products = rng.choices(["A", "B", "AB", "C", "AC", "X", "AA"], [30, 30, 20, 5, 3, 2, 5])[0]
    return Customer(
        name=name,
        at=at,
        lines=tuple((product, rng.choice([1, 1, 2, 4])) for product in products),
        is_express=rng.random() < 0.3,
        has_key=rng.random() < 0.85,
        posts=rng.choices([1, 2, 3], [80, 15, 5])[0],
        changes_body=rng.random() < 0.05,
        cancels_after=rng.uniform(0.0, rng.choice([0.1, 1.0, 40.0])) if rng.random() < 0.2 else None,
        refunds=_refunds(rng),
    )


def _refunds(rng: random.Random) -> tuple[tuple[float, int], ...]:
    first = rng.uniform(0.5, 30.0)
    are_together = rng.random() < 0.5
    amounts = [rng.choice([10, 50, 100, 0]) for _ in range(rng.choices([0, 1, 2], [70, 15, 15])[0])]
    return tuple((first if are_together else rng.uniform(0.5, 30.0), amount) for amount in amounts)


def _poisons(rng: random.Random, customers: tuple[Customer, ...]) -> tuple[Poison, ...]:
    events = {
        "orders": ("StockReserved", "PaymentCaptured", "OrderTimedOut", "StockReleased"),
        "inventory": ("OrderCreated", "OrderConfirmed", "OrderCancelled"),
        "payments": ("StockReserved", "OrderCancelled", "ChargeSucceeded", "ChargeFailed"),
    }
    found = []
    for _ in range(rng.choice([0, 0, 1, 3])):
        module = rng.choice(MODULES)
        found.append(Poison(module, rng.choice(events[module]), rng.choice(customers).name, rng.choice([1, 2, 4, 7, 12]), rng.random() < 0.4))
    return tuple(found)


def _faults(rng: random.Random, deployment: Deployment, seconds: float) -> list[Fault]:
    processes = len(deployment.processes)
    found = []
    for _ in range(rng.choice([0, 1, 2, 4, 6])):
        kill = Fault(
            FaultKind.KILL, rng.uniform(0.0, seconds), rng.choice([0.2, 0.5, 2.0, 15.0]), rng.randrange(processes),
            points=rng.choice([0, 3, rng.randrange(60)]),
            point=rng.choice(["", "", "", "charge", "look-up", "refund", "publish", "ack", "write commit"]),
            jump_seconds=rng.choices([0.0, -7_200.0, -20.0, 20.0, 7_200.0], [70, 10, 7, 6, 7])[0],
        )  # fmt: skip
        if kill.point in _PAYMENT_POINTS:  # they are few, and only the process with payments passes them
            kill = evolve(kill, points=kill.points % 4, process=processes - 1)
        found.append(kill)
    for _ in range(rng.choice([0, 1, 2, 5])):
        answer = rng.choice([each for each in Answer if each is not Answer.NORMAL])
        calls = rng.choice([(Call.CHARGE,), (Call.LOOK_UP,), (Call.REFUND,), tuple(Call), tuple(Call)])
        if answer is Answer.GARBLED:
            calls = tuple(each for each in calls if each is not Call.LOOK_UP)
        spell = Spell(answer, calls, rng.choice([0.1, 0.3, 1.0]))
        found.append(Fault(FaultKind.PROVIDER, rng.uniform(0.0, seconds), rng.choice([3.0, 15.0, 60.0]), spell=spell))
    for _ in range(rng.choice([0, 0, 1, 2])):
        disk, process = rng.choice([*DiskFault]), rng.randrange(processes)
        found.append(
            Fault(FaultKind.DISK, rng.uniform(0.0, seconds), rng.choice([0.5, 3.0, 10.0]), process, disk=disk, share=rng.choice([0.1, 0.5, 1.0]))
        )
    if deployment is Deployment.JETSTREAM:
        more = _broker_faults(rng, seconds)
        if any(each.broker in _LOSE_MESSAGES for each in more):
            # What a stream has lost is noticed by the process that had published it, if that still runs.
            found = [each for each in found if each.kind is not FaultKind.KILL]
        return [*found, *more]
    for _ in range(rng.choice([0, 1, 2, 3])):
        bus, process = rng.choice([*BusFault]), rng.randrange(processes)
        found.append(
            Fault(FaultKind.BUS, rng.uniform(0.0, seconds), rng.choice([2.0, 10.0, 30.0]), process, bus=bus, share=rng.choice([0.05, 0.3, 1.0]))
        )
    return found


def _broker_faults(rng: random.Random, seconds: float) -> list[Fault]:
    found = []
    for _ in range(rng.choice([0, 1, 2, 4])):
        drawn: BrokerFault = rng.choice([each for each in BrokerFault if each is not BrokerFault.STREAM_DELETED])
        at, lasts = rng.uniform(0.0, seconds), rng.choice([0.5, 3.0, 6.5, 20.0])
        is_deleted = drawn is BrokerFault.TAIL_LOST and int(at * 1_000) % 2 == 1  # a stream loses some of its messages, or all
        found.append(Fault(FaultKind.BROKER, at, lasts, broker=BrokerFault.STREAM_DELETED if is_deleted else drawn))
    for _ in range(rng.choice([0, 1, 2, 4])):
        process, link = rng.randrange(len(MODULES)), rng.choice([*LinkFault])
        found.append(Fault(FaultKind.LINK, rng.uniform(0.0, seconds), rng.choice([0.5, 3.0, 20.0, 45.0]), process, link=link))
    return found


def with_replicas(plan: Plan, replicas: int, rng: random.Random) -> Plan:
    """
    Return *plan* with so many processes of each module, on a database that they share.

    The provider remembers what it was asked, as one with idempotency keys does: without them, two processes can charge an order.
    A clock differs from the others by seconds at most, because a process takes over the time of those that run.
    """
    processes, lasts = len(MODULES) * replicas, min(plan.seconds, REPLICAS_SECONDS)
    pace = lasts / plan.seconds
    customers = [_busy(evolve(each, at=each.at * pace), rng) for each in plan.customers]
    faults = [
        evolve(
            fault, at=fault.at * pace, process=fault.process + len(MODULES) * rng.randrange(replicas),
            jump_seconds=max(-20.0, min(20.0, fault.jump_seconds)),
        )
        for fault in plan.faults if fault.kind is not FaultKind.DISK
    ]  # fmt: skip
    for _ in range(rng.choice([0, 1, 2, 4])):
        faults.append(
            Fault(
                FaultKind.PAUSE, rng.choice(customers).at, rng.choice([2.0, 8.0, 35.0, 35.0]), rng.randrange(processes),
                points=rng.choice([0, 1, rng.randrange(20)]), point=rng.choice(["", "statement", "commit", "ack", "publish", "charge"]),
            )
        )  # fmt: skip
    for _ in range(rng.choice([1, 5, 10])):
        database, process = rng.choice([*DatabaseFault]), rng.choice([0, rng.randrange(3)]) + len(MODULES) * rng.randrange(replicas)
        seconds, share = rng.choice([0.5, 3.0, 10.0]), rng.choice([0.1, 0.4, 1.0])
        at = max(0.0, rng.choice(customers).at - rng.uniform(0.0, seconds))
        if database is DatabaseFault.OUTCOME_UNKNOWN:  # for one that cannot ask again: the answer must be true
            at = max(0.0, min(customers, key=lambda customer: (customer.has_key, rng.random())).at - 0.01)
            process, seconds, share = len(MODULES) * rng.randrange(replicas), 0.5, 1.0
        faults.append(Fault(FaultKind.DATABASE, at, seconds, process, database=database, share=share))
    seconds = max(lasts, *(fault.at + fault.seconds + 1.0 for fault in faults if fault.kind is FaultKind.PAUSE), 0.0)
    has_lost_tail = any(fault.broker in _LOSE_MESSAGES for fault in faults)
    return evolve(
        plan, replicas=replicas, customers=tuple(customers), seconds=seconds,
        shares_load=rng.random() < 0.5, leaves_one=not has_lost_tail and rng.random() < 0.7,
        traits=evolve(plan.traits, remembers_charges=True), has_webhooks=True, faults=tuple(sorted(faults, key=lambda fault: fault.at)),
    )  # fmt: skip


def _busy(customer: Customer, rng: random.Random) -> Customer:
    """Return *customer*, perhaps without a key, so that each answer counts, or with a cancellation that comes while the order is placed."""
    if rng.random() < 0.2:
        customer = evolve(customer, has_key=False, posts=1)
    return evolve(customer, cancels_after=rng.uniform(0.0, 0.5)) if rng.random() < 0.3 else customer
