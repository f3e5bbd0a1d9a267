"""The parts of the connection to a collector, without a process."""

from __future__ import annotations

import asyncio
import logging
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased
from opentelemetry.trace import SpanKind, StatusCode

from app.telemetry import otel
from app.telemetry.metrics import Metrics
from app.telemetry.otel.collector_settings import CollectorSettings
from app.telemetry.otel.pipeline import SdkMessages
from app.telemetry.otel.sampling import Sampler, is_sampled
from app.telemetry.otel.span_ids import process_span_id
from app.telemetry.otel.tracer import LINKS_MAX, Tracer
from app.telemetry.trace import TraceContext
from config.files import BadSetting
from config.settings import SAMPLERS, Settings
from modules.registry import MODULES
from tests.architecture.tree import ROOT

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
HEADER = f"00-{TRACE}-{SPAN}-01"
COLLECTOR = "http://127.0.0.1:9"


class Spans(list[ReadableSpan]):
    """A tracer that samples everything, and its spans."""

    def __init__(self, sampler: str = "always_on") -> None:
        super().__init__()
        self.tracer = Tracer(self.append, Sampler(sampler, 1.0), Resource({}), "1", "nats")


def settings(**more: Any) -> Settings:
    return Settings(known_modules=MODULES, **more)


@given(st.integers(1, 2**128 - 1), st.floats(0, 1))
def test_a_ratio_samples_the_traces_that_the_sdk_samples(trace: int, ratio: float) -> None:
    """All services of a trace decide alike, whatever they are written in."""
    decided = Sampler("traceidratio", ratio).decide(f"00-{trace:032x}-{SPAN}-00", is_continued=False)
    decision: Any = TraceIdRatioBased(ratio).should_sample(None, trace, "").decision
    assert is_sampled(decided) == decision.is_sampled()
    assert decided[:53] == f"00-{trace:032x}-{SPAN}-"


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("flags", ["00", "01", "02", "03"])
def test_a_sampler_sets_the_flag_and_keeps_the_other_bits(name: str, flags: str) -> None:
    """A parent-based one follows the caller; each decides alone about a trace that begins here."""
    sampler, header = Sampler(name, 1.0), f"00-{TRACE}-{SPAN}-{flags}"
    own = not name.endswith("always_off")
    assert is_sampled(sampler.decide(header, is_continued=False)) == own
    followed = name.startswith("parentbased")
    assert is_sampled(sampler.decide(header, is_continued=True)) == (int(flags) % 2 == 1 if followed else own)
    assert int(sampler.decide(header, is_continued=False)[53:], 16) & 2 == int(flags) & 2


def test_a_request_continues_a_valid_header_and_begins_a_trace_otherwise() -> None:
    """The parent is the caller's span; a trace that begins here has none."""
    spans = Spans()
    for header in (HEADER, None, "00-nonsense", f"00-{'0' * 32}-{SPAN}-01"):
        request = spans.tracer.begin_request(header)
        spans.tracer.end_request(request, "GET", "/v1/orders/{order_id}", "http", "/v1/orders/1", 200)
    continued, *new = spans
    assert (continued.context.trace_id, continued.parent and continued.parent.span_id) == (int(TRACE, 16), int(SPAN, 16))
    assert [span.parent for span in new] == [None, None, None]
    assert len({span.context.trace_id for span in spans}) == 4


@pytest.mark.parametrize(("status", "error", "shown"), [(404, None, None), (503, None, "503"), (500, KeyError("x"), "KeyError")])
def test_only_a_fault_of_the_server_is_an_error(status: int, error: Exception | None, shown: str | None) -> None:
    """A client's mistake is none; the class of an exception is named, its text is not."""
    spans = Spans()
    request = spans.tracer.begin_request(None)
    request.error = error
    spans.tracer.end_request(request, "GET", "/x", "http", "/x", status)
    (span,) = spans
    assert (span.attributes or {}).get("error.type") == shown
    assert span.status.status_code is (StatusCode.UNSET if shown is None else StatusCode.ERROR)


def item(id: str, header: str = HEADER, cause: Any = None, subject: str = "orders.created.v2") -> Any:
    trace = TraceContext("c", header)
    return SimpleNamespace(id=id, origin_trace=trace, traceparent=header, cause=cause, event=object(), subject=subject)


def result(error: Exception | None = None, decision: Any = "decided") -> Any:
    return SimpleNamespace(error=error, decision=None if error else decision)


