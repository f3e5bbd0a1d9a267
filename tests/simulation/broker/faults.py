"""The faults of a simulated JetStream and of the links to it, by name."""

from __future__ import annotations

__all__ = ["BrokerFault", "LinkFault", "begin", "begin_on_link", "end", "end_on_link"]

from collections.abc import Callable
from enum import StrEnum

from bus.jetstream.admin.topology import ADVISORIES, DEAD_LETTERS
from tests.simulation.broker.network import DELAY_SECONDS, Link
from tests.simulation.broker.server import Server


class BrokerFault(StrEnum):
    """What is wrong with the server."""

    NO_LEADER = "no leader"
    ACKS_LOST = "leader and acknowledgements lost"
    TAIL_LOST = "leader and last messages lost"
    RESTART = "server down"
    MESSAGES_LOST = "requests and answers lost"
    FULL = "streams full"
    CONSUMER_DELETED = "durable deleted"
    STREAM_DELETED = "stream deleted"


class LinkFault(StrEnum):
    """What is wrong with the link of a process."""

    CUT = "link cut"
    SILENT = "link silent"
    SILENT_UP = "nothing reaches the server"
    SILENT_DOWN = "nothing comes from the server"
    SLOW = "link slow"


LOSS_RATE = 0.2
LOST_MAX = 8


def begin(fault: BrokerFault, server: Server, seconds: float) -> None:
    """Let *fault* begin, which lasts for *seconds*."""
    jetstream, rng = server.jetstream, server.rng
    match fault:
        case BrokerFault.NO_LEADER:
            jetstream.lose_leader(seconds)
        case BrokerFault.ACKS_LOST:
            jetstream.lose_leader(seconds, acks=rng.randint(1, LOST_MAX))
        case BrokerFault.TAIL_LOST:
            jetstream.lose_leader(seconds, tail=rng.randint(1, LOST_MAX))
        case BrokerFault.RESTART:
            server.kill()
        case BrokerFault.MESSAGES_LOST:
            jetstream.loss_rate = LOSS_RATE
        case BrokerFault.FULL:
            for stream in jetstream.streams.values():
                stream.config["max_msgs"] = max(1, len(stream.messages))
        case BrokerFault.CONSUMER_DELETED if jetstream.consumers:
            jetstream.delete_consumer(*rng.choice(sorted(jetstream.consumers)))
        case BrokerFault.STREAM_DELETED if streams := sorted(jetstream.streams.keys() - {ADVISORIES, DEAD_LETTERS}):
            jetstream.delete_stream(rng.choice(streams))


def end(fault: BrokerFault, server: Server) -> None:
    """Let *fault* end."""
    match fault:
        case BrokerFault.RESTART:
            server.start()
        case BrokerFault.MESSAGES_LOST:
            server.jetstream.loss_rate = 0.0
        case BrokerFault.FULL:
            for stream in server.jetstream.streams.values():
                stream.config["max_msgs"] = -1


def begin_on_link(fault: LinkFault, link: Link) -> None:
    """Let *fault* begin on *link*."""
    changes: dict[LinkFault, Callable[[], None]] = {
        LinkFault.CUT: link.cut,
        LinkFault.SILENT: link.silence,
        LinkFault.SILENT_UP: lambda: link.silence(down=False),
        LinkFault.SILENT_DOWN: lambda: link.silence(up=False),
        LinkFault.SLOW: link.slow_down,
    }
    changes[fault]()


def end_on_link(link: Link) -> None:
    """Let the faults of *link* end."""
    link.delay_seconds, link.jitter_seconds = DELAY_SECONDS, 0.0
    link.heal()
