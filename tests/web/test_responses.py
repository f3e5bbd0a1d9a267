"""What every response has: a correlation id, a problem document unless it is a success, and metrics."""

from __future__ import annotations

import json
import re
from io import StringIO

import pytest
from loguru import logger
from prometheus_client.parser import text_string_to_metric_families

from app.storage.errors import CommitOutcomeUnknown, StorageUnavailable
from app.web.responses.problems import ProblemError, problem_response
from tests.web.conftest import Web, assert_problem
from tests.web.endpoints.raw import send_raw
from tests.web.example import Shipment

SECRET = "SELECT * FROM shipments in /srv/fulfilment on db-seven"
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
NEW = {"owner": "o", "items": [{"n": 2}]}


async def request_counts(web: Web) -> dict[tuple[str, ...], float]:
    """Return the counted requests by method, route and status."""
    page = (await web.request("GET", "/metrics")).body.decode()
    return {
        tuple(sample.labels[name] for name in ("method", "route", "status")): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name == "http_requests_total"
    }


@pytest.mark.parametrize("path", ["/v1", "/v1/nothing", "/v1/nothing/", "/v1/shipments/a/b", "/a%00"])
async def test_an_unknown_path_is_404(web: Web, path: str) -> None:
    """The router's own 404 is a problem document like any other."""
    response = await web.request("GET", path)
    assert (response.status, response.json["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("DELETE", "/v1/shipments", "GET, HEAD, POST"),
        ("PATCH", "/v1/shipments/p", "GET, HEAD, PUT"),
        ("GET", "/v1/shipments/p/move", "POST"),
        ("HEAD", "/v1/shipments/p/move", "POST"),
        ("OPTIONS", "/v1/shipments", "GET, HEAD, POST"),
        ("POST", "/livez", "GET, HEAD"),
        ("PURGE", "/docs", "GET, HEAD"),
    ],
)
async def test_an_unknown_method_is_405_with_the_allowed_ones(web: Web, method: str, path: str, allow: str) -> None:
    """The header Allow lists the methods of that path."""
    response = await web.request(method, path)
    assert response.status == 405
    assert response.headers["Allow"] == allow


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: a\r\n\r\n",
        b"G=T / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: a\x00b\r\n\r\n",
        b"POST /v1/shipments HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/shipments HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    ],
)
async def test_invalid_http_is_answered_with_a_problem(web: Web, request_bytes: bytes) -> None:
    """Also for a request that reaches no route."""
    response = await send_raw(web, request_bytes)
    assert response.status == 400
    assert_problem(response)
    assert response.json["code"] == "malformed_request"


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /%b HTTP/1.1\r\nHost: a\r\n\r\n" % (b"x" * 20000),
        b"GET / HTTP/1.1\r\nHost: a\r\nX: %b\r\n\r\n" % (b"x" * 20000),
    ],
)
async def test_a_request_head_that_is_too_long_is_431(web: Web, request_bytes: bytes) -> None:
    """The response does not repeat the long value."""
    response = await send_raw(web, request_bytes)
    assert response.status == 431
    assert_problem(response)
    assert b"xxx" not in response.body


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        (b"OPTIONS * HTTP/1.1", 404),
        (b"GET /\xff\xfe HTTP/1.1", 400),
        (b"GET /%FF%FE HTTP/1.1", 404),
        (b"GET /v1 HTTP/1.0", 404),
        (b"GET //v1 HTTP/1.1", 404),
    ],
)
async def test_unusual_request_targets_are_answered_with_a_problem(web: Web, request_line: bytes, status: int) -> None:
    """The instance is a URI reference, whatever bytes the target has."""
    response = await send_raw(web, request_line + b"\r\nHost: a\r\n\r\n")
    assert response.status == status
    assert_problem(response)
    assert response.json["instance"].isascii()


def test_the_instance_of_a_problem_is_a_uri_reference() -> None:
    """Bytes that are not UTF-8 are percent-encoded."""
    response = problem_response(ProblemError(404, "not_found", "No."), "/\udcff ä", "c-1")
    assert isinstance(response.body, bytes)
    assert json.loads(response.body)["instance"] == "/%FF%20%C3%A4"


