"""
The HTTP session below Stripe's SDK, and the classification of what fails on it.

The SDK accepts a session of its caller. This one follows no redirects, enforces its own time limits, and classifies each
failure by whether the call may have had an effect. That has to happen here, below the SDK: the SDK's own errors do not
tell whether a connection was ever made, and they drop the headers of a response that is not JSON.
"""

from __future__ import annotations

__all__ = ["CALL_SECONDS", "CONNECT_SECONDS", "READ_SECONDS", "RETRY_AFTER_SECONDS_MAX", "StripeSession", "classify_errors"]

import ssl
import time
from collections.abc import Awaitable
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import aiohttp
import stripe
from aiohttp import hdrs

from app.gateways.port import GatewayError, GatewayNotReached, GatewayTimeout, ResponseMismatch

T = TypeVar("T")

CONNECT_SECONDS = 5.0
READ_SECONDS = 10.0
"""How long the connection may receive nothing."""

CALL_SECONDS = 15.0
"""How long a call may take altogether."""

RETRY_AFTER_SECONDS_MAX = 600.0
"""A longer ``Retry-After`` is cut to this."""


class StripeSession:
    """A session for Stripe's SDK, in place of an `aiohttp.ClientSession`."""

    def __init__(self, calls_max: int) -> None:
        self._calls_max = calls_max
        self._session: aiohttp.ClientSession | None = None

    async def request(self, method: str, url: str, **options: Any) -> aiohttp.ClientResponse:
        """
        Send one request and return the response, unless its status says that the call failed.

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
            response.release()
            kind = GatewayNotReached if status == 429 else GatewayTimeout
            raise kind(f"the provider responded with status {status}", retry_after_seconds)
        return response

    async def close(self) -> None:
        """Close all connections. Idempotent."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            # The machine's certificates, and those that the SDK brings, for machines that have none.
            context = ssl.create_default_context()
            context.load_verify_locations(cafile=stripe.ca_bundle_path)
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self._calls_max, ssl=context),
                timeout=aiohttp.ClientTimeout(total=CALL_SECONDS, sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session


async def classify_errors(call: Awaitable[T]) -> T:
    """
    Return what *call* of the SDK returns, and convert its errors to those of the gateway port.

    The errors name what happened. They contain no text of the provider or the SDK, which may include secrets.

    Raises:
        GatewayNotReached: The call had no effect.
        GatewayTimeout: The effect of the call is unknown.
        ResponseMismatch: The idempotency key belongs to another request.
        CardError, InvalidRequestError: Stripe rejected the request (the SDK's own errors, with a ``code``).
    """
    try:
        return await call
    except (stripe.CardError, stripe.InvalidRequestError):
        raise
    except stripe.IdempotencyError:
        raise ResponseMismatch("wrong_key", "the idempotency key belongs to another request") from None
    except stripe.RateLimitError:
        raise GatewayNotReached("the provider limits the rate of calls") from None
    except (stripe.AuthenticationError, stripe.PermissionError) as error:
        raise GatewayNotReached(f"the provider does not accept the API key: status {error.http_status}") from None
    except stripe.APIConnectionError as error:
        cause = error.__cause__
        if isinstance(cause, GatewayError):
            raise cause from None
        raise GatewayTimeout(f"the call failed: {type(cause or error).__name__}") from None
    except stripe.StripeError as error:
        raise GatewayTimeout(f"malformed response: {type(error).__name__}, status {error.http_status}") from None
    except (aiohttp.ClientError, OSError) as error:  # while the body of the response was being read
        raise GatewayTimeout(f"the response broke off: {type(error).__name__}") from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # JSON, but not what the SDK expects
        raise GatewayTimeout(f"malformed response: {type(error).__name__}") from None


def _classify(error: Exception) -> GatewayError:
    """Return the gateway error for *error*, which occurred before the head of the response was received."""
    # Without a connection nothing was sent. Of the two kinds of time-out, only the one while connecting is such a case.
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError | aiohttp.InvalidURL):
        return GatewayNotReached(f"the provider cannot be reached: {type(error).__name__}")
    return GatewayTimeout(f"no response: {type(error).__name__}")


def _retry_after_seconds(header: str | None) -> float | None:
    """Return the seconds that Retry-After asks for (RFC 9110: a number of seconds, or a date); None if it asks for none."""
    if header is None:
        return None
    try:
        seconds = (
            float(header) if header.strip().isdecimal() else parsedate_to_datetime(header).timestamp() - time.time()
        )
    except (ValueError, OverflowError):
        return None
    return min(seconds, RETRY_AFTER_SECONDS_MAX) if seconds > 0 else None
