"""Load tests against a correct server, and against servers with faults."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import ClientSession
from aiohttp.test_utils import TestServer
from yarl import URL

from app.cli.loadtest import Failed, LoadOptions, Progress, Result, Stop, Unreachable, order_tracker, run_load_test
from app.cli.loadtest.http_client import Connection, Response
from app.cli.loadtest.order_sender import OrderSender
from app.cli.loadtest.order_tracker import PAGE, OrderTracker
from app.cli.loadtest.report import Tally
from tests.cli.loadtest.fake_server import STEP, FakeServer

MEMBERS = [
    "orders",
    "accepted",
    "confirmed",
    "cancelled",
    "lost",
    "seconds",
    "accepted_per_s",
    "completed_per_s",
    "accept_ms",
    "complete_ms",
]


async def measured(
    url: str,
    orders: int,
    concurrency: int,
    rate: float | None = None,
    *,
    progress: Callable[[Progress], None] | None = None,
    stop: Stop | None = None,
    **options: Any,
) -> Result:
    """Run a load test against the server at *url*."""
    return await run_load_test(LoadOptions(url, orders, concurrency, rate, **options), progress=progress, stop=stop)


@pytest.mark.slow
async def test_every_order_is_placed_once_and_its_end_is_counted(server: FakeServer) -> None:
    """accepted = confirmed + cancelled + lost; the orders are spread over customers of `PAGE` orders."""
    server.behaviour = lambda number: "cancel" if number % 10 == 0 else "confirm"
    server.open_polls = 1
    result = await measured(server.url, 450, 8)
    assert (result["orders"], result["accepted"], result["lost"]) == (450, 450, 0)
    assert (result["confirmed"], result["cancelled"]) == (405, 45)
    assert len(server.posts) == 450
    assert len({body["customer_id"] for body in server.bodies}) == 450 // PAGE


async def test_the_api_key_is_sent_with_every_request(server: FakeServer) -> None:
    """With stock, orders and lists; without it no order is placed."""
    server.key = "0123456789abcdef"
    result = await measured(server.url, 60, 4, inventory_url=server.url, key=server.key)
    assert (result["accepted"], result["confirmed"], result["lost"]) == (60, 60, 0)
    with pytest.raises(Failed, match="answered with 401"):
        await measured(server.url, 60, 4)
    assert len(server.posts) == 60


async def test_the_connections_are_spread_over_all_replicas(server: FakeServer) -> None:
    """With one replica beside the server, every second connection goes to the replica."""
    opened = 0

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal opened
        opened += 1
        url = URL(server.url)
        upstream, sink = await asyncio.open_connection(url.host, url.port)
        await asyncio.gather(copy(reader, sink), copy(upstream, writer))

    async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65_536):
            sink.write(data)
        sink.close()

    async with await asyncio.start_server(forward, "127.0.0.1", 0) as replica:
        port = replica.sockets[0].getsockname()[1]
        result = await measured(server.url, 60, 4, replica_urls=[f"http://127.0.0.1:{port}"])
    assert (result["confirmed"], opened) == (60, 2)


async def test_the_result_has_the_documented_members_and_no_others(server: FakeServer) -> None:
    """The names and the order of the members are a contract."""
    result = await measured(server.url, 20, 4)
    assert list(result) == MEMBERS
    assert list(result["accept_ms"]) == list(result["complete_ms"]) == ["p50", "p95", "p99"]


async def test_the_tracker_pauses_after_a_poll_until_the_last_order_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pause is long while orders are sent, in order not to disturb the server; then the tracker catches up."""
    monkeypatch.setattr(order_tracker, "SENDING_PAUSE_FACTOR", 1_000_000)
    async with ClientSession() as session:
        tracker = OrderTracker(session, URL("http://127.0.0.1"), "run", Tally(orders=1), patience_seconds=1.0)
        pausing = asyncio.create_task(tracker._pause(0.001))
        for _ in range(100):
            await asyncio.sleep(0)
        assert not pausing.done()
        tracker.close_input()
        async with asyncio.timeout(30):
            await pausing
            await tracker._pause(0.001)


