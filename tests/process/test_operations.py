"""What an operator sees of the server: probes, metrics, logs and API documents."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from openapi_spec_validator import validate
from prometheus_client.parser import text_string_to_metric_families

from tests.process.client import Client
from tests.process.conftest import Serve
from tests.process.server import Server, run
from tests.process.test_contract import UNKNOWN, assert_problem

SERIES = {
    "http_requests_total": {"method", "route", "status"},
    "http_request_seconds_count": {"route"},
    "messages_published_total": {"subject"},
    "messages_handled_total": {"module", "subject", "outcome"},
    "message_handle_seconds_count": {"module"},
    "message_lag_seconds_count": {"module"},
    "outbox_pending": {"module"},
    "outbox_oldest_seconds": {"module"},
    "module_leader": {"module"},
    "clock_jump_seconds": set[str](),
    "database_wal_bytes": {"module"},
    "database_oldest_snapshot_seconds": {"module"},
    "outbox_cap_used_ratio": set[str](),
    "orders_total": {"status"},
    "order_duration_seconds_count": set[str](),
    "circuit_breaker_state": {"gateway"},
    "payment_attempts_total": {"outcome"},
    "bus_connected": set[str](),
    "bus_reconnects_total": set[str](),
}


async def samples(client: Client) -> list[Any]:
    """Return the samples of /metrics, parsed as Prometheus does."""
    reply = await client.request("GET", "/metrics")
    assert reply.status == 200
    assert reply.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    return [sample for family in text_string_to_metric_families(reply.text) for sample in family.samples]


@pytest.mark.slow
async def test_every_metric_of_the_contract_has_a_value_after_an_order(client: Client) -> None:
    """Names and labels are part of the contract, and the values are right."""
    await client.stock("SKU-1", 10)
    for _ in range(3):
        await client.wait_until_final(await client.place({"SKU-1": 1}))
    await client.wait_until_final(await client.place({"SKU-1": 99}))
    found = await samples(client)
    labels = {sample.name: set(sample.labels) for sample in found}
    assert {name: labels.get(name) for name in SERIES} == SERIES
    value = {(sample.name, *sample.labels.values()): sample.value for sample in found}
    assert (value["orders_total", "processing"], value["orders_total", "reserved"]) == (4, 3)
    assert value["orders_total", "confirmed"] == 3
    assert value["orders_total", "cancelled"] == 1
    assert value["http_requests_total", "POST", "/v1/orders", "202"] == 4
    assert value["payment_attempts_total", "captured"] == 3
    assert (value["circuit_breaker_state", "simulated"], value["bus_connected",]) == (0, 1)
    assert value["order_duration_seconds_count",] == 4


@pytest.mark.slow
async def test_the_metrics_stay_valid_after_hostile_input(client: Client) -> None:
    """Whatever a client sends in ids, headers, methods and bodies, the page can be parsed and its labels stay bounded."""
    hostile = ['a"b', "a\\b", "a\nb", "{x=1}", "\u00e9\u4e2d", "%", "'; DROP TABLE orders_order; --", "x" * 64]
    for word in hostile:
        name = quote(word, safe="")
        body = {"on_hand": 1, "unit_price": {"amount": 1, "currency": "EUR"}}
        await client.request("PUT", f"/v1/inventory/{name}", body)
        await client.request("GET", f"/{name}")
        await client.request("GET", f"/v1/orders/{name}")
        reply = await client.request(
            "POST", "/v1/orders", {"customer_id": word, "items": [{"product_id": word, "quantity": 1}]}
        )
        assert reply.status in (202, 400)
    # The HTTP parser accepts a fixed set of methods and answers 400 for any other.
    for method, status in (("BREW", 400), ("PROPFIND", 405), ("PATCH", 405)):
        assert_problem(await client.request(method, "/v1/orders"), status)
    for header in ("X-Correlation-ID", "traceparent", "User-Agent", "Idempotency-Key"):
        await client.request("GET", "/v1/orders", headers={header: 'a"}\\ {1\u00e9'})
    found = await samples(client)
    assert {sample.labels["method"] for sample in found if "method" in sample.labels} <= {
        "GET",
        "PUT",
        "POST",
        "PATCH",
        "OTHER",
    }
    routes = {sample.labels["route"] for sample in found if "route" in sample.labels}
    assert all(route == "unmatched" or re.fullmatch(r"[/a-z0-9_{}.-]+", route) for route in routes)
    assert not any(sample.value for sample in found if sample.labels.get("status", "").startswith("5"))


async def test_the_correlation_id_of_the_client_is_returned(shared_client: Client) -> None:
    """On successful responses and on problems."""
    for sent in ("abc", "A1.b_c:d-e", "x" * 128):
        reply = await shared_client.request("GET", "/v1/orders", headers={"X-Correlation-ID": sent})
        assert reply.headers["X-Correlation-ID"] == sent
        problem = assert_problem(
            await shared_client.request("GET", "/nowhere", headers={"X-Correlation-ID": sent}), 404
        )
        assert problem["correlation_id"] == sent


async def test_an_invalid_correlation_id_is_replaced(shared_client: Client) -> None:
    """No part of it is returned; every response has an id of its own."""
    seen = set()
    for sent in ("", "a b", "x" * 129, 'a"b', "\u00e9"):
        reply = await shared_client.request("GET", "/v1/orders", headers={"X-Correlation-ID": sent})
        assert reply.status == 200
        seen.add(reply.headers["X-Correlation-ID"])
    assert len(seen) == 5
    assert all(re.fullmatch(r"[A-Za-z0-9._:-]{1,128}", each) for each in seen)
    assert not seen & {"a", "x" * 128}


@pytest.mark.slow
async def test_the_log_line_of_an_order_has_its_trace_and_correlation_id(server: Server, client: Client) -> None:
    """One line shows how the order ended and which request caused it; an invalid traceparent starts a new trace."""
    await client.stock("SKU-1", 10)
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    headers = {"traceparent": f"00-{trace}-00f067aa0ba902b7-01", "X-Correlation-ID": "my-order"}
    body = {"customer_id": "c-1", "items": [{"product_id": "SKU-1", "quantity": 1}]}
    order_id = (await client.request("POST", "/v1/orders", body, headers)).body["order_id"]
    line = json.loads(await asyncio.to_thread(server.wait_for_line, lambda line: order_id in line))
    assert (line["level"], line["correlation_id"], line["trace_id"]) == ("INFO", "my-order", trace)

    bad = {"traceparent": f"00-{'0' * 32}-00f067aa0ba902b7-01"}
    order_id = (await client.request("POST", "/v1/orders", body, bad)).body["order_id"]
    line = json.loads(await asyncio.to_thread(server.wait_for_line, lambda line: order_id in line))
    assert re.fullmatch(r"[0-9a-f]{32}", line["trace_id"])
    assert line["trace_id"] not in (trace, "0" * 32)


async def test_the_probes_of_a_running_server_succeed(shared_client: Client) -> None:
    """/livez, /readyz and /health are 200."""
    assert (await shared_client.request("GET", "/livez")).status == 200
    ready = await shared_client.get("/readyz")
    assert ready["status"] == "ready"
    assert set(ready["checks"].values()) == {"ok"}
    checks = (await shared_client.get("/health"))["checks"]
    assert {name.partition(":")[0] for name in checks} == {"bus", "database"}


async def test_a_healthy_server_has_no_dead_letters(shared_client: Client) -> None:
    """The list is empty, a replay matches nothing, an unknown id is 404."""
    assert await shared_client.get("/v1/dead-letters") == {"items": [], "next_cursor": None}
    assert (await shared_client.get("/v1/dead-letters?consumer=orders&subject=orders.created.v1&limit=5"))[
        "items"
    ] == []
    reply = await shared_client.request("POST", "/v1/dead-letters/replay", {"dry_run": True})
    assert (reply.status, reply.body) == (200, {"matched": 0, "replayed": 0})
    reply = await shared_client.request("POST", "/v1/dead-letters/replay", {"consumer": "orders", "dry_run": False})
    assert (reply.status, reply.body) == (200, {"matched": 0, "replayed": 0})
    assert_problem(await shared_client.request("GET", f"/v1/dead-letters/{UNKNOWN}"), 404)
    assert_problem(await shared_client.request("POST", f"/v1/dead-letters/{UNKNOWN}/replay"), 404)
    assert_problem(await shared_client.request("DELETE", f"/v1/dead-letters/{UNKNOWN}"), 404)


async def test_the_server_describes_its_api(shared_client: Client) -> None:
    """/openapi.json is valid and has every path; /docs is an HTML page."""
    document = await shared_client.get("/openapi.json")
    assert document["openapi"].startswith("3.1")
    validate(document)
    assert document["paths"].keys() >= {
        "/v1/orders", "/v1/orders/{order_id}", "/v1/orders/{order_id}/cancel", "/v1/orders/{order_id}/stream",
        "/v1/inventory", "/v1/inventory/{product_id}", "/v1/inventory/{product_id}/restock", "/v1/payments/{order_id}",
        "/v1/dead-letters", "/v1/dead-letters/{id}", "/v1/dead-letters/{id}/replay", "/v1/dead-letters/replay",
    }  # fmt: skip
    page = await shared_client.request("GET", "/docs")
    assert (page.status, page.headers["Content-Type"].partition(";")[0]) == (200, "text/html")


async def test_unacceptable_bodies_are_rejected(shared_client: Client) -> None:
    """Too large, another content type, encoded, or not strict JSON: 413, 415 and 400, never 500."""
    json_type = {"Content-Type": "application/json"}
    cases: list[tuple[int, bytes, dict[str, str]]] = [
        (413, b" " * 65_537, json_type),
        (415, b"{}", {"Content-Type": "text/plain"}),
        (415, b"{}", {**json_type, "Content-Encoding": "gzip"}),
        (400, b'{"customer_id": "c", "customer_id": "d", "items": []}', json_type),
        (400, b'{"customer_id": NaN}', json_type),
        (400, b"\xef\xbb\xbf{}", json_type),
        (400, "{}".encode("utf-16"), json_type),
        (400, b'{"customer_id": "\\ud800"}', json_type),
        (400, b"[" * 60_000, json_type),
        (400, b"", json_type),
    ]
    line = b'{"customer_id": "c", "items": [{"product_id": "S", "quantity": %s}]}'
    cases += [
        (400, line % number, json_type) for number in (b"true", b"1.0", b'"1"', b"0", b"10001", b"9" * 5_000, b"1e400")
    ]
    for status, body, headers in cases:
        problem = assert_problem(await shared_client.request("POST", "/v1/orders", headers=headers, data=body), status)
        assert len(problem["detail"]) < 500
    problem = assert_problem(
        await shared_client.request("POST", "/v1/orders", headers=json_type, data=line % b"0"), 400
    )
    assert [error["pointer"] for error in problem["errors"]] == ["/items/0/quantity"]


@pytest.mark.slow
async def test_requests_without_an_api_key_are_rejected(
    serve: Serve, connect: Callable[[Server], Client], tmp_path: Path
) -> None:
    """With AUTH=keys, orders need a key from the file, probes do not. The key is in no log line."""
    secret = "k-0123456789abcdef"
    (tmp_path / "keys").touch(0o600)
    (tmp_path / "keys").write_text(f"shop:{secret}\n")
    server = serve(AUTH="keys", API_KEYS_FILE="keys")
    client = connect(server)
    assert_problem(await client.request("GET", "/v1/orders"), 401)
    assert_problem(await client.request("GET", "/v1/orders", headers={"Authorization": f"Bearer {secret}x"}), 401)
    assert await client.get("/v1/orders", Authorization=f"Bearer {secret}") == {"items": [], "next_cursor": None}
    for path in ("/livez", "/docs", "/openapi.json", "/asyncapi.json"):
        assert (await client.request("GET", path)).status == 200
    server.end()
    assert secret not in "\n".join(server.lines)


@pytest.mark.slow
async def test_a_client_that_closes_its_side_after_a_post_is_answered(server: Server, client: Client) -> None:
    """Both halves of a connection end on their own; the order that was placed has an answer."""
    await client.stock("SKU-1", 10)
    body = b'{"customer_id": "c-1", "items": [{"product_id": "SKU-1", "quantity": 1}]}'
    port = int(server.url.rpartition(":")[2])
    for _ in range(5):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = "POST /v1/orders HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n"
        writer.write(head.format(len(body)).encode() + body)
        writer.write_eof()
        async with asyncio.timeout(30):
            answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 202 "), answer
        writer.close()


@pytest.mark.slow
def test_the_ready_line_names_the_process(server: Server) -> None:
    """So that one server can be signalled where several run."""
    assert any(line.endswith(f"ready at {server.url} (process {server.pid})") for line in map(str.strip, server.lines))


@pytest.mark.slow
def test_the_version_and_the_address_are_options_too(tmp_path: Path) -> None:
    """As users of other servers expect; a wrong port is reported with the name of its variable."""
    assert run(tmp_path, "--version").stdout == run(tmp_path, "version").stdout
    refused = run(tmp_path, "serve", "--port", "http")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("fulfilment: HTTP_PORT")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = run(tmp_path, "serve", "--host", "127.0.0.1", "--port", str(port), HTTP_PORT="0")
    assert refused.returncode == 3
    assert str(port) in refused.stderr


@pytest.mark.slow
def test_an_address_of_postgres_may_be_spelled_as_libpq_does(tmp_path: Path) -> None:
    """``postgres://`` is what many hosters write into DATABASE_URL; the server is out of reach here."""
    result = run(tmp_path, "migrate", DATABASE_URL=f"postgres:///fulfilment?host={tmp_path}")
    assert (result.returncode, result.stdout) == (3, "")
