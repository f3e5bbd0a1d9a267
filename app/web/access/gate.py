"""
The checks that every request passes before its endpoint: host and origin, caller, role and limits.

A server without API keys refuses what a foreign web page makes a browser send. A page whose name its owner lets resolve to
127.0.0.1 (DNS rebinding) would be of the same origin as this server: its requests carry that name in ``Host``. A page that
only sends (a form, an image, a fetch without reading the answer) is recognised by ``Sec-Fetch-Site``, which browsers set
and pages cannot (W3C Fetch Metadata).
"""

from __future__ import annotations

__all__ = ["CALLER", "Gate", "HostRule", "build_gate", "require_role"]

import re
from collections.abc import Collection, Set
from ipaddress import ip_address
from math import ceil

from aiohttp import HttpVersion11, hdrs, web

from app.web.access.authentication import ANONYMOUS, Authenticator
from app.web.access.limits import WRONG_KEYS_MAX, RateLimit
from app.web.access.refusal_log import RefusalLog
from app.web.access.stream_tokens import TOKEN, StreamTokens
from app.web.responses.problems import ProblemError
from config.api_keys import MODULE, ROLES, ApiKey
from config.settings import Settings

SEC_FETCH_SITE = "Sec-Fetch-Site"

CALLER = "X-Fulfilment-Caller"
"""
Header with which a process of this system names the person for whom it asks: ``name:role``.

It is read with a key of the role ``module`` only. `app.web.operations.module_api` sends it.
"""

_CALLER = re.compile(r"([A-Za-z0-9._-]{1,64}):([a-z]{1,16})", re.ASCII)
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]]*)(?::[0-9]{1,5})?")
_KNOWN_MAX = 100


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
        if self._requests is not None and key.role != MODULE:
            self._count(self._requests, key.name)
        if roles is not None and (key.role not in roles or (key.customer is not None and not is_scoped)):
            if key.role == MODULE:
                key = _named_caller(request)
            require_role(key, roles, is_scoped)
        return key

    def log_in(self, request: web.BaseRequest, text: str) -> ApiKey:
        """
        Return whose key *text* is; a person has typed it into the form of the console.

        Raises:
            ProblemError: 401, the key is unknown; 403, it is for processes; 429, the address has tried too many wrong ones.
        """
        try:
            key = self.authenticator(f"Bearer {text}")
        except ProblemError:
            self._count(self._wrong_keys, request.remote or "", closes=True)
            raise
        if key.role == MODULE:
            raise ProblemError(403, "forbidden", "A key of this role is for processes, not for persons.")
        return key

    def permit(self, key: ApiKey, roles: Set[str] | None, is_scoped: bool) -> None:
        """
        Count one request of *key*, and check that it may do what *roles* may; as `admit` does, once the caller is known.

        Raises:
            ProblemError: 403, the role may not do this; 429, more than a limit.
        """
        if self._requests is not None:
            self._count(self._requests, key.name)
        if roles is not None:
            require_role(key, roles, is_scoped)

    @staticmethod
    def _count(limit: RateLimit, caller: str, closes: bool = False) -> None:
        seconds = limit.take(caller)
        if seconds:
            headers: dict[str, str] = {hdrs.RETRY_AFTER: str(max(1, ceil(seconds)))}
            raise ProblemError(429, "too_many_requests", "This caller has reached a limit.", headers=headers, closes=closes)


def require_role(key: ApiKey, roles: Set[str], is_scoped: bool) -> None:
    """
    Ensure that *key* has one of *roles*, and if it is restricted to one customer, that the endpoint *is_scoped*.

    Raises:
        ProblemError: 403, it may not do this.
    """
    if key.role not in roles:
        raise ProblemError(403, "forbidden", f"The role {key.role} may not do this; it takes {' or '.join(sorted(roles))}.")
    if key.customer is not None and not is_scoped:
        raise ProblemError(403, "forbidden", "A key that is restricted to one customer may not do this.")


def _named_caller(request: web.BaseRequest) -> ApiKey:
    """
    Return the person for whom another process asks.

    Raises:
        ProblemError: 403, the request names none.
    """
    found = _CALLER.fullmatch(request.headers.get(CALLER, ""))
    if found is None or found[2] not in ROLES or found[2] == MODULE:
        raise ProblemError(403, "forbidden", f"A key of the role {MODULE} names the caller for whom it asks: {CALLER}: name:role.")
    return ApiKey(found[1], found[2])


class HostRule:
    """
    Admits requests to this machine's loopback names and to *hosts*; ``*`` admits every name.

    A page of one of *origins* (``https://example.org``) may send requests from another site.
    """

    def __init__(self, hosts: Collection[str] = (), origins: Collection[str] = ()) -> None:
        self._hosts = frozenset(host.lower().rstrip(".") for host in hosts)
        self._origins = frozenset(origins)
        self._known: set[str] = set()

    def __call__(self, request: web.BaseRequest) -> None:
        """
        Check the headers of *request*.

        Raises:
            ProblemError: 403, the request is for another host, or comes from a page of another site.
        """
        headers = request.headers
        hosts = headers.getall(hdrs.HOST, ())
        if len(hosts) != 1 or hosts[0] not in self._known:
            self._check_hosts(hosts, request)
        if headers.get(SEC_FETCH_SITE) == "cross-site" and headers.get(hdrs.ORIGIN) not in self._origins:
            raise ProblemError(
                403, "cross_site", "A page of another site may not call this server without a key; CORS_ORIGINS names those that may."
            )

    def _check_hosts(self, hosts: Collection[str], request: web.BaseRequest) -> None:
        if not hosts and request.version < HttpVersion11:  # no browser sends none
            return
        if len(hosts) == 1:
            (host,) = hosts
            if self._is_admitted(host):
                if len(self._known) < _KNOWN_MAX:
                    self._known.add(host)
                return
        raise ProblemError(
            403, "host_not_allowed", "Without API keys this server answers for loopback names only; ALLOWED_HOSTS names others."
        )

    def _is_admitted(self, host: str) -> bool:
        found = _HOST.fullmatch(host)
        if found is None:
            return False
        name = found[1].lower().rstrip(".")
        if "*" in self._hosts or name == "localhost" or name in self._hosts:
            return True
        try:
            return ip_address(name.strip("[]")).is_loopback
        except ValueError:
            return False


def build_gate(settings: Settings) -> Gate:
    """Return the gate that *settings* ask for."""
    hosts = HostRule(settings.allowed_hosts, settings.cors_origins) if settings.auth == "off" else None
    return Gate(Authenticator(settings.api_keys or None), hosts, settings.requests_per_s)
