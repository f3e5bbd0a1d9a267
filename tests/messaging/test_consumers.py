"""The consumers of the modules, and the command that prints, checks and applies the topology."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nats
import pytest
from click.testing import CliRunner, Result
from nats.js import JetStreamContext

from app.cli.main import main
from app.messaging.consumers import planned_topology, subscriptions
from app.messaging.event_registry import build_registry
from bus.subjects import module_of, original_subject, replay_subject
from modules import inventory, orders, payments
from modules.registry import MODULES
from tests.nats import NatsServer


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    with NatsServer(tmp_path_factory.mktemp("nats")) as server:
        yield server


@pytest.fixture
def environ(server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[NatsServer]:
    """An environment that names a server with nothing on it."""
    monkeypatch.setenv("BUS", "nats")
    monkeypatch.setenv("NATS_URL", server.url)
    yield server
    at(server, _empty)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["topology", *arguments])


def at(server: NatsServer, work: Callable[[JetStreamContext], Any]) -> Any:
    """Do *work* at the server."""

    async def there() -> Any:
        client = await nats.connect(server.url)
        try:
            return await work(client.jetstream())
        finally:
            await client.close()

    return asyncio.run(there())


async def _empty(js: JetStreamContext) -> None:
    for stream in await js.streams_info():
        await js.delete_stream(stream.config.name or "")


def test_each_module_and_the_gateway_worker_have_two_lanes() -> None:
    """Beside its subjects, each consumer subscribes to the replays of its own dead letters, in its own module's stream."""
    modules = [orders.module(), inventory.module(), payments.module()]
    consumed = subscriptions(modules, build_registry(modules))
    names = ["orders", "inventory", "payments", "payments-gateway"]
    assert set(consumed) == {*names, *(f"{name}-express" for name in names)}
    assert "payments.charge_requested.v1" in consumed["payments-gateway"]
    for consumer, subjects in consumed.items():
        own = [subject for subject in subjects if original_subject(subject) == subject]
        assert [original_subject(subject) for subject in subjects if subject not in own] == own
        assert {replay_subject(consumer, subject) for subject in own} == set(subjects) - set(own)
        assert all(subject.endswith(".express") == consumer.endswith("-express") for subject in subjects)


def test_a_single_module_has_its_consumers_and_the_streams_of_all_modules() -> None:
    """It consumes events of the others, wherever they run."""
    alone = planned_topology([orders.module()])
    assert {consumer.name for consumer in alone.consumers} == {"orders", "orders-express", "patrol-orders"}
    assert [stream.name for stream in alone.streams] == [*map(str.upper, MODULES), "DEAD_LETTERS", "ADVISORIES"]


@pytest.mark.parametrize(
    ("consumer", "subject", "replayed"),
    [
        ("inventory", "orders.created.v1", "inventory.replay.inventory.orders.created.v1"),
        ("orders-express", "orders.timed_out.v1.express", "orders.replay.orders-express.orders.timed_out.v1.express"),
        ("payments-gateway", "payments.x.v1", "payments.replay.payments-gateway.payments.x.v1"),
        ("orders", "orders.replay.v1", "orders.replay.orders.orders.replay.v1"),
    ],
)
def test_the_subject_of_a_replay_leads_back_to_the_original(consumer: str, subject: str, replayed: str) -> None:
    """This holds for every kind of original subject."""
    assert replay_subject(consumer, subject) == replayed
    assert original_subject(replayed) == subject
    assert replayed.startswith(f"{module_of(consumer)}.")


@pytest.mark.parametrize("subject", ["orders.created.v1", "orders.replay.v1", "orders.replay.v1.express", "a.replay.b.c", ""])
def test_what_is_no_replay_is_its_own_original(subject: str) -> None:
    """Also where an event is called replay."""
    assert original_subject(subject) == subject


