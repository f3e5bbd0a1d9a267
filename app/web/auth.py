"""Authentication with API keys."""

from __future__ import annotations

__all__ = ["ANONYMOUS", "authenticate"]

import re
from collections.abc import Mapping
from hashlib import sha256
from hmac import compare_digest

from aiohttp import hdrs

from app.web.problems import ProblemError

ANONYMOUS = "anonymous"
"""The caller's name where no API key is required."""

_BEARER = re.compile(r"bearer +([!-~]+)", re.ASCII | re.IGNORECASE)
_CHALLENGE = 'Bearer realm="fulfilment"'


def authenticate(authorization: str | None, api_keys: Mapping[str, str]) -> str:
    """
    Return the name of the caller whose key the *authorization* header holds.

    *api_keys* maps each caller's name to the SHA-256 of its key, in hex. Every key is compared, each in constant time,
    so that the duration reveals nothing about them.

    Raises:
        ProblemError: 401 with a challenge: the header is missing, or its key is unknown.
    """
    if authorization is None:
        raise _unauthorized("This route needs an API key: Authorization: Bearer <key>.", _CHALLENGE)
    bearer = _BEARER.fullmatch(authorization)
    digest = sha256((bearer[1] if bearer else "").encode("ascii")).hexdigest()
    caller = None
    for name, expected in api_keys.items():
        if compare_digest(digest, expected):
            caller = name
    if caller is None or bearer is None:
        raise _unauthorized("The API key is unknown.", f'{_CHALLENGE}, error="invalid_token"')
    return caller


def _unauthorized(detail: str, challenge: str) -> ProblemError:
    return ProblemError(401, "unauthorized", detail, headers={hdrs.WWW_AUTHENTICATE: challenge})
