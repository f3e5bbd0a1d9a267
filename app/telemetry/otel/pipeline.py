"""What runs for OpenTelemetry in one process: the tracer, the threads that send, and what is counted about them."""

from __future__ import annotations

__all__ = ["OpenTelemetry", "SdkMessages"]

import logging
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from loguru import logger
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.environment_variables import OTEL_BSP_MAX_QUEUE_SIZE, OTEL_METRIC_EXPORT_INTERVAL
from opentelemetry.sdk.metrics.export import MetricExportResult
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from app.telemetry.collectors import Counters, Family
from app.telemetry.otel.collector_settings import CollectorSettings
from app.telemetry.otel.metric_data import metric_data
from app.telemetry.otel.sampling import Sampler
from app.telemetry.otel.tracer import Tracer

QUEUE_MAX = 2048
METRIC_INTERVAL_MS = 60_000
CLOSE_SECONDS = 2.0
"""How long the end of the process waits for the last spans and metrics to be sent."""

_PROTOCOL = "http/protobuf"
_PROTOCOLS = tuple(f"OTEL_EXPORTER_OTLP_{signal}PROTOCOL" for signal in ("", "TRACES_", "METRICS_"))


class _Last(threading.local):
    """The last messages of the calling thread: the error of the last attempt, then that no more are made."""

    def __init__(self) -> None:
        self.texts: deque[str] = deque(maxlen=2)


class SdkMessages(logging.Handler):
    """
    Keeps the SDK's last messages, which name the reason of a failure; it would write a line for each attempt.

    Each signal is sent by a thread of its own, which logs the attempts, too: so the reason is that of its signal.
    """

    def __init__(self) -> None:
        super().__init__()
        self._last = _Last()

    @property
    def reason(self) -> str:
        """Why the last attempt of the calling thread has failed."""
        return " ".join(self._last.texts)

    def emit(self, record: logging.LogRecord) -> None:
        self._last.texts.append(record.getMessage())


class _Deliveries:
    """Counts what the collector takes and does not take of one *signal*, and logs the change between the two."""

    def __init__(self, signal: str, endpoint: str, messages: SdkMessages) -> None:
        self._signal = signal
        self._endpoint = endpoint
        self._messages = messages
        self._is_failing = False
        self.done = 0
        self.dropped = 0

    def record(self, count: int, *, is_taken: bool) -> None:
        """Count *count* items that the collector has taken or not."""
        self.done += count
        if not is_taken:
            self.dropped += count
        if is_taken == self._is_failing:
            self._is_failing = not is_taken
            if is_taken:
                logger.info("the collector takes data again", signal=self._signal, dropped=self.dropped)
            else:
                logger.warning(
                    "the collector takes no data; spans and metrics are dropped until it does", signal=self._signal, endpoint=self._endpoint,
                    detail=self._messages.reason,
                )  # fmt: skip


class _SpanExporter(SpanExporter):
    """Passes spans to the SDK's exporter, in the thread of the SDK's processor."""

    def __init__(self, exporter: OTLPSpanExporter, deliveries: _Deliveries) -> None:
        self._exporter = exporter
        self._deliveries = deliveries
        self._is_shut_down = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = SpanExportResult.FAILURE
        try:
            if not self._is_shut_down:  # the SDK goes on with the next batch of its queue
                result = self._exporter.export(spans)
        finally:
            self._deliveries.record(len(spans), is_taken=result is SpanExportResult.SUCCESS)
        return result

    def shutdown(self) -> None:
        """End the waits between two attempts, and begin no further one. Idempotent."""
        if not self._is_shut_down:
            self._is_shut_down = True
            self._exporter.shutdown()  # type: ignore[no-untyped-call]


