"""What every answer has: a correlation id, a problem where it is no success, and a place in the numbers."""

from __future__ import annotations

import asyncio
import json
import re
from io import StringIO

import pytest
from loguru import logger
from prometheus_client.parser import text_string_to_metric_families

from app.storage.errors import CommitOutcomeUnknown, StorageUnavailable
from app.web.problems import ProblemError, respond
from tests.web.conftest import Answer, Web, assert_problem
from tests.web.example import Parcel

SECRET = "SELECT * FROM parcels in /srv/fulfilment on db-seven"
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
NEW = {"owner": "o", "items": [{"n": 2}]}


async def raw(web: Web, request: bytes) -> Answer:
    """Send *request* as it is; return the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", web.server.port)
    try:
        writer.write(request)
        await writer.drain()
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = dict(line.split(": ", 1) for line in head[1:-2])
        body = await reader.readexactly(int(headers.get("Content-Length", 0)))
    finally:
        writer.close()
        await writer.wait_closed()
    return Answer(int(head[0].split()[1]), headers, body)


async def samples(web: Web) -> dict[tuple[str, ...], float]:
    page = (await web.ask("GET", "/metrics")).body.decode()
    return {
        tuple(sample.labels[name] for name in ("method", "route", "status")): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name == "http_requests_total"
    }


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/nothing", "/v1/parcels/", "/v1/parcels/a/b", "/a%00"])
async def test_a_path_that_is_not_there_is_404(web: Web, path: str) -> None:
    """The router's own no is a problem like any other."""
    answer = await web.ask("GET", path)
    assert (answer.status, answer.json["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("DELETE", "/v1/parcels", "GET, HEAD, POST"),
        ("PATCH", "/v1/parcels/p", "GET, HEAD, PUT"),
        ("GET", "/v1/parcels/p/move", "POST"),
        ("HEAD", "/v1/parcels/p/move", "POST"),
        ("OPTIONS", "/v1/parcels", "GET, HEAD, POST"),
        ("POST", "/livez", "GET, HEAD"),
        ("PURGE", "/docs", "GET, HEAD"),
    ],
)
async def test_a_method_that_is_not_there_is_405_and_says_which_are(
    web: Web, method: str, path: str, allow: str
) -> None:
    """Allow names the methods of that path."""
    answer = await web.ask(method, path)
    assert answer.status == 405
    assert answer.headers["Allow"] == allow


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
        b"POST /v1/parcels HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/parcels HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    ],
)
async def test_what_is_no_http_is_answered_with_a_problem(web: Web, request_bytes: bytes) -> None:
    """Even a request that reaches no route."""
    answer = await raw(web, request_bytes)
    assert answer.status == 400
    assert_problem(answer)
    assert answer.json["code"] == "malformed_request"


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /%b HTTP/1.1\r\nHost: a\r\n\r\n" % (b"x" * 20000),
        b"GET / HTTP/1.1\r\nHost: a\r\nX: %b\r\n\r\n" % (b"x" * 20000),
    ],
)
async def test_a_head_that_is_too_long_is_431(web: Web, request_bytes: bytes) -> None:
    """What was too long is not sent back."""
    answer = await raw(web, request_bytes)
    assert answer.status == 431
    assert_problem(answer)
    assert b"xxx" not in answer.body


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        (b"OPTIONS * HTTP/1.1", 404),
        (b"GET /\xff\xfe HTTP/1.1", 400),
        (b"GET /%FF%FE HTTP/1.1", 404),
        (b"GET / HTTP/1.0", 404),
        (b"GET //v1/parcels HTTP/1.1", 404),
    ],
)
async def test_odd_targets_are_answered_with_a_problem(web: Web, request_line: bytes, status: int) -> None:
    """Whatever bytes a target has, the instance is a URI reference."""
    answer = await raw(web, request_line + b"\r\nHost: a\r\n\r\n")
    assert answer.status == status
    assert_problem(answer)
    assert answer.json["instance"].isascii()


def test_an_instance_is_a_uri_reference_whatever_the_path_was() -> None:
    """Bytes that were no UTF-8 come out percent-encoded."""
    answer = respond(ProblemError(404, "not_found", "No."), "/\udcff ä", "c-1")
    assert isinstance(answer.body, bytes)
    assert json.loads(answer.body)["instance"] == "/%FF%20%C3%A4"


