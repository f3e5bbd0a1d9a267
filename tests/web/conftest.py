"""A running application over a fake service, and a client that checks the common promises of every response."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Literal

import pytest
from aiohttp import ClientSession
from aiohttp.test_utils import BaseTestServer, TestClient
from attrs import define, field
from yarl import URL

from app.telemetry.metrics import Metrics
from app.web import Authenticator, Gate, Runner, build_application
from app.web.endpoints import stream_tokens
from app.web.handler import RouteGroup
from app.web.streams.state_stream import Streams
from config.api_keys import read_api_keys
from modules.module import Module
from tests.web.example import SHIPMENTS
from tests.web.fake_service import FakeService

KEY = "a-key-for-the-shop-front"


@define
class FakeHealth:
    phase: Literal["starting", "ready", "draining"] = "ready"
    results: dict[str, str] = field(factory=lambda: {"database": "ok", "bus": "ok"})
    failure: Exception | None = None

    async def checks(self) -> dict[str, str]:
        if self.failure is not None:
            raise self.failure
        return self.results


class Server(BaseTestServer):
    """A test server that uses the project's own runner."""

    def __init__(self, app: Any) -> None:
        super().__init__()
        self.app = app

    async def _make_runner(self, **kwargs: Any) -> Runner:
        return Runner(self.app, shutdown_timeout=1.0)


@define
class Response:
    """A response, read completely."""

    status: int
    headers: Any
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@define
class Web:
    """The whole application under test."""

    service: FakeService
    health: FakeHealth
    metrics: Metrics
    streams: Streams
    gate: Gate
    server: Server
    client: TestClient[Any, Any]

    @property
    def session(self) -> ClientSession:
        return self.client.session

    async def request(self, method: str, path: str | URL, *, json: Any = None, **kwargs: Any) -> Response:
        """Send a request, and check the response for everything that is promised of all of them."""
        if json is not None:
            kwargs["data"] = dumps(json)
            kwargs.setdefault("headers", {})
            kwargs["headers"] = {"Content-Type": "application/json", **kwargs["headers"]}
        kwargs.setdefault("skip_auto_headers", ["Content-Type"])
        async with self.client.request(method, path, allow_redirects=False, **kwargs) as received:
            response = Response(received.status, received.headers, await received.read())
        assert response.headers.getall("X-Correlation-ID") == [response.headers["X-Correlation-ID"]]
        assert response.headers["Server"] == "fulfilment"
        if response.status >= 400 and method != "HEAD":
            assert_problem(response)
        return response


def dumps(value: Any) -> bytes:
    return json.dumps(value).encode()


def assert_problem(response: Response) -> None:
    """Every response that is not a success is a problem document, and reveals nothing internal."""
    assert response.headers["Content-Type"] == "application/problem+json"
    problem = response.json
    assert {"type", "title", "status", "detail", "instance", "code", "correlation_id"} <= problem.keys()
    assert problem["status"] == response.status
    assert problem["correlation_id"] == response.headers["X-Correlation-ID"]
    for secret in (b"Traceback", b"SELECT", b"/srv/", b"/site-packages", b"aiohttp", b"db-seven", b'File "'):
        assert secret not in response.body


Start = Callable[..., Awaitable[Web]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    running: list[Web] = []

    async def start(
        *, requires_key: bool = False, route_groups: tuple[RouteGroup, ...] = (), module: Module = SHIPMENTS,
        cors_origins: tuple[str, ...] = (),
        keys: str = f"shop:operator:{KEY}",
    ) -> Web:
        service, health, metrics = FakeService(module), FakeHealth(), Metrics()
        streams = Streams(poll_seconds=600.0)  # no poll may hide a change that a watch misses
        gate = Gate(Authenticator(read_api_keys(keys.encode()) if requires_key else None))
        app = build_application(
            [service],
            health=health,
            metrics=metrics,
            gate=gate,
            version="1.2.3",
            route_groups=(stream_tokens.route_group(gate.tokens), *route_groups),
            streams=streams,
            cors_origins=cors_origins,
        )
        server = Server(app)
        client: TestClient[Any, Any] = TestClient(server)
        await client.start_server()
        running.append(Web(service, health, metrics, streams, gate, server, client))
        return running[-1]

    yield start
    for web in running:
        await web.client.close()


@pytest.fixture
async def web(start: Start) -> Web:
    return await start()
