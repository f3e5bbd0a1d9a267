"""The endpoint for Stripe's webhooks. Requests carry a signature instead of an API key."""

from __future__ import annotations

__all__ = ["DESCRIPTION", "WEBHOOKS_BYTES_MAX", "WEBHOOK_BYTES_MAX", "WebhookService", "route_group"]

import asyncio
import os
from functools import partial
from typing import Protocol

from aiohttp import hdrs, web
from attrs import define

from app.gateways.port import GatewayError
from app.gateways.stripe.webhook_event import InvalidSignature
from app.telemetry.trace import TRACEPARENT, TraceContext, traceparent
from app.web.handler import Endpoint, RequestContext, RouteGroup
from app.web.requests.command import BODY_SECONDS_MAX, ask_for_body
from app.web.responses.problems import ProblemError
from app.web.responses.success import json_response
from app.web.spec.components import Description, body, operation, ref, response

WEBHOOK_BYTES_MAX = 256 * 1024
"""Larger than the limit of other bodies: Stripe sends the whole object that an event is about."""

WEBHOOKS_BYTES_MAX = 32 * WEBHOOK_BYTES_MAX
"""Bytes of all webhooks that are being received: a client needs no key to begin one, and only its end has to be signed."""

STRIPE_SIGNATURE = "Stripe-Signature"
_PATH = "/v1/payments/webhooks/stripe"


class WebhookService(Protocol):
    """Verifies and processes webhooks."""

    @property
    def is_configured(self) -> bool:
        """False if there is no secret to verify signatures with."""

    async def handle(self, body: bytes, signature: str | None, context: TraceContext) -> str:
        """
        Verify and process a webhook; return the outcome, in one word, once it is stored.

        Raises:
            InvalidSignature: The signature is not one of Stripe.
            ValueError: The body is not a Stripe event.
            TemporarilyUnavailable: The database is unavailable.
            GatewayError: The order could not be looked up at the provider.
        """


_TOO_LARGE = partial(
    ProblemError, 413, "body_too_large", f"The body is larger than {WEBHOOK_BYTES_MAX} bytes.", closes=True
)
_TOO_MANY = partial(
    ProblemError, 503, "overloaded", "Too many webhooks are being received.", headers={hdrs.RETRY_AFTER: "10"}, closes=True
)
_BROKEN = partial(ProblemError, 400, "malformed_request", "The body is incomplete.", closes=True)
_SLOW = partial(
    ProblemError, 408, "request_timeout", f"The body did not arrive within {BODY_SECONDS_MAX:g} seconds.", closes=True
)


def route_group(service: WebhookService) -> RouteGroup:
    """Return the endpoint that passes webhooks to *service*."""

    waiting = _Received()

    async def receive(request: web.Request, context: RequestContext) -> web.Response:
        if not service.is_configured:
            detail = "This server has no secret to verify Stripe's signatures with."
            raise ProblemError(503, "webhooks_not_configured", detail, headers={hdrs.RETRY_AFTER: "3600"}, closes=True)
        header = context.traceparent or traceparent(request.headers.get(TRACEPARENT), os.urandom)
        trace = TraceContext(context.correlation_id, header)
        signatures = request.headers.getall(STRIPE_SIGNATURE, [])
        raw_body = await _read_raw_body(request, waiting)
        try:
            outcome = await service.handle(raw_body, signatures[0] if len(signatures) == 1 else None, trace)
        except InvalidSignature as error:
            raise ProblemError(400, "invalid_signature", str(error)) from None
        except ValueError:
            raise ProblemError(400, "invalid_body", "The body is not a Stripe event.") from None
        except GatewayError:
            detail = "The order could not be looked up at the provider; nothing was stored. Try again later."
            raise ProblemError(503, "provider_unavailable", detail, headers={hdrs.RETRY_AFTER: "30"}) from None
        return json_response({"received": True, "outcome": outcome})

    # Without a secret every request gets a 503; it is not logged as an error each time.
    endpoint = Endpoint(hdrs.METH_POST, _PATH, receive, is_public=True, is_503_expected=not service.is_configured)
    return RouteGroup((endpoint,), DESCRIPTION)


@define
class _Received:
    """How many bytes are in memory of webhooks that have not arrived completely."""

    bytes: int = 0


async def _read_raw_body(request: web.Request, waiting: _Received) -> bytes:
    """Return the body unchanged, because the signature covers its bytes."""
    if hdrs.CONTENT_ENCODING in request.headers:
        raise ProblemError(415, "unsupported_media_type", "The body must have no Content-Encoding.", closes=True)
    if (request.content_length or 0) > WEBHOOK_BYTES_MAX:
        raise _TOO_LARGE()
    found = bytearray()
    await ask_for_body(request)
    try:
        async with asyncio.timeout(BODY_SECONDS_MAX):
            async for chunk in request.content.iter_any():
                found += chunk
                waiting.bytes += len(chunk)
                if len(found) > WEBHOOK_BYTES_MAX:
                    raise _TOO_LARGE()
                if waiting.bytes > WEBHOOKS_BYTES_MAX:
                    raise _TOO_MANY()
    except (web.RequestPayloadError, ConnectionError):
        raise _BROKEN() from None
    except TimeoutError:
        raise _SLOW() from None
    finally:
        waiting.bytes -= len(found)
    return bytes(found)


_RESULT = {
    "type": "object",
    "required": ["received", "outcome"],
    "properties": {
        "received": {"const": True},
        "outcome": {"enum": ["handled", "repeated", "ignored", "put_aside"]},
    },
}

DESCRIPTION = Description(
    {
        _PATH: {
            "post": operation(
                "receiveStripeWebhook",
                _PATH,
                "Receive a webhook from Stripe",
                "payments",
                {200: response("The event is stored, or its type is ignored.", ref("schemas", "WebhookResult"))},
                (400, 408, 413, 415, 503),
                parameters=[
                    {
                        "name": STRIPE_SIGNATURE,
                        "in": "header",
                        "required": True,
                        "description": "Stripe's signature over the raw body; it replaces the API key.",
                        "schema": {"type": "string"},
                    }
                ],
                request_body=body({"type": "object", "description": "A Stripe event, up to 256 KiB."}),
                is_public=True,
            )
        }
    },
    {"WebhookResult": _RESULT},
)
"""The OpenAPI description of this endpoint."""
