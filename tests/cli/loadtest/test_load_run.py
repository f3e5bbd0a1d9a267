"""A run against a shop that keeps its word, and against shops that do not."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import ClientSession
from aiohttp.test_utils import TestServer
from yarl import URL

from app.cli.loadtest import Failed, Progress, Stop, Unreachable, run_load_test
from app.cli.loadtest import order_tracker as following_room
from app.cli.loadtest.http_client import Answer, Connection
from app.cli.loadtest.order_sender import OrderSender
from app.cli.loadtest.order_tracker import PAGE, OrderTracker
from app.cli.loadtest.report import Tally
from tests.cli.loadtest.fake import STEP, FakeShop

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


async def test_every_order_is_placed_once_and_its_end_is_counted(shop: FakeShop) -> None:
    """accepted = confirmed + cancelled + lost, over as many customers as it takes."""
    shop.fate = lambda number: "cancel" if number % 10 == 0 else "confirm"
    shop.looks = 1
    result = await run_load_test(shop.url, 450, 8)
    assert (result["orders"], result["accepted"], result["lost"]) == (450, 450, 0)
    assert (result["confirmed"], result["cancelled"]) == (405, 45)
    assert len(shop.posts) == 450
    assert len({body["customer_id"] for body in shop.bodies}) == 450 // PAGE


async def test_a_shop_that_wants_a_key_is_given_it_with_every_request(shop: FakeShop) -> None:
    """Stock, orders and lists alike; without it nothing is placed."""
    shop.key = "0123456789abcdef"
    result = await run_load_test(shop.url, 60, 4, inventory_url=shop.url, key=shop.key)
    assert (result["accepted"], result["confirmed"], result["lost"]) == (60, 60, 0)
    with pytest.raises(Failed, match="answered with 401"):
        await run_load_test(shop.url, 60, 4)
    assert len(shop.posts) == 60


async def test_the_result_has_the_documented_members_and_no_others(shop: FakeShop) -> None:
    """The JSON object is a contract: names and order."""
    result = await run_load_test(shop.url, 20, 4)
    assert list(result) == MEMBERS
    assert list(result["accept_ms"]) == list(result["complete_ms"]) == ["p50", "p95", "p99"]


async def test_who_follows_disturbs_nobody_who_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a look there is a long rest, which ends with the placing; then it catches up."""
    monkeypatch.setattr(following_room, "PLACING_REST", 1_000_000)
    async with ClientSession() as session:
        following = OrderTracker(session, URL("http://127.0.0.1"), "run", Tally(orders=1), patience_seconds=1.0)
        resting = asyncio.create_task(following._rest(0.001))
        for _ in range(100):
            await asyncio.sleep(0)
        assert not resting.done()
        following.close_input()
        async with asyncio.timeout(5):
            await resting
            await following._rest(0.001)


async def test_an_end_is_dated_by_the_servers_stamps(shop: FakeShop) -> None:
    """POST to end = POST to 202 + (terminal entry - created_at); later news does not count, nor does looking late."""
    shop.looks = 2
    result = await run_load_test(shop.url, 1, 1)
    accept, complete = result["accept_ms"]["p50"], result["complete_ms"]["p50"]
    assert accept is not None
    assert complete is not None
    assert complete == pytest.approx(accept + STEP.total_seconds() * 1000, abs=0.002)
    assert result["seconds"] == pytest.approx(complete / 1000, abs=0.002)
    assert result["completed_per_s"] == pytest.approx(1 / result["seconds"], rel=0.1)


