"""The faults of a run: which ones, of what, how long, and how long there is none. A seed alone decides all of it."""

from __future__ import annotations

__all__ = ["BROKER", "DATABASE", "Step", "schedules"]

import random
from collections.abc import Iterator, Sequence

from attrs import frozen

from tests.histories.links.link import Fault

BROKER, DATABASE = "NATS", "PostgreSQL"
CLOCK_SECONDS = 120
_FAULTS = tuple(each for each in Fault if each is not Fault.NONE)
_RESTART_SECONDS = (0.0, 2.0)
_REST_SECONDS = (0.5, 3.0)
_LINKS = ((BROKER,), (DATABASE,), (BROKER, DATABASE))
_WEIGHTS = {"kill": 3, "pause": 2, "partition": 5, "clock": 1, "kill server": 1}


@frozen
class Step:
    """One fault, and the time without one that follows it. Both times are in seconds."""

    name: str
    """``kill``, ``pause``, ``partition``, ``clock`` or ``kill server``."""
    target: int | str
    """The number of a process, or the name of a server."""
    seconds: float
    """How long the fault lasts; the start of a process that was killed comes on top."""
    rest_seconds: float
    links: tuple[str, ...] = ()
    """The links of the process that have the fault, by the names of their servers."""
    fault: Fault = Fault.NONE
    clock_seconds: int = 0
    """How far the clock of the process is ahead from its next start on."""


def schedules(
    rng: random.Random, processes: int, *, ack_wait_seconds: float, partition_seconds_max: float
) -> list[Iterator[Step]]:
    """
    Return two endless schedules, which may run at the same time.

    Each has half of the processes and one of the servers for itself, so two faults of one target never overlap. Each has a
    generator of its own: its steps do not depend on how far the other one is.
    """
    numbers = rng.sample(range(processes), processes)
    servers = rng.sample((BROKER, DATABASE), 2)
    return [
        _steps(random.Random(rng.getrandbits(64)), numbers[half::2], servers[half], ack_wait_seconds, partition_seconds_max)
        for half in range(2)
    ]


def _steps(
    rng: random.Random, processes: Sequence[int], server: str, ack_wait_seconds: float, partition_seconds_max: float
) -> Iterator[Step]:
    while True:
        (name,) = rng.choices(list(_WEIGHTS), list(_WEIGHTS.values()))
        shortest, longest = {
            "pause": (ack_wait_seconds + 0.5, ack_wait_seconds + 3.0),
            "partition": (0.5, partition_seconds_max),
        }.get(name, _RESTART_SECONDS)
        yield Step(
            name,
            server if name == "kill server" else rng.choice(processes),
            seconds=rng.uniform(shortest, longest),
            rest_seconds=rng.uniform(*_REST_SECONDS),
            links=rng.choice(_LINKS) if name == "partition" else (),
            fault=rng.choice(_FAULTS) if name == "partition" else Fault.NONE,
            clock_seconds=rng.randrange(-CLOCK_SECONDS, CLOCK_SECONDS) if name == "clock" else 0,
        )