def test_the_topology_is_printed_without_a_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams, subjects, consumers and routes; no server is needed for it."""
    monkeypatch.setenv("NATS_URL", "nats://127.0.0.1:1")
    result = run()
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.output.splitlines()]
    assert ["ORDERS", "orders.>", "limits", "new", "47", "h", "120", "s", "1"] in lines
    assert ["orders.created.v1", "orders", "inventory"] in lines
    assert ["payments-gateway", "PAYMENTS", "30", "s", "5", "1024", "payments.charge_requested.v1"] in lines
    assert ["orders-express", "INVENTORY", "30", "s", "5", "256", "inventory.rejected.v1.express"] in lines
    assert ["orders", "POST", "/v1/orders", "Place", "an", "order"] in lines


def test_programs_get_it_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the modules that the process runs."""
    monkeypatch.setenv("BUS", "nats")
    monkeypatch.setenv("MODULES", "inventory")
    monkeypatch.setenv("NATS_REPLICAS", "3")
    result = run("--json")
    assert result.exit_code == 0, result.output
    shown = json.loads(result.output)
    assert {stream["replicas"] for stream in shown["streams"]} == {3}
    assert {consumer["name"] for consumer in shown["consumers"]} == {"inventory", "inventory-express", "patrol-inventory"}
    on_orders = next(each for each in shown["consumers"] if (each["name"], each["stream"]) == ("inventory", "ORDERS"))
    assert on_orders["hears"] == [
        *("orders.cancelled.v1", "orders.confirmed.v1", "orders.created.v1", "orders.created.v2")
    ]
    assert (on_orders["ack_wait_seconds"], on_orders["max_deliver"], on_orders["max_ack_pending"]) == (30, 5, 1024)
    assert {"inventory"} == {route["module"] for route in shown["routes"]}
    assert {"subject": "inventory.reserved.v1", "said_by": "inventory", "heard_by": []} in shown["subjects"]


def test_an_empty_server_is_provisioned_and_then_as_planned(environ: NatsServer) -> None:
    """Check, apply, check: 1, 0, 0. Applying again has nothing to do."""
    result = run("--check")
    assert (result.exit_code, result.output.splitlines()[0]) == (1, "stream ORDERS is missing")
    result = run("--apply")
    assert result.exit_code == 0, result.output
    assert "stream ORDERS: created" in result.output.splitlines()
    result = run("--check")
    assert (result.exit_code, result.output) == (0, "as planned\n")
    result = run("--apply")
    assert (result.exit_code, result.output) == (0, "nothing to do: everything is as planned\n")


def test_drift_is_reported_and_corrected(environ: NatsServer) -> None:
    """A line for each field."""
    assert run("--apply").exit_code == 0

    async def drift(js: JetStreamContext) -> None:
        config = (await js.consumer_info("ORDERS", "inventory")).config
        await js.add_consumer("ORDERS", config.evolve(ack_wait=10))

    at(environ, drift)
    result = run("--check")
    assert (result.exit_code, result.output) == (1, "consumer inventory on ORDERS: ack_wait is 10, not 30\n")
    result = run("--apply")
    assert (result.exit_code, result.output) == (0, "consumer inventory on ORDERS: changed, ack_wait was 10, not 30\n")
    assert run("--check").exit_code == 0


def test_what_the_server_refuses_ends_with_1(environ: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line on stderr for each of them."""
    monkeypatch.setenv("NATS_REPLICAS", "3")
    result = run("--apply")
    assert result.exit_code == 1
    assert "fulfilment: stream ORDERS: the server refuses: replicas" in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize("option", ["--check", "--apply"])
@pytest.mark.slow
def test_a_server_out_of_reach_ends_with_3_in_one_line(option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a few seconds, whether the port is closed or accepts connections without answering."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        for port in (1, mute.getsockname()[1]):
            monkeypatch.setenv("NATS_URL", f"nats://user:secret@127.0.0.1:{port}")
            began = time.monotonic()
            result = run(option)
            assert result.exit_code == 3, result.output
            assert time.monotonic() - began < 20
            assert len(result.stderr.splitlines()) == 1, result.stderr
            assert result.stdout == ""
            assert "secret" not in result.output


@pytest.mark.parametrize("option", ["--check", "--apply"])
def test_a_server_without_jetstream_is_reported_in_one_line(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It counts as out of reach."""
    with NatsServer(tmp_path, config='accounts { A { users: [{ user: "a", password: "b" }] } }\nno_auth_user: a') as server:
        monkeypatch.setenv("NATS_URL", server.url)
        result = run(option)
    assert result.exit_code == 3, result.output
    assert len(result.stderr.splitlines()) == 1


def test_one_thing_at_a_time() -> None:
    """To check and to apply are two wishes."""
    assert run("--check", "--apply").exit_code == 2
    assert run("--json", "--check").exit_code == 2
