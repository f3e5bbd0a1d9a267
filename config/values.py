"""
Parsers: they turn the text of an environment variable into a value.

A parser takes the text, or a value of the right type (so that ``Settings(http_port=0)`` works), and raises ValueError with
the rest of a sentence that begins with the variable's name.
"""

from __future__ import annotations

__all__ = [
    "Parser",
    "addresses",
    "choice",
    "duration",
    "flag",
    "hosts",
    "http_url",
    "memory",
    "name",
    "number",
    "or_none",
    "origins",
    "shown",
    "sole_text",
    "split_url",
    "subjects",
    "subset",
    "text",
    "urls",
    "visible_key",
    "whole",
]

import math
import re
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import SplitResult, urlsplit

Parser = Callable[[Any], Any]

_HOST = re.compile(r"[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SUBJECT = re.compile(r"[a-z][a-z_]*\.[a-z][a-z_]*\.v[1-9][0-9]{0,5}")
_KEY = re.compile(r"[!-~]{16,1024}")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_DEFAULT_PORTS = {"http": 80, "https": 443}
_MEMORY = re.compile(r"[1-9][0-9]{0,5}(MB|GB)")
_WHOLE = re.compile(r"[+-]?[0-9]{1,19}")
_NUMBER = re.compile(r"[+-]?([0-9]{1,19}(\.[0-9]{0,19})?|\.[0-9]{1,19})([eE][+-]?[0-9]{1,3})?")


def or_none(parse: Parser) -> Parser:
    """Make a parser that reads the word ``none`` as None, and everything else with *parse*."""
    return lambda value: None if isinstance(value, str) and value.strip().lower() == "none" else parse(value)


def text(value: Any) -> str:
    """Return any text unchanged."""
    if not isinstance(value, str):
        raise ValueError("must be text")
    return value


def sole_text(value: Any) -> str:
    """Return one printable line without the spaces around it."""
    found = text(value).strip()
    if not found.isprintable():
        raise ValueError(f"must be one printable line, not {shown(value)}")
    return found


def name(value: Any) -> str:
    """Return a name of 1 to 64 letters, digits, dots, hyphens and underscores."""
    found = text(value).strip()
    if not _NAME.fullmatch(found):
        raise ValueError(f"must have 1 to 64 letters, digits, dots, hyphens and underscores, not {shown(value)}")
    return found


def choice(*allowed: str, fold: Callable[[str], str] = str) -> Parser:
    """Make a parser for one of *allowed*, compared after *fold*."""

    def parse(value: Any) -> str:
        found = fold(text(value).strip())
        if found not in allowed:
            raise ValueError(
                f"must be {' or '.join(allowed) if len(allowed) < 3 else 'one of ' + ', '.join(allowed)}, not {shown(value)}"
            )
        return found

    return parse


def flag(value: Any) -> bool:
    """Return True for 1 and False for 0."""
    if isinstance(value, bool):
        return value
    found: bool = choice("0", "1")(value) == "1"
    return found


def true_or_false(value: Any) -> bool:
    """Return True for true and False for false, as the OpenTelemetry specification writes them, or for 1 and 0."""
    if isinstance(value, bool):
        return value
    found: bool = choice("true", "false", "1", "0", fold=str.lower)(value) in ("true", "1")
    return found


def whole(least: int, most: int) -> Parser:
    """Make a parser for a whole number from *least* to *most*."""

    def parse(value: Any) -> int:
        if isinstance(value, str) and _WHOLE.fullmatch(value.strip()):
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise ValueError(f"must be a whole number from {least} to {most}, not {shown(value)}")
        return value

    return parse


def number(least: float, most: float, *, positive: bool = False) -> Parser:
    """Make a parser for a number from *least* to *most*; *positive* leaves out zero."""

    def parse(value: Any) -> float:
        given = value
        if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
            value = float(value)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"must be a number, not {shown(given)}")
        if not least <= value <= most or (positive and value == 0):
            raise ValueError(
                f"must be {'above' if positive else 'at least'} {least:g} and at most {most:g}, not {shown(given)}"
            )
        return float(value)

    return parse


def duration(least: float, most: float) -> Parser:
    """Make a parser for a duration from *least* to *most* seconds: a number with one of the units d, h, m, s, or seconds."""
    parse_number = number(0, most)

    def parse(value: Any) -> float:
        text, factor = value, 1
        if isinstance(value, str) and value.strip()[-1:].lower() in _UNITS:
            text, factor = value.strip()[:-1], _UNITS[value.strip()[-1].lower()]
        try:
            found: float = parse_number(text) * factor
        except ValueError:
            found = -1.0
        if not least <= found <= most:
            days = [f"{int(limit // _UNITS['d'])}d" for limit in (least, most)]
            raise ValueError(f"must be a duration from {days[0]} to {days[1]}, such as 90d or 72h, not {shown(value)}")
        return found

    return parse


