"""
Sessions of the console: a signed cookie that names the key with which a person has logged in.

The cookie holds the name of the key, the time at which the session ends, and a MAC. The secret of the MAC consists of the
hash of the key and of CONSOLE_SECRET. Every process with the same file of keys accepts it, replicas and modules alike; a key
that is removed or replaced ends its sessions at once. Nothing is stored, so that a restart ends none.
"""

from __future__ import annotations

__all__ = ["COOKIE", "SESSION_SECONDS", "Session", "Sessions"]

import re
from base64 import urlsafe_b64encode
from collections.abc import Callable
from hashlib import sha256
from hmac import compare_digest, new
from secrets import token_hex
from time import time

from attrs import frozen

from app.web.access.authentication import ANONYMOUS, Authenticator
from config.api_keys import ApiKey

COOKIE = "fulfilment_console"

SESSION_SECONDS = 12 * 3600

_ENDED_MAX = 10_000
_VALUE = re.compile(r"([A-Za-z0-9._-]{1,64})~([0-9]{1,12})~([0-9a-f]{16})~([A-Za-z0-9_-]{43})", re.ASCII)


@frozen
class Session:
    """Whose session it is, and the token that each of its forms carries."""

    key: ApiKey
    csrf: str
    """Proves that a form comes from a page of this session (CSRF)."""
    value: str = ""
    """Of the cookie; empty where no log-in is needed."""


class Sessions:
    """
    Begins, reads and ends sessions of the callers that *authenticator* knows.

    *secret* must be the same in all processes behind one address. *now* returns seconds since 1970.
    """

    def __init__(self, authenticator: Authenticator, secret: str | None = None, now: Callable[[], float] = time) -> None:
        self._authenticator = authenticator
        # Without keys there is no secret that replicas share; one of its own is enough for the forms of one process.
        self._secret = secret or (token_hex(32) if authenticator.is_off else "")
        self._now = now
        self._ended: dict[str, int] = {}

    @property
    def is_open(self) -> bool:
        """No log-in is needed."""
        return self._authenticator.is_off

    def begin(self, key: ApiKey) -> Session:
        """Return a new session of *key*; its cookie is valid for `SESSION_SECONDS`."""
        claim = f"{key.name}~{int(self._now()) + SESSION_SECONDS}~{token_hex(8)}"
        return self._session(key, f"{claim}~{self._mac(key, claim)}")

    def read(self, value: str | None) -> Session | None:
        """Return the session that the cookie *value* belongs to; None if there is none, or it has ended."""
        if self.is_open:
            return self._session(ANONYMOUS, "")
        found = _VALUE.fullmatch(value or "")
        if found is None or found[3] in self._ended:
            return None
        key = self._authenticator.by_name(found[1])
        if key is None or not compare_digest(self._mac(key, found[0].rpartition("~")[0]), found[4]):
            return None
        return self._session(key, found[0]) if self._now() < int(found[2]) else None

    def end(self, session: Session) -> None:
        """Accept the cookie of *session* no longer; another process accepts it until it expires, if it was copied."""
        found = _VALUE.fullmatch(session.value)
        if found is None:
            return
        if len(self._ended) >= _ENDED_MAX:
            self._ended = {nonce: until for nonce, until in self._ended.items() if until > self._now()}
        self._ended[found[3]] = int(found[2])

    def _session(self, key: ApiKey, value: str) -> Session:
        return Session(key, self._mac(key, f"csrf {value}"), value)

    def _mac(self, key: ApiKey, text: str) -> str:
        mac = new(f"{self._secret} {key.digest}".encode(), f"console {text}".encode(), sha256).digest()
        return urlsafe_b64encode(mac).rstrip(b"=").decode()
