"""The configuration as a person may see it: every variable with its value, and no secret."""

from __future__ import annotations

__all__ = ["SetVariable", "shown"]

import re
from collections.abc import Iterator, Mapping
from typing import Any

import attrs
from attrs import frozen

from config.environment import describe
from config.settings import Settings, database_variable, variable_of

_USER = re.compile(r"(?<=://)[^/?#,]*@")
_QUERY = re.compile(r"[?#][^,]*")


@frozen
class SetVariable:
    """
    One environment variable.

    *value* is what it stands for in this process: its default if nothing sets it. A secret shows no value; of an address
    that may hold a password, only what is no secret is shown.
    """

    name: str
    value: str | None
    is_set: bool
    """It has another value than the default."""
    is_secret: bool
    help: str


def shown(settings: Settings) -> Iterator[SetVariable]:
    """Yield every variable, in the order of the manual."""
    values = _values(settings)
    secrets = set(settings.secrets())
    for variable in describe(settings.known_modules):
        value = values.get(variable.name)
        text = None if value is None else _text(value)
        is_set = text is not None and text != variable.default.partition(" (")[0]
        if variable.is_secret:
            text = _without_password(text) if text is not None and "://" in text else None
        if text is not None and any(secret in text for secret in secrets):
            text = None
        yield SetVariable(variable.name, text or None, is_set, variable.is_secret, variable.help)


def _values(settings: Settings) -> dict[str, Any]:
    found = {variable_of(field): getattr(settings, field.name) for field in attrs.fields(Settings) if field.init}
    return found | {database_variable(module): url for module, url in settings.database_urls.items()}


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return ",".join(f"{name}={each}" for name, each in value.items())
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value)


def _without_password(addresses: str) -> str | None:
    """Return *addresses* without users, passwords and queries; None if what is left may still hold one."""
    found = _QUERY.sub("", _USER.sub("", addresses))
    return None if "@" in found else found
