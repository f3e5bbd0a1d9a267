"""Traces and metrics, as a collector receives them from one process."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.process.client import Client, eventually
from tests.process.collector import OVER_BUS, TREE, Collector, Span, tree
from tests.process.conftest import Serve
from tests.process.server import SEPARATE_DATABASES, Server

pytestmark = pytest.mark.slow

Connect = Callable[[Server], Client]

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED = {"traceparent": f"00-{TRACE}-{CALLER}-01"}
PRIVATE = "customer-4711"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


async def place(client: Client, **headers: str) -> str:
    """Place an order of one product and return its id once it has ended."""
    await client.stock("SKU-1", 100)
    order = {"customer_id": PRIVATE, "items": [{"product_id": "SKU-1", "quantity": 1}]}
    reply = await client.request("POST", "/v1/orders?note=private", order, headers=headers)
    order_id: str = reply.body["order_id"]
    await eventually(lambda: client.get(f"/v1/orders/{order_id}"), lambda found: found["status"] == "confirmed", 120)
    return order_id


def named(spans: list[Span], name: str) -> Span:
    (found,) = (span for span in spans if span.name == name)
    return found


async def test_one_order_is_one_trace(serve: Serve, connect: Connect, collector: Collector) -> None:
    """From the request to the provider and the confirmation; it continues the caller's trace under the caller's span."""
    order_id = await place(connect(serve(**collector.settings)), **SAMPLED)
    spans = collector.trace(TRACE, len(TREE.splitlines()))
    assert tree(spans) == TREE
    request = named(spans, "POST /v1/orders")
    assert request.parent_id == CALLER
    assert request.attributes["http.response.status_code"] == 202
    assert request.attributes["url.path"] == "/v1/orders"
    assert named(spans, "process OrderSubmitted").attributes["fulfilment.order_id"] == order_id
    published = named(spans, "publish orders.created.v2").attributes
    assert published["messaging.system"] == "in_memory"
    assert published["messaging.destination.name"] == "orders.created.v2"
    assert published["messaging.operation.type"] == "send"
    assert not any(span.is_error for span in spans)
    assert PRIVATE.encode() not in b"".join(collector.bodies)
    assert b"private" not in b"".join(collector.bodies), "the query of a request may name a customer"


async def test_a_transaction_about_a_batch_is_linked_with_what_it_decided(
    serve: Serve, connect: Connect, collector: Collector
) -> None:
    """Its span has a trace of its own; both sides of a link name the other, so a reader gets from one to the other."""
    await place(connect(serve(**collector.settings)), **SAMPLED)
    spans = {span.span_id: span for span in collector.trace(TRACE, len(TREE.splitlines()))}
    transactions = [span for span in collector.spans if span.name.startswith("transaction") and span.links]
    linked = {span_id: each for each in transactions for trace_id, span_id in each.links if trace_id == TRACE}
    decided = [span for span in spans.values() if span.links]
    assert {span.span_id for span in decided} == linked.keys()
    for span in decided:
        transaction = linked[span.span_id]
        assert list(span.links) == [(transaction.trace_id, transaction.span_id)]
        assert transaction.trace_id != TRACE
        assert transaction.attributes["db.system.name"] == "sqlite"
    first = linked[named(list(spans.values()), "process OrderSubmitted").span_id]
    assert first.attributes["db.operation.batch.size"] == 4, "local delivery: four decisions in one transaction"


async def test_with_a_database_for_each_module_the_trace_is_the_same(
    serve: Serve, connect: Connect, collector: Collector
) -> None:
    """Every event goes through outbox and bus then: the same spans, in more transactions, and the older versions."""
    await place(connect(serve(**collector.settings, **SEPARATE_DATABASES)), **SAMPLED)
    assert tree(collector.trace(TRACE, len(OVER_BUS.splitlines()))) == OVER_BUS


async def test_a_trace_is_sampled_where_it_begins(serve: Serve, connect: Connect, collector: Collector) -> None:
    """A caller's decision is followed; a trace that begins here is sampled with the ratio, which is 0 here."""
    client = connect(serve(**collector.settings | {"OTEL_TRACES_SAMPLER_ARG": "0"}))
    await place(client)
    await place(client, traceparent=SAMPLED["traceparent"].replace(TRACE, "1" * 32)[:-2] + "00")
    await place(client, **SAMPLED)
    spans = collector.trace(TRACE, len(TREE.splitlines()))
    assert tree(spans) == TREE
    assert {span.trace_id for span in collector.spans if not span.name.startswith("transaction")} == {TRACE}


