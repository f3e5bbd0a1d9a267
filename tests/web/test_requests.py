"""About fifty requests that are wrong, and the ways to be right."""

from __future__ import annotations

import gzip
from typing import Any

import pytest
from yarl import URL

from tests.web.conftest import Web

JSON = {"Content-Type": "application/json"}
GOOD = b'{"owner": "o", "items": [{"n": 1}]}'


def put_in(n: bytes) -> bytes:
    return b'{"owner": "o", "items": [{"n": %b}]}' % n


def owned_by(name: bytes) -> bytes:
    return b'{"owner": "%b", "items": [{"n": 1}]}' % name


def deep(levels: int) -> bytes:
    """Nest arrays so that the innermost one is at *levels*, the object around them being the first."""
    return b'{"owner": "o", "items": [{"n": 1}], "deep": ' + b"[" * (levels - 1) + b"]" * (levels - 1) + b"}"


NOT_STRICT = {
    "nothing": b"",
    "spaces": b"  ",
    "no JSON": b"owner=o",
    "cut": GOOD[:-1],
    "garbage after the end": GOOD + b"x",
    "two texts": GOOD + GOOD,
    "NaN": put_in(b"NaN"),
    "Infinity": put_in(b"Infinity"),
    "minus Infinity": put_in(b"-Infinity"),
    "beyond a double": put_in(b"1e400"),
    "5,000 digits": put_in(b"1" * 5000),
    "leading zero": put_in(b"01"),
    "trailing comma": b'{"owner": "o", "items": [{"n": 1},]}',
    "comment": b'{"owner": "o", /* me */ "items": [{"n": 1}]}',
    "single quotes": GOOD.replace(b'"', b"'"),
    "a name twice": b'{"owner": "o", "owner": "p", "items": [{"n": 1}]}',
    "a name twice, inside": b'{"owner": "o", "items": [{"n": 1, "n": 2}]}',
    "a name twice, once escaped": b'{"owner": "o", "\\u006fwner": "p", "items": [{"n": 1}]}',
    "a name twice, and colons": b'{"owner": "a:b:c", "owner": "o", "items": [{"n": 1}]}',
    "a name twice over a well": b'{"deep": ' + b"[" * 900 + b"]" * 900 + b', "deep": 1, "owner": "o", "items": []}',
    "byte order mark": b"\xef\xbb\xbf" + GOOD,
    "UTF-16": GOOD.decode().encode("utf-16"),
    "UTF-16 without a mark": GOOD.decode().encode("utf-16-le"),
    "UTF-32": GOOD.decode().encode("utf-32"),
    "Latin-1": owned_by(b"\xe4"),
    "lone surrogate": owned_by(b"\\ud800"),
    "lone low surrogate": owned_by(b"\\udc00"),
    "surrogate in raw bytes": owned_by(b"\xed\xa0\x80"),
    "overlong": owned_by(b"\xc0\xaf"),
    "raw NUL": owned_by(b"\x00"),
    "raw newline": owned_by(b"\n"),
    "33 levels": deep(33),
    "1,000 levels": deep(1000),
    "60,000 levels": b"[" * 60000,
}

UNFIT = {
    "null": b"null",
    "a list": b"[]",
    "a string": b'"o"',
    "a number": b"1",
    "a fraction alone": b"1.5",
    "missing member": b'{"owner": "o"}',
    "unknown member": b'{"owner": "o", "items": [{"n": 1}], "colour": "red"}',
    "no items": b'{"owner": "o", "items": []}',
    "101 items": b'{"owner": "o", "items": [' + b",".join([b'{"n": 1}'] * 101) + b"]}",
    "true as integer": put_in(b"true"),
    "1.0 as integer": put_in(b"1.0"),
    "1e2 as integer": put_in(b"1e2"),
    "text as integer": put_in(b'"1"'),
    "null as integer": put_in(b"null"),
    "0": put_in(b"0"),
    "10001": put_in(b"10001"),
    "2**63": put_in(b"9223372036854775808"),
    "2**64": put_in(b"18446744073709551616"),
    "below -2**63": put_in(b"-9223372036854775809"),
    "300 digits": put_in(b"9" * 300),
    "escaped NUL": owned_by(b"\\u0000"),
    "control character": owned_by(b"\\u0085"),
    "empty text": owned_by(b""),
    "65 characters": owned_by(b"x" * 65),
    "number as text": b'{"owner": 1, "items": [{"n": 1}]}',
}