class OpenTelemetry:
    """
    The connection of one process to a collector.

    `tracer` is None where spans are not exported. Nothing here waits for the collector but threads: what it does not take in
    time is dropped, counted in ``telemetry_dropped_total`` and logged once.
    """

    def __init__(
        self, settings: CollectorSettings, version: str, dropped: Counters, families: Mapping[str, Family[Any]] | None
    ) -> None:
        """
        Begin to send to the collector that *settings* name; see `app.telemetry.otel.start`. The SDK reads the other variables from the environment.

        Raises:
            ValueError: A variable has a value that is not supported.
        """
        for variable in _PROTOCOLS:
            if (protocol := os.environ.get(variable) or _PROTOCOL) != _PROTOCOL:
                raise ValueError(f"{variable} {protocol} is not supported, {_PROTOCOL} is")
        messages = SdkMessages()
        sdk_logger = logging.getLogger("opentelemetry")
        sdk_logger.handlers, sdk_logger.propagate = [messages], False
        resource = _resource(settings, version)
        base, self._stopping = settings.otel_exporter_otlp_endpoint, threading.Event()
        self.tracer: Tracer | None = None
        self._metrics_thread: threading.Thread | None = None
        if (endpoint := settings.otel_exporter_otlp_traces_endpoint or _joined(base, "v1/traces")) and _is_on("TRACES"):
            self._spans = spans = _Deliveries("spans", endpoint, messages)
            self._queue_max = _whole(OTEL_BSP_MAX_QUEUE_SIZE, QUEUE_MAX)
            self._emitted = 0
            self._exporter = _SpanExporter(OTLPSpanExporter(endpoint=endpoint), spans)
            self._processor = BatchSpanProcessor(self._exporter)
            sampler = Sampler(settings.otel_traces_sampler, settings.otel_traces_sampler_arg)
            system = "nats" if settings.bus == "nats" else "in_memory"
            self.tracer = Tracer(self._on_end, sampler, resource, version, system)
            dropped.labels("spans").set_function(lambda: spans.dropped)
        endpoint = settings.otel_exporter_otlp_metrics_endpoint or _joined(base, "v1/metrics")
        if families is not None and endpoint and _is_on("METRICS"):
            self._points = points = _Deliveries("metrics", endpoint, messages)
            dropped.labels("metrics").set_function(lambda: points.dropped)
            self._metrics_exporter = exporter = OTLPMetricExporter(endpoint=endpoint)
            seconds = _whole(OTEL_METRIC_EXPORT_INTERVAL, METRIC_INTERVAL_MS) / 1000
            self._metrics_thread = threading.Thread(
                target=self._export_metrics, args=(exporter, families, resource, version, seconds), name="otel metrics", daemon=True
            )
            self._metrics_thread.start()

    def close(self) -> None:
        """
        Send what is left, for `CLOSE_SECONDS` at most. It blocks: call it in a thread. Idempotent.

        A request that the collector has not answered by then ends by its own time-out; no further one begins.
        """
        if self._stopping.is_set():
            return
        self._stopping.set()
        deadline = time.monotonic() + CLOSE_SECONDS
        threads = [] if self._metrics_thread is None else [self._metrics_thread]
        if self.tracer is not None:  # in a daemon thread: the SDK waits far longer for a collector that is out of reach
            threads.append(threading.Thread(target=self._processor.shutdown, daemon=True))
            threads[-1].start()
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if self.tracer is not None:
            self._exporter.shutdown()
        if self._metrics_thread is not None:
            self._metrics_exporter.shutdown()

    def _on_end(self, span: ReadableSpan) -> None:
        if self._emitted - self._spans.done >= self._queue_max:  # the SDK's queue would drop another one, and log each
            self._spans.dropped += 1
            return
        self._emitted += 1
        self._processor.on_end(span)

    def _export_metrics(
        self, exporter: OTLPMetricExporter, families: Mapping[str, Family[Any]], resource: Resource, version: str, seconds: float
    ) -> None:
        is_last = False
        while not is_last:
            is_last = self._stopping.wait(seconds)
            is_taken = False
            try:
                is_taken = exporter.export(metric_data(families, resource, version)) is MetricExportResult.SUCCESS
            except Exception as error:  # the next interval tries again
                logging.getLogger("opentelemetry").warning("%r", error)
            self._points.record(1, is_taken=is_taken)


def _resource(settings: CollectorSettings, version: str) -> Resource:
    """Return what describes this process; ``OTEL_SERVICE_NAME`` and ``OTEL_RESOURCE_ATTRIBUTES`` come first."""
    modules = "" if settings.modules == settings.known_modules else "-" + "-".join(settings.modules)
    own = {
        "service.namespace": "fulfilment",
        "service.name": f"fulfilment{modules}",
        "service.version": version,
        "service.instance.id": f"{socket.gethostname()}:{os.getpid()}",
    }
    return Resource.create({**own, **OTELResourceDetector().detect().attributes})


def _joined(base: str | None, path: str) -> str | None:
    return None if base is None else f"{base.rstrip('/')}/{path}"


def _is_on(signal: str) -> bool:
    """Return whether the variable of *signal* leaves OTLP as its exporter, or is not set."""
    value = os.environ.get(f"OTEL_{signal}_EXPORTER") or "otlp"
    if value not in ("otlp", "none"):
        raise ValueError(f"OTEL_{signal}_EXPORTER {value} is not supported, otlp and none are")
    return value == "otlp"


def _whole(variable: str, default: int) -> int:
    text = os.environ.get(variable) or str(default)
    if not text.isdecimal() or not int(text):
        raise ValueError(f"{variable} {text} is not a positive whole number")
    return int(text)
