"""
Every NATS user against every call of the JetStream API and every other subject that means something to the server.

The calls are compared with those in the server's program, so that a new server with a new call fails here.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.aio.client import Client

from app.bootstrap import build_modules
from app.messaging.consumers import planned_topology
from bus.subjects import UNROUTABLE
from config.settings import Settings
from modules.registry import MODULES
from tests.nats import NatsServer

TOPOLOGY = planned_topology(build_modules(Settings(known_modules=MODULES)))
STREAMS = sorted(stream.name for stream in TOPOLOGY.streams)
DURABLES = sorted({(each.stream, each.name) for each in TOPOLOGY.consumers} | {(name.upper(), f"{name}{UNROUTABLE}") for name in MODULES})
USERS = (*MODULES, "provisioner")
SHARED = {"ADVISORIES", "DEAD_LETTERS"}
UNPLANNED = "KV_bucket"

CALLS = {
    *("INFO", "STREAM.LIST", "STREAM.NAMES", "STREAM.CREATE.*", "STREAM.UPDATE.*", "STREAM.DELETE.*", "STREAM.INFO.*"),
    *("STREAM.PURGE.*", "STREAM.MSG.GET.*", "STREAM.MSG.DELETE.*", "STREAM.SNAPSHOT.*", "STREAM.RESTORE.*"),
    *("STREAM.PEER.REMOVE.*", "STREAM.PEER.EVACUATE.*", "STREAM.LEADER.STEPDOWN.*", "STREAM.CANCEL"),
    *("DIRECT.GET", "DIRECT.GET.*", "DIRECT.GET.*.>"),
    *("CONSUMER.CREATE.*", "CONSUMER.CREATE.*.*", "CONSUMER.CREATE.*.*.>", "CONSUMER.DURABLE.CREATE.*.*"),
    *("CONSUMER.DELETE.*.*", "CONSUMER.INFO.*.*", "CONSUMER.LIST.*", "CONSUMER.NAMES.*", "CONSUMER.MSG.NEXT.*.*"),
    *("CONSUMER.PAUSE.*.*", "CONSUMER.RESET.*.*", "CONSUMER.UNPIN.*.*", "CONSUMER.LEADER.STEPDOWN.*.*"),
    *("CONSUMER.PEER.REMOVE.*.*", "CONSUMER.PEER.EVACUATE.*.*"),
    *("META.LEADER.STEPDOWN", "META.RESCUE", "SERVER.REMOVE", "SERVER.EVACUATE"),
    *("ACCOUNT.PURGE.*", "ACCOUNT.STREAM.MOVE.*.*", "ACCOUNT.STREAM.CANCEL.*.*"),
}
"""The JetStream API without its prefix; a first wildcard is a stream, a second one a consumer."""

OTHERS = [
    *("$SYS.REQ.SERVER.PING", "$SYS.REQ.SERVER.N.RELOAD", "$SYS.REQ.SERVER.N.KICK", "$SYS.REQ.USER.INFO", "$SYS.REQ.ACCOUNT.A.CONNZ"),
    *("$SYS.ACCOUNT.FULFILMENT.CONNECT", "$SYS.DEBUG.SUBSCRIBERS", "$SYS.REQ.CLAIMS.UPDATE", "$KV.bucket.key", "$O.bucket.C.x"),
    *("$MQTT.msgs.x", "$MQTT.sess.x", "$JSC.SYNC.x", "$NRG.AE.x", "$NRG.V.x", "$LDS.x", "$SRV.PING", "$GR.x", "_GR_.x.y.z", "_R_.x"),
    *("$JS.FC.ORDERS.orders.x", "$JS.SNAPSHOT.ACK.ORDERS.x", "$JS.SNAPSHOT.RESTORE.ORDERS.x", "$JS.EVENT.METRIC.CONSUMER.ACK.ORDERS.x"),
    *(f"$JS.EVENT.ADVISORY.{kind}.ORDERS.orders" for kind in ("CONSUMER.MAX_DELIVERIES", "CONSUMER.MSG_TERMINATED", "STREAM.DELETED", "API")),
    *("unknown.v1", "_INBOX.x.y", "$JS.domain.API.STREAM.DELETE.ORDERS"),
]
"""What no user may publish; `all_subjects` adds what belongs to one module."""


def streams_read_by(user: str) -> set[str]:
    """Return the streams from which the module *user* consumes, and its own."""
    return ({stream for stream, durable in DURABLES if durable.partition("-")[0] == user} | {user.upper()}) - SHARED


def is_of(user: str, durable: str) -> bool:
    return durable.partition("-")[0] == user or durable == f"patrol-{user}"


def may_call(user: str, call: str, stream: str, durable: str) -> bool:
    """Return whether *user* needs the call: the rule that the accounts have to keep, written without their generator."""
    if user == "provisioner":
        return call.startswith(("CONSUMER.CREATE", "CONSUMER.DURABLE", "CONSUMER.INFO", "CONSUMER.LIST", "CONSUMER.NAMES")) or call in {
            *("INFO", "STREAM.LIST", "STREAM.NAMES", "STREAM.CREATE.*", "STREAM.UPDATE.*", "STREAM.INFO.*"),
        }
    match call:
        case "STREAM.INFO.*":
            return stream in streams_read_by(user) | SHARED
        case "STREAM.MSG.GET.*" | "CONSUMER.LIST.*":
            return stream in streams_read_by(user)
        case "CONSUMER.CREATE.*.*" | "CONSUMER.CREATE.*.*.>":
            return (stream, durable) == (user.upper(), f"{user}{UNROUTABLE}")
        case "CONSUMER.INFO.*.*" | "CONSUMER.MSG.NEXT.*.*":
            return is_of(user, durable) and (stream, durable) in DURABLES
    return False


def all_subjects(user: str) -> Iterator[tuple[str, bool]]:
    """Yield every subject that the test publishes, and whether *user* may."""
    consumers = [*DURABLES, *((stream, "foreign") for stream in (*STREAMS, UNPLANNED)), ("ORDERS", "*"), ("*", "*")]
    for call in sorted(CALLS):
        subject = f"$JS.API.{call}".replace(".>", ".orders.created.v1")
        places = [(stream, "") for stream in (*STREAMS, UNPLANNED)] if call.count("*") < 2 else consumers
        for stream, durable in places:
            name = subject.replace("*", stream, 1).replace("*", durable, 1) if "*" not in (stream, durable) else ""
            if name:
                yield name, may_call(user, call, stream, durable)
    for stream, durable in DURABLES:
        for tail in (f"{stream}.{durable}.1.1.1.1.0", f"domain.account.{stream}.{durable}.1.1.1.1.0"):
            yield f"$JS.ACK.{tail}", is_of(user, durable)
        if durable.partition("-")[0] in MODULES:
            yield f"dead.{durable}.x.y.v1", is_of(user, durable)
    for module in MODULES:
        for subject in (f"{module}.created.v1", f"{module}.created.v1.express", f"{module}.replay.x"):
            yield subject, module == user
        yield f"_INBOX_{module}.x.y", False
    for subject in OTHERS:
        yield subject, False


@pytest.mark.parametrize("user", USERS)
async def test_a_user_may_publish_what_its_work_needs_and_nothing_else(server: NatsServer, user: str) -> None:
    """Each call of the API with each stream and each consumer; acknowledgements, dead letters, inboxes, advisories, ``$SYS``."""
    wanted = dict(all_subjects(user))
    assert len(wanted) > 500
    assert await refused(server, user, list(wanted)) == {subject for subject, allowed in wanted.items() if not allowed}


async def refused(server: NatsServer, user: str, subjects: list[str]) -> set[str]:
    """Return those of *subjects* that the server does not let *user* publish."""
    found: set[str] = set()
    is_done = asyncio.Event()

    async def note(error: Exception) -> None:
        if (match := re.search(r'publish to "([^"]+)"', str(error))) is not None:
            found.add(match[1])
            if match[1] == "the.end":
                is_done.set()

    client = await nats.connect(server.url, user=user, password=f"p-{user}", error_cb=note, pending_size=10_000_000)
    try:
        for subject in subjects:
            await client.publish(subject, b"{}")
        await client.publish("the.end")  # refusals arrive in the order of the messages
        await client.flush(10)
        async with asyncio.timeout(20):
            await is_done.wait()
    finally:
        await client.close()
    return {subject for subject in subjects if subject.lower() in found}


def test_the_table_has_every_call_of_the_server() -> None:
    """As its program spells them. A call that is not in the table is one about which nothing was decided."""
    program = Path(sys.executable).with_name("nats-server").resolve().read_bytes()
    found = {each.decode().replace("%s", "*") for each in re.findall(rb"\$JS\.API\.((?:(?:[A-Z]+|\*|%s)\.)*(?:\*|%s|>|[A-Z]{3,}))", program)}
    assert len(found) > 30
    # Constants of the program follow each other without a separator, so that letters of the next one may be at the end; and
    # some are only the beginning of a call.
    known = {call.partition(".*")[0] for call in CALLS}
    assert {each for each in found if not any(each.startswith(call) or call.startswith(each.rstrip(">")) for call in known)} == set()


Publish = Callable[[str, bytes, str], Coroutine[Any, Any, None]]


@pytest.fixture
async def inventory(server: NatsServer) -> AsyncIterator[tuple[Client, list[str]]]:
    """A connection of the module inventory, and the errors it received."""
    errors: list[str] = []

    async def note(error: Exception) -> None:
        errors.append(str(error))

    client = await nats.connect(server.url, user="inventory", password="p-inventory", inbox_prefix="_INBOX_inventory", error_cb=note)
    yield client, errors
    await client.close()


async def topology_of(server: NatsServer) -> dict[str, tuple[int, set[str]]]:
    """Return number of messages and the consumers of each stream but inventory's own."""
    client = await nats.connect(server.url, user="provisioner", password="p-provisioner")
    js = client.jetstream()
    found = {
        each.config.name: (each.state.messages, {consumer.name for consumer in await js.consumers_info(str(each.config.name))})
        for each in await js.streams_info()
        if each.config.name != "INVENTORY"
    }
    await client.close()
    return {str(name): what for name, what in found.items()}


