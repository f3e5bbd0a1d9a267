"""Authentication with API keys."""

from __future__ import annotations

__all__ = ["ANONYMOUS", "Authenticator"]

import re
from collections.abc import Mapping
from hashlib import sha256

from aiohttp import hdrs

from app.web.problems import ProblemError

ANONYMOUS = "anonymous"
"""The caller's name where no API key is required."""

_BEARER = re.compile(r"bearer +([!-~]+)", re.ASCII | re.IGNORECASE)
_CHALLENGE = 'Bearer realm="fulfilment"'


class Authenticator:
    """
    Tells callers by their API keys.

    *api_keys* maps each caller's name to the SHA-256 of its key, in hex; None switches authentication off.
    """

    def __init__(self, api_keys: Mapping[str, str] | None) -> None:
        self.is_off = api_keys is None
        self.replace(api_keys or {})

    def replace(self, api_keys: Mapping[str, str]) -> None:
        """Accept *api_keys* only from now on."""
        self._names = {digest: name for name, digest in api_keys.items()}

    def __call__(self, authorization: str | None) -> str:
        """
        Return the name of the caller whose key the *authorization* header holds.

        A key is looked up by its hash. What the duration of that reveals is about hashes that no caller can choose.

        Raises:
            ProblemError: 401 with a challenge: the header is missing, or its key is unknown.
        """
        if authorization is None:
            raise _unauthorized("This route needs an API key: Authorization: Bearer <key>.", _CHALLENGE)
        bearer = _BEARER.fullmatch(authorization)
        name = self._names.get(sha256(bearer[1].encode("ascii")).hexdigest()) if bearer else None
        if name is None:
            raise _unauthorized("The API key is unknown.", f'{_CHALLENGE}, error="invalid_token"')
        return name


def _unauthorized(detail: str, challenge: str) -> ProblemError:
    return ProblemError(401, "unauthorized", detail, headers={hdrs.WWW_AUTHENTICATE: challenge})
