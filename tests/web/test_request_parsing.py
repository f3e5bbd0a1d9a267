"""Invalid requests and the responses to them; valid requests in all their spellings."""

from __future__ import annotations

import gzip
from typing import Any

import pytest
from yarl import URL

from tests.web.conftest import Web

JSON = {"Content-Type": "application/json"}
GOOD = b'{"owner": "o", "items": [{"n": 1}]}'


def with_number(n: bytes) -> bytes:
    return b'{"owner": "o", "items": [{"n": %b}]}' % n


def with_owner(name: bytes) -> bytes:
    return b'{"owner": "%b", "items": [{"n": 1}]}' % name


def nested(levels: int) -> bytes:
    """Nest arrays so that the innermost one is at *levels*, the object around them being the first."""
    return b'{"owner": "o", "items": [{"n": 1}], "deep": ' + b"[" * (levels - 1) + b"]" * (levels - 1) + b"}"


NOT_STRICT = {
    "nothing": b"",
    "spaces": b"  ",
    "no JSON": b"owner=o",
    "cut": GOOD[:-1],
    "garbage after the end": GOOD + b"x",
    "two texts": GOOD + GOOD,
    "NaN": with_number(b"NaN"),
    "Infinity": with_number(b"Infinity"),
    "minus Infinity": with_number(b"-Infinity"),
    "beyond a double": with_number(b"1e400"),
    "5,000 digits": with_number(b"1" * 5000),
    "leading zero": with_number(b"01"),
    "trailing comma": b'{"owner": "o", "items": [{"n": 1},]}',
    "comment": b'{"owner": "o", /* comment */ "items": [{"n": 1}]}',
    "single quotes": GOOD.replace(b'"', b"'"),
    "a name twice": b'{"owner": "o", "owner": "p", "items": [{"n": 1}]}',
    "a name twice, inside": b'{"owner": "o", "items": [{"n": 1, "n": 2}]}',
    "a name twice, once escaped": b'{"owner": "o", "\\u006fwner": "p", "items": [{"n": 1}]}',
    "a name twice, and colons": b'{"owner": "a:b:c", "owner": "o", "items": [{"n": 1}]}',
    "a name twice over deep nesting": b'{"deep": ' + b"[" * 900 + b"]" * 900 + b', "deep": 1, "owner": "o", "items": []}',
    "byte order mark": b"\xef\xbb\xbf" + GOOD,
    "UTF-16": GOOD.decode().encode("utf-16"),
    "UTF-16 without a mark": GOOD.decode().encode("utf-16-le"),
    "UTF-32": GOOD.decode().encode("utf-32"),
    "Latin-1": with_owner(b"\xe4"),
    "lone surrogate": with_owner(b"\\ud800"),
    "lone low surrogate": with_owner(b"\\udc00"),
    "surrogate in raw bytes": with_owner(b"\xed\xa0\x80"),
    "overlong": with_owner(b"\xc0\xaf"),
    "raw NUL": with_owner(b"\x00"),
    "raw newline": with_owner(b"\n"),
    "33 levels": nested(33),
    "1,000 levels": nested(1000),
    "60,000 levels": b"[" * 60000,
}

INVALID = {
    "null": b"null",
    "a list": b"[]",
    "a string": b'"o"',
    "a number": b"1",
    "a fraction alone": b"1.5",
    "missing member": b'{"owner": "o"}',
    "unknown member": b'{"owner": "o", "items": [{"n": 1}], "colour": "red"}',
    "no items": b'{"owner": "o", "items": []}',
    "101 items": b'{"owner": "o", "items": [' + b",".join([b'{"n": 1}'] * 101) + b"]}",
    "true as integer": with_number(b"true"),
    "1.0 as integer": with_number(b"1.0"),
    "1e2 as integer": with_number(b"1e2"),
    "text as integer": with_number(b'"1"'),
    "null as integer": with_number(b"null"),
    "0": with_number(b"0"),
    "10001": with_number(b"10001"),
    "2**63": with_number(b"9223372036854775808"),
    "2**64": with_number(b"18446744073709551616"),
    "below -2**63": with_number(b"-9223372036854775809"),
    "300 digits": with_number(b"9" * 300),
    "escaped NUL": with_owner(b"\\u0000"),
    "control character": with_owner(b"\\u0085"),
    "empty text": with_owner(b""),
    "65 characters": with_owner(b"x" * 65),
    "number as text": b'{"owner": 1, "items": [{"n": 1}]}',
}


