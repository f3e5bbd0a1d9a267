"""A running application over a fake door, and a client that checks what every answer must have."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from hashlib import sha256
from typing import Any, Literal

import pytest
from aiohttp import ClientSession
from aiohttp.test_utils import BaseTestServer, TestClient
from attrs import define, field
from yarl import URL

from app.telemetry.metrics import Metrics
from app.web import Runner, build
from app.web.endpoints.state_stream import Streams
from tests.web.example import PARCELS
from tests.web.fake_service import FakeService

KEY = "a-key-for-the-shop-front"


@define
class FakeHealth:
    phase: Literal["starting", "ready", "draining"] = "ready"
    says: dict[str, str] = field(factory=lambda: {"database": "ok", "bus": "ok"})
    trouble: Exception | None = None

    async def checks(self) -> dict[str, str]:
        if self.trouble is not None:
            raise self.trouble
        return self.says


class Server(BaseTestServer):
    """Serve with our own runner."""

    def __init__(self, app: Any) -> None:
        super().__init__()
        self.app = app

    async def _make_runner(self, **kwargs: Any) -> Runner:
        return Runner(self.app, shutdown_timeout=1.0)


@define
class Answer:
    """What came back, read to its end."""

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
    server: Server
    client: TestClient[Any, Any]

    @property
    def session(self) -> ClientSession:
        return self.client.session

    async def ask(self, method: str, path: str | URL, *, json: Any = None, **kwargs: Any) -> Answer:
        """Ask, and hold the answer against what is promised of all of them."""
        if json is not None:
            kwargs["data"] = dumps(json)
            kwargs.setdefault("headers", {})
            kwargs["headers"] = {"Content-Type": "application/json", **kwargs["headers"]}
        kwargs.setdefault("skip_auto_headers", ["Content-Type"])
        async with self.client.request(method, path, allow_redirects=False, **kwargs) as response:
            answer = Answer(response.status, response.headers, await response.read())
        assert answer.headers.getall("X-Correlation-ID") == [answer.headers["X-Correlation-ID"]]
        assert answer.headers["Server"] == "fulfilment"
        if answer.status >= 400 and method != "HEAD":
            assert_problem(answer)
        return answer


def dumps(value: Any) -> bytes:
    return json.dumps(value).encode()


def assert_problem(answer: Answer) -> None:
    """Every answer that is no success is a problem, and says nothing that only we should know."""
    assert answer.headers["Content-Type"] == "application/problem+json"
    problem = answer.json
    assert {"type", "title", "status", "detail", "instance", "code", "correlation_id"} <= problem.keys()
    assert problem["status"] == answer.status
    assert problem["correlation_id"] == answer.headers["X-Correlation-ID"]
    for secret in (b"Traceback", b"SELECT", b"/srv/", b"/site-packages", b"aiohttp", b"db-seven", b'File "'):
        assert secret not in answer.body


Start = Callable[..., Awaitable[Web]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    running: list[Web] = []

    async def start(*, is_locked: bool = False, extra: tuple[Any, ...] = ()) -> Web:
        service, health, metrics, streams = FakeService(PARCELS), FakeHealth(), Metrics(), Streams()
        keys = {"shop": sha256(KEY.encode()).hexdigest()} if is_locked else None
        app = build([service], health=health, metrics=metrics, keys=keys, version="1.2.3", extra=extra, streams=streams)
        server = Server(app)
        client: TestClient[Any, Any] = TestClient(server)
        await client.start_server()
        running.append(Web(service, health, metrics, streams, server, client))
        return running[-1]

    yield start
    for web in running:
        await web.client.close()


@pytest.fixture
async def web(start: Start) -> Web:
    return await start()