REPLIES = {
    "an acknowledgement": ("inventory.x", b"{}"),
    "an answer": ("$JS.API.STREAM.INFO.INVENTORY", b""),
    "a delivery": ("$JS.API.CONSUMER.MSG.NEXT.INVENTORY.inventory", json.dumps({"batch": 1, "no_wait": True}).encode()),
}
"""What makes the server publish where a request says, without looking at the permissions of the one who asked."""

TARGETS = [
    *(f"$JS.API.STREAM.{call}.PAYMENTS" for call in ("PURGE", "DELETE", "MSG.DELETE", "UPDATE", "LEADER.STEPDOWN")),
    *(f"$JS.API.CONSUMER.{call}.PAYMENTS.orders" for call in ("DELETE", "PAUSE", "UNPIN", "RESET", "LEADER.STEPDOWN")),
    *("$JS.API.STREAM.CREATE.NEW", "$JS.API.CONSUMER.CREATE.PAYMENTS.new", "$JS.API.ACCOUNT.PURGE.FULFILMENT", "$SYS.REQ.SERVER.PING"),
]


@pytest.mark.parametrize("way", REPLIES)
async def test_the_server_carries_out_no_call_that_came_as_a_reply(
    server: NatsServer, inventory: tuple[Client, list[str]], way: str
) -> None:
    """The name of a call as the reply subject of a message that inventory may send changes nothing."""
    client, errors = inventory
    subject, body = REPLIES[way]
    before = await topology_of(server)
    for target in TARGETS:
        await client.jetstream().publish("inventory.replay.inventory.orders.created.v1", b"")  # an empty body is a valid call of many
        await client.publish(subject, body, reply=target)
    for durable in ("orders", "payments"):
        await client.publish(subject, body, reply=f"$JS.ACK.PAYMENTS.{durable}.1.1.1.1.0")
    await client.flush()
    await client.jetstream().stream_info("INVENTORY")  # answered after all of them
    assert await topology_of(server) == before
    assert len([error for error in errors if "publish with reply of" in error]) == 2


