"""
Collectors that cost next to nothing to fill, for aioprometheus to show.

aioprometheus looks a value up by a dictionary of labels that it serialises every time (2.5 µs). Here a caller binds the
labels once and keeps the child, whose `inc` is one addition; the library's registry and formatter see it when somebody
asks. Its formatter writes label values and help as they are, and one quote in them would make the whole page
unreadable; `Formatter` escapes them.

Children are plain numbers without a lock: fill them from the event loop, or each from one thread only.
"""

from __future__ import annotations

__all__ = ["SERIES_MAX", "Counter", "Counters", "Formatter", "Gauge", "Gauges", "Histogram", "Histograms"]

from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import accumulate
from math import inf
from typing import Generic, TypeVar

from aioprometheus.collectors import Collector, MetricsTypes, Registry
from aioprometheus.formats.text import TextFormatter

SERIES_MAX = 1000
"""Most children of one collector. Whatever labels come after that share one child, in which every label is OTHER."""

OTHER = "OTHER"
_LABEL_CHARACTERS_MAX = 128

Read = Callable[[], float | None]
"""Asked at each scrape; None, or an exception, leaves the sample out."""

Sample = tuple[str, str, float]
"""Suffix of the metric's name, labels as they are written, value."""


class Counter:
    """A number that only grows."""

    __slots__ = ("_read", "value")

    def __init__(self) -> None:
        self.value: float = 0
        self._read: Read | None = None

    def inc(self, amount: float = 1) -> None:
        """Add *amount*, which must not be negative."""
        self.value += amount

    def set_function(self, read: Read) -> None:
        """Show what *read* returns, instead of a number of our own."""
        self._read = read

    def samples(self, labels: str) -> Iterator[Sample]:
        """Yield what a scrape shows under *labels*."""
        value = self.value if self._read is None else _ask(self._read)
        if value is not None:
            yield "", labels, value


class Gauge(Counter):
    """A number that goes up and down."""

    __slots__ = ()

    def set(self, value: float) -> None:
        """Be *value* from now on."""
        self.value = value


class Histogram:
    """How many values fell into each bucket, and their sum."""

    __slots__ = ("_bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum: float = 0

    def observe(self, value: float, times: int = 1) -> None:
        """Count *value*. A negative one, from a clock that was set back, and NaN count as zero: no sum may fall."""
        if not value > 0:
            value = 0
        self.counts[bisect_left(self._bounds, value)] += times
        self.sum += value * times

    def samples(self, labels: str) -> Iterator[Sample]:
        """Yield the buckets, each with all that is below it, then sum and count."""
        comma = "," if labels else ""
        count = 0
        for bound, count in zip((*self._bounds, inf), accumulate(self.counts), strict=True):
            yield "_bucket", f'{labels}{comma}le="{_number(bound)}"', count
        yield "_sum", labels, self.sum
        yield "_count", labels, count


Child = TypeVar("Child", Counter, Gauge, Histogram)


class _Family(Collector, Generic[Child]):
    """A metric with all its children, one for each combination of label values."""

    def __init__(
        self,
        registry: Registry,
        name: str,
        help: str,
        labels: Sequence[str],
        make: Callable[[], Child],
        allowed: Mapping[str, Collection[str]] | None = None,
    ) -> None:
        super().__init__(name, help, registry=registry)
        self._check_labels(dict.fromkeys(labels, ""))
        self._names = tuple(labels)
        self._make: Callable[[], Child] = make
        self._allowed = allowed or {}
        self._children: dict[tuple[str, ...], Child] = {}
        self._written: dict[tuple[str, ...], str] = {}

    def labels(self, *values: str) -> Child:
        """
        Return the child of these label values, in the order of the labels' names; the first call founds it, at zero.

        A value that its label does not allow becomes OTHER, and so do all of them once there are `SERIES_MAX`
        children: nobody outside can make the page grow without end.
        """
        child = self._children.get(values)
        return child if child is not None else self._find_or_found(values)

    def items(self) -> list[tuple[tuple[str, ...], Child]]:
        """Return the children, each with its label values."""
        return list(self._children.items())

    def samples(self) -> Iterator[Sample]:
        """Yield what a scrape shows, labels already written and escaped."""
        for values, child in list(self._children.items()):
            yield from child.samples(self._written[values])

    def _find_or_found(self, values: tuple[str, ...]) -> Child:
        if len(values) != len(self._names):
            raise ValueError(f"{self.name} takes {len(self._names)} label values, not {len(values)}")
        values = tuple(
            _tidy(value) if value in self._allowed.get(name, (value,)) else OTHER
            for name, value in zip(self._names, values, strict=True)
        )
        if values not in self._children:
            if len(self._children) >= SERIES_MAX - 1:
                values = (OTHER,) * len(values)
            if values not in self._children:
                pairs = zip(self._names, values, strict=True)
                self._written[values] = ",".join(f'{name}="{_escape(value)}"' for name, value in pairs)
                self._children[values] = self._make()
        return self._children[values]


class Counters(_Family[Counter]):
    """A family of tallies; its name ends in ``_total``."""

    kind = MetricsTypes.counter

    def __init__(
        self,
        registry: Registry,
        name: str,
        help: str,
        labels: Sequence[str] = (),
        allowed: Mapping[str, Collection[str]] | None = None,
    ) -> None:
        super().__init__(registry, name, help, labels, Counter, allowed)


class Gauges(_Family[Gauge]):
    """A family of levels."""

    kind = MetricsTypes.gauge

    def __init__(self, registry: Registry, name: str, help: str, labels: Sequence[str] = ()) -> None:
        super().__init__(registry, name, help, labels, Gauge)


class Histograms(_Family[Histogram]):
    """A family of observations that share their buckets; *bounds* are the upper ones, in order, without infinity."""

    kind = MetricsTypes.histogram

    def __init__(
        self, registry: Registry, name: str, help: str, labels: Sequence[str], bounds: Sequence[float]
    ) -> None:
        bounds = tuple(bounds)
        super().__init__(registry, name, help, labels, lambda: Histogram(bounds))


class Formatter(TextFormatter):
    """Write families as Prometheus' text format 0.0.4 wants it: everything that is text, escaped."""

    def marshall_lines(self, collector: Collector) -> list[str]:
        """Return the lines of one family."""
        name = collector.name
        help = collector.doc.encode("utf-8", "replace").decode().replace("\\", "\\\\").replace("\n", "\\n")
        lines = [f"# HELP {name} {help}", f"# TYPE {name} {collector.kind.name}"]
        if not isinstance(collector, _Family):
            raise TypeError(f"{name} is not one of ours")
        for suffix, labels, value in collector.samples():
            lines.append(
                f"{name}{suffix}{{{labels}}} {_number(value)}" if labels else f"{name}{suffix} {_number(value)}"
            )
        return lines


def _ask(read: Read) -> float | None:
    try:
        return read()
    except Exception:  # whatever goes wrong behind one number, the others must stay readable
        return None


def _tidy(value: str) -> str:
    """Return *value* as it can be written in UTF-8, and not longer than is good for a label."""
    return str(value)[:_LABEL_CHARACTERS_MAX].encode("utf-8", "replace").decode()


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _number(value: float) -> str:
    if value == inf:
        return "+Inf"
    if value == -inf:
        return "-Inf"
    return "NaN" if value != value else str(value)
