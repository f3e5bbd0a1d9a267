"""
The kinds of checks that a condition may make, each as a PromQL expression and as a computation within the process.

Both have their metric and their threshold from the same fields. A `Level` looks at the present value of a gauge. The others
look at what counters have counted within their window: a watch takes a `read` now and the one from the beginning of the
window, and `values` computes the difference. A process that is younger than its window counts from zero.
"""

from __future__ import annotations

__all__ = ["Check", "Increase", "Labels", "Level", "Quantile", "Scraped", "Share", "Snapshot"]

import operator
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate
from typing import Any, Literal, Protocol

from attrs import field, frozen

from app.telemetry.collectors import Counter, Family, Histogram

Labels = tuple[str, ...]
"""The values of the labels by which a check groups, in their order; that of ``instance`` is empty within the process."""

Snapshot = Mapping[Labels, tuple[float, ...]]
"""What a check has read from the metrics: numbers by group."""

Families = Mapping[str, Family[Any]]
"""The metrics of the process by name."""

Matchers = Mapping[str, str]
"""Label names and the value, or a regular expression for the whole value, that a series has to have."""

_PLAIN = re.compile(r"\w*").fullmatch

_OPERATORS: Mapping[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    "<": operator.lt,
    "==": operator.eq,
    "!=": operator.ne,
}


class Check(Protocol):
    """A check of the metrics."""

    @property
    def by(self) -> tuple[str, ...]:
        """The labels of which each combination is checked for itself."""

    @property
    def comparison(self) -> Literal[">", "<", "==", "!="]:
        """How a value compares with the threshold while the condition holds."""

    @property
    def threshold(self) -> float:
        """The number that a value is compared with."""

    @property
    def window_seconds(self) -> float:
        """How long the window is; 0 if the check looks at present values only."""

    @property
    def measured(self) -> str:
        """The PromQL expression of the value that is compared."""

    @property
    def expression(self) -> str:
        """The PromQL expression that has a result while the condition holds."""

    def read(self, families: Families) -> Snapshot:
        """Return what the check needs of the present metrics."""

    def values(self, now: Snapshot, before: Snapshot) -> Mapping[Labels, float]:
        """Return the value of each group, from the snapshots at the end and at the beginning of the window."""

    def holds(self, value: float) -> bool:
        """Return whether the condition holds for *value*."""


@frozen(kw_only=True)
class _Comparison:
    """What all checks have in common: a value that is compared."""

    threshold: float
    by: tuple[str, ...] = ("instance",)
    comparison: Literal[">", "<", "==", "!="] = ">"

    @property
    def measured(self) -> str:
        """The PromQL expression of the value that is compared."""
        raise NotImplementedError

    @property
    def expression(self) -> str:
        """The PromQL expression that has a result while the condition holds."""
        return f"{self.measured} {self.comparison} {self.threshold:g}"

    def holds(self, value: float) -> bool:
        """Return whether the condition holds for *value*."""
        return _OPERATORS[self.comparison](value, self.threshold)


@frozen(kw_only=True)
class _Check(_Comparison):
    """What the checks of the process's own metrics have in common."""

    metric: str
    where: Matchers = field(factory=dict)

    def _groups(self, families: Families, metric: str, where: Matchers) -> Iterator[tuple[Labels, Any]]:
        for labels, child in families[metric].series():
            if all(re.fullmatch(pattern, labels[name]) for name, pattern in where.items()):
                yield tuple(labels.get(name, "") for name in self.by), child

    def _sums(self, families: Families, metric: str, where: Matchers) -> dict[Labels, float]:
        found: dict[Labels, float] = {}
        for group, child in self._groups(families, metric, where):
            found[group] = found.get(group, 0.0) + (_number(child) or 0.0)
        return found


@frozen(kw_only=True)
class Level(_Check):
    """Compares a gauge; of several series in a group the *worst* value counts."""

    worst: Literal["max", "min"] = "max"
    window_seconds: float = field(default=0.0, init=False)

    @property
    def measured(self) -> str:
        """The PromQL expression of the value that is compared."""
        return f"{self.worst}{_grouping(self.by)}({self.metric}{_matchers(self.where)})"

    def read(self, families: Families) -> Snapshot:
        """Return the worst value of each group."""
        worst = max if self.worst == "max" else min
        found: dict[Labels, float] = {}
        for group, child in self._groups(families, self.metric, self.where):
            if (value := _number(child)) is not None:
                found[group] = worst(found.get(group, value), value)
        return {group: (value,) for group, value in found.items()}

    def values(self, now: Snapshot, before: Snapshot) -> Mapping[Labels, float]:
        """Return the present values."""
        return {group: value for group, (value,) in now.items()}