def commit(*pairs: tuple[Any, Any]) -> Any:
    items, results = zip(*pairs, strict=True)
    return {"inventory": SimpleNamespace(items=items, results=results)}


def test_a_transaction_without_a_sampled_item_has_no_span() -> None:
    """What is not sampled is not looked at: its ids are not even computed."""
    spans = Spans()
    spans.tracer.end_transactions([commit((SimpleNamespace(origin_trace=TraceContext("c", f"{HEADER[:-2]}00")), result()))], 0, "sqlite")
    assert spans == []


def test_what_a_message_did_is_shown() -> None:
    """Handled, repeated and failed; only the first has the id that later spans name as their parent."""
    spans = Spans()
    pairs = [(item("a"), result()), (item("b"), result(decision=None)), (item("c"), result(error=ValueError("private")))]
    spans.tracer.end_transactions([commit(*pairs)], 0.5, "postgresql")
    *processed, transaction = spans
    assert [span.attributes["fulfilment.outcome"] for span in processed if span.attributes] == ["handled", "repeated", "failed"]
    assert [span.status.status_code for span in processed] == [StatusCode.UNSET, StatusCode.UNSET, StatusCode.ERROR]
    assert [span.context.span_id == int(process_span_id(id, "inventory"), 16) for id, span in zip("abc", processed, strict=True)] == [
        True, False, False,
    ]  # fmt: skip
    assert transaction.status.status_code is StatusCode.UNSET, "its other items are committed"
    assert [link.context.span_id for link in transaction.links] == [span.context.span_id for span in processed]
    assert (transaction.end_time or 0) - (transaction.start_time or 0) == 500_000_000
    assert "private" not in str([span.to_json() for span in spans])


def test_a_transaction_of_which_nothing_is_left_is_an_error() -> None:
    """Its error is that of its items."""
    spans = Spans()
    spans.tracer.end_transactions([commit((item("a"), result(error=ValueError())))], 0, "sqlite")
    assert (spans[-1].attributes or {})["error.type"] == "ValueError"
    assert spans[-1].status.status_code is StatusCode.ERROR


def test_the_links_of_a_large_batch_are_limited() -> None:
    """By default the specification allows 128; the items have their spans anyway."""
    spans = Spans()
    spans.tracer.end_transactions([commit(*((item(str(n)), result()) for n in range(300)))], 0, "sqlite")
    assert len(spans) == 301
    assert len(spans[-1].links) == LINKS_MAX


async def test_a_call_to_a_provider_is_a_client_span_with_its_error() -> None:
    """It is the child of the request's span; other methods, and calls outside of a request, are passed on without one."""

    class Provider:
        name = "stripe"

        async def charge(self, key: str) -> str:
            if key == "bad":
                raise TimeoutError("private")
            return f"charged {key}"

    spans = Spans()
    traced = spans.tracer.traced(Provider(), "stripe", ["charge"])
    assert traced.name == "stripe"
    assert await traced.charge("outside") == "charged outside"
    assert spans == []
    with spans.tracer.processing("payments-gateway", "payments.charge_requested.v1", "1", TraceContext("c", HEADER)):
        assert await traced.charge("key") == "charged key"
        with pytest.raises(TimeoutError):
            await traced.charge("bad")
    good, bad, request = spans
    assert [span.kind for span in spans] == [SpanKind.CLIENT, SpanKind.CLIENT, SpanKind.CONSUMER]
    assert {span.parent and span.parent.span_id for span in (good, bad)} == {request.context.span_id}
    assert request.parent is not None
    assert request.parent.span_id == int(SPAN, 16)
    assert ((good.attributes or {}).get("error.type"), (bad.attributes or {}).get("error.type")) == (None, "TimeoutError")
    with spans.tracer.processing("payments-gateway", "s", "1", TraceContext("c", f"{HEADER[:-2]}00")):
        await traced.charge("key")
    assert len(spans) == 3, "a trace that is not sampled"


@pytest.mark.parametrize("outcome", ["cancelled", "failed", "false"])
async def test_a_message_that_is_published_again_later_has_no_span_yet(outcome: str) -> None:
    """Its id is that of the header: the attempt that succeeds has it."""
    spans, published = Spans(), asyncio.get_running_loop().create_future()
    row = SimpleNamespace(
        id="1", event_id="1", subject="orders.created.v1", causation_id="0", correlation_id="c", traceparent=HEADER, versions=None
    )
    spans.tracer.publish(row, published)
    if outcome == "cancelled":
        published.cancel()
    elif outcome == "failed":
        published.set_exception(ConnectionError())
    else:
        published.set_result(False)
    await asyncio.sleep(0)
    assert spans == []
    again = asyncio.get_running_loop().create_future()
    spans.tracer.publish(row, again)
    again.set_result(None)
    await asyncio.sleep(0)
    (span,) = spans
    assert span.context.span_id == int(SPAN, 16)
    assert span.parent is not None
    assert span.parent.span_id == int(process_span_id("0", "orders"), 16)


