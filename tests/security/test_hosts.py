"""Without API keys, a server answers for this machine's own names, and refuses pages of other sites."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import ClientSession, HttpVersion, HttpVersion10, HttpVersion11, web
from aiohttp.test_utils import make_mocked_request
from multidict import CIMultiDict

from app.application import Application
from app.web.access.gate import HostRule
from app.web.responses.problems import ProblemError
from config.settings import Settings
from modules.registry import MODULES

one_server = pytest.mark.asyncio(loop_scope="module")
"""These tests share a server, and the loop that it runs on; none of them changes anything there."""

Send = Callable[..., Coroutine[Any, Any, tuple[int, str]]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def send(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Send]:
    """Return a function that sends a request with the given headers to a server without keys: status and code."""
    settings = Settings(
        known_modules=MODULES,
        database_url=f"sqlite:///{tmp_path_factory.mktemp('hosts')}/test.db",
        http_port=0,
        shutdown_grace_s=2,
        allowed_hosts=("orders.internal",),
        cors_origins=("https://shop.example",),
    )
    application = Application(settings)
    address = await application.start()
    async with ClientSession() as session:

        async def request(method: str = "GET", path: str = "/v1/inventory", **headers: str) -> tuple[int, str]:
            sent = {name.replace("_", "-"): value for name, value in headers.items()}
            async with session.request(method, address + path, headers=sent) as response:
                return response.status, (await response.json())["code"] if response.status == 403 else ""

        yield request
    await application.stop()


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.0.0.1:8080", "localhost", "LOCALHOST:1", "localhost.", "127.8.9.10", "[::1]", "[::1]:8080", "orders.internal:80"],
)
@one_server
async def test_loopback_names_and_allowed_hosts_are_answered(send: Send, host: str) -> None:
    """With or without a port, in any case."""
    for _ in range(2):  # the second time from memory
        assert (await send(Host=host))[0] == 200


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:8080", "127.0.0.1.evil.example", "localhost.evil.example", "evil.example:127.0.0.1"),
        *("10.0.0.1", "0.0.0.0", "[::]", "169.254.169.254", "user@127.0.0.1", "xlocalhost", "orders.internal.evil.example", " "),
    ],
)
@one_server
async def test_any_other_host_is_refused(send: Send, host: str) -> None:
    """A name that resolves to this machine is not this machine's name; nothing is read or changed under it."""
    for method, path in (("GET", "/v1/inventory"), ("POST", "/v1/orders/o-1/cancel"), ("GET", "/docs"), ("GET", "/nowhere")):
        assert await send(method, path, Host=host) == (403, "host_not_allowed")
    assert (await send(path="/livez", Host=host))[0] == 200  # an orchestrator probes under the address of the container


@pytest.mark.parametrize("more", ["evil.example", "localhost"])
def test_more_than_one_host_is_refused(more: str) -> None:
    """Another server on the way may have read the other one. It makes no difference that the first one is known."""
    rule = HostRule()
    rule(request_for("localhost"))
    with pytest.raises(ProblemError, match="loopback names"):
        rule(request_for("localhost", more))


def test_a_request_without_a_host_is_refused_but_for_http_1_0() -> None:
    """No browser sends none."""
    rule = HostRule()
    rule(request_for(version=HttpVersion10))
    with pytest.raises(ProblemError, match="loopback names"):
        rule(request_for())


def request_for(*hosts: str, version: HttpVersion = HttpVersion11) -> web.Request:
    return make_mocked_request("GET", "/", CIMultiDict([("Host", host) for host in hosts]), version=version)


@one_server
async def test_a_page_of_another_site_is_refused(send: Send) -> None:
    """A POST without a body needs no permission from the server in a browser; only its own header shows the site."""
    for method, path in (("POST", "/v1/orders/o-1/cancel"), ("GET", "/v1/inventory")):
        assert await send(method, path, Sec_Fetch_Site="cross-site", Origin="https://evil.example") == (403, "cross_site")
        assert await send(method, path, Sec_Fetch_Site="cross-site") == (403, "cross_site")
    for site in "same-origin", "none":
        assert (await send(Sec_Fetch_Site=site))[0] == 200
    assert (await send(Sec_Fetch_Site="cross-site", Origin="https://shop.example"))[0] == 200
