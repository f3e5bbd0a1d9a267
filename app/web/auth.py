"""API keys: who calls."""

from __future__ import annotations

__all__ = ["ANONYMOUS", "caller_of"]

import re
from collections.abc import Mapping
from hashlib import sha256
from hmac import compare_digest

from aiohttp import hdrs

from app.web.problems import ProblemError

ANONYMOUS = "anonymous"
"""The name of every caller where nobody is asked for a key."""

_BEARER = re.compile(r"bearer +([!-~]+)", re.ASCII | re.IGNORECASE)
_CHALLENGE = 'Bearer realm="fulfilment"'


def caller_of(authorization: str | None, keys: Mapping[str, str]) -> str:
    """
    Return the name whose key *authorization* brings; *keys* are names with the SHA-256 of each one's key, in hex.

    Every key is compared, and each in constant time: how long it takes tells nothing.

    Raises:
        Refused: 401, with a challenge.
    """
    if authorization is None:
        raise _unauthorized("This route needs an API key: Authorization: Bearer <key>.", _CHALLENGE)
    bearer = _BEARER.fullmatch(authorization)
    digest = sha256((bearer[1] if bearer else "").encode("ascii")).hexdigest()
    caller = None
    for name, expected in keys.items():
        if compare_digest(digest, expected):
            caller = name
    if caller is None or bearer is None:
        raise _unauthorized("The API key is not one of ours.", f'{_CHALLENGE}, error="invalid_token"')
    return caller


def _unauthorized(detail: str, challenge: str) -> ProblemError:
    return ProblemError(401, "unauthorized", detail, headers={hdrs.WWW_AUTHENTICATE: challenge})
