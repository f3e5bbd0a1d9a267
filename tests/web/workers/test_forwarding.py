"""What a worker answers when it cannot pass a request on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestClient

from app.telemetry.metrics import Metrics
from app.web import Authenticator, Gate
from app.web.application import GATE, STATIC_HANDLERS, TELEMETRY
from app.web.workers.forwarding import Forwarder
from tests.web.conftest import Response, Server, assert_problem


async def answer(path: Path, **request: Any) -> Response:
    """Return the answer of a worker whose other process would listen at *path*."""
    forward = Forwarder(str(path), lambda: None)
    app = web.Application()
    app[TELEMETRY], app[GATE], app[STATIC_HANDLERS] = Metrics(), Gate(Authenticator(None)), {}
    app.router.add_route("*", "/{rest:.*}", forward.handle)
    client: TestClient[Any, Any] = TestClient(Server(app))
    async with client, client.request("POST", "/v1/audit", **request) as received:
        response = Response(received.status, received.headers, await received.read())
    await forward.close()
    return response


async def test_a_process_that_does_not_answer_is_503(tmp_path: Path) -> None:
    """As any other answer, it has the correlation id of the request, and nothing internal."""
    response = await answer(tmp_path / "nothing.sock", headers={"X-Correlation-ID": "c-1"})
    assert_problem(response)
    assert (response.status, response.json["code"], response.json["correlation_id"]) == (503, "unavailable", "c-1")
    assert response.headers["Server"] == "fulfilment"
