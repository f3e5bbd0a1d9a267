"""HTTP workers: processes that answer requests for the one that runs the modules."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.process.client import RESPONSE_LOST, Client, eventually
from tests.process.conftest import Serve
from tests.process.server import Server
from tests.process.test_contract import assert_problem
from tests.signals import children_of, is_running

ONE = {"HTTP_WORKERS": "1"}
ADDRESS = "X-Fulfilment-Client-Address"


def requests_counted(metrics: str, method: str, route: str, status: int) -> float:
    """Return how many requests *metrics* count."""
    start = f'http_requests_total{{method="{method}",route="{route}",status="{status}"}} '
    return next((float(line.removeprefix(start)) for line in metrics.splitlines() if line.startswith(start)), 0.0)


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> object:
    """One server with a worker for all tests of this file that leave its state unchanged."""
    server = Server(tmp_path_factory.mktemp("shared"), **ONE).start()
    yield server
    server.end()


async def test_a_worker_answers_and_everything_arrives_once(shared_server: Server, shared_client: Client) -> None:
    """Commands, replays, rejections, reads, lists, streams, imports and what only the other process knows."""
    client = shared_client
    assert len(children_of(shared_server.pid)) == 1
    await client.stock("SKU-1", 100)
    order_id = await client.place({"SKU-1": 2}, key="k-1")
    again = await client.post({"SKU-1": 2}, key="k-1")
    assert (again.body["order_id"], again.headers["Idempotency-Replayed"]) == (order_id, "true")
    assert_problem(await client.post({"SKU-1": 3}, key="k-1"), 422, "idempotency_key_reused")
    assert (await client.wait_until_final(order_id))["status"] == "confirmed"
    assert [order["order_id"] for order in (await client.get("/v1/orders"))["items"]] == [order_id]
    assert (await client.wait_for_payment(order_id, "captured"))["order_id"] == order_id
    refund = {"amount": {"amount": 201, "currency": "EUR"}, "reason": "damaged"}
    assert_problem(await client.request("POST", f"/v1/orders/{order_id}/refund", refund), 409)
    assert_problem(await client.request("GET", "/v1/orders/unknown"), 404, "not_found")
    assert_problem(await client.request("DELETE", "/v1/orders"), 405, "method_not_allowed")
    lines = b'{"product_id": "SKU-2", "on_hand": 5, "unit_price": {"amount": 1, "currency": "EUR"}}\n'
    imported = await client.request(
        "POST", "/v1/inventory/import", data=lines, headers={"Content-Type": "application/x-ndjson"}
    )
    assert (imported.status, json.loads(imported.text)["status"]) == (200, 200), imported.text
    assert (await client.get("/readyz"))["status"] == "ready"
    assert (await client.request("GET", "/docs")).status == 200
    head = await client.request("HEAD", "/openapi.json")
    assert (head.status, head.text) == (200, "")
    assert int(head.headers["Content-Length"]) > 1000


@pytest.mark.slow
async def test_the_metrics_count_the_requests_of_workers(serve: Serve, connect: Callable[[Server], Client]) -> None:
    """Each request once, those that were passed on too."""
    client = connect(serve(**ONE))
    await client.stock("SKU-1", 100)
    for _ in range(5):
        await client.place({"SKU-1": 1})
    await client.get("/v1/audit")

    async def metrics() -> str:
        return (await client.request("GET", "/metrics")).text

    text = await eventually(metrics, lambda text: requests_counted(text, "POST", "/v1/orders", 202) == 5)
    assert requests_counted(text, "GET", "/v1/audit", 200) == 1
    assert 'http_request_seconds_count{route="/v1/orders"} 5' in text


@pytest.mark.slow
async def test_the_log_and_the_limits_see_the_address_of_the_client(serve: Serve, connect: Callable[[Server], Client]) -> None:
    """Also where another process answers, and a client cannot forge it."""
    server = serve(**ONE)
    client = connect(server)
    await client.request("GET", "/nothing", headers={ADDRESS: "192.0.2.7"})
    line = await asyncio.to_thread(server.wait_for_line, lambda line: '"/nothing"' in line)
    assert json.loads(line)["address"] == "127.0.0.1"


@pytest.mark.slow
async def test_a_killed_worker_is_replaced(serve: Serve, connect: Callable[[Server], Client]) -> None:
    """The port stays open, and an order that is sent again with its key exists once."""
    server = serve(**ONE)
    client = connect(server)
    await client.stock("SKU-1", 1000)
    accepted: set[str] = set()
    is_stopped = False

    async def buy(name: int) -> None:
        number = 0
        while not is_stopped:
            number += 1
            while not is_stopped:
                try:
                    reply = await client.post({"SKU-1": 1}, key=f"{name}-{number}")
                except RESPONSE_LOST:
                    continue
                assert reply.status == 202, reply.text
                accepted.add(reply.body["order_id"])
                break

    async def more(count: int = 20) -> None:
        wanted = len(accepted) + count
        await eventually(lambda: asyncio.sleep(0, len(accepted)), lambda found: found >= wanted)

    async def kill_the_worker() -> None:
        (worker,) = await eventually(lambda: asyncio.to_thread(children_of, server.pid), lambda found: len(found) == 1)
        os.kill(worker, signal.SIGKILL)
        await asyncio.to_thread(
            server.wait_for_line, lambda line: "an HTTP worker ended" in line and f'"process":{worker}' in line
        )

    async with asyncio.TaskGroup() as group:
        for name in range(8):
            group.create_task(buy(name))
        for _ in range(2):
            await more()
            await kill_the_worker()
        await more()
        is_stopped = True
    for order_id in accepted:
        assert (await client.wait_until_final(order_id))["status"] == "confirmed"
    product = await client.get("/v1/inventory/SKU-1")
    orders = await client.list_all("/v1/orders")
    assert {order["order_id"] for order in orders} >= accepted
    assert len(orders) <= len(accepted) + 8  # a purchase whose answer never came before the end
    assert product["on_hand"] == 1000 - sum(order["status"] == "confirmed" for order in orders)


@pytest.mark.slow
async def test_workers_end_with_a_killed_server_and_leave_its_port(serve: Serve, connect: Callable[[Server], Client]) -> None:
    """The next start listens on the same port at once, and knows every order."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = serve(HTTP_WORKERS="2", HTTP_PORT=str(port))
    client = connect(server)
    await client.stock("SKU-1", 10)
    order_id = await client.place({"SKU-1": 1})
    workers = children_of(server.pid)
    assert len(workers) == 2
    server.kill()
    await eventually(lambda: asyncio.sleep(0, [*filter(is_running, workers)]), lambda alive: not alive)
    await asyncio.to_thread(server.start)
    assert (await client.wait_until_final(order_id))["status"] == "confirmed"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.night)])
