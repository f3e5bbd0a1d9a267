"""The templates of the console, and how they show moments, durations, amounts and numbers."""

from __future__ import annotations

__all__ = ["Rendering", "ago", "duration", "integer", "moment", "money", "rate"]

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import aiohttp_jinja2
import jinja2
import orjson
from aiohttp import web
from markupsafe import Markup, escape

from app.web.console import static_files
from modules.values import MINOR_DIGITS

_OWN_FORM = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z", re.ASCII)
"""As `modules.values.rfc3339` writes a moment."""

_STEPS = ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"))
_USUAL_DIGITS = 2


class Rendering:
    """Renders templates of this package; *now* returns the present moment, in UTC."""

    def __init__(self, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._now = now
        self._environment: jinja2.Environment | None = None

    def setup(self, app: web.Application) -> None:
        """Prepare the templates for *app*: every value is escaped, and a name that a page does not pass is an error."""
        self._environment = aiohttp_jinja2.setup(
            app,
            loader=jinja2.PackageLoader("app.web.console"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
            filters={
                "ago": lambda text: ago(text, self._now()),
                "moment": lambda text: moment(text, self._now()),
                "json": lambda value: orjson.dumps(value).decode(),
                **{each.__name__: each for each in (duration, integer, money, rate)},
            },
        )
        self._environment.globals["file"] = static_files.address

    def render(self, template: str, **context: Any) -> str:
        """Return the text of *template* with *context*."""
        assert self._environment is not None, "setup comes first"
        return self._environment.get_template(template).render(context)


def _parsed(text: str) -> datetime:
    found = datetime.fromisoformat(text)
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def ago(text: str, now: datetime) -> str:
    """Return how long before *now* the moment *text* (RFC 3339) is, or how long after it: ``3 min ago``, ``in 12 s``."""
    return _ago(_parsed(text), now)


def _ago(at: datetime, now: datetime) -> str:
    seconds = (now - at).total_seconds()
    if abs(seconds) < 1:
        return "now"
    return f"{duration(seconds)} ago" if seconds > 0 else f"in {duration(-seconds)}"


def moment(text: str | None, now: datetime) -> Markup:
    """Return the moment *text* (RFC 3339) as an element: relative to *now*, with date and time as its title."""
    if not text:
        return Markup("–")
    at = _parsed(text)
    if _OWN_FORM.fullmatch(text):  # nearly all are: a page of orders has a hundred
        title = f"{text[:10]} {text[11:23]} UTC"
    else:
        at = at.astimezone(UTC)
        title = at.strftime("%Y-%m-%d %H:%M:%S.") + f"{at.microsecond // 1000:03d} UTC"
    # Markup.format would take three times as long, and the title and the words are made here.
    return Markup(f'<time datetime="{escape(text)}" title="{title}">{_ago(at, now)}</time>')  # noqa: S704


def duration(seconds: float | None) -> str:
    """Return a duration in its largest unit, with one digit behind the point below ten: ``1.5 h``, ``12 s``, ``340 ms``."""
    if seconds is None:
        return "–"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms" if seconds > 0 else "0 s"
    for size, unit in _STEPS:
        if seconds >= size:
            value = seconds / size
            return f"{value:.0f} {unit}" if value >= 9.95 else f"{f'{value:.1f}'.removesuffix('.0')} {unit}"
    raise AssertionError


def integer(value: int | None) -> str:
    """Return a whole number with narrow spaces between thousands (ISO 80000-1)."""
    return "–" if value is None else f"{value:,}".replace(",", "\u202f")


def rate(value: float | None) -> str:
    """Return events a second: one digit behind the point below a hundred."""
    if value is None:
        return "–"
    return f"{value:.1f}" if value < 100 else integer(round(value))


def money(value: Mapping[str, Any] | None) -> str:
    """Return an amount of minor units in the currency's usual unit: ``12.50 EUR`` (ISO 4217)."""
    if value is None:
        return "–"
    currency, amount = value["currency"], value["amount"]
    digits = minor_digits(currency)
    whole, part = divmod(abs(amount), 10**digits)
    sign = "−" if amount < 0 else ""
    return f"{sign}{integer(whole)}{f'.{part:0{digits}d}' if digits else ''} {currency}"


def minor_digits(currency: str) -> int:
    """Return how many digits of an amount in *currency* stand behind the point (ISO 4217)."""
    return MINOR_DIGITS.get(currency, _USUAL_DIGITS)
