"""The committed configuration of the reverse proxy, in front of three fake module processes."""

from __future__ import annotations

import asyncio
import io
import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import unused_port
from attrs import define, field
from yarl import URL

from app.web.requests.ndjson import BODY_BYTES_MAX
from tests.architecture.tree import ROOT
from tests.deploy.deployed import MODULES
from tests.image.image_build import unpack_package

EVENTS = ("reserved", "confirmed", "cancelled")
PROXY = ROOT / "deploy/proxy"


@define
class FakeModule:
    """A process behind the proxy: it answers with its name and records the requests."""

    name: str
    port: int = 0
    requests: list[str] = field(factory=list)
    dead_letters: set[str] = field(factory=set)
    headers: list[dict[str, str]] = field(factory=list)
    next_event: asyncio.Event = field(factory=asyncio.Event)
    runner: web.AppRunner | None = None

    async def start(self) -> None:
        application = web.Application(client_max_size=2 * BODY_BYTES_MAX)
        application.router.add_get("/v1/orders/stream", self.stream)
        application.router.add_get("/v1/orders/{id}/stream", self.stream)
        application.router.add_route("*", "/v1/dead-letters/{id}{rest:(/replay)?}", self.dead_letter)
        application.router.add_get("/v1/contracts", self.contracts)
        application.router.add_route("*", "/{path:.*}", self.answer)
        self.runner = web.AppRunner(application)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", self.port)
        await site.start()
        self.port = self.runner.addresses[0][1]

    async def stop(self) -> None:
        if self.runner is not None:
            await self.runner.cleanup()

    def record(self, request: web.Request) -> None:
        self.requests.append(f"{request.method} {request.path_qs}")
        self.headers.append(dict(request.headers))

    async def answer(self, request: web.Request) -> web.Response:
        self.record(request)
        body = await request.read()
        return web.json_response(
            {"by": self.name, "bytes": len(body)}, headers={"X-Correlation-ID": "from-" + self.name}
        )

    async def dead_letter(self, request: web.Request) -> web.Response:
        self.record(request)
        if request.match_info["id"] == "replay":
            return web.json_response({"by": self.name})
        known = request.match_info["id"] in self.dead_letters
        return web.json_response({"by": self.name}, status=202 if known else 404)

    async def contracts(self, request: web.Request) -> web.Response:
        self.record(request)
        event = f"{self.name}.moved"
        usage = {"subject": f"{event}.v1", "event": event, "version": 1, "said_by": self.name}
        return web.json_response({"items": [usage]})

    async def stream(self, request: web.Request) -> web.StreamResponse:
        self.record(request)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for event in EVENTS:
            await response.write(f"data: {event}\n\n".encode())
            await self.next_event.wait()
            self.next_event.clear()
        return response


@pytest.fixture(scope="session")
def nginx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack_package("nginx", tmp_path_factory.mktemp("nginx")) / "usr/sbin/nginx"


@pytest.fixture
async def modules() -> AsyncIterator[dict[str, FakeModule]]:
    found = {name: FakeModule(name) for name in MODULES}
    for each in found.values():
        await each.start()
    yield found
    for each in found.values():
        each.next_event.set()
        await each.stop()


