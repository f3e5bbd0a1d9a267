"""What must be true of a house in parts, and of the broker between them, once both have come to rest."""

from __future__ import annotations

__all__ = ["consumers_of", "everybody_is_ready", "look_at_the_whole"]

from collections.abc import Collection, Mapping
from typing import Any

from tests.nats import NatsCluster, NatsServer
from tests.process.client import Client, eventually
from tests.process.invariants import check_world
from tests.split.system import System


async def look_at_the_whole(
    client: Client,
    system: System,
    broker: NatsServer | NatsCluster,
    accepted: Collection[str],
    pieces: Mapping[str, int],
    *,
    unheard_max: int = 0,
    dead: int = 0,
    seconds: float = 60.0,
) -> list[Any]:
    """
    Check I1 to I6 as `check_world` does, then I8: no backlog is left with the broker, and every part is ready.

    What a killed process had in hand is the broker's backlog until ``ack_wait`` is over; *seconds* must allow for that.
    """
    orders = await check_world(client, accepted, pieces, unheard_max=unheard_max, dead=dead, seconds=seconds)

    async def backlog() -> dict[str, Any]:
        found = consumers_of(broker)
        return {
            name: (each["num_pending"], each["num_ack_pending"])
            for name, each in found.items()
            if each["num_pending"] or each["num_ack_pending"]
        }

    await eventually(backlog, lambda left: not left, seconds)
    await everybody_is_ready(system, client)
    return orders


def consumers_of(broker: NatsServer | NatsCluster) -> dict[str, Any]:
    """Return what *broker* says about each durable, by stream and name: ``ORDERS/inventory``; of a cluster, its leader's word."""
    nodes = broker.nodes if isinstance(broker, NatsCluster) else [broker]
    return {
        f"{stream['name']}/{consumer['name']}": consumer
        for node in nodes
        for account in node.ask("/jsz?streams=true&consumers=true&config=true").get("account_details") or ()
        for stream in account["stream_detail"]
        for consumer in stream.get("consumer_detail") or ()
        if len(nodes) == 1 or consumer["cluster"].get("leader") == node.name
    }


async def everybody_is_ready(system: System, client: Client, seconds: float = 30.0) -> None:
    """Wait until every part says that it is ready, without a word of trouble."""

    async def states() -> list[Any]:
        replies = [await client.call(f"{server.url}/readyz") for server in system]
        return [reply.body for reply in replies if (reply.status, reply.body.get("status")) != (200, "ready")]

    await eventually(states, lambda found: not found, seconds)