async def test_an_order_counts_as_answered_when_its_answer_came_in() -> None:
    """However long nobody has time to look at the answer: that is the generator's trouble, not the server's."""
    came_at = 12_345.0

    class Late(Connection):
        async def ask(self, request: bytes) -> Answer:
            return Answer(202, b'{"order_id":"o-1"}', 1.0, came_at)

    url, tally = URL("http://127.0.0.1"), Tally(orders=1)
    async with ClientSession() as session:
        following = OrderTracker(session, url, "run", tally, patience_seconds=1.0)
        customer = following.customer(0)
        placing = OrderSender([Late(url)], lambda number: b"", following, tally, rate=None, patience_seconds=1.0, stop=Stop())
        await placing.run()
    [(_, answered_at)] = customer.waiting.values()
    assert answered_at == came_at


async def test_an_accepted_order_that_cannot_be_found_is_lost(shop: FakeShop) -> None:
    """A 202 without an order behind it is the one thing that must never go unnoticed."""
    shop.fate = lambda number: "lose" if number == 7 else "confirm"
    result = await run_load_test(shop.url, 30, 4, patience_seconds=0.4)
    assert (result["accepted"], result["confirmed"], result["lost"]) == (30, 29, 1)


async def test_an_order_that_does_not_end_is_lost(shop: FakeShop) -> None:
    """Patience with an order ends when nothing has ended for as long."""
    shop.fate = lambda number: "hold" if number in (3, 4) else "confirm"
    result = await run_load_test(shop.url, 30, 4, patience_seconds=0.4)
    assert (result["confirmed"], result["lost"]) == (28, 2)


async def test_two_202s_for_one_order_are_one_order_lost(shop: FakeShop) -> None:
    """Each 202 promises an order of its own."""
    shop.fate = lambda number: {5: "repeat"}.get(number, "confirm")
    result = await run_load_test(shop.url, 10, 1, patience_seconds=0.4)
    assert (result["accepted"], result["confirmed"], result["lost"]) == (10, 9, 1)


async def test_two_202s_for_one_order_and_another_that_does_not_end_are_two_lost(shop: FakeShop) -> None:
    """Each loss counts, whatever else is wrong with its neighbours."""
    shop.fate = lambda number: {5: "repeat", 8: "hold"}.get(number, "confirm")
    result = await run_load_test(shop.url, 10, 1, patience_seconds=0.4)
    assert (result["accepted"], result["confirmed"], result["lost"]) == (10, 8, 2)


async def test_a_refusal_is_repeated_after_its_retry_after(shop: FakeShop) -> None:
    """503 means "again": every order is placed in the end, and no refusal is counted as an order."""
    shop.fate = lambda number: "shed" if number % 3 == 0 else "confirm"
    result = await run_load_test(shop.url, 60, 4)
    assert (result["accepted"], result["confirmed"], result["lost"]) == (60, 60, 0)
    assert len(shop.posts) > 60


async def test_a_retry_after_is_honoured_and_charged_to_the_order(shop: FakeShop) -> None:
    """The second try comes no sooner than asked for, and the order's time runs on meanwhile."""
    shop.fate = lambda number: "shed" if number == 0 else "confirm"
    shop.retry_after = "1"
    result = await run_load_test(shop.url, 1, 1)
    assert len(shop.posts) == 2
    assert (result["accept_ms"]["p50"] or 0) >= 999


async def test_a_server_that_only_refuses_ends_the_run(shop: FakeShop) -> None:
    """Refusals are borne for as long as patience lasts; what was accepted before is still reported."""
    shop.fate = lambda number: "confirm" if number < 5 else "shed"
    with pytest.raises(Failed, match=r"no order was taken for 0\.4 s.*503") as failed:
        await run_load_test(shop.url, 100, 2, patience_seconds=0.4)
    assert failed.value.result is not None
    assert (failed.value.result["accepted"], failed.value.result["confirmed"]) == (5, 5)


async def test_an_answer_that_is_neither_yes_nor_later_ends_the_run_at_once(shop: FakeShop) -> None:
    """A 500 is shown as it came, not repeated."""
    shop.fate = lambda number: "break" if number == 5 else "confirm"
    with pytest.raises(Failed, match=r"500.*internal_error"):
        await run_load_test(shop.url, 100, 1)
    assert len(shop.posts) == 6


