"""
Prometheus collectors that cost next to nothing to update, for the registry of aioprometheus.

aioprometheus looks a value up by a dictionary of labels that it serialises every time (2.5 µs). Here a caller binds the
labels once and keeps the child, whose `inc` is one addition; the library's registry and formatter read it at a scrape.
The library's formatter writes label values and help texts as they are, and one quote in them would make the whole page
unreadable; `Formatter` escapes them.

Children are plain numbers without a lock: update them on the event loop, or each from one thread only.
"""

from __future__ import annotations

__all__ = ["SERIES_MAX", "Counter", "Counters", "Family", "Formatter", "Gauge", "Gauges", "Histogram", "Histograms"]

from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import accumulate
from math import inf
from typing import Generic, TypeVar

from aioprometheus.collectors import Collector, MetricsTypes, Registry
from aioprometheus.formats.text import TextFormatter

SERIES_MAX = 1000
"""The most children that one family has. All further label values share one child, in which every label is OTHER."""

OTHER = "OTHER"
_LABEL_CHARACTERS_MAX = 128

Read = Callable[[], float | None]
"""Called at each scrape; None or an exception leaves the sample out."""

Sample = tuple[str, str, float]
"""The suffix of the metric's name, the labels as they are written, the value."""


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
        """Show what *read* returns at each scrape instead of a value kept here."""
        self._read = read

    def read(self) -> float | None:
        """Return the value now; None if the function that reads it has none."""
        return self.value if self._read is None else _call(self._read)

    def samples(self, labels: str) -> Iterator[Sample]:
        """Yield the samples of a scrape under *labels*."""
        value = self.read()
        if value is not None:
            yield "", labels, value


class Gauge(Counter):
    """A number that goes up and down."""

    __slots__ = ()

    def set(self, value: float) -> None:
        """Set the value."""
        self.value = value


class Histogram:
    """Counts values by bucket, and sums them up."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum: float = 0

    def observe(self, value: float, times: int = 1) -> None:
        """Count *value*, *times* times. A negative value (a clock was set back) and NaN count as 0: the sum must not decrease."""
        if not value > 0:
            value = 0
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    def add(self, counts: Sequence[int], sum: float) -> None:
        """Add what another histogram with the same bounds has counted."""
        self.counts = [own + other for own, other in zip(self.counts, counts, strict=True)]
        self.sum += sum

    def samples(self, labels: str) -> Iterator[Sample]:
        """Yield the cumulative buckets, then sum and count."""
        comma = "," if labels else ""
        count = 0
        for bound, count in zip((*self.bounds, inf), accumulate(self.counts), strict=True):
            yield "_bucket", f'{labels}{comma}le="{_number(bound)}"', count
        yield "_sum", labels, self.sum
        yield "_count", labels, count


Child = TypeVar("Child", Counter, Gauge, Histogram)


class Family(Collector, Generic[Child]):
    """A metric with its children, one for each combination of label values."""

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
        self._formatted: dict[tuple[str, ...], str] = {}

    def labels(self, *values: str) -> Child:
        """
        Return the child for *values*, in the order of the labels' names; the first call creates it at zero.

        A value that its label does not allow becomes OTHER. Once there are `SERIES_MAX` children all values do: a client
        cannot make the page grow without limit.

        Raises:
            ValueError: The number of values is wrong.
        """
        child = self._children.get(values)
        return child if child is not None else self._find_or_create(values)

    def items(self) -> list[tuple[tuple[str, ...], Child]]:
        """Return the children with their label values."""
        return list(self._children.items())

    def series(self) -> Iterator[tuple[dict[str, str], Child]]:
        """Yield the children, each with the values of its labels by name."""
        for values, child in list(self._children.items()):
            yield dict(zip(self._names, values, strict=True)), child

    def samples(self) -> Iterator[Sample]:
        """Yield the samples of a scrape, with labels that are formatted and escaped."""
        for values, child in list(self._children.items()):
            yield from child.samples(self._formatted[values])

    def _find_or_create(self, values: tuple[str, ...]) -> Child:
        if len(values) != len(self._names):
            raise ValueError(f"{self.name} takes {len(self._names)} label values, not {len(values)}")
        values = tuple(
            _cut(value) if value in self._allowed.get(name, (value,)) else OTHER
            for name, value in zip(self._names, values, strict=True)
        )
        if values not in self._children:
            if len(self._children) >= SERIES_MAX - 1:
                values = (OTHER,) * len(values)
            if values not in self._children:
                pairs = zip(self._names, values, strict=True)
                self._formatted[values] = ",".join(f'{name}="{_escape(value)}"' for name, value in pairs)
                self._children[values] = self._make()
        return self._children[values]


class Counters(Family[Counter]):
    """A family of counters; its name ends in ``_total``."""

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


class Gauges(Family[Gauge]):
    """A family of gauges."""

    kind = MetricsTypes.gauge

    def __init__(self, registry: Registry, name: str, help: str, labels: Sequence[str] = ()) -> None:
        super().__init__(registry, name, help, labels, Gauge)


class Histograms(Family[Histogram]):
    """A family of histograms with the same buckets; *bounds* are their upper bounds, ascending, without infinity."""

    kind = MetricsTypes.histogram

    def __init__(
        self, registry: Registry, name: str, help: str, labels: Sequence[str], bounds: Sequence[float]
    ) -> None:
        bounds = tuple(bounds)
        super().__init__(registry, name, help, labels, lambda: Histogram(bounds))


class Formatter(TextFormatter):
    """Formats families in the Prometheus text format 0.0.4, with escaped help texts and label values."""

    def marshall_lines(self, collector: Collector) -> list[str]:
        """
        Return the lines of one family.

        Raises:
            TypeError: *collector* is not from this module; its text would not be escaped.
        """
        name = collector.name
        help = collector.doc.encode("utf-8", "replace").decode().replace("\\", "\\\\").replace("\n", "\\n")
        lines = [f"# HELP {name} {help}", f"# TYPE {name} {collector.kind.name}"]
        if not isinstance(collector, Family):
            raise TypeError(f"{name} is not a collector of app.telemetry.collectors")
        for suffix, labels, value in collector.samples():
            lines.append(
                f"{name}{suffix}{{{labels}}} {_number(value)}" if labels else f"{name}{suffix} {_number(value)}"
            )
        return lines


def _call(read: Read) -> float | None:
    try:
        return read()
    except Exception:  # the other metrics must stay readable
        return None


def _cut(value: str) -> str:
    """Return *value* as valid UTF-8 of at most `_LABEL_CHARACTERS_MAX` characters."""
    return str(value)[:_LABEL_CHARACTERS_MAX].encode("utf-8", "replace").decode()


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _number(value: float) -> str:
    if value == inf:
        return "+Inf"
    if value == -inf:
        return "-Inf"
    return "NaN" if value != value else str(value)