@pytest.fixture(params=["upstreams.conf", "compose/upstreams.conf"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, modules: dict[str, FakeModule]) -> Path:
    """The committed configuration; the test changes only addresses, the port and the folder for temporary files."""
    for name in ("nginx.conf", "dead-letters-of-one.conf", "one-module.conf"):
        (tmp_path / name).write_bytes((PROXY / name).read_bytes())
    upstreams = (PROXY / request.param).read_text(encoding="utf-8")
    for name, fake in modules.items():
        upstreams, count = re.subn(rf"\b{name}:8080\b", f"127.0.0.1:{fake.port}", upstreams)
        assert count == 3
    # The nginx of Debian does not know `resolve`, and IP addresses need no resolver.
    upstreams = re.sub(r"\bresolve ", "", re.sub(r"(?m)^resolver .*$", "", upstreams))
    (tmp_path / "upstreams.conf").write_text(upstreams, encoding="utf-8")
    return tmp_path


@pytest.fixture
def url(nginx: Path, folder: Path) -> Iterator[str]:
    """The address of the running proxy; `nginx -t` accepts its configuration."""
    port = unused_port()
    path = folder / "nginx.conf"
    content = path.read_text(encoding="utf-8")
    assert "listen 8080;" in content
    path.write_text(
        content.replace("listen 8080;", f"listen 127.0.0.1:{port};").replace("/tmp/", f"{folder}/"), encoding="utf-8"
    )
    command = [str(nginx), "-p", str(folder), "-c", str(path), "-e", "/dev/stderr"]
    subprocess.run([*command, "-t"], check=True)
    process = subprocess.Popen([*command, "-g", "daemon off; user root;"])
    try:
        for _ in range(500):
            with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.01)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.mark.parametrize(
    ("path", "module"),
    [
        ("/v1/orders", "orders"),
        ("/v1/orders?status=confirmed&limit=2", "orders"),
        ("/v1/orders/1/cancel", "orders"),
        ("/v1/inventory/SKU%2F1", "inventory"),
        ("/v1/inventory", "inventory"),
        ("/v1/inventory/import", "inventory"),
        ("/v1/stream-tokens", "orders"),
        ("/v1/payments/1", "payments"),
        ("/v1/payments/webhooks/stripe", "payments"),
        ("/v1/dead-letters?consumer=orders", "orders"),
        ("/v1/dead-letters?consumer=inventory-express", "inventory"),
        ("/v1/dead-letters?limit=3&consumer=payments-gateway-express", "payments"),
        ("/v1/dead-letters/replay?consumer=payments-strays", "payments"),
        ("/v1/contracts?module=orders", "orders"),
        ("/v1/contracts?module=inventory", "inventory"),
        ("/v1/contracts?module=payments", "payments"),
        ("/v1/audit?module=orders", "orders"),
        ("/v1/audit?target=SKU-1&module=inventory", "inventory"),
        ("/v1/audit?module=payments&limit=2", "payments"),
        ("/openapi.json", "orders"),
        ("/", "orders"),
        ("/asyncapi.json", "orders"),
        ("/docs", "orders"),
        ("/console/orders?status=confirmed", "orders"),
        ("/docs/swagger-ui.css", "orders"),
    ],
)
async def test_every_path_is_forwarded_to_its_module(
    url: str, modules: dict[str, FakeModule], client: aiohttp.ClientSession, path: str, module: str
) -> None:
    """Unchanged: escaped characters stay escaped, and the query is forwarded."""
    async with client.post(URL(url + path, encoded=True), data=b"{}") as response:
        assert (await response.json())["by"] == module
    assert modules[module].requests[-1].endswith(path)
    assert [name for name, fake in modules.items() if fake.requests] == [module]


async def test_headers_are_forwarded_in_both_directions(
    url: str, modules: dict[str, FakeModule], client: aiohttp.ClientSession
) -> None:
    """The headers of the contract are forwarded; a missing or invalid correlation id is replaced."""
    sent = {
        "X-Correlation-ID": "request-1",
        "Idempotency-Key": "k",
        "traceparent": "00-" + "1" * 32 + "-" + "2" * 16 + "-01",
    }
    async with client.post(f"{url}/v1/orders", headers=sent, data=b"x" * 70_000) as response:
        assert (await response.json())["bytes"] == 70_000
        assert response.headers["X-Correlation-ID"] == "from-orders"
    (seen,) = modules["orders"].headers
    assert {name: seen[name] for name in sent} == sent
    assert seen["Host"] == url.removeprefix("http://")
    assert seen["X-Forwarded-For"] == "127.0.0.1"
    async with client.get(f"{url}/v1/orders", headers={"X-Correlation-ID": 'no "good"'}):
        pass
    assert re.fullmatch("[0-9a-f]{32}", modules["orders"].headers[-1]["X-Correlation-ID"])


@pytest.mark.parametrize("module", MODULES)
async def test_a_dead_letter_is_found_in_every_module(
    url: str, modules: dict[str, FakeModule], client: aiohttp.ClientSession, module: str
) -> None:
    """It is shown, replayed and discarded exactly once, whichever module is asked first."""
    modules[module].dead_letters.add("dead-letter-1")
    for method, path in [("GET", ""), ("POST", "/replay"), ("DELETE", "")] * 3:
        async with client.request(method, f"{url}/v1/dead-letters/dead-letter-1{path}") as response:
            assert (response.status, (await response.json())["by"]) == (202, module)
    assert len(modules[module].requests) == 9
    async with client.get(f"{url}/v1/dead-letters/dead-letter-2") as response:
        assert response.status == 404
    assert [fake.requests[-1] for fake in modules.values()] == ["GET /v1/dead-letters/dead-letter-2"] * 3


async def test_a_dead_letter_is_never_404_while_a_module_is_out_of_reach(
    url: str, modules: dict[str, FakeModule], client: aiohttp.ClientSession
) -> None:
    """It is found or 503; a 404 might be wrong."""
    modules["orders"].dead_letters.add("dead-letter-1")
    await modules["payments"].stop()
    statuses = set()
    for _ in range(9):
        async with client.get(f"{url}/v1/dead-letters/dead-letter-1") as response:
            statuses.add(response.status)
    assert statuses <= {202, 503}
    for _ in range(9):
        async with client.get(f"{url}/v1/dead-letters/dead-letter-2") as response:
            assert response.status == 503


@pytest.mark.parametrize("path", ["/v1/dead-letters", "/v1/dead-letters?consumer=shipping", "/v1/dead-letters/replay"])
async def test_a_list_of_dead_letters_must_name_a_consumer(url: str, client: aiohttp.ClientSession, path: str) -> None:
    """The dead letters of one module are never shown as those of all modules."""
    async with client.post(url + path, data=b"{}") as response:
        await assert_problem(response, 400, "consumer_needed")


