"""
An operator changes a live stream or consumer: the running bus names each change, and `apply` corrects it or reports that it cannot.

The fields are not listed here. They are those that the client knows, and those that the server itself accepts: a field that a
newer version of either adds is tried like any other.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import re
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import nats
import pytest
from attrs import frozen
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig, StreamConfig
from nats.js.errors import APIError

from app.clock import SystemClock
from bus.jetstream.admin.provisioning import apply, diff
from bus.jetstream.admin.server_config import NOT_COMPARED, ServerConfig, read_consumer, read_stream
from bus.jetstream.admin.topology import Topology
from bus.jetstream.bus import JetStreamBus, Servers
from tests.bus.features import InMemoryDeadLetters
from tests.nats import NatsServer

SECOND = 1_000_000_000
CREATED, CONFIRMED = SUBJECTS = "orders.created.v1", "orders.confirmed.v1"
TOPOLOGY = Topology.of(["orders"], {"inventory": SUBJECTS})
VALUES: tuple[Any, ...] = (
    True, 3, 300 * SECOND, "x", "new", "none", "s2", "async", "original", "overflow", "50%", "interest", "old", "memory", [],
    "2030-01-01T00:00:00Z", [SECOND, 2 * SECOND], [CREATED], "orders.>", ["orders.>", "more.>"], ["x"], {"x": "y"}, {"tags": ["x"]},
    {"max_ack_pending": 3}, {"src": "orders.>", "dest": "copy.>"}, [{"name": "OTHER"}], {"name": "OTHER"},
)  # fmt: skip
"""Values of every type; the first that the server takes, and that changes something, is tried."""

PUSH = {"deliver_subject": "x", "max_waiting": None}

COMPANIONS: dict[str, dict[str, Any]] = {
    "priority_groups": {"priority_policy": "overflow"},
    "priority_policy": {"priority_groups": ["x"]},
    "opt_start_seq": {"deliver_policy": "by_start_sequence"},
    "opt_start_time": {"deliver_policy": "by_start_time"},
    "discard_new_per_subject": {"max_msgs_per_subject": 5},
    "subject_delete_marker_ttl": {"allow_msg_ttl": True},
    "allow_msg_counter": {"discard": "old"},
    "allow_msg_schedules": {"discard": "old"},
    "mirror": {"subjects": None},
    "priority_timeout": {"priority_groups": ["x"], "priority_policy": "pinned_client"},
    **dict.fromkeys(("deliver_subject", "rate_limit_bps", "idle_heartbeat"), PUSH),
    "flow_control": {**PUSH, "idle_heartbeat": SECOND},
}
"""What else a field needs to be accepted."""

FIXED = {
    "sealed", "retention", "persist_mode", "allow_msg_ttl", "allow_msg_counter", "allow_msg_schedules", "mirror", "storage",
    "deliver_policy", "ack_policy", "replay_policy", "mem_storage", "max_waiting", "sourcing", "deliver_subject", "opt_start_seq",
    "opt_start_time", "flow_control", "idle_heartbeat", "subject_delete_marker_ttl",
}  # fmt: skip
"""Fields that the server may keep: `apply` names them, and a person has to create the stream or consumer again."""

NOT_CHANGEABLE = {"name", "durable_name", "template_owner", "pedantic", "direct", "num_replicas"}
"""Names, what the server ignores, and what needs a cluster (`test_cluster.py`)."""

_IN_USE = "already"


@frozen
class Live:
    """A running bus, and the server that an operator changes."""

    js: JetStreamContext
    bus: JetStreamBus

    async def ask(self, subject: str, body: dict[str, Any]) -> str:
        """Send a request; return the server's error, or an empty text."""
        try:
            await self.js._api_request(f"$JS.API.{subject}", json.dumps(body).encode())
        except APIError as error:
            return error.description or "refused"
        return ""

    async def recreate(self, delete: str, create: str, body: dict[str, Any]) -> str:
        """Delete and create; again when the bus, which looks all the time, has created it as planned in between."""
        error = _IN_USE
        while _IN_USE in error:
            await self.ask(delete, {})
            error = await self.ask(create, body)
        return error

    async def reset(self) -> None:
        """Make the server as planned again, whatever it takes."""
        if await diff(self.js, TOPOLOGY, replicas=1):
            await self.ask("STREAM.DELETE.ORDERS", {})
            await apply(self.js, TOPOLOGY, replicas=1)
        await self.until(lambda: not self.bus.problems)

    async def until(self, is_so: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 10
        while not is_so():
            assert time.monotonic() < deadline, self.bus.problems
            await asyncio.sleep(0.01)

    async def looked(self) -> None:
        """Wait until the bus has looked at everything once more."""
        for _ in range(2):
            found = await read_stream(self.js, "ORDERS")
            self.bus._verifier._losses._seen.clear()
            await self.until(lambda: "stream ORDERS" in self.bus._verifier._losses._seen)
            assert found
        await asyncio.sleep(0.02)


class Stream:
    """How the stream is read and changed."""

    label = "stream ORDERS"
    config_class: type = StreamConfig

    @staticmethod
    async def read(live: Live) -> ServerConfig:
        return await read_stream(live.js, "ORDERS")

    @staticmethod
    async def change(live: Live, config: dict[str, Any], is_new: bool) -> str:
        if is_new:
            return await live.recreate("STREAM.DELETE.ORDERS", "STREAM.CREATE.ORDERS", config)
        return await live.ask("STREAM.UPDATE.ORDERS", config)


class Consumer:
    """How the consumer is read and changed."""

    label = "consumer inventory on ORDERS"
    config_class: type = ConsumerConfig

    @staticmethod
    async def read(live: Live) -> ServerConfig:
        return await read_consumer(live.js, "ORDERS", "inventory")

    @staticmethod
    async def change(live: Live, config: dict[str, Any], is_new: bool) -> str:
        create = "CONSUMER.CREATE.ORDERS.inventory"
        body = {"stream_name": "ORDERS", "config": config, "action": "create" if is_new else "update"}
        return await (live.recreate("CONSUMER.DELETE.ORDERS.inventory", create, body) if is_new else live.ask(create, body))


Kind = type[Stream] | type[Consumer]


AT_WILL: dict[Kind, set[str]] = {
    Stream: {"name", "description", "metadata", "placement", "compression", "max_bytes", "allow_direct", "deny_delete", "deny_purge"},
    Consumer: {"name", "durable_name", "description", "metadata", "sample_freq", "pause_until"},
}


def test_the_manual_lists_what_an_operator_may_set_at_will() -> None:
    manual = " ".join((Path(__file__).parents[3] / "docs/howto/operate-on-nats.rst").read_text().split())
    for kind, chosen in AT_WILL.items():
        assert set(NOT_COMPARED[kind.config_class]) == chosen
        listed = manual.partition(f"of a {kind.__name__.lower()} ")[2].partition(";")[0].partition(".")[0]
        assert set(re.findall("``([a-z_]+)``", listed)) == chosen - {"name", "durable_name", "pause_until"}


def words_of_the_server() -> list[str]:
    """Return every JSON member that the server's program names."""
    program = shutil.which("nats-server")
    assert program is not None
    found = re.findall(rb'json:"([a-z][a-z_0-9]*)', Path(program).resolve().read_bytes())
    return sorted({word.decode() for word in found})


async def fields_of(live: Live, kind: Kind) -> set[str]:
    """Return the fields that the client knows, and those that the server does not call unknown."""
    found = {field.name for field in dataclasses.fields(kind.config_class)}
    for word in words_of_the_server():
        if kind is Stream:
            body: dict[str, Any] = {"name": "PROBE", "subjects": ["probe.>"], word: {"x": []}}
            error = await live.ask("STREAM.CREATE.PROBE", body)
        else:
            body = {"stream_name": "ORDERS", "config": {"durable_name": "probe", word: {"x": []}}}
            error = await live.ask("CONSUMER.CREATE.ORDERS.probe", body)
        if not error:
            await live.ask("STREAM.DELETE.PROBE" if kind is Stream else "CONSUMER.DELETE.ORDERS.probe", {})
        if "unknown field" not in error:
            found.add(word)
    return found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    with NatsServer(tmp_path_factory.mktemp("nats")) as server:
        yield server


@pytest.fixture
async def live(server: NatsServer) -> AsyncIterator[Live]:
    client = await nats.connect(server.url)
    js = client.jetstream(timeout=5)
    for info in await js.streams_info():
        await js.delete_stream(str(info.config.name))
    await apply(js, TOPOLOGY, replicas=1)
    bus = JetStreamBus(
        SystemClock(), InMemoryDeadLetters(), Servers(urls=server.urls), streams=["ORDERS", "ADVISORIES", "DEAD_LETTERS"],
        verify_seconds=0.05, stalled_seconds=0.2,
    )  # fmt: skip
    await bus.connect()
    await bus.subscribe("inventory", SUBJECTS)
    found = Live(js, bus)
    await found.until(lambda: all(consumer.is_bound for consumer in bus._consumers()))
    yield found
    await bus.close(0)
    await client.close()


async def try_values(live: Live, kind: Kind, field: str) -> set[str]:
    """Change *field* to the first of the values that the server takes, live if it can be; return all fields that changed."""
    planned = dict((await kind.read(live)).config)
    for value in VALUES:
        for is_new in False, True:
            config = {**planned, **COMPANIONS.get(field, {}), field: value}
            if field == "filter_subject":
                config.pop("filter_subjects")
            if await kind.change(live, config, is_new):
                if is_new:
                    await live.reset()
                continue
            found = (await kind.read(live)).config
            names = {*planned, *found} - ({"metadata"} - {field})  # the server adds its version there
            if changed := {name for name in names if planned.get(name) != found.get(name)}:
                assert field in changed or field == "filter_subject"
                return changed
            if is_new:
                await live.reset()
    return set()


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Stream, Consumer])
async def test_every_field_that_can_be_changed_is_named_and_corrected(
    live: Live, kind: Kind, caplog: pytest.LogCaptureFixture
) -> None:
    """
    Named by the running bus, once in its log with what to do; then as planned again, or named as what the server keeps.

    What an operator may set at will is not named, and `apply` leaves it alone. A field that cannot be tried is in a list.
    """
    caplog.set_level(logging.INFO, "bus.jetstream.admin.verifier")
    at_will, untried = AT_WILL[kind], set()
    for field in sorted(await fields_of(live, kind)):
        await live.reset()
        caplog.clear()
        changed = await try_values(live, kind, field)
        if not changed:
            untried.add(field)
            continue
        if not changed - at_will:
            if field == "pause_until":
                await live.until(lambda: any("is paused until 2030-01-01T00:00:00Z" in line for line in live.bus.stalls))
                await apply(live.js, TOPOLOGY, replicas=1)
                await live.until(lambda: not live.bus.stalls)
            await live.looked()
            assert live.bus.problems == [], field
            assert await diff(live.js, TOPOLOGY, replicas=1) == []
            continue
        named = {"filter_subjects" if name == "filter_subject" else name for name in changed - at_will}

        def is_named(named: set[str] = named) -> bool:
            lines = [line.removeprefix(f"{kind.label}: ") for line in live.bus.problems if line.startswith(kind.label)]
            return bool(named & {line.split(" ")[0] for line in lines})

        if field not in ("filter_subjects", "filter_subject"):  # the bus adds the subjects that it needs itself
            await live.until(is_named)
            warnings = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
            reported = [text for text in warnings if any(f" {name} is " in text for name in named)]
            assert len(reported) == 1, (field, warnings)
            assert "topology --apply" in reported[0]
        changes = await apply(live.js, TOPOLOGY, replicas=1, patience_seconds=2)
        left = await diff(live.js, TOPOLOGY, replicas=1)
        refused = [change.line for change in changes if change.is_refused]
        assert bool(left) == bool(refused), (field, left, refused)
        assert not left or changed & FIXED, (field, left)
        if not left:
            await live.until(lambda: not live.bus.problems)
    assert untried - NOT_CHANGEABLE == set()