@pytest.mark.parametrize("name", NOT_STRICT)
async def test_a_body_that_is_not_strict_json_is_400(web: Web, name: str) -> None:
    """A body that two readers could understand differently is rejected before anything is submitted."""
    response = await web.request("POST", "/v1/shipments", data=NOT_STRICT[name], headers=JSON)
    assert (response.status, response.json["code"]) == (400, "invalid_json")
    assert web.service.submitted == []


@pytest.mark.parametrize("name", INVALID)
async def test_a_body_that_violates_its_schema_is_400_with_pointers(web: Web, name: str) -> None:
    """Each error has a pointer into the body and a detail."""
    response = await web.request("POST", "/v1/shipments", data=INVALID[name], headers=JSON)
    assert (response.status, response.json["code"]) == (400, "invalid_body")
    assert response.json["errors"]
    assert all(error.keys() == {"pointer", "detail"} and error["detail"] for error in response.json["errors"])
    assert web.service.submitted == []


@pytest.mark.parametrize("number", [b"1.0", b"true", b'"1"', b"0", b"9223372036854775808"])
async def test_an_error_points_at_the_invalid_number(web: Web, number: bytes) -> None:
    """The pointer starts at the root of the body."""
    response = await web.request("POST", "/v1/shipments", data=with_number(number), headers=JSON)
    assert [error["pointer"] for error in response.json["errors"]] == ["/items/0/n"]


async def test_at_most_twenty_errors_are_returned(web: Web) -> None:
    """Also for the largest body with the most errors."""
    body = b'{"owner": "o", "items": [' + b",".join([b"0"] * 32000) + b"]}"
    response = await web.request("POST", "/v1/shipments", data=body, headers=JSON)
    assert response.status == 400
    assert 1 <= len(response.json["errors"]) <= 20


HEADERS: dict[str, tuple[dict[str, str], int]] = {
    "no type": ({}, 415),
    "text": ({"Content-Type": "text/plain"}, 415),
    "form": ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
    "another JSON type": ({"Content-Type": "application/merge-patch+json"}, 415),
    "Latin-1": ({"Content-Type": "application/json; charset=latin-1"}, 415),
    "UTF-16": ({"Content-Type": "application/json; charset=utf-16"}, 415),
    "other parameter": ({"Content-Type": "application/json; profile=x"}, 415),
    "charset twice": ({"Content-Type": "application/json; charset=utf-8; charset=utf-16"}, 415),
    "two types": ({"Content-Type": "application/json, text/plain"}, 415),
    "gzip": ({**JSON, "Content-Encoding": "gzip"}, 415),
    "br": ({**JSON, "Content-Encoding": "br"}, 415),
    "identity": ({**JSON, "Content-Encoding": "identity"}, 415),
    "unknown expectation": ({**JSON, "Expect": "a-miracle"}, 417),
}


@pytest.mark.parametrize("name", HEADERS)
async def test_an_unsupported_media_type_or_expectation_is_rejected(web: Web, name: str) -> None:
    """Only application/json in UTF-8 is accepted, without a Content-Encoding."""
    headers, status = HEADERS[name]
    body = gzip.compress(GOOD) if name == "gzip" else GOOD
    response = await web.request("POST", "/v1/shipments", data=body, headers=headers)
    assert response.status == status
    assert web.service.submitted == []


@pytest.mark.parametrize(
    "content_type",
    ["application/json", "Application/JSON", 'application/json; charset="UTF-8"', "application/json;charset=utf-8"],
)
async def test_a_valid_body_is_accepted(web: Web, content_type: str) -> None:
    """The content type is case-insensitive, and its charset may be utf-8."""
    response = await web.request("POST", "/v1/shipments", data=GOOD, headers={"Content-Type": content_type})
    assert response.status == 202
    assert response.headers["Location"] == f"/v1/shipments/{response.json['shipment_id']}"
    assert response.headers["Content-Type"] == "application/json"


@pytest.mark.parametrize(
    "body",
    [
        with_owner(b"a:b"),
        with_owner("Zoë 😀".encode()),
        with_owner(b"\\ud83d\\ude00"),
        nested(32),
        b" \r\n\t" + GOOD + b"\n",
        with_number(b"10000"),
    ],
)
async def test_every_kind_of_strict_json_is_accepted(web: Web, body: bytes) -> None:
    """Colons in strings, any script, whitespace, 32 levels of nesting."""
    assert (await web.request("POST", "/v1/shipments", data=body, headers=JSON)).status == 202


