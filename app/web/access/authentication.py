"""Authentication with API keys."""

from __future__ import annotations

__all__ = ["ANONYMOUS", "Authenticator"]

import re
from collections.abc import Mapping
from hashlib import sha256

from aiohttp import hdrs
from loguru import logger

from app.web.responses.problems import ProblemError
from config.api_keys import ApiKey

ANONYMOUS = ApiKey("anonymous")
"""The caller where no API key is required; may do everything."""

_BEARER = re.compile(r"bearer +([!-~]+)", re.ASCII | re.IGNORECASE)
_CHALLENGE = 'Bearer realm="fulfilment"'


class Authenticator:
    """Identifies callers by their API keys; *api_keys* are the keys by name, and None switches authentication off."""

    def __init__(self, api_keys: Mapping[str, ApiKey] | None) -> None:
        self.is_off = api_keys is None
        self.replace(api_keys or {})

    def replace(self, api_keys: Mapping[str, ApiKey]) -> None:
        """Accept *api_keys* only from now on."""
        self._keys = {key.digest: key for key in api_keys.values()}
        self._by_name = {key.name: key for key in api_keys.values()}
        roleless = sorted(key.name for key in api_keys.values() if not key.is_role_given)
        if roleless:
            logger.warning(
                "API keys without a role may do everything; write name:role:key in API_KEYS_FILE",
                keys=", ".join(roleless[:20]),
                count=len(roleless),
            )

    def by_name(self, name: str) -> ApiKey | None:
        """Return the key of the caller *name*, or None if there is none."""
        return self._by_name.get(name)

    def __call__(self, authorization: str | None) -> ApiKey:
        """
        Return whose key the *authorization* header holds.

        A key is looked up by its hash. The duration of the look-up can reveal something about hashes only, which no caller can choose.

        Raises:
            ProblemError: 401 with a challenge: the header is missing, or its key is unknown.
        """
        if authorization is None:
            raise _unauthorized("This route needs an API key: Authorization: Bearer <key>.", _CHALLENGE)
        bearer = _BEARER.fullmatch(authorization)
        key = self._keys.get(sha256(bearer[1].encode("ascii")).hexdigest()) if bearer else None
        if key is None:
            raise _unauthorized("The API key is unknown.", f'{_CHALLENGE}, error="invalid_token"')
        return key


def _unauthorized(detail: str, challenge: str) -> ProblemError:
    return ProblemError(401, "unauthorized", detail, headers={hdrs.WWW_AUTHENTICATE: challenge})
