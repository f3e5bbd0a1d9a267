"""Where Stripe calls: the one route whose caller shows no key and signs what it sends."""

from __future__ import annotations

__all__ = ["DESCRIBED", "WEBHOOK_BYTES_MAX", "WebhookService", "route_group"]

import asyncio
import os
from functools import partial
from typing import Protocol

from aiohttp import hdrs, web

from app.gateways.port import GatewayError
from app.gateways.stripe.webhook_event import InvalidSignature
from app.telemetry.trace import TraceContext, traceparent
from app.web.endpoints.module_routes import TRACEPARENT, respond_json
from app.web.handler import Endpoint, RequestContext
from app.web.problems import ProblemError
from app.web.requests.parsing import BODY_SECONDS_MAX
from app.web.route_group import RouteGroup
from app.web.spec.components import Description, body, operation, response

WEBHOOK_BYTES_MAX = 256 * 1024
"""Stripe sends the whole object that an event is about."""

STRIPE_SIGNATURE = "Stripe-Signature"
_PATH = "/v1/payments/webhooks/stripe"


class WebhookService(Protocol):
    """Whoever sees webhooks through."""

    @property
    def is_configured(self) -> bool:
        """False where there is no secret to check signatures with."""

    async def handle(self, body: bytes, signature: str | None, context: TraceContext) -> str:
        """
        See a webhook through; return what became of it, in one word, once that is on disk.

        Raises:
            InvalidSignature: It does not come from Stripe.
            ValueError: It is no event.
            Shed: The database is out of reach.
            GatewayTrouble: Its order could not be looked up.
        """


_TOO_LARGE = partial(ProblemError, 413, "body_too_large", f"The body is over {WEBHOOK_BYTES_MAX} bytes.", closes=True)
_BROKEN = partial(ProblemError, 400, "malformed_request", "The body breaks off.", closes=True)
_SLOW = partial(
    ProblemError, 408, "request_timeout", f"The body did not arrive within {BODY_SECONDS_MAX:g} seconds.", closes=True
)


def route_group(service: WebhookService) -> RouteGroup:
    """Return the route of *desk*."""

    async def take(request: web.Request, asked: RequestContext) -> web.Response:
        if not service.is_configured:
            detail = "This server has no secret to check Stripe's signatures with."
            raise ProblemError(503, "webhooks_not_configured", detail, headers={hdrs.RETRY_AFTER: "3600"}, closes=True)
        context = TraceContext(asked.correlation_id, traceparent(request.headers.get(TRACEPARENT), os.urandom))
        signatures = request.headers.getall(STRIPE_SIGNATURE, [])
        sent = await _raw(request)
        try:
            outcome = await service.handle(sent, signatures[0] if len(signatures) == 1 else None, context)
        except InvalidSignature as error:
            raise ProblemError(400, "invalid_signature", str(error)) from None
        except ValueError:
            raise ProblemError(400, "invalid_body", "The body is no event of Stripe's.") from None
        except GatewayError:
            detail = "The order could not be looked up at the provider; nothing was stored. Come again later."
            raise ProblemError(503, "provider_unavailable", detail, headers={hdrs.RETRY_AFTER: "30"}) from None
        return respond_json({"received": True, "outcome": outcome})

    # Where there is no secret, a 503 is what anybody can have: it is no error to be logged each time.
    return RouteGroup((Endpoint(hdrs.METH_POST, _PATH, take, is_open=True, is_probe=not service.is_configured),), DESCRIBED)


async def _raw(request: web.Request) -> bytes:
    """Return the body, byte for byte: that is what is signed."""
    if hdrs.CONTENT_ENCODING in request.headers:
        detail = "The body must come as it is, without a Content-Encoding."
        raise ProblemError(415, "unsupported_media_type", detail, closes=True)
    if (request.content_length or 0) > WEBHOOK_BYTES_MAX:
        raise _TOO_LARGE()
    found = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS_MAX):
            async for chunk in request.content.iter_any():
                found += chunk
                if len(found) > WEBHOOK_BYTES_MAX:
                    raise _TOO_LARGE()
    except (web.RequestPayloadError, ConnectionError):
        raise _BROKEN() from None
    except TimeoutError:
        raise _SLOW() from None
    return bytes(found)


_RECEIVED = {
    "type": "object",
    "required": ["received", "outcome"],
    "properties": {
        "received": {"const": True},
        "outcome": {"enum": ["handled", "repeated", "ignored", "put_aside"]},
    },
}

DESCRIBED = Description(
    {
        _PATH: {
            "post": operation(
                *("post", _PATH, "Take a webhook of Stripe's", "payments"),
                {200: response("It is on disk, or nothing that we hear.", _RECEIVED)},
                (400, 408, 413, 415, 503),
                parameters=[
                    {
                        "name": STRIPE_SIGNATURE,
                        "in": "header",
                        "required": True,
                        "description": "Stripe's signature over the raw body; it stands for an API key.",
                        "schema": {"type": "string"},
                    }
                ],
                request_body=body({"type": "object", "description": "An event of Stripe's, up to 256 KiB."}),
                is_open=True,
            )
        }
    }
)
"""The route, for the API's description."""