@frozen(kw_only=True)
class Increase(_Check):
    """Compares by how much a counter has grown within the window."""

    window_seconds: float
    begins_with_first: bool = False
    """The series begins with its first count, which `increase` does not see."""

    @property
    def measured(self) -> str:
        """The PromQL expression of the value that is compared."""
        return f"sum{_grouping(self.by)}(increase({self.metric}{_matchers(self.where)}[{_window(self)}]))"

    @property
    def expression(self) -> str:
        """The PromQL expression that has a result while the condition holds."""
        usual = super().expression
        if not self.begins_with_first:
            return usual
        metric = self.metric + _matchers(self.where)
        first = f"sum{_grouping(self.by)}({metric} unless {metric} offset {_window(self)})"
        return f"{usual} or {first} {self.comparison} {self.threshold:g}"

    def read(self, families: Families) -> Snapshot:
        """Return the count of each group."""
        return {group: (count,) for group, count in self._sums(families, self.metric, self.where).items()}

    def values(self, now: Snapshot, before: Snapshot) -> Mapping[Labels, float]:
        """Return the growth of each group."""
        return {group: grown for group, (grown,) in _growth(now, before).items()}


@frozen(kw_only=True)
class Share(_Check):
    """Compares a share: how much of what the counter *total* counts within the window *metric* counts."""

    window_seconds: float
    total: str
    total_where: Matchers = field(factory=dict)

    @property
    def measured(self) -> str:
        """The PromQL expression of the value that is compared."""
        by = _grouping(self.by)
        part = f"sum{by}(rate({self.metric}{_matchers(self.where)}[{_window(self)}]))"
        return f"{part} / sum{by}(rate({self.total}{_matchers(self.total_where)}[{_window(self)}]))"

    def read(self, families: Families) -> Snapshot:
        """Return the two counts of each group."""
        parts = self._sums(families, self.metric, self.where)
        totals = self._sums(families, self.total, self.total_where)
        return {group: (parts.get(group, 0.0), total) for group, total in totals.items()}

    def values(self, now: Snapshot, before: Snapshot) -> Mapping[Labels, float]:
        """Return the share of each group that has counted anything."""
        return {group: part / total for group, (part, total) in _growth(now, before).items() if total > 0}


@frozen(kw_only=True)
class Quantile(_Check):
    """Compares a quantile of what a histogram has observed within the window."""

    quantile: float
    window_seconds: float
    bounds: tuple[float, ...]
    """Of the histogram's buckets, without infinity."""

    @property
    def measured(self) -> str:
        """The PromQL expression of the value that is compared."""
        rates = f"rate({self.metric}_bucket{_matchers(self.where)}[{_window(self)}])"
        by = _grouping((*self.by, "le"))
        return f"histogram_quantile({self.quantile:g}, sum{by}({rates}))"

    def read(self, families: Families) -> Snapshot:
        """Return the counts in the buckets of each group."""
        found: dict[Labels, tuple[float, ...]] = {}
        for group, child in self._groups(families, self.metric, self.where):
            counts = tuple(float(count) for count in child.counts)
            found[group] = _sum(found[group], counts) if group in found else counts
        return found

    def values(self, now: Snapshot, before: Snapshot) -> Mapping[Labels, float]:
        """Return the quantile of each group that has observed anything, as ``histogram_quantile`` interpolates it."""
        return {group: self._quantile(counts) for group, counts in _growth(now, before).items() if sum(counts) > 0}

    def _quantile(self, counts: tuple[float, ...]) -> float:
        rank, below, lower = self.quantile * sum(counts), 0.0, 0.0
        for bound, count, cumulated in zip(self.bounds, counts, accumulate(counts), strict=False):
            if cumulated >= rank:
                return lower + (bound - lower) * (rank - below) / count if count else bound
            below, lower = cumulated, bound
        return self.bounds[-1]  # beyond the last bucket


@frozen(kw_only=True)
class Scraped(_Comparison):
    """A check that only Prometheus can make, such as whether a process answers it."""

    measured: str
    window_seconds: float = field(default=0.0, init=False)

    def read(self, families: Families) -> Snapshot:
        """Return nothing."""
        return {}

    def values(self, now: Snapshot, before: Snapshot) -> Mapping[Labels, float]:
        """Return nothing."""
        return {}


def _number(child: Counter | Histogram) -> float | None:
    return child.read() if isinstance(child, Counter) else float(sum(child.counts))


def _growth(now: Snapshot, before: Snapshot) -> dict[Labels, tuple[float, ...]]:
    return {
        group: tuple(a - b for a, b in zip(counts, before.get(group, (0.0,) * len(counts)), strict=True))
        for group, counts in now.items()
    }


def _sum(one: tuple[float, ...], other: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(a + b for a, b in zip(one, other, strict=True))


def _window(check: Increase | Share | Quantile) -> str:
    return f"{check.window_seconds / 60:g}m"


def _grouping(by: tuple[str, ...]) -> str:
    return f" by ({', '.join(by)}) " if by else ""


def _matchers(where: Matchers) -> str:
    pairs = (f'{name}{"=" if _PLAIN(pattern) else "=~"}"{pattern}"' for name, pattern in where.items())
    return f"{{{','.join(pairs)}}}" if where else ""