async def in_chunks(body: bytes) -> Any:
    for start in range(0, len(body), 5000):
        yield body[start : start + 5000]


@pytest.mark.parametrize("is_chunked", [False, True])
async def test_a_body_over_64_kib_is_413(web: Web, is_chunked: bool) -> None:
    """64 KiB are accepted and one byte more is not, with and without a Content-Length."""
    body = GOOD + b" " * (65537 - len(GOOD))
    data = in_chunks(body) if is_chunked else body
    response = await web.request("POST", "/v1/shipments", data=data, headers=JSON)
    assert (response.status, response.json["code"]) == (413, "body_too_large")
    data = in_chunks(body[:-1]) if is_chunked else body[:-1]
    assert (await web.request("POST", "/v1/shipments", data=data, headers=JSON)).status == 202


async def test_a_client_that_expects_100_continue_gets_it(web: Web) -> None:
    """The client sends the body after it, and the request is processed."""
    response = await web.request("POST", "/v1/shipments", data=GOOD, headers=JSON, expect100=True)
    assert response.status == 202


async def test_an_optional_body_may_be_absent(web: Web) -> None:
    """No body and an empty object mean the same; an invalid body is still rejected."""
    made = (await web.request("PUT", "/v1/shipments/p", json={"owner": "o"})).json
    assert made["place"] == "counter"
    assert (await web.request("POST", "/v1/shipments/p/move")).json["place"] == "van"
    assert (await web.request("POST", "/v1/shipments/p/move", data=b"", headers=JSON)).json["place"] == "van"
    assert (await web.request("POST", "/v1/shipments/p/move", data=b"{}", headers=JSON)).json["place"] == "van"
    assert (await web.request("POST", "/v1/shipments/p/move", data=b"null", headers=JSON)).status == 400
    assert (await web.request("POST", "/v1/shipments/p/move", data=b"{}")).status == 415


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/v1/shipments", 202),
        ("POST", "/v1/sh%69pments", 202),  # unnecessary percent-encoding is decoded
        ("POST", "/v1/shipments?", 202),
        ("POST", "/v1/shipments/", 308),
        ("POST", "/v1%2Fshipments", 404),  # an encoded slash is no separator
        ("POST", "/V1/shipments", 404),
        ("DELETE", "/v1/shipments", 405),
        ("GET", "/livez", 200),
        ("HEAD", "/livez", 200),
        ("GET", "/live%7A", 200),
    ],
)
async def test_every_spelling_of_a_path_is_routed_the_same(web: Web, method: str, path: str, status: int) -> None:
    """A path spelled as in its route bypasses aiohttp's router; the response is the same."""
    body = {"data": GOOD, "headers": JSON} if method == "POST" else {}
    assert (await web.request(method, URL(path, encoded=True), **body)).status == status


INVALID_IDS = ["x" * 65, "%00", "a%0Ab", "a%7F", "%C2%85"]


@pytest.mark.parametrize("id", INVALID_IDS)
async def test_an_invalid_id_is_404_or_400(web: Web, id: str) -> None:
    """404 where a state is looked up, 400 where a PUT would create it; the service is not called."""
    for method, path, status in (
        ("GET", f"/v1/shipments/{id}", 404),
        ("GET", f"/v1/shipments/{id}/stream", 404),
        ("POST", f"/v1/shipments/{id}/move", 404),
    ):
        assert (await web.request(method, URL(path, encoded=True))).status == status
    response = await web.request("PUT", URL(f"/v1/shipments/{id}", encoded=True), json={"owner": "o"})
    assert (response.status, response.json["code"]) == (400, "invalid_path")
    assert response.json["errors"]
    assert web.service.reads <= 2


@pytest.mark.parametrize(("id", "encoded"), [("a/b", "a%2Fb"), ("a{b}", "a%7Bb%7D"), ("ü 😀", "%C3%BC%20%F0%9F%98%80")])
async def test_an_id_may_contain_any_other_character(web: Web, id: str, encoded: str) -> None:
    """Percent-encoding is decoded once."""
    url = URL(f"/v1/shipments/{encoded}", encoded=True)
    assert (await web.request("PUT", url, json={"owner": "o"})).json["shipment_id"] == id
    assert (await web.request("GET", url)).json["shipment_id"] == id
