"""The reverse proxy as it is configured, before three processes that only say who they are."""

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

from tests.architecture.tree import ROOT
from tests.deploy.deployed import MODULES
from tests.image.workshop import unpacked

EVENTS = ("reserved", "confirmed", "cancelled")
PROXY = ROOT / "deploy/proxy"


@define
class Backend:
    """A process behind the proxy: it answers with its name and records the requests."""

    name: str
    port: int = 0
    asked: list[str] = field(factory=list)
    letters: set[str] = field(factory=set)
    headers: list[dict[str, str]] = field(factory=list)
    go_on: asyncio.Event = field(factory=asyncio.Event)
    runner: web.AppRunner | None = None

    async def start(self) -> None:
        application = web.Application()
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

    def note(self, request: web.Request) -> None:
        self.asked.append(f"{request.method} {request.path_qs}")
        self.headers.append(dict(request.headers))

    async def answer(self, request: web.Request) -> web.Response:
        self.note(request)
        body = await request.read()
        return web.json_response({"by": self.name, "bytes": len(body)}, headers={"X-Correlation-ID": "from-" + self.name})

    async def dead_letter(self, request: web.Request) -> web.Response:
        self.note(request)
        if request.match_info["id"] == "replay":
            return web.json_response({"by": self.name})
        known = request.match_info["id"] in self.letters
        return web.json_response({"by": self.name}, status=202 if known else 404)

    async def contracts(self, request: web.Request) -> web.Response:
        self.note(request)
        each = {"subject": f"{self.name}.moved.v1", "event": f"{self.name}.moved", "version": 1}
        return web.json_response({"items": [each]})

    async def stream(self, request: web.Request) -> web.StreamResponse:
        self.note(request)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for event in EVENTS:
            await response.write(f"data: {event}\n\n".encode())
            await self.go_on.wait()
            self.go_on.clear()
        return response


@pytest.fixture(scope="session")
def nginx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpacked("nginx", tmp_path_factory.mktemp("nginx")) / "usr/sbin/nginx"


@pytest.fixture
async def backends() -> AsyncIterator[dict[str, Backend]]:
    found = {name: Backend(name) for name in MODULES}
    for each in found.values():
        await each.start()
    yield found
    for each in found.values():
        each.go_on.set()
        await each.stop()


@pytest.fixture(params=["upstreams.conf", "compose/upstreams.conf"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, backends: dict[str, Backend]) -> Path:
    """The committed configuration; only addresses, the port and the folder for temporary files are this test's own."""
    for name in ("nginx.conf", "dead-letters-of-one.conf"):
        (tmp_path / name).write_bytes((PROXY / name).read_bytes())
    upstreams = (PROXY / request.param).read_text(encoding="utf-8")
    for name, system in backends.items():
        upstreams, count = re.subn(rf"\b{name}:8080\b", f"127.0.0.1:{system.port}", upstreams)
        assert count == 2
    # Debian's nginx is older than `resolve`, and addresses need no resolver.
    upstreams = re.sub(r"\bresolve ", "", re.sub(r"(?m)^resolver .*$", "", upstreams))
    (tmp_path / "upstreams.conf").write_text(upstreams, encoding="utf-8")
    return tmp_path


@pytest.fixture
def url(nginx: Path, folder: Path) -> Iterator[str]:
    """Where the proxy answers; `nginx -t` has found no fault in its configuration before."""
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
        ("/v1/payments/1", "payments"),
        ("/v1/payments/webhooks/stripe", "payments"),
        ("/v1/dead-letters?consumer=orders", "orders"),
        ("/v1/dead-letters?consumer=inventory-express", "inventory"),
        ("/v1/dead-letters?limit=3&consumer=payments-gateway-express", "payments"),
        ("/v1/dead-letters/replay?consumer=payments-strays", "payments"),
        ("/v1/contracts?module=orders", "orders"),
        ("/v1/contracts?module=inventory", "inventory"),
        ("/v1/contracts?module=payments", "payments"),
        ("/openapi.json", "orders"),
        ("/asyncapi.json", "orders"),
        ("/docs", "orders"),
        ("/docs/swagger-ui.css", "orders"),
    ],
)
async def test_every_path_reaches_its_module(
    url: str, backends: dict[str, Backend], client: aiohttp.ClientSession, path: str, module: str
) -> None:
    """As it was sent: what is escaped stays so, and the query comes along."""
    async with client.post(URL(url + path, encoded=True), data=b"{}") as answer:
        assert (await answer.json())["by"] == module
    assert backends[module].asked[-1].endswith(path)
    assert [name for name, system in backends.items() if system.asked] == [module]


async def test_headers_reach_the_module_and_come_back(
    url: str, backends: dict[str, Backend], client: aiohttp.ClientSession
) -> None:
    """What the contract knows is handed through; a correlation id is made where there is no valid one."""
    sent = {"X-Correlation-ID": "mine-1", "Idempotency-Key": "k", "traceparent": "00-" + "1" * 32 + "-" + "2" * 16 + "-01"}
    async with client.post(f"{url}/v1/orders", headers=sent, data=b"x" * 70_000) as answer:
        assert (await answer.json())["bytes"] == 70_000
        assert answer.headers["X-Correlation-ID"] == "from-orders"
    (seen,) = backends["orders"].headers
    assert {name: seen[name] for name in sent} == sent
    assert seen["Host"] == url.removeprefix("http://")
    assert seen["X-Forwarded-For"] == "127.0.0.1"
    async with client.get(f"{url}/v1/orders", headers={"X-Correlation-ID": 'no "good"'}):
        pass
    assert re.fullmatch("[0-9a-f]{32}", backends["orders"].headers[-1]["X-Correlation-ID"])


