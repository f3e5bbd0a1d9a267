"""Decide which traces are sampled, once for each trace: where it begins. Everything after that reads the flag of the header."""

from __future__ import annotations

__all__ = ["SAMPLED_DIGITS", "Sampler", "is_sampled"]

SAMPLED_DIGITS = frozenset("13579bdf")
"""The last digit of a traceparent whose flag "sampled" is set."""

_RANDOM_BITS = 64


def is_sampled(traceparent: str) -> bool:
    """Return whether the trace of *traceparent* is sampled."""
    return traceparent[54] in SAMPLED_DIGITS


class Sampler:
    """A sampler by its name in ``OTEL_TRACES_SAMPLER``."""

    def __init__(self, name: str, ratio: float) -> None:
        """*name* is one of the six of the specification, *ratio* the share of traces that those of a ratio sample."""
        kind = name.removeprefix("parentbased_")
        self._follows_parent = kind != name
        # As in the SDK, so that all services of a trace decide alike: the lower half of the id is compared with a bound.
        ratio = {"always_on": 1.0, "always_off": 0.0}.get(kind, ratio)
        self._bound = round(ratio * 2**_RANDOM_BITS)

    def decide(self, traceparent: str, *, is_continued: bool) -> str:
        """Return *traceparent* with its flag set as decided; *is_continued* if the trace came from a caller."""
        if is_continued and self._follows_parent:
            return traceparent
        flags = int(traceparent[53:55], 16) & ~1 | (int(traceparent[19:35], 16) < self._bound)
        return f"{traceparent[:53]}{flags:02x}"
