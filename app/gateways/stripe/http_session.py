"""
The line to Stripe: what every call over it has in common, and what its failures mean.

Stripe's SDK asks us for a session; this one follows no redirect, waits no longer than its time-outs say, and sorts what
goes wrong by whether the call can have had an effect. That has to happen here, below the SDK: its own errors no longer
say whether a connection was ever made, and drop the headers of an answer that is no JSON.
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
"""How long the line may be still."""

CALL_SECONDS = 15.0
"""How long a call may take, however busy the line is."""

RETRY_AFTER_SECONDS_MAX = 600.0
"""Whoever asks us to stay away for longer is asked again all the same."""


class StripeSession:
    """What Stripe's SDK takes for an `aiohttp.ClientSession`."""

    def __init__(self, calls_max: int) -> None:
        self._calls_max = calls_max
        self._session: aiohttp.ClientSession | None = None

    async def request(self, method: str, url: str, **how: Any) -> aiohttp.ClientResponse:
        """
        Make one call.

        Raises:
            GatewayTrouble: There was no answer that the SDK should see.
        """
        if self._session is None:
            # Whom the machine trusts, and whom Stripe says to trust where the machine knows nobody.
            trusted = ssl.create_default_context()
            trusted.load_verify_locations(cafile=stripe.ca_bundle_path)
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self._calls_max, ssl=trusted),
                timeout=aiohttp.ClientTimeout(total=CALL_SECONDS, sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        try:
            answer = await self._session.request(method, url, **how, allow_redirects=False)
        except (aiohttp.ClientError, OSError) as error:
            raise _trouble(error) from None
        status = answer.status
        if status >= 500 or status in (409, 429) or 300 <= status < 400:
            retry_after_seconds = _retry_after_seconds(answer.headers.get(hdrs.RETRY_AFTER))
            answer.release()
            trouble = GatewayNotReached if status == 429 else GatewayTimeout
            raise trouble(f"the provider answered with status {status}", retry_after_seconds)
        return answer

    async def close(self) -> None:
        """Hang up. Idempotent."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()


async def classify_errors(call: Awaitable[T]) -> T:
    """
    Return what *call* of the SDK returns; what goes wrong is sorted by what to do next.

    Errors say what happened, and nothing that the provider or the SDK put into words: those may hold anything.

    Raises:
        GatewayAway: Nothing has happened there.
        GatewaySilent: Nobody knows.
        Contradiction: The provider knows our key for another request.
        CardError, InvalidRequestError: The provider will not (Stripe's own, with a ``code``).
    """
    try:
        return await call
    except (stripe.CardError, stripe.InvalidRequestError):
        raise
    except stripe.IdempotencyError:
        raise ResponseMismatch("wrong_key", "the provider knows the idempotency key for another request") from None
    except stripe.RateLimitError:
        raise GatewayNotReached("the provider asks for fewer calls") from None
    except (stripe.AuthenticationError, stripe.PermissionError) as error:
        raise GatewayNotReached(f"the provider does not take our key: status {error.http_status}") from None
    except stripe.APIConnectionError as error:
        trouble = error.__cause__
        if isinstance(trouble, GatewayError):
            raise trouble from None
        raise GatewayTimeout(f"the call failed: {type(trouble or error).__name__}") from None
    except stripe.StripeError as error:
        raise GatewayTimeout(f"the answer is nonsense: {type(error).__name__}, status {error.http_status}") from None
    except (aiohttp.ClientError, OSError) as error:  # while the answer's body was on its way
        raise GatewayTimeout(f"the answer broke off: {type(error).__name__}") from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # JSON, and not what the SDK expects
        raise GatewayTimeout(f"the answer is nonsense: {type(error).__name__}") from None


def _trouble(error: Exception) -> GatewayError:
    """Return what *error*, met before the answer's head was here, means."""
    # A session that could not connect has sent nothing; a time-out is one of two kinds.
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError | aiohttp.InvalidURL):
        return GatewayNotReached(f"the provider cannot be reached: {type(error).__name__}")
    return GatewayTimeout(f"no answer came back: {type(error).__name__}")


def _retry_after_seconds(header: str | None) -> float | None:
    """Return what Retry-After asks for, in seconds (RFC 9110: a number of them, or a date); None where it asks nothing."""
    if header is None:
        return None
    try:
        seconds = (
            float(header) if header.strip().isdecimal() else parsedate_to_datetime(header).timestamp() - time.time()
        )
    except (ValueError, OverflowError):
        return None
    return min(seconds, RETRY_AFTER_SECONDS_MAX) if seconds > 0 else None
