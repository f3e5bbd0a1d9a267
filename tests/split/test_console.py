"""The console of each of three processes, also while one of them is down."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from aiohttp import ClientSession, DummyCookieJar

from app.web.console.session import COOKIE
from tests.process.client import Client, eventually
from tests.split.conftest import Build
from tests.split.peers import know_each_other
from tests.split.system import MODULES, System
from tests.split.test_overview import KEYS, OPERATOR


@pytest.mark.slow
async def test_each_process_shows_and_changes_what_the_others_have(build: Build, connect: Callable[[System], Client]) -> None:
    """
    A session is valid at every process, and a form of one process changes what another one has, under the person's name.

    What is out of reach is shown as that, on the pages that need it.
    """
    system = build()
    know_each_other(system, *KEYS, "ada:operator:key-of-ada-0123456789")
    client = connect(system.start())
    price = {"on_hand": 10, "unit_price": {"amount": 100, "currency": "EUR"}}
    assert (await client.request("PUT", "/v1/inventory/SKU-1", price, OPERATOR)).status == 200
    body = {"customer_id": "c-1", "items": [{"product_id": "SKU-1", "quantity": 1}]}
    order_id = (await client.request("POST", "/v1/orders", body, OPERATOR)).body["order_id"]

    async with ClientSession(cookie_jar=DummyCookieJar()) as session:
        login = {"key": "key-of-ada-0123456789"}
        url = system.servers["orders"][0].url
        async with session.post(f"{url}/console/login", data=login, allow_redirects=False) as answer:
            cookie = {"Cookie": f"{COOKIE}={answer.cookies[COOKIE].value}"}

        async def page(module: str, path: str, status: int = 200) -> str:
            address = f"{system.servers[module][0].url}/console{path}"
            async with session.get(address, headers=cookie, allow_redirects=False) as answer:
                text = await answer.text()
                assert answer.status == status, text
                return text

        for module in MODULES:
            await eventually(lambda module=module: page(module, f"/orders/{order_id}"), lambda text: "captured" in text)  # type: ignore[misc]
            assert "unreachable" not in await page(module, "")
            assert order_id in await page(module, "/orders")

        form = await page("payments", f"/orders/{order_id}/cancel")
        token = form.partition('name="csrf" value="')[2].partition('"')[0]
        address = f"{system.servers['payments'][0].url}/console/orders/{order_id}/cancel"
        async with session.post(address, data={"csrf": token}, headers=cookie, allow_redirects=False) as answer:
            assert answer.status == 303, await answer.text()
        audit = await client.request("GET", f"/v1/audit?module=orders&target={order_id}", headers=OPERATOR)
        assert [(each["actor"], each["action"]) for each in audit.body["items"]] == [("ada", "cancelOrder")]

        system.kill(system.servers["payments"][0])
        text = await eventually(lambda: page("inventory", f"/orders/{order_id}"), lambda text: "Out of reach: payments." in text)
        assert "no connection" in text
        await eventually(lambda: page("inventory", ""), lambda text: "unreachable" in text)
        system.kill(system.servers["orders"][0])
        assert "out of reach" in await page("inventory", "/orders", 503)
        await eventually(lambda: page("inventory", ""), lambda text: "The process of orders, or its database, gives no answer." in text)