async def test_a_cut_connection_costs_no_order(shop: FakeShop) -> None:
    """A POST without an answer is not accepted; a fresh one takes its place."""
    shop.fate = lambda number: "cut" if number in (2, 9) else "confirm"
    result = await run_load_test(shop.url, 40, 4)
    assert (result["accepted"], result["confirmed"], result["lost"]) == (40, 40, 0)
    assert len(shop.posts) == 42


async def test_an_order_whose_202_was_cut_off_is_held_against_the_stock_but_not_counted(shop: FakeShop) -> None:
    """The server may have taken what it could not say; then one piece more is rightly gone."""
    # The two oldest: beyond the first page of their customer's list.
    shop.fate = lambda number: "orphan" if number in (0, 1) else "confirm"
    shop.looks = 1
    result = await run_load_test(shop.url, 200, 4)
    assert (result["accepted"], result["confirmed"], result["lost"]) == (200, 200, 0)
    assert len(shop.accepted) == 202


async def test_an_order_that_appears_after_everything_else_has_ended_is_held_against_the_stock(shop: FakeShop) -> None:
    """A POST that was cut may still be on its way into the server when the rest is done."""
    shop.fate = lambda number: "ghost" if number == 3 else "confirm"
    result = await run_load_test(shop.url, 20, 2)
    assert (result["accepted"], result["confirmed"], result["lost"]) == (20, 20, 0)
    assert len(shop.accepted) == 21


