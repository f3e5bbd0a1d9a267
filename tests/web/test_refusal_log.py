"""Each refused request is one line with what an operator needs; a flood of them is a few lines and a number."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from loguru import logger

from app.web.access.refusal_log import LINES_MAX
from tests.web.conftest import KEY, Start, Web

Line = dict[str, Any]


@pytest.fixture
def lines() -> Iterator[list[Line]]:
    """The lines at INFO and above, as they are logged."""
    found: list[Line] = []
    id = logger.add(
        lambda message: found.append(
            {"level": message.record["level"].name, "message": message.record["message"], **message.record["extra"]}
        ),
        level="INFO",
        format="",
    )
    yield found
    logger.remove(id)


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code", "error"),
    [
        ("GET", "/nowhere?token=secret", None, 404, "not_found", "This path does not exist."),
        ("DELETE", "/v1/shipments", None, 405, "method_not_allowed", "This path supports only"),
        ("POST", "/v1/shipments", {"weight": "heavy"}, 400, "invalid_body", '"weight" is not allowed here'),
        ("GET", "/v1/shipments?limit=0", None, 400, "invalid_query", "/limit"),
    ],
)
async def test_a_refused_request_is_one_line(
    web: Web, lines: list[Line], method: str, path: str, body: Any, status: int, code: str, error: str
) -> None:
    """Method, path without query, status, code, first error, caller and correlation id."""
    answer = await web.request(method, path, json=body, headers={"X-Correlation-ID": "c-7"})
    assert answer.status == status
    (line,) = lines
    assert (line["level"], line["message"], line["method"], line["path"]) == (
        *("INFO", "request refused"),
        *(method, path.partition("?")[0]),
    )
    assert (line["status"], line["code"], line["caller"], line["correlation_id"]) == (status, code, "anonymous", "c-7")
    assert line["error"].startswith(error)
    assert "secret" not in str(line)


async def test_what_is_not_http_is_a_line_too(web: Web, lines: list[Line]) -> None:
    """aiohttp itself answers it, before any handler."""
    reader, writer = await asyncio.open_connection("127.0.0.1", web.server.port)
    writer.write(b"NONSENSE\r\n\r\n")
    assert b" 400 " in await reader.readline()
    writer.close()
    await writer.wait_closed()
    assert [(line["status"], line["code"]) for line in lines] == [(400, "malformed_request")]


async def test_a_wrong_key_is_a_warning_that_names_what_to_check(start: Start, lines: list[Line]) -> None:
    """Once for each address; its repetitions are at INFO, and no line has the key."""
    web = await start(requires_key=True)
    lines.clear()
    for _ in range(3):
        await web.request("GET", "/v1/shipments", headers={"Authorization": f"Bearer {KEY}-wrong"})
    assert [(line["level"], line["status"]) for line in lines] == [("WARNING", 401), ("INFO", 401), ("INFO", 401)]
    assert "API_KEYS_FILE" in lines[0]["do"]
    assert lines[0]["address"] == "127.0.0.1"
    assert KEY not in str(lines)


async def test_a_flood_of_refused_requests_is_a_few_lines_and_a_number(web: Web, lines: list[Line]) -> None:
    """The number is logged at the end of the second, by status and code."""
    for _ in range(5 * LINES_MAX):
        await web.request("GET", "/nowhere")
    async with asyncio.timeout(30):
        while not any(line["message"] == "requests refused, lines left out" for line in lines):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    written = [line for line in lines if line["message"] == "request refused"]
    left_out = [line for line in lines if line["message"] == "requests refused, lines left out"]
    assert len(written) + sum(line["count"] for line in left_out) == 5 * LINES_MAX
    assert len(written) <= 3 * LINES_MAX
    assert left_out[0]["kinds"].keys() == {"404 not_found"}


async def test_an_accepted_request_is_no_line(web: Web, lines: list[Line]) -> None:
    """Only DEBUG shows it."""
    assert (await web.request("GET", "/livez")).status == 200
    assert lines == []