async def test_a_signal_to_the_whole_group_stops_in_order(
    serve: Serve, connect: Callable[[Server], Client], number: signal.Signals
) -> None:
    """A terminal sends SIGINT to every process, systemd SIGTERM: the workers leave it to the server."""
    server = serve(HTTP_WORKERS="2")
    client = connect(server)
    await client.stock("SKU-1", 10)
    await client.place({"SKU-1": 1})
    workers = children_of(server.pid)
    for worker in workers:
        os.kill(worker, number)
    await client.place({"SKU-1": 1})
    server.send(number)
    assert await asyncio.to_thread(server.wait) == 0
    assert not any(map(is_running, workers))
    assert server.stderr == ""


@pytest.mark.slow
async def test_sighup_reaches_the_workers(serve: Serve, connect: Callable[[Server], Client], tmp_path: Path) -> None:
    """A new key is accepted and an old one refused, wherever the request is answered."""
    keys = tmp_path / "keys"
    keys.touch(0o600)
    old, new = "old-0123456789abcdef", "new-0123456789abcdef"
    keys.write_text(f"shop:operator:{old}\n")
    server = serve(AUTH="keys", API_KEYS_FILE="keys", **ONE)
    client = connect(server)
    await client.get("/v1/orders", Authorization=f"Bearer {old}")
    keys.write_text(f"shop:operator:{new}\n")
    server.send(signal.SIGHUP)
    await asyncio.to_thread(server.wait_for_line, lambda line: "were read again" in line)

    async def check() -> None:
        for path in ("/v1/orders", "/v1/audit"):
            await client.get(path, Authorization=f"Bearer {new}")
            assert_problem(await client.request("GET", path, headers={"Authorization": f"Bearer {old}"}), 401)

    await check()
    (worker,) = children_of(server.pid)
    os.kill(worker, signal.SIGKILL)
    replaced = await eventually(
        lambda: asyncio.to_thread(children_of, server.pid), lambda found: len(found) == 1 and found != [worker]
    )
    assert replaced
    await check()  # a worker that starts later has the same keys