async def test_an_order_that_ends_before_its_202_arrives_is_counted_once(
    shop: FakeShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look at a list that still grows may show orders nobody has been told of yet."""
    monkeypatch.setattr(following_room, "OPEN_LOOK_SECONDS", 0.01)
    shop.fate = lambda number: "dawdle"
    result = await run_load_test(shop.url, 1, 1, patience_seconds=5)
    assert shop.listings >= 2
    assert (result["accepted"], result["confirmed"], result["lost"]) == (1, 1, 0)


async def test_stock_that_does_not_match_fails_the_run(shop: FakeShop) -> None:
    """A piece gone without an order is named by its product, and the numbers are given all the same."""
    shop.leak = 1
    with pytest.raises(Failed, match=r"load-[0-9a-f]{8}-0000: 2 of \d+ confirmed, yet on_hand is \d+") as failed:
        await run_load_test(shop.url, 40, 4, patience_seconds=0.2)
    assert failed.value.result is not None
    assert failed.value.result["confirmed"] == 40


async def test_stock_that_stays_reserved_for_nobody_fails_the_run(shop: FakeShop) -> None:
    """When every order has ended, nothing is held."""
    shop.stuck = 3
    with pytest.raises(Failed, match="reserved 3"):
        await run_load_test(shop.url, 40, 4, patience_seconds=0.2)


async def test_stock_that_is_taken_late_counts_into_the_seconds(shop: FakeShop) -> None:
    """A run lasts until the stock is taken: longer than its last order, if the stock lags."""
    shop.looks_until_taken = 30
    result = await run_load_test(shop.url, 1, 1, products=1)
    assert shop.looks_until_taken == 0
    # The first look comes a quarter of a second after the order, the thirty that fail take 20 ms each at least.
    assert 1000 * result["seconds"] > (result["complete_ms"]["p99"] or 0) + 100


async def test_as_many_posts_are_in_flight_as_asked_for_and_never_more(shop: FakeShop) -> None:
    """Concurrency is a bound, and without a rate it is reached."""
    full = asyncio.Event()

    async def wait_for_a_full_system(number: int) -> None:
        if shop.in_flight == 7:
            full.set()
        await full.wait()

    shop.gate = wait_for_a_full_system
    await run_load_test(shop.url, 100, 7)
    assert shop.in_flight_max == len(shop.peers) == 7


async def test_with_a_rate_no_order_is_sent_before_it_is_due(shop: FakeShop) -> None:
    """N orders at R a second take at least (N - 1) / R seconds, however fast the server is."""
    result = await run_load_test(shop.url, 41, 8, 200.0)
    assert result["accepted"] == 41
    assert result["accepted_per_s"] <= 41 / (40 / 200 - 0.005)


async def test_with_a_rate_a_stall_is_charged_to_every_order_it_held_up(shop: FakeShop) -> None:
    """No coordinated omission: an order's time runs from when it was due, not from when there was a connection."""

    async def stall(number: int) -> None:
        if number == 0:
            await asyncio.sleep(0.3)

    shop.gate = stall
    result = await run_load_test(shop.url, 20, 1, 10_000.0)
    assert (result["accept_ms"]["p50"] or 0) >= 290


async def test_following_costs_far_less_than_a_request_per_order(shop: FakeShop) -> None:
    """Two hundred orders are one page."""
    await run_load_test(shop.url, 1000, 16)
    assert shop.listings <= 1000 / 20


async def test_a_stop_ends_the_placing_and_what_was_accepted_is_followed(shop: FakeShop) -> None:
    """After a stop nothing is left hanging: accepted = confirmed."""
    stop = Stop()
    running = asyncio.create_task(run_load_test(shop.url, 1_000_000, 4, stop=stop))
    await shop.busy.wait()
    stop.set()
    result = await running
    assert result["orders"] == 1_000_000
    assert 50 <= result["accepted"] == result["confirmed"] == len(shop.posts) < 1_000_000
    assert result["lost"] == 0


async def test_a_stop_wakes_who_waits_for_an_order_that_is_due_tomorrow(shop: FakeShop) -> None:
    """A stop does not wait for the schedule."""
    stop = Stop()
    running = asyncio.create_task(run_load_test(shop.url, 10, 2, 1 / 86_400, stop=stop))
    await shop.opened.wait()
    stop.set()
    assert (await running)["accepted"] == 1


async def test_progress_ends_with_everything(shop: FakeShop) -> None:
    """The last report of a run is its end."""
    seen: list[Progress] = []
    await run_load_test(shop.url, 50, 4, progress=seen.append)
    assert (seen[-1].orders, seen[-1].placed, seen[-1].confirmed, seen[-1].cancelled) == (50, 50, 50, 0)


async def test_no_server_is_told_apart_from_a_bad_one(unused_tcp_port: int) -> None:
    """Nobody there: Unreachable, before anything is placed."""
    with pytest.raises(Unreachable, match="out of reach"):
        await run_load_test(f"http://127.0.0.1:{unused_tcp_port}", 10, 2)


async def test_a_server_that_is_never_ready_is_out_of_reach(shop: FakeShop) -> None:
    """503 on the way in is waited out for as long as patience lasts."""
    shop.stock_status = 503
    with pytest.raises(Unreachable, match="not ready"):
        await run_load_test(shop.url, 10, 2, patience_seconds=0.1)
    assert shop.posts == []


async def test_a_server_without_an_inventory_fails_the_run(shop: FakeShop) -> None:
    """A process that does not run the module answers 404, and is shown to."""
    shop.stock_status = 404
    with pytest.raises(Failed, match="404"):
        await run_load_test(shop.url, 10, 2)


async def test_the_stock_may_be_kept_by_another_server(shop: FakeShop) -> None:
    """Orders go to one address; products are laid in and counted at the other."""
    shop.stock_status = 404
    shelves = FakeShop()
    async with TestServer(shelves.app()) as server:
        with pytest.raises(Failed, match="1 of 1000000 confirmed, yet on_hand is 1000000"):
            await run_load_test(shop.url, 5, 1, inventory_url=str(server.make_url("")), patience_seconds=0.4)
    assert (len(shop.posts), len(shelves.posts)) == (5, 0)
