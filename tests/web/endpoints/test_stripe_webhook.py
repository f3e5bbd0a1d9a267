"""The endpoint of Stripe's webhooks: what it passes on, what it refuses unread, and what an error of each kind answers."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from attrs import define, field
from multidict import CIMultiDict

from app.gateways.port import GatewayTimeout
from app.gateways.stripe.webhook_event import InvalidSignature
from app.storage.errors import StorageUnavailable
from app.telemetry.trace import TraceContext
from app.web.endpoints.stripe_webhook import WEBHOOK_BYTES_MAX, WEBHOOKS_BYTES_MAX, route_group
from tests.web.conftest import Start, Web

PATH = "/v1/payments/webhooks/stripe"


@define
class Service:
    """Keeps what it is given, and ends with *error* if there is one."""

    is_configured: bool = True
    error: Exception | None = None
    calls: list[tuple[bytes, str | None, TraceContext]] = field(factory=list)

    async def handle(self, body: bytes, signature: str | None, context: TraceContext) -> str:
        self.calls.append((body, signature, context))
        if self.error is not None:
            raise self.error
        return "handled"


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
async def web(start: Start, service: Service) -> Web:
    """A server that asks for keys: Stripe has none."""
    return await start(route_groups=(route_group(service),), requires_key=True)


@pytest.mark.parametrize(("signatures", "passed_on"), [(["t=1,v1=a"], "t=1,v1=a"), ([], None), (["t=1,v1=a", "t=1,v1=b"], None)])
async def test_the_bytes_are_passed_on_with_their_one_signature(
    web: Web, service: Service, signatures: list[str], passed_on: str | None
) -> None:
    """A request that has two is not signed: which of them holds is not for the sender to choose."""
    body = b'{ "id":\t"evt_1"}\xff'
    response = await web.request("POST", PATH, data=body, headers=CIMultiDict([("Stripe-Signature", each) for each in signatures]))
    assert (response.status, response.json) == (200, {"received": True, "outcome": "handled"})
    ((given, signature, trace),) = service.calls
    assert (given, signature, trace.correlation_id) == (body, passed_on, response.headers["X-Correlation-ID"])


@pytest.mark.parametrize(
    ("error", "status", "code", "retry_after"),
    [
        (InvalidSignature("The signature is wrong."), 400, "invalid_signature", None),
        (ValueError("db-seven"), 400, "invalid_body", None),
        (GatewayTimeout("db-seven"), 503, "provider_unavailable", "30"),
        (StorageUnavailable("db-seven"), 503, "database_unavailable", "1"),
    ],
)
async def test_each_error_is_answered(
    web: Web, service: Service, error: Exception, status: int, code: str, retry_after: str | None
) -> None:
    """Stripe sends a webhook again after any answer that is not a success; nothing of the error's text is shown."""
    service.error = error
    response = await web.request("POST", PATH, data=b"{}")
    assert (response.status, response.json["code"], response.headers.get("Retry-After")) == (status, code, retry_after)


async def test_a_server_without_a_secret_takes_none(start: Start, service: Service) -> None:
    service.is_configured = False
    web = await start(route_groups=(route_group(service),))
    response = await web.request("POST", PATH, data=b"{}")
    assert (response.status, response.json["code"], response.headers["Retry-After"]) == (503, "webhooks_not_configured", "3600")
    assert not service.calls


async def pieces(size: int) -> AsyncIterator[bytes]:
    """Yield a body of *size* bytes whose length its request does not name."""
    for at in range(0, size, 1 << 16):
        yield bytes(min(1 << 16, size - at))


@pytest.mark.parametrize("is_named", [True, False], ids=["length", "no length"])
@pytest.mark.parametrize("size", [WEBHOOK_BYTES_MAX, WEBHOOK_BYTES_MAX + 1])
async def test_a_body_is_as_large_as_it_may_be(web: Web, service: Service, size: int, is_named: bool) -> None:
    response = await web.request("POST", PATH, data=bytes(size) if is_named else pieces(size))
    is_too_large = size > WEBHOOK_BYTES_MAX
    assert response.status == (413 if is_too_large else 200)
    assert [len(body) for body, _, _ in service.calls] == ([] if is_too_large else [size])


async def test_a_compressed_body_is_refused_unread(web: Web, service: Service) -> None:
    """The signature covers the bytes before their compression."""
    response = await web.request("POST", PATH, data=b"{}", headers={"Content-Encoding": "gzip"})
    assert (response.status, response.json["code"]) == (415, "unsupported_media_type")
    assert not service.calls


async def test_bodies_that_have_arrived_or_were_refused_take_no_room(web: Web, service: Service) -> None:
    """The limit of all bodies together is for those that are still being received."""
    rounds = WEBHOOKS_BYTES_MAX // WEBHOOK_BYTES_MAX + 2
    for _ in range(rounds):
        assert (await web.request("POST", PATH, data=bytes(WEBHOOK_BYTES_MAX))).status == 200
        assert (await web.request("POST", PATH, data=pieces(WEBHOOK_BYTES_MAX + 1))).status == 413
    assert len(service.calls) == rounds