async def test_an_end_is_dated_by_the_servers_stamps(server: FakeServer) -> None:
    """POST to end = POST to 202 + (final entry - created_at); later changes and late polls do not count."""
    server.open_polls = 2
    result = await measured(server.url, 1, 1)
    accept, complete = result["accept_ms"]["p50"], result["complete_ms"]["p50"]
    assert accept is not None
    assert complete is not None
    assert complete == pytest.approx(accept + STEP.total_seconds() * 1000, abs=0.002)
    assert result["seconds"] == pytest.approx(complete / 1000, abs=0.002)
    assert result["completed_per_s"] == pytest.approx(1 / result["seconds"], rel=0.1)


async def test_an_order_counts_as_accepted_when_its_response_arrived() -> None:
    """The delay until the load test processes the response is not the server's."""
    arrived_at = 12_345.0

    class StampedConnection(Connection):
        async def send(self, request: bytes) -> Response:
            return Response(202, b'{"order_id":"o-1"}', 1.0, arrived_at)

    url, tally = URL("http://127.0.0.1"), Tally(orders=1)
    async with ClientSession() as session:
        tracker = OrderTracker(session, url, "run", tally, patience_seconds=1.0)
        customer = tracker.customer(0)
        connections = [StampedConnection(url)]
        sender = OrderSender(
            connections, lambda number: b"", tracker, tally, rate=None, patience_seconds=1.0, stop=Stop()
        )
        await sender.run()
    [(_, answered_at)] = customer.waiting.values()
    assert answered_at == arrived_at


async def test_an_accepted_order_that_cannot_be_found_is_lost(server: FakeServer) -> None:
    """A 202 whose order does not exist must never go unnoticed."""
    server.behaviour = lambda number: "lose" if number == 7 else "confirm"
    result = await measured(server.url, 30, 4, patience_seconds=0.4)
    assert (result["accepted"], result["confirmed"], result["lost"]) == (30, 29, 1)


@pytest.mark.slow
async def test_an_order_that_does_not_end_is_lost(server: FakeServer) -> None:
    """The patience with an open order ends when no order has ended for as long."""
    server.behaviour = lambda number: "hold" if number in (3, 4) else "confirm"
    result = await measured(server.url, 30, 4, patience_seconds=0.4)
    assert (result["confirmed"], result["lost"]) == (28, 2)


async def test_two_202s_with_one_order_id_are_one_lost_order(server: FakeServer) -> None:
    """Each 202 must belong to a different order."""
    server.behaviour = lambda number: {5: "duplicate id"}.get(number, "confirm")
    result = await measured(server.url, 10, 1, patience_seconds=0.4)
    assert (result["accepted"], result["confirmed"], result["lost"]) == (10, 9, 1)


async def test_a_duplicate_id_and_an_order_that_does_not_end_are_two_lost_orders(server: FakeServer) -> None:
    """Each loss counts, even for the same customer."""
    server.behaviour = lambda number: {5: "duplicate id", 8: "hold"}.get(number, "confirm")
    result = await measured(server.url, 10, 1, patience_seconds=0.4)
    assert (result["accepted"], result["confirmed"], result["lost"]) == (10, 8, 2)


async def test_a_rejected_order_is_sent_again_after_its_retry_after(server: FakeServer) -> None:
    """After a 503 the order is repeated until it is placed; the 503 does not count as an order."""
    server.behaviour = lambda number: "reject" if number % 3 == 0 else "confirm"
    result = await measured(server.url, 60, 4)
    assert (result["accepted"], result["confirmed"], result["lost"]) == (60, 60, 0)
    assert len(server.posts) > 60


@pytest.mark.slow
async def test_the_retry_after_is_respected_and_part_of_the_time_of_the_order(server: FakeServer) -> None:
    """The second POST is not sent before the Retry-After has passed; the time of the order runs on."""
    server.behaviour = lambda number: "reject" if number == 0 else "confirm"
    server.retry_after = "1"
    result = await measured(server.url, 1, 1)
    assert len(server.posts) == 2
    assert (result["accept_ms"]["p50"] or 0) >= 999