@pytest.mark.parametrize("name", NOT_STRICT)
async def test_a_body_that_is_not_strict_json_is_400(web: Web, name: str) -> None:
    """What two readers could take for two things, or for none, is refused before anybody is told."""
    answer = await web.ask("POST", "/v1/parcels", data=NOT_STRICT[name], headers=JSON)
    assert (answer.status, answer.json["code"]) == (400, "invalid_json")
    assert web.service.told == []


@pytest.mark.parametrize("name", UNFIT)
async def test_a_body_that_breaks_its_schema_is_400_and_says_where(web: Web, name: str) -> None:
    """Each error has a pointer into the body and a sentence."""
    answer = await web.ask("POST", "/v1/parcels", data=UNFIT[name], headers=JSON)
    assert (answer.status, answer.json["code"]) == (400, "invalid_body")
    assert answer.json["errors"]
    assert all(error.keys() == {"pointer", "detail"} and error["detail"] for error in answer.json["errors"])
    assert web.service.told == []


@pytest.mark.parametrize("number", [b"1.0", b"true", b'"1"', b"0", b"9223372036854775808"])
async def test_an_error_points_at_the_number_that_is_wrong(web: Web, number: bytes) -> None:
    """The pointer is the way from the body's root."""
    answer = await web.ask("POST", "/v1/parcels", data=put_in(number), headers=JSON)
    assert [error["pointer"] for error in answer.json["errors"]] == ["/items/0/n"]


async def test_a_body_full_of_errors_gets_twenty_of_them(web: Web) -> None:
    """The longest body with the most errors is not answered with a list as long."""
    body = b'{"owner": "o", "items": [' + b",".join([b"0"] * 32000) + b"]}"
    answer = await web.ask("POST", "/v1/parcels", data=body, headers=JSON)
    assert answer.status == 400
    assert 1 <= len(answer.json["errors"]) <= 20


