"""The console as a person gets it: without keys, through HTTP workers, and from each of three processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from aiohttp import ClientSession, CookieJar, DummyCookieJar

from tests.process.client import Client
from tests.process.conftest import Serve
from tests.process.server import Server

pytestmark = pytest.mark.slow


async def test_without_keys_a_person_on_this_machine_goes_straight_in(serve: Serve, connect: Callable[[Server], Client]) -> None:
    """A page of another site does not: its forms and links are refused, and it cannot know the token of a form."""
    server = serve()
    client = connect(server)
    await client.stock("SKU-1", 10, 1250)
    order_id = await client.place({"SKU-1": 2})
    await client.wait_until_final(order_id)
    async with ClientSession(cookie_jar=DummyCookieJar()) as session:
        page = f"{server.url}/console/orders/{order_id}/cancel"
        async with session.get(page) as answer:
            text = await answer.text()
            assert answer.status == 200
            assert "Log out" not in text
        token = text.partition('name="csrf" value="')[2].partition('"')[0]
        cross = {"Sec-Fetch-Site": "cross-site"}
        async with session.post(page, data={"csrf": token}, headers=cross) as answer:
            assert answer.status == 403
        async with session.post(page, data={}) as answer:
            assert answer.status == 403
        async with session.post(page, data={"csrf": token}, headers={"Host": "rebound.example"}) as answer:
            assert answer.status == 403
        assert (await client.get(f"/v1/orders/{order_id}"))["status"] == "confirmed"
        async with session.post(page, data={"csrf": token}, allow_redirects=False) as answer:
            assert (answer.status, answer.headers["Location"]) == (303, f"/console/orders/{order_id}?done=cancel")
        assert (await client.get(f"/v1/orders/{order_id}"))["status"] == "cancelled"


async def test_the_console_is_the_same_through_http_workers(serve: Serve, tmp_path: Path) -> None:
    """Log-in, pages, files and the live part; whichever worker answers, the session is valid."""
    keys = tmp_path / "keys"
    keys.write_text("ada:operator:operator-key-0123456789\n")
    keys.chmod(0o600)
    server = serve(HTTP_WORKERS="2", AUTH="keys", API_KEYS_FILE=str(keys))
    for _ in range(6):  # each with a connection of its own, which any worker may get
        async with ClientSession(cookie_jar=CookieJar(unsafe=True)) as session:
            async with session.post(f"{server.url}/console/login", data={"key": "operator-key-0123456789"}) as answer:
                assert (answer.status, answer.url.path) == (200, "/console")
                assert "What needs attention" in await answer.text()
            async with session.get(f"{server.url}/console/static/console.css") as answer:
                assert (answer.status, answer.content_type) == (200, "text/css")
            async with session.get(f"{server.url}/console/live", headers={"Accept": "text/event-stream"}) as answer:
                assert answer.content_type == "text/event-stream"
                assert (await answer.content.readline()).startswith(b"event: state")
