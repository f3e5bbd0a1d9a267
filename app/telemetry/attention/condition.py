"""One condition that needs attention, and its sentence, which Prometheus and the process fill in alike."""

from __future__ import annotations

__all__ = ["Condition", "Severity"]

import re
from collections.abc import Callable, Mapping
from enum import StrEnum

from attrs import frozen

from app.telemetry.attention.checks import Check

_PLACEHOLDER = re.compile(r"\{(\w+)\}")

_PROMETHEUS = {
    "duration": "{{ $value | humanizeDuration }}",
    "share": "{{ $value | humanizePercentage }}",
    "number": "{{ $value | humanize }}",
}
"""The placeholders of the value; every other one is a label."""

THIS_PROCESS = "this process"


class Severity(StrEnum):
    PAGE = "page"
    """It wakes the operator."""
    TICKET = "ticket"
    """It can wait until the morning."""


@frozen(kw_only=True)
class Condition:
    """
    A condition that needs attention while it holds.

    *sentence* describes what is wrong; its placeholders are labels of the check, and ``{duration}``, ``{share}`` or ``{number}`` for
    the value. *do* is what an operator does first, and *guide* the section of the documents with the rest: a page
    below ``docs`` and the title of the section.
    """

    name: str
    severity: Severity
    check: Check
    for_seconds: float = 0.0
    """How long it holds before the alert fires; the list in the process shows it at once."""
    sentence: str
    do: str
    guide: tuple[str, str]

    @property
    def summary(self) -> str:
        """The sentence as a template of Prometheus."""
        return _PLACEHOLDER.sub(
            lambda found: _PROMETHEUS.get(found[1]) or f"{{{{ $labels.{found[1]} }}}}", self.sentence
        )

    @property
    def anchor(self) -> str:
        """The page and the section of `guide` as the end of a URL: ``howto/operate.html#when-the-disk-is-full``."""
        page, title = self.guide
        return f"{page}.html#{re.sub(r'[^a-z0-9]+', '-', title.lower()).strip('-')}"

    def describe(self, labels: Mapping[str, str], value: float) -> str:
        """Return the sentence for *value* of the group with *labels*."""

        def text(found: re.Match[str]) -> str:
            name = found[1]
            return _FORMATS[name](value) if name in _FORMATS else labels.get(name) or THIS_PROCESS

        described = _PLACEHOLDER.sub(text, self.sentence)
        return described[:1].upper() + described[1:]


def _duration(seconds: float) -> str:
    """Return *seconds* as Prometheus' humanizeDuration does, in whole seconds."""
    sign, rest = "-" if seconds < 0 else "", round(abs(seconds))
    parts: list[str] = []
    for unit, length in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if parts or rest >= length:
            parts.append(f"{rest // length}{unit}")
            rest %= length
    return sign + " ".join([*parts, f"{rest}s"])


_FORMATS: Mapping[str, Callable[[float], str]] = {
    "duration": _duration,
    "share": lambda value: f"{100 * value:.3g}%",
    "number": lambda value: f"{value:.4g}",
}
