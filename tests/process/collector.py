"""An OpenTelemetry collector for tests: it receives OTLP over HTTP, decodes the protobuf and keeps what it was sent."""

from __future__ import annotations

__all__ = ["OVER_BUS", "TREE", "Collector", "Span", "tree"]

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from attrs import frozen
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Encoded

WAIT_SECONDS = 120.0

TREE = """
POST /v1/orders [server]
  process OrderSubmitted [internal]
    publish orders.created.v2 [producer]
      process orders.created.v2 [consumer inventory]
        publish inventory.reserved.v1 [producer]
          process inventory.reserved.v1 [consumer orders]
          process inventory.reserved.v1 [consumer payments]
            publish payments.charge_requested.v1 [producer]
              process ChargeSucceeded [internal]
                publish payments.captured.v1 [producer]
                  process payments.captured.v1 [consumer orders]
                    publish orders.confirmed.v1 [producer]
                      process orders.confirmed.v1 [consumer inventory]
              process payments.charge_requested.v1 [consumer payments-gateway]
                charge simulated [client]
""".strip()
"""The spans of an order that is confirmed, with local delivery, as `tree` draws them."""

OVER_BUS = TREE.replace("    publish orders.created.v2", "    publish orders.created.v1 [producer]\n    publish orders.created.v2")
"""The same where every event goes over the bus, in each of its versions."""


@frozen
class Span:
    """One span as it was received; ids are hexadecimal, the parent's is empty where the trace begins."""

    service: str
    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    attributes: Mapping[str, Any]
    links: Sequence[tuple[str, str]]
    is_error: bool
    seconds: float

    def __str__(self) -> str:
        consumer = self.attributes.get("messaging.consumer.group.name")
        return f"{self.name} [{self.kind}{'' if consumer is None else f' {consumer}'}]"


class Collector:
    """The collector, while the context is entered; *port* 0 picks a free one."""

    def __init__(self, port: int = 0) -> None:
        self.port = port
        self.spans: list[Span] = []
        self.metrics: dict[str, dict[tuple[str, ...], Any]] = {}
        """The latest points: by the metric's name, then by the values of its attributes."""
        self.bodies: list[bytes] = []
        self.headers: list[Mapping[str, str]] = []
        self._changed = threading.Condition()

    def __enter__(self) -> Collector:
        collector = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector._receive(self.path, body, dict(self.headers))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def settings(self) -> dict[str, str]:
        """The environment of a process that sends everything here, soon."""
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self.port}",
            "OTEL_TRACES_SAMPLER_ARG": "1",
            "OTEL_BSP_SCHEDULE_DELAY": "50",
            "OTEL_METRIC_EXPORT_INTERVAL": "100",
        }

    def wait_for(self, is_done: Callable[[], bool]) -> None:
        """Wait until *is_done* is true; it is asked after each request."""
        with self._changed:
            assert self._changed.wait_for(is_done, WAIT_SECONDS), [str(span) for span in self.spans]

    def trace(self, trace_id: str, count: int) -> list[Span]:
        """Return the spans of a trace once there are *count*."""
        self.wait_for(lambda: len(self._of(trace_id)) >= count)
        return self._of(trace_id)

    def _of(self, trace_id: str) -> list[Span]:
        return [span for span in self.spans if span.trace_id == trace_id]

    def _receive(self, path: str, body: bytes, headers: Mapping[str, str]) -> None:
        with self._changed:
            self.bodies.append(body)
            self.headers.append(headers)
            if path == "/v1/traces":
                for part in ExportTraceServiceRequest.FromString(body).resource_spans:
                    service = _attributes(part.resource.attributes)["service.name"]
                    self.spans += [_span(service, each) for scope in part.scope_spans for each in scope.spans]
            elif path == "/v1/metrics":
                for part in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                    for metric in (each for scope in part.scope_metrics for each in scope.metrics):
                        points = getattr(metric, metric.WhichOneof("data")).data_points
                        self.metrics[metric.name] = {tuple(map(str, _attributes(p.attributes).values())): p for p in points}
            self._changed.notify_all()


def tree(spans: Iterable[Span], indent: str = "") -> str:
    """Return *spans* as lines, each below its parent, siblings in the order of their text; a missing parent is an error."""
    spans = list(spans)
    ids = {span.span_id for span in spans}
    assert len(ids) == len(spans), "an id is used twice"
    children: dict[str, list[Span]] = {}
    for span in spans:
        children.setdefault(span.parent_id if span.parent_id in ids else "", []).append(span)

    def lines(parent: str, depth: int) -> list[str]:
        blocks = [[f"{'  ' * depth}{span}", *lines(span.span_id, depth + 1)] for span in children.get(parent, [])]
        return [line for block in sorted(blocks) for line in block]

    return "\n".join(lines("", 0))


def _span(service: str, span: Encoded) -> Span:
    seconds = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9
    assert seconds >= 0
    assert abs(span.end_time_unix_nano / 1e9 - time.time()) < 3600, "nanoseconds since 1970"
    return Span(
        service,
        span.name,
        Encoded.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_").lower(),
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        _attributes(span.attributes),
        [(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
        span.status.code == 2,
        seconds,
    )


def _attributes(pairs: Iterable[Any]) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}
