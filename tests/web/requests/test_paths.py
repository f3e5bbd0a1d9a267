"""Paths and queries: an id either round-trips, or it is 400; another spelling of a route leads to the route."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from yarl import URL

from app.web.requests.parameters import is_percent_encoded
from tests.examples import examples
from tests.web.conftest import Response, Start, Web
from tests.web.endpoints.raw import send_raw

LABEL = b'{"owner": "o"}'


async def label(web: Web, segment: bytes, method: bytes = b"PUT") -> Response:
    """Send a request for /v1/shipments/<segment> as it is, without a client that corrects it."""
    body = LABEL if method == b"PUT" else b""
    head = b"%s /v1/shipments/%s HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return await send_raw(web, head % (method, segment, len(body)) + body)


@pytest.mark.parametrize(
    "segment",
    [
        *(b"%FF", b"%", b"a%2", b"%2", b"%zz", b"a%FFb", b"%C3", b"%ED%A0%80", b"%C0%AF", b"%E2%82", b"%F5%80%80%80"),
        *(b".", b"..", b"%2E", b"%2e%2e", b".%2E"),
        *(b"%00", b"%0A", b"%7F", b"%C2%85", b"x" * 65),
    ],
)
async def test_an_id_that_could_be_taken_for_another_is_400(web: Web, segment: bytes) -> None:
    """Bytes that are not UTF-8, half an escape, a dot segment, control characters: nothing is created."""
    response = await label(web, segment)
    assert (response.status, response.json["code"]) == (400, "invalid_path")
    assert web.service.states == {}


@pytest.mark.parametrize("segment", [b"%FF", b"%", b"a%2", b".", b"..", b"%2E%2E"])
@pytest.mark.parametrize("method", [b"GET", b"POST"])
async def test_such_a_path_is_400_for_every_method(web: Web, segment: bytes, method: bytes) -> None:
    """Also below the id."""
    response = await label(web, segment + (b"/move" if method == b"POST" else b""), method)
    assert (response.status, response.json["code"]) == (400, "invalid_path")


ids = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=70) | st.sampled_from(
    ["%FF", "%25FF", "%", "a%2", "%2F", "a/b", "//", " ", "+", "?", "#", ";", "a;b=c", "{id}", "\\", "..a", "...", "é", "e\u0301"]
)
segments = st.binary(min_size=1, max_size=20).map(lambda raw: bytes(b for b in raw if 0x21 <= b <= 0x7E and b not in b"/?#") or b"x")


async def test_every_id_round_trips_or_is_400(start: Start) -> None:
    """What PUT has created is what GET shows under the same path, with the same id."""
    web = await start()
    loop_is_running = settings(
        max_examples=examples(150), deadline=None, suppress_health_check=list(HealthCheck), database=None
    )
    found: list[tuple[bytes, str | None]] = []

    @loop_is_running
    @given(ids.map(lambda id: (quote(id, safe="").encode(), id)) | segments.map(lambda raw: (raw, None)))
    def collect(case: tuple[bytes, str | None]) -> None:
        found.append(case)

    collect()
    for segment, id in dict(found).items():
        created = await label(web, segment)
        assert created.status in (200, 400), segment
        if created.status == 200:
            shown = await label(web, segment, b"GET")
            assert (shown.status, shown.json) == (200, created.json)
            canonical = quote(shown.json["shipment_id"], safe="").encode()
            assert (await label(web, canonical, b"GET")).json == created.json
            assert id is None or shown.json["shipment_id"] == id


@given(st.text(st.sampled_from("%0aAFfzé.")))
def test_only_utf_8_in_percent_encoding_is_accepted(text: str) -> None:
    """The same as decoding the octets and reading them as UTF-8, strictly."""
    raw, at, octets, is_valid = text, 0, bytearray(), True
    while at < len(raw):
        if raw[at] == "%":
            try:
                octets.append(int(raw[at + 1 : at + 3].encode("ascii").decode().rjust(2, "z"), 16))
            except (ValueError, UnicodeError):
                is_valid = False
            at += 3
        else:
            octets += raw[at].encode()
            at += 1
    try:
        octets.decode()
    except UnicodeDecodeError:
        is_valid = False
    assert is_percent_encoded(text) == is_valid


@pytest.mark.parametrize("query", [b"owner=%FF", b"owner=%", b"owner=a%2", b"%FF=1", b"owner=%ED%A0%80"])
async def test_a_query_that_is_not_utf_8_is_400(web: Web, query: bytes) -> None:
    """It would be compared with the text of its escape."""
    response = await send_raw(web, b"GET /v1/shipments?%s HTTP/1.1\r\nHost: a\r\n\r\n" % query)
    assert (response.status, response.json["code"]) == (400, "invalid_query")


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("/health/", "/health"),
        ("/docs/", "/docs"),
        ("/livez//", "/livez"),
        ("//v1/shipments", "/v1/shipments"),
        ("/v1//shipments/", "/v1/shipments"),
        ("//v1/shipments/?owner=a%20b&limit=2", "/v1/shipments?owner=a%20b&limit=2"),
        ("/v1/shipments/a%2Fb/", "/v1/shipments/a%2Fb"),
        ("/v1/shipments/%25FF//move/", "/v1/shipments/%25FF/move"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_additional_slashes_are_redirected(start: Start, path: str, target: str, method: str) -> None:
    """With the method and the query, and without a key: a probe that is spelled with a slash has none."""
    web = await start(requires_key=True)
    head = f"{method} {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n".encode()
    response = await send_raw(web, head)
    assert (response.status, response.headers["Location"]) == (308, target)
    assert response.headers["X-Correlation-ID"]


@pytest.mark.parametrize("path", ["//evil.example/", "//evil.example/v1/shipments", "/v1/", "//", "/nothing/", "/\\evil.example/"])
async def test_only_a_route_is_redirected_to(web: Web, path: str) -> None:
    """A path that is no route stays 404, and no redirect leads to another host."""
    response = await send_raw(web, f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    assert response.status == (308 if path == "//" else 404)
    assert response.headers.get("Location", "/") == "/"


async def test_the_root_leads_to_the_documents(start: Start) -> None:
    """Without a key: an operator opens the address of a new server first."""
    web = await start(requires_key=True)
    response = await web.request("GET", URL("/"))
    assert (response.status, response.headers["Location"]) == (302, "/docs")


async def test_no_response_with_data_is_stored_or_taken_for_a_page(web: Web) -> None:
    """States, lists, problems, metrics and documents alike."""
    await web.request("PUT", "/v1/shipments/a", json={"owner": "o"})
    headers: list[Any] = []
    for path in ("/v1/shipments/a", "/v1/shipments", "/v1/shipments/none", "/nothing", "/livez", "/readyz", "/metrics", "/openapi.json"):
        headers.append((await web.request("GET", path)).headers)
    headers.append((await web.request("PUT", "/v1/shipments/a", json={})).headers)
    headers.append((await send_raw(web, b"nonsense\r\n\r\n")).headers)
    assert {(found["Cache-Control"], found["X-Content-Type-Options"]) for found in headers} == {("no-store", "nosniff")}