@pytest.mark.slow
def test_without_an_endpoint_nothing_is_imported(tmp_path: Path) -> None:
    """A process without a collector has no tracer, and pays neither time nor memory for the SDK."""
    code = (
        "import sys; from app.application import Application; from config.settings import Settings;"
        f"settings = Settings(known_modules={MODULES!r}, database_url='sqlite:///{tmp_path}/test.db');"
        "assert Application(settings).parts.metrics.tracer is None;"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize("more", [{}, {"otel_exporter_otlp_endpoint": COLLECTOR, "otel_sdk_disabled": True}])
def test_it_is_off_without_an_endpoint_or_when_it_is_disabled(more: dict[str, Any]) -> None:
    """Both leave the tracer out."""
    metrics = Metrics()
    otel.start(CollectorSettings.of(settings(**more)), "1", metrics)
    assert metrics.collector is None


def test_a_missing_extra_is_named_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """The operator reads what to install, not a traceback."""
    monkeypatch.delitem(sys.modules, "app.telemetry.otel.pipeline", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(BadSetting, match=r"OTEL_EXPORTER_OTLP_ENDPOINT.*pip install 'fulfilment\[otel\]'"):
        otel.start(CollectorSettings.of(settings(otel_exporter_otlp_endpoint=COLLECTOR)), "1", Metrics())


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "http/json"),
        ("OTEL_TRACES_EXPORTER", "zipkin"),
        ("OTEL_METRICS_EXPORTER", "prometheus"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "many"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "0"),
    ],
)
def test_what_is_not_supported_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    """A value that would be ignored is named instead."""
    monkeypatch.setenv(variable, value)
    with pytest.raises(BadSetting, match=variable):
        otel.start(CollectorSettings.of(settings(otel_exporter_otlp_endpoint=COLLECTOR)), "1", Metrics())


@pytest.mark.parametrize("variable", ["OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_TRACES_EXPORTER", "OTEL_BSP_MAX_QUEUE_SIZE"])
def test_an_empty_variable_is_one_that_is_not_set(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    """As the specification requires; a file of variables often has them empty."""
    monkeypatch.setenv(variable, "")
    metrics = Metrics()
    otel.start(CollectorSettings.of(settings(otel_exporter_otlp_traces_endpoint=COLLECTOR)), "1", metrics)
    assert metrics.tracer is not None
    otel.stop(metrics)


def test_the_reason_of_one_signal_is_not_that_of_the_other() -> None:
    """Spans and metrics are sent by a thread each, at the same time."""
    messages = SdkMessages()

    def fail(*texts: str) -> str:
        for text in texts:
            messages.handle(logging.LogRecord("opentelemetry", logging.ERROR, "", 0, text, None, None))
        return messages.reason

    with ThreadPoolExecutor(1) as other:
        assert fail("connection refused", "no more attempts") == "connection refused no more attempts"
        assert other.submit(fail, "400").result() == "400"
        assert messages.reason == "connection refused no more attempts"


def test_spans_beyond_the_queue_are_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A collector that takes the connection and never answers holds one batch; the rest of the queue has a limit."""
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "512")
    metrics = Metrics()
    before = set(threading.enumerate())
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}/v1/traces"
        otel.start(CollectorSettings.of(settings(otel_exporter_otlp_traces_endpoint=endpoint, otel_traces_sampler="always_on")), "1", metrics)
        assert metrics.tracer is not None
        for _ in range(2000):
            metrics.tracer.end_request(metrics.tracer.begin_request(None), "GET", "/x", "http", "/x", 200)
        assert 'telemetry_dropped_total{signal="spans"} 1488' in metrics.render().decode()
        began = time.monotonic()
        otel.stop(metrics)
        assert time.monotonic() - began < 20
        otel.stop(metrics)
    exporting = set(threading.enumerate()) - before
    deadline = time.monotonic() + 5
    for thread in exporting:
        thread.join(max(0, deadline - time.monotonic()))
    assert not any(thread.is_alive() for thread in exporting), "it still tries to reach the collector, which is away now"