@pytest.mark.parametrize("module", MODULES)
async def test_a_dead_letter_of_any_module_is_found(
    url: str, backends: dict[str, Backend], client: aiohttp.ClientSession, module: str
) -> None:
    """It is also replayed and discarded exactly once, whichever module is asked first."""
    backends[module].letters.add("letter-1")
    for method, path in [("GET", ""), ("POST", "/replay"), ("DELETE", "")] * 3:
        async with client.request(method, f"{url}/v1/dead-letters/letter-1{path}") as answer:
            assert (answer.status, (await answer.json())["by"]) == (202, module)
    assert len(backends[module].asked) == 9
    async with client.get(f"{url}/v1/dead-letters/letter-2") as answer:
        assert answer.status == 404
    assert [system.asked[-1] for system in backends.values()] == ["GET /v1/dead-letters/letter-2"] * 3


async def test_a_dead_letter_is_not_reported_missing_while_a_module_is_unavailable(
    url: str, backends: dict[str, Backend], client: aiohttp.ClientSession
) -> None:
    """Found where it is, or 503; never a 404 that might be wrong."""
    backends["orders"].letters.add("letter-1")
    await backends["payments"].stop()
    statuses = set()
    for _ in range(9):
        async with client.get(f"{url}/v1/dead-letters/letter-1") as answer:
            statuses.add(answer.status)
    assert statuses <= {202, 503}
    for _ in range(9):
        async with client.get(f"{url}/v1/dead-letters/letter-2") as answer:
            assert answer.status == 503


@pytest.mark.parametrize("path", ["/v1/dead-letters", "/v1/dead-letters?consumer=shipping", "/v1/dead-letters/replay"])
async def test_dead_letters_without_a_consumer_are_rejected(url: str, client: aiohttp.ClientSession, path: str) -> None:
    """The dead letters of one module must not pass for those of all modules."""
    async with client.post(url + path, data=b"{}") as answer:
        await is_problem(answer, 400, "consumer_needed")


@pytest.mark.parametrize("path", ["/v1/contracts", "/v1/contracts?module=shipping", "/v1/contracts?module="])
async def test_contracts_need_a_module(url: str, client: aiohttp.ClientSession, path: str) -> None:
    """The view of one module must not pass for that of all; the client names the module."""
    async with client.get(url + path) as answer:
        await is_problem(answer, 400, "module_needed")


async def test_contracts_status_asks_every_module_behind_the_proxy(url: str, backends: dict[str, Backend]) -> None:
    """The answer to its first request lists the modules."""
    status = [sys.executable, "-m", "app", "contracts", "status", "--json", "--url", url]
    process = await asyncio.create_subprocess_exec(*status, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
    said, _ = await process.communicate()
    assert process.returncode == 0
    assert [each["subject"] for each in json.loads(said)] == sorted(f"{name}.moved.v1" for name in backends)
    assert {name: system.asked for name, system in backends.items()} == {
        name: [f"GET /v1/contracts?module={name}"] for name in backends
    }


async def is_problem(answer: aiohttp.ClientResponse, status: int, code: str) -> None:
    assert answer.status == status
    assert answer.content_type == "application/problem+json"
    problem = json.loads(await answer.text())
    assert (problem["status"], problem["code"]) == (status, code)
    assert problem["correlation_id"] == answer.headers["X-Correlation-ID"]


@pytest.mark.parametrize("path", ["/", "/metrics", "/readyz", "/health", "/v1/nonsense", "/v1/dead-letters-of-all"])
async def test_paths_of_no_module_are_not_proxied(
    url: str, backends: dict[str, Backend], client: aiohttp.ClientSession, path: str
) -> None:
    """Probes and metrics are for the operators of the processes."""
    async with client.get(url + path) as answer:
        await is_problem(answer, 404, "not_found")
    assert [system.asked for system in backends.values()] == [[], [], []]


async def test_an_unavailable_module_is_a_retryable_problem(
    url: str, backends: dict[str, Backend], client: aiohttp.ClientSession
) -> None:
    """503 with Retry-After for it alone; the others answer, and so does it once it is back."""
    await backends["orders"].stop()
    async with client.post(f"{url}/v1/orders", data=b"{}") as answer:
        await is_problem(answer, 503, "module_unavailable")
        assert answer.headers["Retry-After"] == "2"
    async with client.get(f"{url}/v1/inventory") as answer:
        assert answer.status == 200
    await backends["orders"].start()
    async with client.post(f"{url}/v1/orders", data=b"{}") as answer:
        assert answer.status == 200


async def test_an_error_of_a_module_is_passed_through(url: str, backends: dict[str, Backend], client: aiohttp.ClientSession) -> None:
    """A 404 or 503 of its own has its own words."""
    async with client.get(f"{url}/v1/dead-letters/none") as answer:
        assert (answer.status, sorted(await answer.json())) == (404, ["by"])


async def test_server_sent_events_are_not_buffered(
    url: str, backends: dict[str, Backend], client: aiohttp.ClientSession
) -> None:
    """Nothing is held back until there is more of it."""
    async with client.get(f"{url}/v1/orders/1/stream") as answer:
        for event in EVENTS:
            async with asyncio.timeout(5):
                assert await answer.content.readline() == f"data: {event}\n".encode()
                assert await answer.content.readline() == b"\n"
            backends["orders"].go_on.set()
        assert await answer.content.read() == b""


async def test_a_body_that_is_far_too_large_is_rejected_by_the_proxy(
    url: str, backends: dict[str, Backend], client: aiohttp.ClientSession
) -> None:
    """Before a module has to look at it."""
    async with client.post(f"{url}/v1/orders", data=io.BytesIO(b"x" * 1_100_000)) as answer:
        await is_problem(answer, 413, "body_too_large")
    assert backends["orders"].asked == []
