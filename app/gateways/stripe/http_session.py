"""
The HTTP session below Stripe's SDK, and the classification of what fails on it.

The SDK accepts a session of its caller. This one follows no redirects, enforces its own time limits, and classifies each
failure by whether the call may have had an effect. That has to happen here, below the SDK: the SDK's own errors do not
show whether a connection was ever made, and they drop the headers of a response that is not JSON.
"""

from __future__ import annotations

__all__ = [
    "CALL_SECONDS",
    "CONNECT_SECONDS",
    "READ_SECONDS",
    "RETRY_AFTER_SECONDS_MAX",
    "StripeRefusal",
    "StripeSession",
    "classify_errors",
    "misconfigured",
]

import ssl
import time
from collections.abc import Awaitable, Mapping
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any, TypeVar

import aiohttp
import orjson
import stripe
from aiohttp import hdrs

from app.gateways.port import (
    GatewayError,
    GatewayMisconfigured,
    GatewayNotReached,
    GatewayThrottled,
    GatewayTimeout,
    ResponseMismatch,
)
from app.gateways.stripe.error_table import ErrorClass, StripeFault, error_class_of

T = TypeVar("T")

CONNECT_SECONDS = 5.0
READ_SECONDS = 10.0
"""How long the connection may receive nothing."""

CALL_SECONDS = 15.0
"""How long a call may take altogether."""

_PROOFS = ("Request-Id", "Idempotency-Key", "Idempotent-Replayed", "Original-Request")
"""Headers of Stripe's responses. A server that imitates Stripe and ignores idempotency keys sends none of them."""

_NAMELESS: Mapping[int | None, str] = {401: "invalid_api_key", 403: "permission_missing"}
"""What we call the faults for which Stripe has a status only."""

RETRY_AFTER_SECONDS_MAX = 600.0
"""A longer ``Retry-After`` is cut to this."""


class StripeRefusal(Exception):
    """Stripe has processed the call and refuses it because of its content; *fault* has the reason. The call had no effect."""

    def __init__(self, fault: StripeFault) -> None:
        self.fault = fault
        super().__init__(fault.reason)