async def test_a_body_that_is_announced_too_large_is_rejected_before_it_is_sent(web: Web) -> None:
    """With and without Expect: 100-continue; the connection closes after the response."""
    head = b"POST /v1/shipments HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 65537\r\n"
    for expectation in (b"", b"Expect: 100-continue\r\n"):
        response = await send_raw(web, head + expectation + b"\r\n")
        assert (response.status, response.headers["Connection"]) == (413, "close")
        assert_problem(response)


async def test_a_broken_chunk_is_400(web: Web) -> None:
    """The framing of the body contradicts the headers."""
    head = (
        b"POST /v1/shipments HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    response = await send_raw(web, head + b"zz\r\n{}\r\n0\r\n\r\n")
    assert response.status == 400
    assert_problem(response)


async def test_a_body_that_does_not_arrive_is_408(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client cannot keep a request open by sending nothing."""
    monkeypatch.setattr("app.web.requests.command.BODY_SECONDS_MAX", 0.01)
    head = b"POST /v1/shipments HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n"
    response = await send_raw(web, head + b"{")
    assert (response.status, response.json["code"]) == (408, "request_timeout")
    assert_problem(response)


async def test_an_unexpected_error_is_500_and_reveals_nothing(web: Web) -> None:
    """The client gets the correlation id; the log has it too, together with the reason."""
    web.service.failure = RuntimeError(SECRET)
    log = StringIO()
    sink = logger.add(log, level="ERROR", format="{message} {extra} {exception}")
    try:
        response = await web.request("POST", "/v1/shipments", json=NEW, headers={"X-Correlation-ID": "c-1"})
    finally:
        logger.remove(sink)
    assert (response.status, response.json["code"], response.json["correlation_id"]) == (500, "internal_error", "c-1")
    assert "c-1" in log.getvalue()
    assert SECRET in log.getvalue()


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/v1/shipments"), ("GET", "/v1/shipments"), ("GET", "/v1/shipments/p")]
)
async def test_an_unavailable_database_is_503_with_retry_after(web: Web, method: str, path: str) -> None:
    """Nothing was stored, and the client knows when to try again."""
    web.service.failure = StorageUnavailable(SECRET, retry_after_seconds=2)
    response = await web.request(method, path, json=NEW if method == "POST" else None)
    assert (response.status, response.json["code"]) == (503, "database_unavailable")
    assert response.headers["Retry-After"] == "2"


async def test_an_unknown_commit_outcome_is_reported_as_unknown(web: Web) -> None:
    """The problem claims neither success nor failure, and the detail does not say that nothing was stored."""
    web.service.failure = CommitOutcomeUnknown(SECRET, retry_after_seconds=2)
    response = await web.request("POST", "/v1/shipments", json=NEW)
    assert (response.status, response.json["code"]) == (503, "outcome_unknown")
    assert "nothing was stored" not in response.json["detail"]
    assert response.headers["Retry-After"] == "2"


async def test_an_overload_is_503_with_retry_after(web: Web) -> None:
    """New work is rejected first; requests for existing states are still processed."""
    await web.request("PUT", "/v1/shipments/p", json={"owner": "o"})
    web.service.is_overloaded = True
    response = await web.request("POST", "/v1/shipments", json=NEW)
    assert (response.status, response.json["code"], response.headers["Retry-After"]) == (503, "overloaded", "3")
    assert (await web.request("POST", "/v1/shipments/p/move")).status == 200


async def test_a_business_rejection_is_a_problem(web: Web) -> None:
    """Status, code and detail are those of the module."""
    response = await web.request("POST", "/v1/shipments/none/move")
    assert (response.status, response.json["code"]) == (404, "unknown_shipment")
    assert response.json["detail"] == "There is no such shipment."


@pytest.mark.parametrize("given", ["a", "A-z.0_9:", "x" * 128])
async def test_a_valid_correlation_id_is_returned(web: Web, given: str) -> None:
    """With a success, with a problem, and with a 404 of the router."""
    web.service.put(Shipment(id="p", owner="o", pieces=1))
    for path in ("/v1/shipments/p", "/v1/shipments/none", "/nowhere", "/livez"):
        assert (await web.request("GET", path, headers={"X-Correlation-ID": given})).headers["X-Correlation-ID"] == given


@pytest.mark.parametrize("given", ["", "x" * 129, "a b", 'a"', "ä", "a/b"])
async def test_an_invalid_correlation_id_is_replaced(web: Web, given: str) -> None:
    """By a new UUID of version 7."""
    response = await web.request("GET", "/livez", headers={"X-Correlation-ID": given})
    assert UUID.fullmatch(response.headers["X-Correlation-ID"])


async def test_a_valid_trace_is_continued_and_an_invalid_one_replaced(web: Web) -> None:
    """The service receives the client's trace id with a new parent id, and the correlation id."""
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    for header in (f"00-{trace}-00f067aa0ba902b7-01", "00-nonsense"):
        await web.request("POST", "/v1/shipments", json=NEW, headers={"traceparent": header, "X-Correlation-ID": "c-1"})
    first, second = (context for _, _, context, _ in web.service.submitted)
    assert first.correlation_id == "c-1"
    assert first.traceparent.startswith(f"00-{trace}-")
    assert "00f067aa0ba902b7" not in first.traceparent
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-01", second.traceparent)
    assert trace not in second.traceparent


async def test_every_request_becomes_an_event_with_its_own_id_and_its_lane(web: Web) -> None:
    """Two requests are two events; an express one uses the express lane."""
    await web.request("POST", "/v1/shipments", json=NEW)
    await web.request("POST", "/v1/shipments", json={**NEW, "express": True})
    (first, first_id, _, first_is_express), (second, second_id, _, second_is_express) = web.service.submitted
    assert len({first_id, second_id, first.id, second.id}) == 4
    assert all(UUID.fullmatch(id) for id in (first_id, second_id, first.id, second.id))
    assert (first_is_express, second_is_express) == (False, True)


@pytest.mark.parametrize(
    "path", ["/v1/shipments", "/v1/shipments/p", "/livez", "/readyz", "/metrics", "/openapi.json", "/docs"]
)
async def test_head_is_get_without_the_body(web: Web, path: str) -> None:
    """Status and content type are the same."""
    web.service.put(Shipment(id="p", owner="o", pieces=1))
    head, get = await web.request("HEAD", path), await web.request("GET", path)
    assert (head.status, head.body) == (200, b"")
    assert head.headers["Content-Type"] == get.headers["Content-Type"]


async def test_requests_are_counted_by_route_template(web: Web) -> None:
    """A path never becomes a label, so that hostile paths cannot make the metrics unreadable."""
    await web.request("GET", "/v1/shipments/a")
    await web.request("GET", "/v1/shipments/b")
    await web.request("HEAD", "/v1/shipments/b")
    await web.request("GET", '/no"where\\')
    await web.request("PURGE", "/v1/shipments")
    await send_raw(web, b"nonsense\r\n\r\n")
    found = await request_counts(web)
    assert found["GET", "/v1/shipments/{id}", "404"] == 2
    assert found["HEAD", "/v1/shipments/{id}", "404"] == 1
    assert found["GET", "unmatched", "404"] == 1
    assert found["OTHER", "unmatched", "405"] == 1
    assert found["OTHER", "unmatched", "400"] == 1
    assert web.metrics.http_request_seconds.labels("/v1/shipments/{id}").sum > 0


@pytest.mark.parametrize(
    ("failure", "lines"),
    [(StorageUnavailable("unavailable"), 0), (CommitOutcomeUnknown("unknown"), 1)],
    ids=["unavailable", "outcome unknown"],
)
async def test_a_request_rejected_during_an_outage_is_not_logged(
    web: Web, failure: StorageUnavailable, lines: int
) -> None:
    """The outage is logged once, where it is detected; each request with an unknown outcome is logged."""
    log = StringIO()
    sink = logger.add(log, level="INFO", format="{message}")
    try:
        web.service.failure = failure
        assert (await web.request("POST", "/v1/shipments", json=NEW)).status == 503
    finally:
        logger.remove(sink)
    assert log.getvalue().splitlines() == ["request rejected"] * lines
