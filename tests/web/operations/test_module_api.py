"""Requests to the API of any module: in this process, in another one, and where there is none."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from app.storage.errors import StorageUnavailable
from app.web.access.authentication import ANONYMOUS
from app.web.handler import Endpoint, RequestContext, RouteGroup
from app.web.operations.module_api import ModuleApi, ModuleUnreachable
from app.web.responses.success import json_response
from app.web.spec.components import Description
from config.api_keys import ApiKey
from tests.web.conftest import Start, Web
from tests.web.example import SHIPMENTS, Shipment

KEY = "a-key-of-another-process"
OPERATOR, VIEWER = ApiKey("alice", "operator"), ApiKey("bob", "viewer")
ONE_CUSTOMER = ApiKey("web", "shop", customer="c-1")

Make = Callable[..., ModuleApi]


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    """Return a function that makes a `ModuleApi` of one module; it is closed at the end of the test."""
    made: list[ModuleApi] = []

    def make(
        running: tuple[str, ...] = (), urls: Mapping[str, str] | None = None, key: str | None = KEY, local: Web | None = None
    ) -> ModuleApi:
        made.append(ModuleApi([SHIPMENTS], running, urls or {}, key))
        if local is not None:
            made[-1].serve_from(local.server.app)
        return made[-1]

    yield make
    for api in made:
        await api.close()


@pytest.fixture(params=["here", "there"])
async def shipments(request: pytest.FixtureRequest, start: Start, make: Make) -> tuple[Web, ModuleApi]:
    """Return a process that runs the module, and an API that reaches it: in the same process, or over HTTP."""
    web = await start(requires_key=True, keys=f"peer:module:{KEY}")
    if request.param == "here":
        return web, make(("shipments",), local=web)
    return web, make((), {"shipments": str(web.client.make_url("")).rstrip("/")})


async def test_the_answer_is_the_same_in_this_process_and_in_another_one(shipments: tuple[Web, ModuleApi]) -> None:
    """Bodies, queries, path parameters, problems and headers: a caller does not see where the module runs."""
    web, api = shipments
    placed = await api.request("POST", "/v1/shipments", body={"owner": "o", "items": [{"n": 2}]}, principal=OPERATOR)
    assert placed.status == 202
    assert placed.is_success
    shown = await api.request("GET", placed.headers["Location"], principal=OPERATOR)
    assert (shown.status, shown.body["pieces"]) == (200, 2)
    web.service.put(Shipment(id="a/b ü", owner="o", pieces=1))
    assert (await api.request("GET", "/v1/shipments/a%2Fb%20%C3%BC", principal=OPERATOR)).body["shipment_id"] == "a/b ü"
    listed = await api.request("GET", "/v1/shipments", query={"limit": 1, "owner": "o"}, principal=OPERATOR)
    assert (len(listed.body["items"]), listed.body["next_cursor"] is not None) == (1, True)
    bad = await api.request("POST", "/v1/shipments", body={"owner": "o"}, headers={"X-Correlation-ID": "c-9"}, principal=OPERATOR)
    assert (bad.status, bad.body["code"], bad.headers["X-Correlation-ID"]) == (400, "invalid_body", "c-9")
    assert (await api.request("GET", "/v1/shipments/none", principal=OPERATOR)).body["code"] == "not_found"
    again = {"body": {"owner": "o", "items": [{"n": 1}]}, "headers": {"Idempotency-Key": "k"}, "principal": OPERATOR}
    first, second = [await api.request("POST", "/v1/shipments", **again) for _ in range(2)]  # type: ignore[arg-type]
    assert (first.body, second.headers["Idempotency-Replayed"]) == (second.body, "true")


async def test_the_role_of_the_person_counts_and_the_audit_has_the_name(shipments: tuple[Web, ModuleApi]) -> None:
    """A viewer may not change anything through another process's key, and what an operator changes has the operator's name."""
    web, api = shipments
    refused = await api.request("POST", "/v1/shipments/s-1/return", principal=VIEWER)
    assert (refused.status, refused.body["code"], web.service.submitted) == (403, "forbidden", [])
    assert (await api.request("GET", "/v1/shipments", principal=ONE_CUSTOMER)).status == 403
    assert (await api.request("POST", "/v1/shipments/s-1/return", principal=OPERATOR)).status == 404
    (audit,) = web.service.audited
    assert audit is not None
    assert audit.actor == "alice"


@pytest.mark.parametrize("principal", [VIEWER, ONE_CUSTOMER])
async def test_nothing_is_sent_that_the_person_may_not(start: Start, make: Make, principal: ApiKey) -> None:
    """The key for other processes may be an operator's: then they do not ask whether the person may."""
    web = await start(requires_key=True, keys=f"peer:operator:{KEY}")
    api = make((), {"shipments": str(web.client.make_url("")).rstrip("/")})
    refused = await api.request("POST", "/v1/shipments/s-1/return", principal=principal)
    assert (refused.status, refused.body["code"], web.service.audited) == (403, "forbidden", [])


