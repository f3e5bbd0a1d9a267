"""Imports: a command for each line of the body, and an answer for each line."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from typing import Any

import pytest

from app.storage.errors import StorageUnavailable
from app.web.requests import ndjson
from app.web.requests.command import BODY_SECONDS_MAX
from modules import inventory
from tests.web.conftest import KEY, Response, Start, Web

PATHS = [("POST", "/v1/inventory/import"), ("PUT", "/v1/inventory")]
EUR = {"amount": 100, "currency": "EUR"}


@pytest.fixture
async def web(start: Start) -> Web:
    return await start(module=inventory.module())


def body(lines: Iterable[Any]) -> bytes:
    return b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)


async def send(web: Web, data: Any, method: str = "POST", path: str = "/v1/inventory/import", **headers: str) -> Response:
    sent = {"Content-Type": "application/x-ndjson"} | {name.replace("_", "-"): value for name, value in headers.items()}
    return await web.request(method, path, data=data, headers=sent)


def answers(response: Response) -> list[Any]:
    assert (response.status, response.headers["Content-Type"]) == (200, "application/x-ndjson")
    return [json.loads(line) for line in response.body.splitlines()]


@pytest.mark.parametrize(("method", "path"), PATHS)
async def test_each_line_is_answered_in_its_order(web: Web, method: str, path: str) -> None:
    """A line that is wrong fails alone; blank lines only count."""
    lines = [
        {"product_id": "A", "on_hand": 5, "unit_price": EUR},
        b"",
        b"{not json",
        {"product_id": "A", "on_hand": -1, "unit_price": EUR},
        {"product_id": "B", "unit_price": EUR},
        {"product_id": "A", "name": "Teapot"},
        {"product_id": "A", "on_hand": 7},
        {"product_id": "A", "on_hand": 9, "unit_price": EUR, "etag": '"0"'},
    ]
    found = answers(await send(web, body(lines), method, path))
    assert [(answer["line"], answer["status"], answer.get("code")) for answer in found] == [
        (1, 200, None),
        (3, 400, "invalid_json"),
        (4, 400, "invalid_body"),
        (5, 404, "product_not_found"),
        (6, 200, None),
        (7, 400, "invalid_body"),
        (8, 412, "precondition_failed"),
    ]
    assert found[2]["errors"][0]["pointer"] == "/on_hand"
    product = await web.request("GET", "/v1/inventory/A")
    assert (found[4]["result"], found[4]["etag"]) == (product.json, product.headers["ETag"])
    assert (product.json["on_hand"], product.json["name"]) == (5, "Teapot")


async def test_an_import_is_resumed_with_its_key(web: Web) -> None:
    """A line that was executed before is answered as then, and the rest is executed."""
    lines = [{"product_id": f"P{n}", "on_hand": n, "unit_price": EUR} for n in range(5)]
    await send(web, body(lines[:3]), Idempotency_Key="k")
    submitted = len(web.service.submitted)
    found = answers(await send(web, body(lines), Idempotency_Key="k"))
    assert [answer.get("replayed", False) for answer in found] == [True, True, True, False, False]
    assert len(web.service.submitted) == submitted + 2
    other = answers(await send(web, body([{**lines[0], "on_hand": 9}]), Idempotency_Key="k"))
    assert [(answer["status"], answer["code"]) for answer in other] == [(422, "idempotency_key_reused")]


async def test_a_key_of_an_import_belongs_to_its_caller_and_its_route(start: Start) -> None:
    """What one caller has imported is no answer for another one, who would believe that the line was executed."""
    other = "another-key-of-another-caller"
    web = await start(requires_key=True, module=inventory.module(), keys=f"shop:stock:{KEY}\nother:stock:{other}\n")
    line = body([{"product_id": "A", "on_hand": 5, "unit_price": EUR}])
    for method, path in PATHS:
        for key in KEY, other:
            (found,) = answers(await send(web, line, method, path, Authorization=f"Bearer {key}", Idempotency_Key="k"))
            assert (found["status"], found.get("replayed")) == (200, None)
    assert len(web.service.submitted) == 2 * len(PATHS)


async def test_a_body_is_read_as_it_arrives(web: Web) -> None:
    """The first lines are executed before the last ones were sent, wherever the blocks end."""
    first_is_stored = asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        for at, line in enumerate(body({"product_id": f"P{n}", "on_hand": n, "unit_price": EUR} for n in range(3)).splitlines(True)):
            for part in (line[:7], line[7:]):
                yield part
            if at == 0:
                await web.service.wait_until(lambda: bool(web.service.submitted))
                first_is_stored.set()

    assert [answer["status"] for answer in answers(await send(web, slowly()))] == [200] * 3
    assert first_is_stored.is_set()


async def test_a_last_line_needs_no_line_break(web: Web) -> None:
    """Lines may also end as on Windows, and an empty body has no lines."""
    line = json.dumps({"product_id": "A", "on_hand": 5, "unit_price": EUR}).encode()
    assert len(answers(await send(web, line + b"\r\n" + line))) == 2
    assert answers(await send(web, b"")) == []


@pytest.mark.parametrize(
    ("limit", "value", "data"),
    [
        ("LINES_MAX", 2, b"{}\n" * 3),
        ("LINE_BYTES_MAX", 10, b"{}\n{}\n" + b"x" * 11),
        ("BODY_BYTES_MAX", 10, b"{}\n{}\n" + b"\n" * 10),
    ],
)
async def test_an_import_has_limits(web: Web, limit: str, value: int, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes before is answered, and the last answer says that the rest was not read."""
    monkeypatch.setattr(ndjson, limit, value)

    async def unannounced() -> AsyncIterator[bytes]:
        for line in data.splitlines(True):
            yield line

    response = await send(web, unannounced())
    *before, last = answers(response)
    assert {answer["status"] for answer in before} == {400}
    assert (last["line"], last["status"], last["code"]) == (None, 413, "body_too_large")
    assert response.headers["Connection"] == "close"  # the rest would be taken for the next request