def memory(value: Any) -> str:
    """Return an amount of memory, a whole number of MB or GB, in the form ``512MB``."""
    found = text(value).strip().upper().replace(" ", "")
    if not _MEMORY.fullmatch(found):
        raise ValueError(f"must be an amount of memory, such as 512MB or 4GB, not {shown(value)}")
    return found


def subset(*known: str) -> Parser:
    """Make a parser for a comma-separated subset of *known*: at least one, none twice, in the order of *known*."""

    def parse(value: Any) -> tuple[str, ...]:
        names = [name.strip() for name in value.split(",")] if isinstance(value, str) else list(value)
        if not names:
            raise ValueError(f"must name at least one of {', '.join(known)}")
        for name in names:
            if name not in known:
                raise ValueError(f"must be a list of {', '.join(known)}; there is no {shown(name)}")
            if names.count(name) > 1:
                raise ValueError(f"names {name} more than once")
        return tuple(name for name in known if name in names)

    return parse


def subjects(value: Any) -> tuple[str, ...]:
    """Return comma-separated subjects of events, each with its version and without a lane, none twice, in alphabetical order."""
    found = _listed(value)
    for subject in found:
        if not _SUBJECT.fullmatch(subject):
            raise ValueError(f"must be a comma-separated list of event versions, such as orders.created.v1, not {shown(subject)}")
        if found.count(subject) > 1:
            raise ValueError(f"names {subject} more than once")
    return tuple(sorted(found))


def hosts(value: Any) -> tuple[str, ...]:
    """Return a comma-separated list of host names or addresses, without ports, or ``*``."""
    found = _listed(value)
    for host in found:
        if host != "*" and not _HOST.fullmatch(host):
            raise ValueError(f"must be a comma-separated list of host names without ports, not {shown(host)}")
    return found


def origins(value: Any) -> tuple[str, ...]:
    """
    Return a comma-separated list of origins (RFC 6454), as browsers send them: scheme, host and port, without a path.

    The host is in lower case, and the scheme's own port is left out.
    """
    found = []
    for origin in map(str.lower, _listed(value)):
        parts = split_url(origin)
        port = _DEFAULT_PORTS.get(parts.scheme)
        if port is None or not parts.hostname or "@" in origin or f"{parts.scheme}://{parts.netloc}" != origin:
            raise ValueError("must be a comma-separated list of origins, such as https://shop.example")
        found.append(origin.removesuffix(f":{port}"))
    return tuple(found)


def _listed(value: Any) -> tuple[str, ...]:
    given = value.split(",") if isinstance(value, str) else value
    return tuple(sole_text(item.strip()) for item in given)


def http_url(value: Any) -> str:
    """Return an http or https address without the slash at its end."""
    found = sole_text(value).rstrip("/")
    parts = split_url(found)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be an http:// or https:// address")
    return found


def addresses(*known: str) -> Parser:
    """Make a parser for comma-separated addresses by name, ``orders=http://...``, of which the names are among *known*."""

    def parse(value: Any) -> dict[str, str]:
        given = [item.partition("=")[::2] for item in _listed(value)] if isinstance(value, str) else list(value.items())
        found: dict[str, str] = {}
        for name, address in ((name.strip(), address) for name, address in given):
            if name not in known:
                raise ValueError(f"must be a list of {', '.join(f'{each}=http://...' for each in known)}; there is no {shown(name)}")
            if name in found:
                raise ValueError(f"names {name} more than once")
            try:
                found[name] = http_url(address)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
            parts = split_url(found[name])
            if "@" in parts.netloc or parts.query or parts.fragment:
                raise ValueError(f"{name}: must have no user, query or fragment; MODULE_KEY_FILE has the key")
        return found

    return parse


def visible_key(value: Any) -> str:
    """Return an API key: 16 visible ASCII characters or more. An error never shows it."""
    found = text(value).strip()
    if not _KEY.fullmatch(found):
        raise ValueError("must be at least 16 visible ASCII characters")
    return found


def urls(*schemes: str) -> Callable[[Any], tuple[str, ...]]:
    """Make a parser for comma-separated addresses of servers. An error never shows one: it may hold a password."""

    def parse(value: Any) -> tuple[str, ...]:
        given: Sequence[str] = value.split(",") if isinstance(value, str) else value
        found = tuple(item.strip() for item in given)
        for item in found:
            parts = split_url(item)
            if parts.scheme not in schemes or not parts.hostname:
                raise ValueError(f"must be a comma-separated list of {'://, '.join(schemes)}:// addresses")
        return found

    return parse


def split_url(url: str) -> SplitResult:
    """
    Split *url* into its parts.

    Raises:
        ValueError: It is malformed; the sentence does not show it.
    """
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise ValueError("is not a well-formed address") from None
    return parts


def shown(value: Any) -> str:
    """Return *value* for an error: one line of at most 60 characters."""
    found = repr(value)
    return found if len(found) <= 60 else f"{found[:56]}...{found[-1]}"