async def test_a_server_that_only_rejects_ends_the_run(server: FakeServer) -> None:
    """Rejections are repeated until the patience is over; the orders accepted before are still reported."""
    server.behaviour = lambda number: "confirm" if number < 5 else "reject"
    with pytest.raises(Failed, match=r"no order was accepted for 0\.4 s.*503") as failed:
        await measured(server.url, 100, 2, patience_seconds=0.4)
    assert failed.value.result is not None
    assert (failed.value.result["accepted"], failed.value.result["confirmed"]) == (5, 5)


async def test_any_other_status_ends_the_run_at_once(server: FakeServer) -> None:
    """A 500 is reported and not repeated."""
    server.behaviour = lambda number: "error" if number == 5 else "confirm"
    with pytest.raises(Failed, match=r"500.*internal_error"):
        await measured(server.url, 100, 1)
    assert len(server.posts) == 6


async def test_a_post_without_a_response_is_sent_again(server: FakeServer) -> None:
    """It does not count as accepted; another POST replaces it."""
    server.behaviour = lambda number: "disconnect" if number in (2, 9) else "confirm"
    result = await measured(server.url, 40, 4)
    assert (result["accepted"], result["confirmed"], result["lost"]) == (40, 40, 0)
    assert len(server.posts) == 42


@pytest.mark.slow
async def test_an_order_whose_202_was_lost_counts_for_the_stock_only(server: FakeServer) -> None:
    """The server has accepted the order although the response was lost: so its piece must be missing from the stock."""
    # The two oldest orders: beyond the first page of the list of their customer.
    server.behaviour = lambda number: "disconnect after accept" if number in (0, 1) else "confirm"
    server.open_polls = 1
    result = await measured(server.url, 200, 4)
    assert (result["accepted"], result["confirmed"], result["lost"]) == (200, 200, 0)
    assert len(server.accepted) == 202


async def test_an_order_that_appears_after_all_others_have_ended_counts_for_the_stock(server: FakeServer) -> None:
    """The server may accept a POST without a response after all other orders have ended."""
    server.behaviour = lambda number: "accept late" if number == 3 else "confirm"
    result = await measured(server.url, 20, 2)
    assert (result["accepted"], result["confirmed"], result["lost"]) == (20, 20, 0)
    assert len(server.accepted) == 21