async def test_an_http_worker_makes_the_span_of_its_request(
    serve: Serve, connect: Connect, collector: Collector
) -> None:
    """The request is answered in one process and processed in another; the trace is the same."""
    server = serve(**collector.settings, HTTP_WORKERS="1")
    await place(connect(server), **SAMPLED)
    assert tree(collector.trace(TRACE, len(TREE.splitlines()))) == TREE


async def test_metrics_arrive_with_the_names_and_numbers_of_the_page(
    serve: Serve, connect: Connect, collector: Collector
) -> None:
    """A counter, a histogram and a gauge; an order counts once there and once here."""
    server = serve(
        **collector.settings | {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_HEADERS": "x-tenant=shop"}
    )
    client = connect(server)
    await place(client, **SAMPLED)

    def confirmed() -> Any:
        return collector.metrics.get("orders_total", {}).get(("confirmed",))

    collector.wait_for(lambda: confirmed() is not None and confirmed().as_double == 1)
    counter = confirmed()
    assert counter.start_time_unix_nano < counter.time_unix_nano
    (duration,) = collector.metrics["order_duration_seconds"].values()
    assert (duration.count, sum(duration.bucket_counts)) == (1, 1)
    assert len(duration.explicit_bounds) + 1 == len(duration.bucket_counts)
    assert collector.metrics["bus_connected"][()].as_double == 1
    page = (await client.request("GET", "/metrics")).text
    names = {
        name
        for name in re.findall(r"^# TYPE (\w+)", page, re.MULTILINE)
        if re.search(rf"^{name}\S* ", page, re.MULTILINE)
    }
    collector.wait_for(lambda: names <= collector.metrics.keys())
    assert collector.spans == []
    assert collector.headers[0]["x-tenant"] == "shop"


async def test_a_collector_that_is_away_changes_nothing_but_a_counter(serve: Serve, connect: Connect) -> None:
    """Orders go on, what is not taken is counted, one line reports it, and the process ends in time."""
    with Collector() as collector:
        settings = collector.settings
    server = serve(**settings, OTEL_EXPORTER_OTLP_TIMEOUT="3")
    client = connect(server)
    await place(client, **SAMPLED)

    async def dropped() -> float:
        page = (await client.request("GET", "/metrics")).text
        found = re.search(r'^telemetry_dropped_total\{signal="spans"\} (\S+)', page, re.MULTILINE)
        return float(found[1]) if found else 0

    assert await eventually(dropped, lambda count: count >= len(TREE.splitlines()))
    await place(client, **SAMPLED)
    server.wait_for_line(lambda line: "takes no data" in line and '"spans"' in line)
    lines = [line for line in server.lines if "takes no data" in line and '"spans"' in line]
    assert len(lines) == 1
    assert "refused" in lines[0], "the reason is named"
    with Collector(port=collector.port) as back:
        await place(client, **SAMPLED)
        back.wait_for(lambda: any(span.name == "publish orders.confirmed.v1" for span in back.spans))
        server.wait_for_line(lambda line: "takes data again" in line and '"spans"' in line)
    began = time.monotonic()
    server.send(signal.SIGTERM)
    assert server.wait() == 0
    assert time.monotonic() - began < 20
    assert server.stderr == ""