async def test_too_much_is_refused_before_it_is_sent(web: Web) -> None:
    """Who says beforehand that the body is too long need not send it; the connection ends there."""
    head = b"POST /v1/parcels HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 65537\r\n"
    for expectation in (b"", b"Expect: 100-continue\r\n"):
        answer = await raw(web, head + expectation + b"\r\n")
        assert (answer.status, answer.headers["Connection"]) == (413, "close")
        assert_problem(answer)


async def test_a_broken_chunk_is_400(web: Web) -> None:
    """A body that is not framed as its head says."""
    head = (
        b"POST /v1/parcels HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    answer = await raw(web, head + b"zz\r\n{}\r\n0\r\n\r\n")
    assert answer.status == 400
    assert_problem(answer)


async def test_a_body_that_does_not_come_is_408(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody holds a connection by sending nothing."""
    monkeypatch.setattr("app.web.requests.parsing.BODY_SECONDS_MAX", 0.01)
    head = b"POST /v1/parcels HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n"
    answer = await raw(web, head + b"{")
    assert (answer.status, answer.json["code"]) == (408, "request_timeout")
    assert_problem(answer)


async def test_what_fails_is_500_and_keeps_its_secrets(web: Web) -> None:
    """The caller gets the correlation id; the log gets it too, and the reason."""
    web.service.trouble = RuntimeError(SECRET)
    log = StringIO()
    sink = logger.add(log, level="ERROR", format="{message} {extra} {exception}")
    try:
        answer = await web.ask("POST", "/v1/parcels", json=NEW, headers={"X-Correlation-ID": "c-1"})
    finally:
        logger.remove(sink)
    assert (answer.status, answer.json["code"], answer.json["correlation_id"]) == (500, "internal_error", "c-1")
    assert "c-1" in log.getvalue()
    assert SECRET in log.getvalue()


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/v1/parcels"), ("GET", "/v1/parcels"), ("GET", "/v1/parcels/p")]
)
async def test_a_database_out_of_reach_is_503_with_retry_after(web: Web, method: str, path: str) -> None:
    """Nothing was stored, and the caller knows when to come again."""
    web.service.trouble = StorageUnavailable(SECRET, retry_after_seconds=2)
    answer = await web.ask(method, path, json=NEW if method == "POST" else None)
    assert (answer.status, answer.json["code"]) == (503, "database_unavailable")
    assert answer.headers["Retry-After"] == "2"


async def test_an_outcome_that_nobody_knows_is_said_to_be_unknown(web: Web) -> None:
    """Neither success nor failure: the caller hears what he can do, and nothing that may be untrue."""
    web.service.trouble = CommitOutcomeUnknown(SECRET, retry_after_seconds=2)
    answer = await web.ask("POST", "/v1/parcels", json=NEW)
    assert (answer.status, answer.json["code"]) == (503, "outcome_unknown")
    assert "nothing was stored" not in answer.json["detail"]
    assert answer.headers["Retry-After"] == "2"


async def test_a_full_backlog_is_503_with_retry_after(web: Web) -> None:
    """New work is refused first; the rest goes on."""
    await web.ask("PUT", "/v1/parcels/p", json={"owner": "o"})
    web.service.is_full = True
    answer = await web.ask("POST", "/v1/parcels", json=NEW)
    assert (answer.status, answer.json["code"], answer.headers["Retry-After"]) == (503, "overloaded", "3")
    assert (await web.ask("POST", "/v1/parcels/p/move")).status == 200


async def test_a_refusal_is_a_problem(web: Web) -> None:
    """A business no has the status, the code and the sentence that the module gave it."""
    answer = await web.ask("POST", "/v1/parcels/none/move")
    assert (answer.status, answer.json["code"]) == (404, "unknown_parcel")
    assert answer.json["detail"] == "There is no such parcel."


@pytest.mark.parametrize("given", ["a", "A-z.0_9:", "x" * 128])
async def test_a_good_correlation_id_comes_back(web: Web, given: str) -> None:
    """On a success, a problem and a 404 of the router."""
    web.service.put(Parcel(id="p", owner="o", pieces=1))
    for path in ("/v1/parcels/p", "/v1/parcels/none", "/nowhere", "/livez"):
        assert (await web.ask("GET", path, headers={"X-Correlation-ID": given})).headers["X-Correlation-ID"] == given


@pytest.mark.parametrize("given", ["", "x" * 129, "a b", 'a"', "ä", "a/b"])
async def test_any_other_correlation_id_is_replaced(web: Web, given: str) -> None:
    """By a fresh UUID of version 7."""
    answer = await web.ask("GET", "/livez", headers={"X-Correlation-ID": given})
    assert UUID.fullmatch(answer.headers["X-Correlation-ID"])


async def test_a_trace_is_continued_and_a_broken_one_begun_anew(web: Web) -> None:
    """The door hears the caller's trace id under a parent of ours, and the correlation id."""
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    for header in (f"00-{trace}-00f067aa0ba902b7-01", "00-nonsense"):
        await web.ask("POST", "/v1/parcels", json=NEW, headers={"traceparent": header, "X-Correlation-ID": "c-1"})
    first, second = (context for _, _, context, _ in web.service.told)
    assert first.correlation_id == "c-1"
    assert first.traceparent.startswith(f"00-{trace}-")
    assert "00f067aa0ba902b7" not in first.traceparent
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-01", second.traceparent)
    assert trace not in second.traceparent


async def test_every_event_has_an_id_and_a_lane_of_its_own(web: Web) -> None:
    """Two requests are two events, and what is express goes by the express lane."""
    await web.ask("POST", "/v1/parcels", json=NEW)
    await web.ask("POST", "/v1/parcels", json={**NEW, "express": True})
    (first, first_id, _, slow), (second, second_id, _, fast) = web.service.told
    assert len({first_id, second_id, first.id, second.id}) == 4
    assert all(UUID.fullmatch(id) for id in (first_id, second_id, first.id, second.id))
    assert (slow, fast) == (False, True)


@pytest.mark.parametrize(
    "path", ["/v1/parcels", "/v1/parcels/p", "/livez", "/readyz", "/metrics", "/openapi.json", "/docs"]
)
async def test_head_is_get_without_the_body(web: Web, path: str) -> None:
    """Status and type are the same."""
    web.service.put(Parcel(id="p", owner="o", pieces=1))
    head, get = await web.ask("HEAD", path), await web.ask("GET", path)
    assert (head.status, head.body) == (200, b"")
    assert head.headers["Content-Type"] == get.headers["Content-Type"]


async def test_requests_are_counted_by_template(web: Web) -> None:
    """No path of a caller becomes a label; hostile ones leave the page readable."""
    await web.ask("GET", "/v1/parcels/a")
    await web.ask("GET", "/v1/parcels/b")
    await web.ask("HEAD", "/v1/parcels/b")
    await web.ask("GET", '/no"where\\')
    await web.ask("PURGE", "/v1/parcels")
    await raw(web, b"nonsense\r\n\r\n")
    found = await samples(web)
    assert found["GET", "/v1/parcels/{id}", "404"] == 2
    assert found["HEAD", "/v1/parcels/{id}", "404"] == 1
    assert found["GET", "unmatched", "404"] == 1
    assert found["OTHER", "unmatched", "405"] == 1
    assert found["OTHER", "unmatched", "400"] == 1
    assert web.metrics.http_request_seconds.labels("/v1/parcels/{id}").sum > 0


@pytest.mark.parametrize(("trouble", "lines"), [(StorageUnavailable("away"), 0), (CommitOutcomeUnknown("away"), 1)], ids=["away", "unsettled"])
async def test_who_is_shed_costs_no_line_of_the_log(web: Web, trouble: StorageUnavailable, lines: int) -> None:
    """Why is said once, where it is found out; only what nobody knows the outcome of is a line each."""
    log = StringIO()
    sink = logger.add(log, level="INFO", format="{message}")
    try:
        web.service.trouble = trouble
        assert (await web.ask("POST", "/v1/parcels", json=NEW)).status == 503
    finally:
        logger.remove(sink)
    assert log.getvalue().splitlines() == ["request refused"] * lines
