"""What has to hold between several settings."""

from __future__ import annotations

__all__ = ["RULES"]

import os
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address
from typing import Any

from config.files import BadSetting, read_file

_CERTIFICATE_BYTES_MAX = 1024 * 1024
_STRIPE_LIVE_KEYS = ("sk_live_", "rk_live_")
"""Prefixes of the keys that move real money: secret keys and restricted keys."""


def _memory_runs_every_module(settings: Any) -> None:
    if settings.bus == "memory" and settings.modules != settings.known_modules:
        names = ",".join(settings.known_modules)
        raise BadSetting("MODULES", f"must be all of {names} with BUS=memory, which reaches no other process")


def _nats_files_are_readable(settings: Any) -> None:
    if settings.bus != "nats":
        return
    for name, path in ("NATS_CREDS", settings.nats_creds), ("NATS_TLS_CA", settings.nats_tls_ca):
        if path is not None:
            read_file(name, path, _CERTIFICATE_BYTES_MAX, is_secret=name == "NATS_CREDS")


def _stripe_has_a_key(settings: Any) -> None:
    if settings.payment_gateway == "stripe" and not settings.stripe_api_key:
        raise BadSetting("STRIPE_API_KEY", "is needed with PAYMENT_GATEWAY=stripe")


def _a_live_key_is_sent_over_https(settings: Any) -> None:
    is_live = str(settings.stripe_api_key).startswith(_STRIPE_LIVE_KEYS)
    if is_live and not settings.stripe_api_base.startswith("https:"):
        raise BadSetting("STRIPE_API_BASE", "must be an https:// address with a live key")


def _the_log_file_has_a_folder(settings: Any) -> None:
    path = settings.log_file
    if path is not None and (os.path.isdir(path) or not os.path.isdir(os.path.dirname(path) or ".")):
        raise BadSetting("LOG_FILE", "must name a file in a folder that exists")


def _without_keys_only_this_machine_may_call(settings: Any) -> None:
    if settings.auth == "off" and not settings.auth_off_i_know and not _is_loopback(settings.http_host):
        raise BadSetting(
            "AUTH",
            f"off is refused with HTTP_HOST={settings.http_host}, which other machines may reach;"
            " set AUTH=keys, or AUTH_OFF_I_KNOW=1",
        )


RULES: tuple[Callable[[Any], None], ...] = (
    _memory_runs_every_module,
    _nats_files_are_readable,
    _stripe_has_a_key,
    _a_live_key_is_sent_over_https,
    _the_log_file_has_a_folder,
    _without_keys_only_this_machine_may_call,
)
"""Each raises `BadSetting` if it does not hold for a `config.settings.Settings`; the first that does not is reported."""


def _is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return address.is_loopback
