"""The metrics of the process in the form that the SDK's exporter takes: the names and the numbers of ``/metrics``."""

from __future__ import annotations

__all__ = ["metric_data"]

import time
from collections.abc import Iterator, Mapping
from typing import Any

from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from app.telemetry import process
from app.telemetry.collectors import Counters, Family, Histograms

_UNITS = {"seconds": "s", "bytes": "By", "ratio": "1"}
"""By the last word of a metric's name, but for ``total``."""


def metric_data(families: Mapping[str, Family[Any]], resource: Resource, version: str) -> MetricsData:
    """Return the present values of *families*; counters and histograms count since the start of the process."""
    now, started_at = time.time_ns(), process.started_at()
    start = now if started_at is None else round(started_at * 1e9)
    metrics = [metric for family in families.values() for metric in _metric(family, start, now)]
    scope = ScopeMetrics(InstrumentationScope("fulfilment", version), metrics, "")
    return MetricsData([ResourceMetrics(resource, [scope], "")])


def _metric(family: Family[Any], start: int, now: int) -> Iterator[Metric]:
    data: Sum | Gauge | Histogram
    if isinstance(family, Histograms):
        points = [
            HistogramDataPoint(
                labels, start, now, sum(counts := list(child.counts)), child.sum, counts, child.bounds,
                min=None, max=None,  # type: ignore[arg-type] # optional in the protocol, and not kept
            )
            for labels, child in family.series()
        ]  # fmt: skip
        data = Histogram(points, AggregationTemporality.CUMULATIVE)
    else:
        numbers = [
            NumberDataPoint(labels, start, now, float(value))
            for labels, child in family.series()
            if (value := child.read()) is not None
        ]
        is_counter = isinstance(family, Counters)
        data = Sum(numbers, AggregationTemporality.CUMULATIVE, is_monotonic=True) if is_counter else Gauge(numbers)
    if data.data_points:
        unit = _UNITS.get(family.name.removesuffix("_total").rpartition("_")[2], "")
        yield Metric(family.name, family.doc, unit, data)
