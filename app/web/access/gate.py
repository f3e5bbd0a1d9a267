"""The checks that every request passes before its endpoint, and the log of those that fail."""

from __future__ import annotations

__all__ = ["Gate"]

from collections.abc import Set
from math import ceil

from aiohttp import hdrs, web

from app.web.access.authentication import ANONYMOUS, Authenticator
from app.web.access.hosts import HostRule
from app.web.access.limits import WRONG_KEYS_MAX, RateLimit
from app.web.access.refusal_log import RefusalLog
from app.web.access.stream_tokens import TOKEN, StreamTokens
from app.web.problems import ProblemError
from config.api_keys import OPERATOR, ApiKey


class Gate:
    """
    Admits requests to endpoints. One gate serves one application, and its keys may be replaced while it runs.

    *hosts* is asked about each request that is no probe; by default none is refused for its host. *requests_per_s* limits
    the requests of one caller.
    """

    def __init__(
        self, authenticator: Authenticator, hosts: HostRule | None = None, requests_per_s: int | None = None
    ) -> None:
        self.authenticator = authenticator
        self.tokens = StreamTokens(authenticator)
        self.log = RefusalLog()
        self.hosts = hosts
        self._wrong_keys = RateLimit("wrong API keys from one address", WRONG_KEYS_MAX, 60.0)
        self._requests = None
        if requests_per_s is not None:
            self._requests = RateLimit("requests of one caller", requests_per_s, 1.0)

    def admit(self, request: web.BaseRequest, roles: Set[str] | None, is_scoped: bool, takes_token: bool = False) -> ApiKey:
        """
        Return the caller of *request*, who has one of *roles*; None admits every known caller.

        A caller that is restricted to one customer is admitted only where the endpoint *is_scoped*.

        Raises:
            ProblemError: 401, the key is missing or unknown; 403, its role may not do this; 429, more than a limit.
        """
        if self.authenticator.is_off:
            if self._requests is not None:
                self._count(self._requests, request.remote or "")
            return ANONYMOUS
        try:
            if takes_token and hdrs.AUTHORIZATION not in request.headers and TOKEN in request.query:
                key = self.tokens.caller(request.query[TOKEN])
            else:
                key = self.authenticator(request.headers.get(hdrs.AUTHORIZATION))
        except ProblemError:
            if hdrs.AUTHORIZATION in request.headers or TOKEN in request.query:
                self._count(self._wrong_keys, request.remote or "", closes=True)
            raise
        if self._requests is not None:
            self._count(self._requests, key.name)
        if roles is not None and key.role != OPERATOR and key.role not in roles:
            detail = f"The role {key.role} may not do this; it takes {' or '.join(sorted(roles))}."
            raise ProblemError(403, "forbidden", detail)
        if roles is not None and key.customer is not None and not is_scoped:
            raise ProblemError(403, "forbidden", "A key that is restricted to one customer may not do this.")
        return key

    @staticmethod
    def _count(limit: RateLimit, caller: str, closes: bool = False) -> None:
        seconds = limit.take(caller)
        if seconds:
            headers: dict[str, str] = {hdrs.RETRY_AFTER: str(max(1, ceil(seconds)))}
            raise ProblemError(429, "too_many_requests", "This caller has reached a limit.", headers=headers, closes=closes)