async def test_an_order_that_ends_before_its_202_arrives_is_counted_once(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A poll of a growing list may show orders whose 202 has not arrived yet."""
    monkeypatch.setattr(order_tracker, "OPEN_POLL_SECONDS", 0.01)
    server.behaviour = lambda number: "respond late"
    result = await measured(server.url, 1, 1, patience_seconds=5)
    assert server.listings >= 2
    assert (result["accepted"], result["confirmed"], result["lost"]) == (1, 1, 0)


async def test_stock_that_does_not_match_fails_the_run(server: FakeServer) -> None:
    """The product is named, and the figures are still reported."""
    server.missing_stock = 1
    with pytest.raises(Failed, match=r"load-[0-9a-f]{8}-0000: 2 of \d+ confirmed, yet on_hand is \d+") as failed:
        await measured(server.url, 40, 4, patience_seconds=0.2)
    assert failed.value.result is not None
    assert failed.value.result["confirmed"] == 40


async def test_stock_that_stays_reserved_fails_the_run(server: FakeServer) -> None:
    """When every order has ended, nothing may be reserved."""
    server.stuck_reserved = 3
    with pytest.raises(Failed, match="reserved 3"):
        await measured(server.url, 40, 4, patience_seconds=0.2)


@pytest.mark.slow
async def test_stock_that_is_taken_late_extends_the_seconds(server: FakeServer) -> None:
    """A run lasts until the stock matches, which may be after the last order has ended."""
    server.late_stock_reads = 30
    result = await measured(server.url, 1, 1, products=1)
    assert server.late_stock_reads == 0
    # The first check comes a quarter of a second after the order; each of the thirty failing checks takes at least 20 ms.
    assert 1000 * result["seconds"] > (result["complete_ms"]["p99"] or 0) + 100


async def test_the_concurrency_is_reached_and_never_exceeded(server: FakeServer) -> None:
    """It is an upper bound on the POSTs in flight, and without a rate it is reached."""
    full = asyncio.Event()

    async def wait_until_full(number: int) -> None:
        if server.in_flight == 7:
            full.set()
        await full.wait()

    server.gate = wait_until_full
    await measured(server.url, 100, 7)
    assert server.in_flight_max == len(server.peers) == 7


async def test_with_a_rate_no_order_is_sent_before_it_is_due(server: FakeServer) -> None:
    """N orders at R per second take at least (N - 1) / R seconds."""
    result = await measured(server.url, 41, 8, 200.0)
    assert result["accepted"] == 41
    assert result["accepted_per_s"] <= 41 / (40 / 200 - 0.005)


async def test_with_a_rate_a_stall_is_part_of_the_time_of_every_order_it_delays(server: FakeServer) -> None:
    """No coordinated omission: the time of an order starts when it was due, not when a connection was free."""

    async def stall(number: int) -> None:
        if number == 0:
            await asyncio.sleep(0.3)

    server.gate = stall
    result = await measured(server.url, 20, 1, 10_000.0)
    assert (result["accept_ms"]["p50"] or 0) >= 290


async def test_tracking_needs_far_fewer_requests_than_orders(server: FakeServer) -> None:
    """One request fetches a page of orders."""
    await measured(server.url, 1000, 16)
    assert server.listings <= 1000 / 20


@pytest.mark.slow
async def test_a_stop_ends_the_sending_and_the_accepted_orders_are_followed(server: FakeServer) -> None:
    """After a stop every accepted order still reaches its end: accepted = confirmed."""
    stop = Stop()
    running = asyncio.create_task(measured(server.url, 1_000_000, 4, stop=stop))
    await server.many_posts.wait()
    stop.set()
    result = await running
    assert result["orders"] == 1_000_000
    assert 50 <= result["accepted"] == result["confirmed"] == len(server.posts) < 1_000_000
    assert result["lost"] == 0


async def test_a_stop_ends_the_wait_for_an_order_that_is_due_much_later(server: FakeServer) -> None:
    """A stop does not wait until the next order is due."""
    stop = Stop()
    running = asyncio.create_task(measured(server.url, 10, 2, 1 / 86_400, stop=stop))
    await server.first_post.wait()
    stop.set()
    assert (await running)["accepted"] == 1


async def test_the_last_progress_report_shows_the_final_state(server: FakeServer) -> None:
    """All orders placed and ended."""
    seen: list[Progress] = []
    await measured(server.url, 50, 4, progress=seen.append)
    assert (seen[-1].orders, seen[-1].placed, seen[-1].confirmed, seen[-1].cancelled) == (50, 50, 50, 0)


async def test_a_server_out_of_reach_is_a_separate_error(unused_tcp_port: int) -> None:
    """Unreachable is raised before an order is placed."""
    with pytest.raises(Unreachable, match="out of reach"):
        await measured(f"http://127.0.0.1:{unused_tcp_port}", 10, 2)


async def test_a_server_that_is_never_ready_is_out_of_reach(server: FakeServer) -> None:
    """A 503 for the products is repeated until the patience is over."""
    server.stock_status = 503
    with pytest.raises(Unreachable, match="not ready"):
        await measured(server.url, 10, 2, patience_seconds=0.1)
    assert server.posts == []


async def test_a_server_without_an_inventory_fails_the_run(server: FakeServer) -> None:
    """A process that does not run the module answers 404; the error shows it."""
    server.stock_status = 404
    with pytest.raises(Failed, match="404"):
        await measured(server.url, 10, 2)


async def test_the_stock_may_be_kept_by_another_server(server: FakeServer) -> None:
    """Orders go to one address; the products are created and checked at the other."""
    server.stock_status = 404
    inventory = FakeServer()
    async with TestServer(inventory.app()) as listener:
        with pytest.raises(Failed, match="1 of 1000000 confirmed, yet on_hand is 1000000"):
            await measured(server.url, 5, 1, inventory_url=str(listener.make_url("")), patience_seconds=0.4)
    assert (len(server.posts), len(inventory.posts)) == (5, 0)