class StripeSession:
    """A session for Stripe's SDK, in place of an `aiohttp.ClientSession`."""

    def __init__(self, calls_max: int) -> None:
        self._calls_max = calls_max
        self._session: aiohttp.ClientSession | None = None
        self.remembers_keys = False
        """True once a response has shown that the server is Stripe, or one that knows idempotency keys as Stripe does."""

    async def request(self, method: str, url: str, **options: Any) -> aiohttp.ClientResponse:
        """
        Send one request and return the response, unless its status means that the call failed.

        Raises:
            GatewayError: There is no response, or one with a status of 5xx, 409, 429 or 3xx.
        """
        session = self._open_session()
        try:
            response = await session.request(method, url, **options, allow_redirects=False)
        except (aiohttp.ClientError, OSError) as error:
            raise _classify(error) from None
        status = response.status
        if status >= 500 or status in (409, 429) or 300 <= status < 400:
            retry_after_seconds = _retry_after_seconds(response.headers.get(hdrs.RETRY_AFTER))
            detail = f"the provider responded with status {status}"
            has_ended = status >= 500 and await _is_own_error(response)
            response.release()
            if status == 429:
                raise GatewayThrottled(detail, retry_after_seconds)
            raise GatewayTimeout(detail, retry_after_seconds, has_ended=has_ended)
        self._learn(response.headers)
        return response

    def _learn(self, headers: Mapping[str, str]) -> None:
        """Note what a response proves: a server that identifies its requests or echoes the key keeps Stripe's promises."""
        if not self.remembers_keys and not headers.keys().isdisjoint(_PROOFS):
            self.remembers_keys = True

    async def close(self) -> None:
        """Close all connections. Idempotent."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self._calls_max, ssl=_tls_context()),
                timeout=aiohttp.ClientTimeout(total=CALL_SECONDS, sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session


@cache
def _tls_context() -> ssl.SSLContext:
    """Return the context that verifies a provider; to read the certificates takes longer than a call."""
    context = ssl.create_default_context()
    # The machine's certificates, and those that the SDK brings, for machines that have none.
    context.load_verify_locations(cafile=stripe.ca_bundle_path)
    return context


async def classify_errors(call: Awaitable[T]) -> T:
    """
    Return what *call* of the SDK returns, and convert its errors to those of the gateway port.

    The errors name what happened. They contain no text of the provider or the SDK, which may include secrets.

    Raises:
        GatewayNotReached: The call had no effect; `GatewayMisconfigured` if the key, a permission or the account is the cause.
        GatewayTimeout: The effect of the call is unknown.
        ResponseMismatch: The idempotency key belongs to another request.
        StripeRefusal: Stripe refused this request.
    """
    try:
        return await call
    except stripe.APIConnectionError as error:
        cause = error.__cause__
        if isinstance(cause, GatewayError):
            raise cause from None
        raise GatewayTimeout(f"the call failed: {type(cause or error).__name__}") from None
    except stripe.StripeError as error:
        raise _refusal(error) from None
    except (aiohttp.ClientError, OSError) as error:  # while the body of the response was being read
        raise GatewayTimeout(f"the response broke off: {type(error).__name__}") from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # JSON, but not what the SDK expects
        raise GatewayTimeout(f"malformed response: {type(error).__name__}") from None


def misconfigured(fault: StripeFault) -> GatewayMisconfigured:
    """Return the error for a fault of the configuration: the key, a permission, the account or a parameter."""
    code = fault.decline_code or fault.code or _NAMELESS.get(fault.status) or fault.reason
    detail = f"the provider refuses the call: {code}, status {fault.status}"
    return GatewayMisconfigured(detail, code, fault.param, fault.request_id)


def _refusal(error: stripe.StripeError) -> Exception:
    """Return the exception for *error*, which the SDK made from a response."""
    body = error.json_body
    is_readable = isinstance(body, Mapping) and isinstance(body.get("error"), Mapping)
    request_id = next((value for name, value in (error.headers or {}).items() if name.lower() == "request-id"), None)
    fault = StripeFault.of(error.http_status, body, request_id)
    if error.http_status in (401, 403):
        return misconfigured(fault)
    if not is_readable:
        return GatewayTimeout(f"malformed response: {type(error).__name__}, status {error.http_status}")
    match error_class_of(fault):
        case ErrorClass.OTHER_REQUEST:
            return ResponseMismatch("wrong_key", "the idempotency key belongs to another request")
        case ErrorClass.THROTTLED:
            return GatewayThrottled("the provider limits the rate of calls")
        case ErrorClass.IN_PROGRESS:
            return GatewayTimeout("the provider still works on an earlier call")
        case ErrorClass.UNKNOWN:
            return GatewayTimeout(f"the provider failed: {fault.reason}, status {fault.status}", has_ended=True)
    return StripeRefusal(fault)


async def _is_own_error(response: aiohttp.ClientResponse) -> bool:
    """Return whether *response* is an error of Stripe's API itself, and not one of a server before it."""
    try:
        body = orjson.loads(await response.read())
    except (aiohttp.ClientError, OSError, ValueError):
        return False
    return isinstance(body, dict) and isinstance(body.get("error"), dict)


def _classify(error: Exception) -> GatewayError:
    """Return the gateway error for *error*, which occurred before the head of the response was received."""
    # Without a connection nothing was sent. Of the two kinds of time-out, only the one while connecting is such a case.
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError | aiohttp.InvalidURL):
        return GatewayNotReached(f"the provider cannot be reached: {type(error).__name__}")
    return GatewayTimeout(f"no response: {type(error).__name__}")


def _retry_after_seconds(header: str | None) -> float | None:
    """Return the seconds in Retry-After (RFC 9110: a number of seconds, or a date); None if there are none."""
    if header is None:
        return None
    try:
        seconds = (
            float(header) if header.strip().isdecimal() else parsedate_to_datetime(header).timestamp() - time.time()
        )
    except (ValueError, OverflowError):
        return None
    return min(seconds, RETRY_AFTER_SECONDS_MAX) if seconds > 0 else None