@pytest.mark.parametrize("path", ["/v1/contracts", "/v1/contracts?module=shipping", "/v1/contracts?module=", "/v1/audit"])
async def test_what_each_process_has_of_its_own_must_name_a_module(url: str, client: aiohttp.ClientSession, path: str) -> None:
    """The counts and the audit of one process are never shown as those of all processes."""
    async with client.get(url + path) as response:
        problem = await assert_problem(response, 400, "module_needed")
    assert problem["instance"] == path.partition("?")[0]


async def test_contracts_status_asks_every_module_behind_the_proxy(url: str, modules: dict[str, FakeModule]) -> None:
    """The response to its first request, module_needed, makes it do so."""
    status = [sys.executable, "-m", "app", "contracts", "status", "--json", "--url", url]
    process = await asyncio.create_subprocess_exec(*status, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    assert process.returncode == 0
    assert [each["subject"] for each in json.loads(output)] == sorted(f"{name}.moved.v1" for name in modules)
    assert {name: fake.requests for name, fake in modules.items()} == {
        name: [f"GET /v1/contracts?module={name}"] for name in modules
    }


async def assert_problem(response: aiohttp.ClientResponse, status: int, code: str) -> dict[str, object]:
    assert response.status == status
    assert response.content_type == "application/problem+json"
    problem: dict[str, object] = json.loads(await response.text())
    assert (problem["status"], problem["code"]) == (status, code)
    assert problem["correlation_id"] == response.headers["X-Correlation-ID"]
    return problem


@pytest.mark.parametrize("path", ["/metrics", "/readyz", "/health", "/v1/nonsense", "/v1/dead-letters-of-all"])
async def test_paths_of_no_module_are_not_forwarded(
    url: str, modules: dict[str, FakeModule], client: aiohttp.ClientSession, path: str
) -> None:
    """Probes and metrics are for operators only."""
    async with client.get(url + path) as response:
        await assert_problem(response, 404, "not_found")
    assert [fake.requests for fake in modules.values()] == [[], [], []]


async def test_a_module_out_of_reach_is_a_503_with_retry_after(
    url: str, modules: dict[str, FakeModule], client: aiohttp.ClientSession
) -> None:
    """Only its paths are affected, until it is back."""
    await modules["orders"].stop()
    async with client.post(f"{url}/v1/orders", data=b"{}") as response:
        await assert_problem(response, 503, "module_unavailable")
        assert response.headers["Retry-After"] == "2"
    async with client.get(f"{url}/v1/inventory") as response:
        assert response.status == 200
    await modules["orders"].start()
    async with client.post(f"{url}/v1/orders", data=b"{}") as response:
        assert response.status == 200


async def test_an_error_response_of_a_module_is_forwarded_unchanged(
    url: str, modules: dict[str, FakeModule], client: aiohttp.ClientSession
) -> None:
    """The proxy does not replace the body of a 404 of the module."""
    async with client.get(f"{url}/v1/dead-letters/none") as response:
        assert (response.status, sorted(await response.json())) == (404, ["by"])


@pytest.mark.parametrize("path", ["/v1/orders/1/stream", "/v1/orders/stream?status=confirmed"])
async def test_server_sent_events_are_forwarded_immediately(
    url: str, modules: dict[str, FakeModule], client: aiohttp.ClientSession, path: str
) -> None:
    """Each event arrives before the next one is sent."""
    async with client.get(url + path) as response:
        for event in EVENTS:
            async with asyncio.timeout(5):
                assert await response.content.readline() == f"data: {event}\n".encode()
                assert await response.content.readline() == b"\n"
            modules["orders"].next_event.set()
        assert await response.content.read() == b""


async def test_a_body_that_is_far_too_large_is_rejected_by_the_proxy(
    url: str, modules: dict[str, FakeModule], client: aiohttp.ClientSession
) -> None:
    """It does not reach a module. An import may have 16 MiB."""
    for path, module, size in ("/v1/orders", "orders", 1_100_000), ("/v1/inventory/import", "inventory", 18 << 20):
        async with client.post(url + path, data=io.BytesIO(b"x" * size)) as response:
            await assert_problem(response, 413, "body_too_large")
        assert modules[module].requests == []


@pytest.mark.parametrize(("method", "path"), [("POST", "/v1/inventory/import"), ("PUT", "/v1/inventory")])
async def test_an_import_is_forwarded_whole(url: str, client: aiohttp.ClientSession, method: str, path: str) -> None:
    """With the largest body that the program takes."""
    async with client.request(method, url + path, data=io.BytesIO(b"x" * BODY_BYTES_MAX)) as response:
        assert await response.json() == {"by": "inventory", "bytes": BODY_BYTES_MAX}
