"""
Send traces and metrics to an OpenTelemetry collector, with the extra ``otel``.

The program keeps its trace context as W3C headers (`app.telemetry.trace`), whether or not a collector is configured. The
spans here have exactly the ids of these headers: a header names the span that its receiver continues. So nothing of a span has
to be stored or sent, and any process can make its part of a trace. Spans are built where something has ended, from what is
known anyway, and only for traces that are sampled; a thread of the SDK encodes and sends them.

Without an endpoint `start` does nothing: a span point is one comparison with None, and the SDK is not imported.
"""

from __future__ import annotations

__all__ = ["Instruments", "start", "stop"]

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from app.telemetry.collectors import Counters, Family
from app.telemetry.otel.collector_settings import CollectorSettings
from config.files import BadSetting

if TYPE_CHECKING:
    from app.telemetry.otel.pipeline import OpenTelemetry

_ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


class Instruments(Protocol):
    """The `app.telemetry.metrics.Metrics` of the process."""

    collector: OpenTelemetry | None
    telemetry_dropped: Counters

    @property
    def families(self) -> Mapping[str, Family[Any]]:
        """All metrics by name."""


def start(settings: CollectorSettings, version: str, instruments: Instruments, *, exports_metrics: bool = True) -> None:
    """
    Give *instruments* what sends spans and, if it *exports_metrics*, their values; nothing if *settings* name no collector.

    Call it before anything is built that keeps the tracer.

    Raises:
        BadSetting: A collector is named and the extra is not installed, or a variable of the SDK has a wrong value.
    """
    endpoints = settings.otel_exporter_otlp_endpoint, settings.otel_exporter_otlp_traces_endpoint
    if settings.otel_sdk_disabled or not any((*endpoints, settings.otel_exporter_otlp_metrics_endpoint)):
        return
    try:
        from app.telemetry.otel.pipeline import OpenTelemetry
    except ImportError as error:
        raise BadSetting(_ENDPOINT, f"needs an extra: pip install 'fulfilment[otel]' ({error.name} is missing)") from None
    families = instruments.families if exports_metrics else None
    try:
        instruments.collector = OpenTelemetry(settings, version, instruments.telemetry_dropped, families)
    except ValueError as error:
        raise BadSetting(_ENDPOINT, f"cannot be used: {error}") from None


def stop(instruments: Instruments) -> None:
    """Send what is left, for two seconds at most. It blocks: call it in a thread. Idempotent."""
    if instruments.collector is not None:
        instruments.collector.close()
