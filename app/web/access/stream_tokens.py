"""
Short-lived tokens for streams: a browser's ``EventSource`` cannot send an ``Authorization`` header.

A caller exchanges its key for a token and puts that into the address of the stream (``?token=``). The token names the
caller and the time at which it ends, and carries a MAC under the hash of the caller's key: every process that has the same
file of keys accepts it, and a key that is replaced ends its tokens. It opens streams and nothing else, and
expires after five minutes, so an address that ends up in a log is of little use.
"""

from __future__ import annotations

__all__ = ["TOKEN", "TOKEN_SECONDS", "StreamTokens"]

import re
from base64 import urlsafe_b64encode
from hashlib import sha256
from hmac import compare_digest, new
from secrets import token_hex
from time import time

from app.web.access.authentication import ANONYMOUS, Authenticator
from app.web.responses.problems import ProblemError
from config.api_keys import ApiKey

TOKEN = "token"  # noqa: S105 # a name
"""Name of the query parameter."""

TOKEN_SECONDS = 300
"""How long a token opens streams. A stream that is open stays open."""

_TOKEN = re.compile(r"([A-Za-z0-9._-]{1,64})~([0-9]{1,12})~([A-Za-z0-9_-]{43})", re.ASCII)


class StreamTokens:
    """Issues and checks the tokens of the callers that *authenticator* knows."""

    def __init__(self, authenticator: Authenticator) -> None:
        self._authenticator = authenticator
        self._secret_without_keys = token_hex(32)

    def issue(self, caller: str) -> tuple[str, int]:
        """
        Return a token for *caller*, and the time (seconds since 1970) at which it ends.

        Raises:
            ProblemError: 401, the key of *caller* was removed meanwhile.
        """
        expires_at = int(time()) + TOKEN_SECONDS
        return f"{caller}~{expires_at}~{self._mac(self._key(caller), expires_at)}", expires_at

    def caller(self, token: str) -> ApiKey:
        """
        Return whose token *token* is.

        Raises:
            ProblemError: 401, it was not issued here, has ended, or its caller's key has been replaced.
        """
        found = _TOKEN.fullmatch(token)
        if found is not None:
            name, expires_at, mac = found[1], int(found[2]), found[3]
            key = self._key(name)
            if compare_digest(self._mac(key, expires_at), mac) and time() < expires_at:
                return key
        raise _invalid()

    def _key(self, name: str) -> ApiKey:
        key = ANONYMOUS if self._authenticator.is_off else self._authenticator.by_name(name)
        if key is None or key.name != name:
            raise _invalid()
        return key

    def _mac(self, key: ApiKey, expires_at: int) -> str:
        secret = self._secret_without_keys if self._authenticator.is_off else key.digest
        mac = new(secret.encode(), f"stream {key.name} {expires_at}".encode(), sha256).digest()
        return urlsafe_b64encode(mac).rstrip(b"=").decode()


def _invalid() -> ProblemError:
    detail = "The token is invalid or has ended; POST /v1/stream-tokens gives a new one."
    return ProblemError(401, "unauthorized", detail, headers={"WWW-Authenticate": 'Bearer realm="fulfilment", error="invalid_token"'})
