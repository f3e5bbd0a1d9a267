"""
Refuse what a foreign web page makes a browser send to a server that asks for no key.

A page whose name its owner lets resolve to 127.0.0.1 (DNS rebinding) would be of the same origin as this server: its
requests carry that name in ``Host``. A page that only sends (a form, an image, a fetch without reading the answer) is
recognised by ``Sec-Fetch-Site``, which browsers set and pages cannot (W3C Fetch Metadata).
"""

from __future__ import annotations

__all__ = ["HostRule"]

import re
from collections.abc import Collection
from ipaddress import ip_address

from aiohttp import HttpVersion11, hdrs, web

from app.web.problems import ProblemError

SEC_FETCH_SITE = "Sec-Fetch-Site"

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]]*)(?::[0-9]{1,5})?")
_KNOWN_MAX = 100


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
