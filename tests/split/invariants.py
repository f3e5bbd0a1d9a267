"""The invariants of a system on NATS: those of tests.process.invariants, no backlog on the broker, every process ready."""

from __future__ import annotations

__all__ = ["check_system", "consumers_of", "wait_until_ready"]

from collections.abc import Collection, Mapping
from typing import Any

from tests.nats import NatsCluster, NatsServer
from tests.process.client import Client, eventually
from tests.process.invariants import check_invariants
from tests.split.system import System


async def check_system(
    client: Client,
    system: System,
    broker: NatsServer | NatsCluster,
    accepted: Collection[str],
    stock: Mapping[str, int],
    *,
    lost_responses_max: int = 0,
    dead_letters: int = 0,
    seconds: float = 60.0,
    loss: str = "",
) -> list[Any]:
    """
    Check I1 to I6 with `check_invariants`, then I8: the broker has no backlog, and every process is ready.

    The unacknowledged messages of a killed process stay in the backlog until ``ack_wait`` is over; *seconds* must be
    longer than that.
    """
    orders = await check_invariants(
        client, accepted, stock, lost_responses_max=lost_responses_max, dead_letters=dead_letters, seconds=seconds
    )

    async def backlog() -> dict[str, Any]:
        found = consumers_of(broker)
        return {
            name: (each["num_pending"], each["num_ack_pending"])
            for name, each in found.items()
            if each["num_pending"] or each["num_ack_pending"]
        }

    await eventually(backlog, lambda found: not found, seconds)
    await wait_until_ready(system, client, loss=loss)
    return orders


def consumers_of(broker: NatsServer | NatsCluster) -> dict[str, Any]:
    """
    Return the state of each durable by stream and name, such as ``ORDERS/inventory``.

    In a cluster the state is that of the leader of the durable.
    """
    nodes = broker.nodes if isinstance(broker, NatsCluster) else [broker]
    return {
        f"{stream['name']}/{consumer['name']}": consumer
        for node in nodes
        for account in node.ask("/jsz?streams=true&consumers=true&config=true").get("account_details") or ()
        for stream in account["stream_detail"]
        for consumer in stream.get("consumer_detail") or ()
        if len(nodes) == 1 or consumer["cluster"].get("leader") == node.name
    }


async def wait_until_ready(system: System, client: Client, seconds: float = 30.0, *, loss: str = "") -> None:
    """
    Wait until /readyz of every process is 200 with the status ready.

    With *loss*, a process may also be degraded by nothing but this loss of a stream. It reports one for an hour if it
    looked at the stream before and after.
    """

    def is_ready(body: dict[str, Any]) -> bool:
        failures = [state for state in body.get("checks", {}).values() if state != "ok"]
        return body.get("status") == "ready" or (bool(loss) and failures == [loss])

    async def states() -> list[Any]:
        replies = [await client.request_url(f"{server.url}/readyz") for server in system]
        return [reply.body for reply in replies if reply.status != 200 or not is_ready(reply.body)]

    await eventually(states, lambda found: not found, seconds)