HEADERS: dict[str, tuple[dict[str, str], int]] = {
    "no type": ({}, 415),
    "text": ({"Content-Type": "text/plain"}, 415),
    "form": ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
    "JSON of a kind": ({"Content-Type": "application/merge-patch+json"}, 415),
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
async def test_a_body_of_another_kind_is_refused(web: Web, name: str) -> None:
    """Only application/json, in UTF-8, as it is."""
    headers, status = HEADERS[name]
    body = gzip.compress(GOOD) if name == "gzip" else GOOD
    answer = await web.ask("POST", "/v1/parcels", data=body, headers=headers)
    assert answer.status == status
    assert web.service.told == []


@pytest.mark.parametrize(
    "content_type",
    ["application/json", "Application/JSON", 'application/json; charset="UTF-8"', "application/json;charset=utf-8"],
)
async def test_a_good_body_is_taken(web: Web, content_type: str) -> None:
    """The type is compared without regard to case, and utf-8 may be said."""
    answer = await web.ask("POST", "/v1/parcels", data=GOOD, headers={"Content-Type": content_type})
    assert answer.status == 202
    assert answer.headers["Location"] == f"/v1/parcels/{answer.json['parcel_id']}"
    assert answer.headers["Content-Type"] == "application/json"


@pytest.mark.parametrize(
    "body",
    [
        owned_by(b"a:b"),
        owned_by("Zoë 😀".encode()),
        owned_by(b"\\ud83d\\ude00"),
        deep(32),
        b" \r\n\t" + GOOD + b"\n",
        put_in(b"10000"),
    ],
)
async def test_what_is_strict_json_is_taken(web: Web, body: bytes) -> None:
    """Strict is not narrow: colons in texts, any script, whitespace, 32 levels."""
    assert (await web.ask("POST", "/v1/parcels", data=body, headers=JSON)).status == 202


async def in_pieces(body: bytes) -> Any:
    for start in range(0, len(body), 5000):
        yield body[start : start + 5000]


@pytest.mark.parametrize("is_chunked", [False, True])
async def test_a_body_over_64_kib_is_413(web: Web, is_chunked: bool) -> None:
    """One byte too many is too many, whether its length is said beforehand or not."""
    body = GOOD + b" " * (65537 - len(GOOD))
    data = in_pieces(body) if is_chunked else body
    answer = await web.ask("POST", "/v1/parcels", data=data, headers=JSON)
    assert (answer.status, answer.json["code"]) == (413, "body_too_large")
    data = in_pieces(body[:-1]) if is_chunked else body[:-1]
    assert (await web.ask("POST", "/v1/parcels", data=data, headers=JSON)).status == 202


async def test_who_asks_before_sending_is_answered(web: Web) -> None:
    """Expect: 100-continue is honoured."""
    answer = await web.ask("POST", "/v1/parcels", data=GOOD, headers=JSON, expect100=True)
    assert answer.status == 202


async def test_a_body_may_be_left_out_where_it_says_nothing(web: Web) -> None:
    """No body and an empty object mean the same; a wrong one is still wrong."""
    made = (await web.ask("PUT", "/v1/parcels/p", json={"owner": "o"})).json
    assert made["place"] == "counter"
    assert (await web.ask("POST", "/v1/parcels/p/move")).json["place"] == "van"
    assert (await web.ask("POST", "/v1/parcels/p/move", data=b"", headers=JSON)).json["place"] == "van"
    assert (await web.ask("POST", "/v1/parcels/p/move", data=b"{}", headers=JSON)).json["place"] == "van"
    assert (await web.ask("POST", "/v1/parcels/p/move", data=b"null", headers=JSON)).status == 400
    assert (await web.ask("POST", "/v1/parcels/p/move", data=b"{}")).status == 415


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/v1/parcels", 202),
        ("POST", "/v1/p%61rcels", 202),  # percent-encoding that nobody needs is undone
        ("POST", "/v1/parcels?", 202),
        ("POST", "/v1/parcels/", 404),
        ("POST", "/v1%2Fparcels", 404),  # an encoded slash parts nothing
        ("POST", "/V1/parcels", 404),
        ("DELETE", "/v1/parcels", 405),
        ("GET", "/livez", 200),
        ("HEAD", "/livez", 200),
        ("GET", "/live%7A", 200),
    ],
)
async def test_every_spelling_of_a_path_finds_who_answers(web: Web, method: str, path: str, status: int) -> None:
    """A path that is written as we write it takes a shorter way through the server, to the same answer."""
    body = {"data": GOOD, "headers": JSON} if method == "POST" else {}
    assert (await web.ask(method, URL(path, encoded=True), **body)).status == status


IDS = ["x" * 65, "%00", "a%0Ab", "a%7F", "%C2%85", "%F0%28"]


@pytest.mark.parametrize("id", IDS)
async def test_what_cannot_be_an_id_is_nobodys(web: Web, id: str) -> None:
    """To look for it is 404, to make it 400, and neither gets further."""
    for method, path, status in (
        ("GET", f"/v1/parcels/{id}", 404),
        ("GET", f"/v1/parcels/{id}/stream", 404),
        ("POST", f"/v1/parcels/{id}/move", 404),
    ):
        assert (await web.ask(method, URL(path, encoded=True))).status == status
    if id != "%F0%28":  # broken percent-encoding stays text, and as text it is an id like any other
        answer = await web.ask("PUT", URL(f"/v1/parcels/{id}", encoded=True), json={"owner": "o"})
        assert (answer.status, answer.json["code"]) == (400, "invalid_path")
        assert answer.json["errors"]
    assert web.service.reads <= 2


@pytest.mark.parametrize(("id", "encoded"), [("a/b", "a%2Fb"), ("a{b}", "a%7Bb%7D"), ("ü 😀", "%C3%BC%20%F0%9F%98%80")])
async def test_an_id_may_have_any_other_character(web: Web, id: str, encoded: str) -> None:
    """Percent-encoding is undone once."""
    url = URL(f"/v1/parcels/{encoded}", encoded=True)
    assert (await web.ask("PUT", url, json={"owner": "o"})).json["parcel_id"] == id
    assert (await web.ask("GET", url)).json["parcel_id"] == id
