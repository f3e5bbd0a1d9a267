"""The endpoint that gives a caller a token for streams."""

from __future__ import annotations

__all__ = ["DESCRIPTION", "route_group"]

from datetime import UTC, datetime
from typing import Any

from aiohttp import hdrs, web

from app.web.access.stream_tokens import StreamTokens
from app.web.handler import Endpoint, RequestContext, RouteGroup
from app.web.responses.success import json_response
from app.web.spec.components import Description, operation, ref, response
from modules.values import rfc3339

_PATH = "/v1/stream-tokens"

_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["token", "expires_at"],
    "properties": {
        "token": {"type": "string", "description": "Send it as the parameter `token` of a stream."},
        "expires_at": {"type": "string", "format": "date-time"},
    },
}

DESCRIPTION = Description(
    {
        _PATH: {
            "post": operation(
                "createStreamToken",
                _PATH,
                "Get a token to open streams with from a browser's EventSource",
                "operations",
                {200: response("A token that opens streams for five minutes.", ref("schemas", "StreamToken"))},
                (),
            )
        }
    },
    {"StreamToken": _SCHEMA},
)


def route_group(tokens: StreamTokens) -> RouteGroup:
    """Return the endpoint for *tokens*."""

    async def create(request: web.Request, context: RequestContext) -> web.Response:
        token, expires_at = tokens.issue(context.caller)
        return json_response({"token": token, "expires_at": rfc3339(datetime.fromtimestamp(expires_at, UTC))})

    return RouteGroup((Endpoint(hdrs.METH_POST, _PATH, create, roles=("shop", "viewer"), is_scoped=True),), DESCRIPTION)