async def test_a_consumer_that_a_module_may_create_is_for_its_own_stream_and_delivers_nowhere_else(
    server: NatsServer, inventory: tuple[Client, list[str]]
) -> None:
    """Neither the body of the request nor a delivery subject reaches another module's stream."""
    client, _ = inventory
    before = await topology_of(server)
    name = f"inventory{UNROUTABLE}"
    subject = f"$JS.API.CONSUMER.CREATE.INVENTORY.{name}"
    config = {"durable_name": name, "name": name, "ack_policy": "none", "deliver_policy": "all"}
    for request in (
        {"stream_name": "PAYMENTS", "config": config},
        {"stream_name": "INVENTORY", "config": config | {"durable_name": "payments", "name": "payments"}},
    ):
        reply = json.loads((await client.request(subject, json.dumps(request).encode(), timeout=5)).data)
        assert reply["error"]["code"] == 400, reply
    await client.jetstream().publish("inventory.x", b"{}")
    request = {"stream_name": "INVENTORY", "config": config | {"deliver_subject": "payments.captured.v1"}}
    reply = json.loads((await client.request(subject, json.dumps(request).encode(), timeout=5)).data)
    if "error" not in reply:
        await client.jetstream().publish("inventory.x", b"{}")
        info = await client.jetstream().consumer_info("INVENTORY", name)
        assert info.delivered is not None
        assert info.delivered.consumer_seq == 0
    assert await topology_of(server) == before
