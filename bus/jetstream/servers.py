"""The addresses of the NATS servers, and what a client and a server identify each other with."""

from __future__ import annotations

__all__ = ["ServerSource", "Servers", "advice", "credentials"]

import ssl
from collections.abc import Callable
from typing import Any

from attrs import field, frozen

_ADVICE = {
    "authorization": "check the user and the password or the credentials file, here and on the server",
    "certificate": "check the file of CA certificates and the certificate of the server",
}
"""What to check, by a word of the refusal."""


@frozen(kw_only=True)
class Servers:
    """The addresses of the NATS servers and the credentials for them. *creds* and *tls_ca* are paths of files."""

    urls: tuple[str, ...]
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    creds: str | None = None
    tls_ca: str | None = None


ServerSource = Callable[[], Servers]
"""Called for each new connection and reconnection: passwords and certificates may be replaced while the process runs."""


def credentials(servers: Servers) -> dict[str, Any]:
    """
    Return the client's options that identify both sides.

    Raises:
        OSError: The certificates cannot be read.
    """
    options: dict[str, Any] = {"user": servers.user, "password": servers.password}
    if servers.tls_ca:  # without the option the client trusts the certificates of the system; with None it has no TLS
        options["tls"] = ssl.create_default_context(cafile=servers.tls_ca)
    return options


def advice(refusal: str) -> str:
    """Return what to check when a server or the client refuses with this text."""
    return next((advice for word, advice in _ADVICE.items() if word in refusal.lower()), "check that it runs")