async def test_the_name_of_the_person_cannot_be_given_with_a_request(start: Start, make: Make) -> None:
    """It is that of the principal, whatever headers a page passes on."""
    web = await start(requires_key=True, keys=f"peer:module:{KEY}")
    api = make((), {"shipments": str(web.client.make_url("")).rstrip("/")})
    headers = {"X-Fulfilment-Caller": "mallory:operator"}
    assert (await api.request("POST", "/v1/shipments/s-1/return", headers=headers, principal=OPERATOR)).status == 404
    assert [audit.actor for audit in web.service.audited if audit is not None] == ["alice"]


async def test_an_outage_of_a_module_is_its_own_answer(shipments: tuple[Web, ModuleApi]) -> None:
    """It is not out of reach: the answer names what it lacks."""
    web, api = shipments
    web.service.failure = StorageUnavailable("gone")
    answer = await api.request("GET", "/v1/shipments/s-1", principal=OPERATOR)
    assert (answer.status, answer.body["code"]) == (503, "database_unavailable")


async def test_a_redirect_is_not_followed(make: Make) -> None:
    """The key would go to an address that is not configured."""
    asked: list[str] = []

    async def handle(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.Response(status=307, headers={"Location": "/elsewhere"})

    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", handle)
    async with TestServer(app) as server:
        api = make((), {"shipments": str(server.make_url("")).rstrip("/")})
        assert (await api.request("GET", "/v1/shipments/s-1", principal=OPERATOR)).status == 307
    assert asked == ["/v1/shipments/s-1"]


@pytest.mark.parametrize(
    ("caller", "status"),
    [
        ({}, 403),
        ({"X-Fulfilment-Caller": "alice"}, 403),
        ({"X-Fulfilment-Caller": "alice:module"}, 403),
        ({"X-Fulfilment-Caller": "alice:root"}, 403),
        ({"X-Fulfilment-Caller": "ali ce:operator"}, 403),
        ({"X-Fulfilment-Caller": "bob:viewer"}, 403),
        ({"X-Fulfilment-Caller": "alice:operator"}, 200),
    ],
)
async def test_a_key_of_a_process_does_what_the_named_person_may(start: Start, caller: dict[str, str], status: int) -> None:
    """The receiving process checks the role again; without a name the key may do nothing."""
    web = await start(requires_key=True, keys=f"peer:module:{KEY}\nops:viewer:{KEY}-two")
    headers = {"Authorization": f"Bearer {KEY}", **caller}
    assert (await web.request("GET", "/v1/shipments", headers=headers)).status == status


async def test_the_header_has_no_effect_with_another_key(start: Start) -> None:
    """An operator's audit cannot be given another name, and a viewer cannot become an operator."""
    web = await start(requires_key=True, keys="ops:operator:0123456789abcdef\nlook:viewer:fedcba9876543210")
    headers = {"X-Fulfilment-Caller": "mallory:operator"}
    sent = await web.request("POST", "/v1/shipments/s/return", headers={**headers, "Authorization": "Bearer 0123456789abcdef"})
    assert sent.status == 404
    (audit,) = web.service.audited
    assert audit is not None
    assert audit.actor == "ops"
    refused = await web.request("POST", "/v1/shipments/s/return", headers={**headers, "Authorization": "Bearer fedcba9876543210"})
    assert refused.status == 403


def common(seen: list[str]) -> RouteGroup:
    """Return a route that every process has."""

    async def handle(request: web.Request, context: RequestContext) -> web.Response:
        seen.append(context.caller)
        return json_response({"query": dict(request.query)})

    return RouteGroup((Endpoint("GET", "/v1/audit", handle, roles=("viewer",)),), Description({}, {}))


async def test_a_route_of_every_process_goes_to_the_one_that_is_named(start: Start, make: Make) -> None:
    """By the argument, or by the parameter of the query; otherwise to this process."""
    here: list[str] = []
    there: list[str] = []
    local = await start(route_groups=(common(here),))
    other = await start(route_groups=(common(there),))
    api = make((), {"shipments": str(other.client.make_url("")).rstrip("/")}, local=local)
    assert (await api.request("GET", "/v1/audit", principal=VIEWER)).body == {"query": {}}
    assert (here, there) == (["bob"], [])
    assert (await api.request("GET", "/v1/audit", query={"module": "shipments"}, principal=VIEWER)).status == 200
    assert (await api.request("GET", "/v1/audit", module="shipments", principal=VIEWER)).status == 200
    assert (here, there) == (["bob"], ["anonymous", "anonymous"])
    assert [each.modules for each in await api.ask_all("GET", "/v1/audit", principal=VIEWER)] == [("shipments",)]
    assert (await api.request("GET", "/v1/unknown", principal=ANONYMOUS)).status == 404


async def test_a_process_that_gives_no_answer_is_named(make: Make) -> None:
    """With the reason, and without an address: no answer in time, nothing listens, a proxy without a process, a wrong key."""

    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=int(request.path.rsplit("/")[-1]), text="<html>")

    app = web.Application()
    app.router.add_get("/v1/shipments/{status}", answer)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        async with TestServer(app) as server:
            async def reason(url: str, id: str = "1") -> str:
                with pytest.raises(ModuleUnreachable) as caught:
                    await make((), {"shipments": url}).request("GET", f"/v1/shipments/{id}", principal=OPERATOR)
                assert "127.0.0.1" not in str(caught.value)
                assert caught.value.module == "shipments"
                return caught.value.reason

            url = str(server.make_url("")).rstrip("/")
            assert await reason(url, "502") == "a proxy answers 502"
            assert await reason(url, "503") == "a proxy answers 503"
            assert await reason(url, "401") == "it refuses the key of MODULE_KEY_FILE"
            assert await reason(f"http://127.0.0.1:{mute.getsockname()[1]}") == "no answer within 2 s"
        assert await reason(url) == "no connection (connection refused)"
    with pytest.raises(ModuleUnreachable, match="MODULE_URLS does not name it"):
        await make().request("GET", "/v1/shipments/1", principal=OPERATOR)


async def test_gathered_requests_are_sorted_into_answers_and_what_is_out_of_reach(shipments: tuple[Web, ModuleApi], make: Make) -> None:
    """One module that is out of reach does not hide the answers of the others."""
    _, api = shipments
    requests: dict[str, Any] = {
        "up": api.request("GET", "/v1/shipments", principal=OPERATOR),
        "down": make().request("GET", "/v1/shipments", principal=OPERATOR),
    }
    answers, unreachable = await ModuleApi.gather(requests)
    assert (list(answers), list(unreachable)) == (["up"], ["down"])