async def test_a_line_without_an_end_is_refused_before_the_body_ends(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that one client sends fills the memory."""
    monkeypatch.setattr(ndjson, "LINE_BYTES_MAX", 10)
    is_answered = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        yield b"x" * 11
        await is_answered.wait()

    async with asyncio.timeout(BODY_SECONDS_MAX / 2):
        response = await send(web, endless())
    is_answered.set()
    assert (response.status, response.json["code"]) == (413, "body_too_large")


async def test_a_body_that_is_announced_as_too_large_is_413(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything of it is read."""
    monkeypatch.setattr(ndjson, "BODY_BYTES_MAX", 10)
    response = await send(web, b"{}\n" * 10)
    assert (response.status, response.json["code"]) == (413, "body_too_large")


@pytest.mark.parametrize("type", ["application/json", "text/plain", "application/x-ndjson; charset=latin-1"])
async def test_another_media_type_is_415(web: Web, type: str) -> None:
    """An array in JSON is not a list of lines."""
    assert (await send(web, b"{}\n", Content_Type=type)).status == 415
    assert (await send(web, b"{}\n", Content_Encoding="gzip")).status == 415


async def test_an_outage_is_reported_for_each_line(web: Web) -> None:
    """The lines can be sent again."""
    web.service.failure = StorageUnavailable("gone")
    found = answers(await send(web, body([{"product_id": "A", "unit_price": EUR}] * 2)))
    assert [(answer["status"], answer["code"]) for answer in found] == [(503, "database_unavailable")] * 2


async def test_a_product_may_be_named_import(web: Web) -> None:
    """The import takes POST; a product with this id is set and read like every other."""
    product = await web.request("PUT", "/v1/inventory/import", json={"on_hand": 1, "unit_price": EUR})
    assert product.status == 200
    assert (await web.request("GET", "/v1/inventory/import")).json == product.json
