"""The page at /metrics can always be parsed, and its names are those of the public contract."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable

import pytest
from aioprometheus.collectors import Counter, Registry
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from app.telemetry.collectors import SERIES_MAX, Counters, Formatter, Gauges, Histograms
from app.telemetry.metrics import CONTENT_TYPE, Metrics

ANY_TEXT = st.text(st.characters(codec=None)) | st.text(alphabet='\\"\n\r{}=,#\t\u2028\x85')

CONTRACT: dict[str, tuple[str, list[str]]] = {
    "http_requests_total": ("counter", ["method", "route", "status"]),
    "http_request_seconds": ("histogram", ["route"]),
    "messages_published_total": ("counter", ["subject"]),
    "messages_handled_total": ("counter", ["module", "subject", "outcome"]),
    "message_handle_seconds": ("histogram", ["module"]),
    "message_lag_seconds": ("histogram", ["module"]),
    "outbox_pending": ("gauge", ["module"]),
    "outbox_oldest_seconds": ("gauge", ["module"]),
    "module_leader": ("gauge", ["module"]),
    "dead_letters_total": ("counter", ["consumer", "subject"]),
    "orders_total": ("counter", ["status"]),
    "order_duration_seconds": ("histogram", []),
    "circuit_breaker_state": ("gauge", ["gateway"]),
    "payment_attempts_total": ("counter", ["outcome"]),
    "bus_connected": ("gauge", []),
    "bus_reconnects_total": ("counter", []),
}


def families(page: bytes) -> dict[str, Metric]:
    """Parse *page* with prometheus-client; return the families by their names on the page."""
    found = {}
    for family in text_string_to_metric_families(page.decode()):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        assert name not in found
        found[name] = family
    return found


def filled_metrics() -> Metrics:
    """Return metrics in which every family has a sample."""
    metrics = Metrics()
    metrics.http_requests.labels("POST", "/v1/orders", "202").inc()
    metrics.http_request_seconds.labels("/v1/orders").observe(0.003)
    metrics.messages_published.labels("orders.created.v1").inc()
    metrics.messages_handled.labels("inventory", "orders.created.v1", "done").inc()
    metrics.message_handle_seconds.labels("inventory").observe(0.001)
    metrics.message_lag_seconds.labels("inventory").observe(0.01)
    metrics.outbox_pending.labels("orders").set(3)
    metrics.outbox_oldest_seconds.labels("orders").set(1.5)
    metrics.module_leader.labels("orders").set(1)
    metrics.dead_letters.labels("payments", "orders.created.v1").inc()
    metrics.orders.labels("confirmed").inc()
    metrics.order_duration_seconds.observe(0.05)
    metrics.circuit_breaker_state.labels("simulated").set(2)
    metrics.payment_attempts.labels("captured").inc()
    metrics.bus_connected.set(1)
    metrics.bus_reconnects.inc()
    return metrics


def test_every_metric_of_the_contract_has_its_kind_and_labels() -> None:
    """Dashboards depend on name, kind and labels."""
    page = filled_metrics().render()
    for name, (kind, labels) in CONTRACT.items():
        assert f"# TYPE {name} {kind}\n".encode() in page
        family = families(page)[name]
        assert family.documentation
        assert {tuple(label for label in sample.labels if label != "le") for sample in family.samples} == {
            tuple(labels)
        }


def test_the_page_shows_the_recorded_values() -> None:
    """Counters, gauges and histograms."""
    page = filled_metrics().render().decode()
    for line in (
        'http_requests_total{method="POST",route="/v1/orders",status="202"} 1',
        'outbox_pending{module="orders"} 3',
        'outbox_oldest_seconds{module="orders"} 1.5',
        'module_leader{module="orders"} 1',
        'circuit_breaker_state{gateway="simulated"} 2',
        "bus_connected 1",
        "order_duration_seconds_count 1",
    ):
        assert line in page.splitlines()


def test_an_empty_page_announces_all_families() -> None:
    """Before anything was recorded; the page ends with a line feed."""
    page = Metrics().render()
    assert CONTRACT.keys() <= families(page).keys()
    assert page.endswith(b"\n")
    assert CONTENT_TYPE == "text/plain; version=0.0.4; charset=utf-8"


def test_two_applications_share_no_metrics() -> None:
    """Each has a registry of its own."""
    filled_metrics()
    assert b'orders_total{status="confirmed"}' not in Metrics().render()


def test_the_page_has_metrics_of_the_process() -> None:
    """Memory, CPU time and start time, under the names that every exporter uses."""
    found = families(Metrics().render())
    assert found["process_resident_memory_bytes"].samples[0].value > 1_000_000
    assert 0 < found["process_cpu_seconds_total"].samples[0].value <= time.process_time()
    assert 0 < time.time() - found["process_start_time_seconds"].samples[0].value < time.monotonic() + 60
    assert os.sysconf("SC_CLK_TCK") > 0


@given(st.lists(st.tuples(ANY_TEXT, ANY_TEXT), max_size=5), ANY_TEXT)
def test_any_label_value_and_help_text_can_be_parsed(pairs: list[tuple[str, str]], help: str) -> None:
    """Quotes, backslashes and line feeds are escaped; the parser returns the original text."""
    registry = Registry()
    counters = Counters(registry, "hostile_total", help, ["one", "two"])
    expected: dict[tuple[str, str], int] = {}
    for pair in pairs:
        counters.labels(*pair).inc()
        one, two = (value[:128].encode("utf-8", "replace").decode() for value in pair)
        expected[one, two] = expected.get((one, two), 0) + 1
    page = Formatter().marshall(registry)
    samples = [sample for family in text_string_to_metric_families(page.decode()) for sample in family.samples]
    assert {(sample.labels["one"], sample.labels["two"]): sample.value for sample in samples} == expected


@pytest.mark.parametrize("help", ["a \\ b", "a\nb", 'a "quoted" b', "a\\nb"])
def test_help_texts_are_escaped(help: str) -> None:
    """A line feed would begin an invalid line."""
    registry = Registry()
    Gauges(registry, "level", help)
    (family,) = text_string_to_metric_families(Formatter().marshall(registry).decode())
    assert family.documentation == help


def test_equal_labels_are_one_child() -> None:
    """Bound once or looked up each time, it is the same counter."""
    counters = Counters(Registry(), "some_total", "Some.", ["status"])
    bound = counters.labels("202")
    counters.labels("202").inc()
    counters.labels(202).inc()  # type: ignore[arg-type]
    bound.inc(2)
    assert bound.value == 4


def test_the_wrong_number_of_label_values_is_refused() -> None:
    """A programming error, found at the first call."""
    with pytest.raises(ValueError, match="takes 2 label values, not 1"):
        Counters(Registry(), "some_total", "Some.", ["one", "two"]).labels("x")


def test_unknown_http_methods_share_one_series() -> None:
    """A client that invents methods does not add a series for each."""
    metrics = Metrics()
    for method in ("BREW", "POST\n", "post", "x" * 5000):
        metrics.http_requests.labels(method, "unmatched", "405").inc()
    metrics.http_requests.labels("POST", "unmatched", "405").inc()
    samples = families(metrics.render())["http_requests_total"].samples
    assert {sample.labels["method"]: sample.value for sample in samples} == {"OTHER": 4, "POST": 1}


def test_the_number_of_series_of_a_family_is_limited() -> None:
    """Memory and page stay bounded whatever labels clients cause, and every increment is counted."""
    registry = Registry()
    counters = Counters(registry, "some_total", "Some.", ["one", "two"])
    for index in range(2 * SERIES_MAX):
        counters.labels(str(index), "x").inc()
    (family,) = text_string_to_metric_families(Formatter().marshall(registry).decode())
    assert len(family.samples) == SERIES_MAX
    assert sum(sample.value for sample in family.samples) == 2 * SERIES_MAX
    assert {"one": "OTHER", "two": "OTHER"} in [sample.labels for sample in family.samples]
    counters.labels("0", "x").inc()
    assert counters.labels("0", "x").value == 2


@given(st.lists(st.floats(min_value=0, max_value=1e6) | st.sampled_from([0.1, 0.5, 2.0])))
def test_buckets_are_cumulative(values: list[float]) -> None:
    """Each bucket counts the values up to its bound; +Inf equals the count."""
    registry = Registry()
    child = Histograms(registry, "seconds", "Time.", ["route"], [0.1, 0.5, 2.0]).labels("/")
    for value in values:
        child.observe(value)
    (family,) = text_string_to_metric_families(Formatter().marshall(registry).decode())
    found = {sample.labels.get("le", sample.name): sample.value for sample in family.samples}
    for bound in (0.1, 0.5, 2.0):
        assert found[str(bound)] == sum(value <= bound for value in values)
    assert found["+Inf"] == found["seconds_count"] == len(values)
    assert found["seconds_sum"] == pytest.approx(sum(values))


@pytest.mark.parametrize("value", [-1.0, -math.inf, math.nan])
def test_a_negative_value_counts_as_zero(value: float) -> None:
    """A clock that was set back must not decrease the sum, and NaN must not spoil it."""
    child = Histograms(Registry(), "seconds", "Time.", [], [0.1]).labels()
    child.observe(value)
    assert (child.sum, child.counts) == (0, [1, 0])


def test_a_gauge_can_call_a_function_at_each_scrape() -> None:
    """For a value that is kept elsewhere."""
    registry = Registry()
    depth = [1.0]
    Gauges(registry, "pending", "Waiting.", ["module"]).labels("orders").set_function(lambda: depth[0])
    assert b'pending{module="orders"} 1.0\n' in Formatter().marshall(registry)
    depth[0] = math.inf
    assert b'pending{module="orders"} +Inf\n' in Formatter().marshall(registry)


def fails() -> float:
    raise OSError("the database is unavailable")


@pytest.mark.parametrize("read", [fails, lambda: None])
def test_a_sample_whose_function_fails_is_left_out(read: Callable[[], float | None]) -> None:
    """The other metrics are needed most when something is wrong."""
    registry = Registry()
    gauges = Gauges(registry, "pending", "Waiting.", ["module"])
    gauges.labels("orders").set_function(read)
    gauges.labels("payments").set(2)
    (family,) = text_string_to_metric_families(Formatter().marshall(registry).decode())
    assert [(sample.labels, sample.value) for sample in family.samples] == [({"module": "payments"}, 2)]


def test_a_collector_of_the_library_is_refused() -> None:
    """Its text would not be escaped."""
    registry = Registry()
    Counter("some_total", "Some.", registry=registry)
    with pytest.raises(TypeError, match="some_total"):
        Formatter().marshall(registry)
