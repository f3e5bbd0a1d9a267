"""One run: faults and clients, then everything heals, and the system must become idle within a bound; then it is checked."""

from __future__ import annotations

__all__ = ["Outcome", "run_plan"]

import asyncio
import itertools
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from attrs import evolve, frozen
from loguru import logger

from app.gateways.gateway_calls import CALL_SECONDS_MAX
from tests.simulation.broker.virtual_loop import client_time
from tests.simulation.checks.analytics import AnalyticsProcess
from tests.simulation.checks.books import final_failures, unfinished
from tests.simulation.checks.deadlines import check_deadlines
from tests.simulation.checks.fault_scenarios import run_fault_scenarios
from tests.simulation.checks.history import history_failures
from tests.simulation.checks.last_orders import LIMIT, place_last_orders
from tests.simulation.checks.outcomes import check_outcomes
from tests.simulation.checks.shop import Shop
from tests.simulation.database.dialect import virtual_retries
from tests.simulation.world.customers import persistent, run_customer, run_restock
from tests.simulation.world.loop import SimulatedLoop, Stuck, new_uuid
from tests.simulation.world.operator import operate
from tests.simulation.world.plan import Plan, Stock
from tests.simulation.world.scope import Killed, install
from tests.simulation.world.world import World

ORDER_SLACK_SECONDS = 30.0
"""How much later than its time-out an order may end after everything has healed."""

_LOOK_SECONDS = 0.1

IDLE_SECONDS_MAX = 1_800.0
"""Everything that follows from the orders is done so long after everything has healed."""

REPLICAS_IDLE_SECONDS_MAX = 600.0
"""The same with several processes of each module, in runs that are shorter."""

EXPECTED_ERRORS = (
    "dead letter", "the database is out of reach", "the database refuses work", "the payment provider does not accept",
    "gateway call failed", "the clock is", "a payment waits for a person",
)  # fmt: skip
"""What the product may log at ERROR in a run."""


@frozen
class Outcome:
    """What a run has led to; *failures* is empty if every promise was kept."""

    plan: Plan
    failures: tuple[str, ...]
    situations: Counter[str]
    trace: tuple[str, ...]
    orders: int


def run_plan(plan: Plan) -> Outcome:
    """Run *plan* in an event loop of its own."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="simulation-", dir=memory if memory.is_dir() else None))
    loop = SimulatedLoop()
    worlds: list[World] = []
    try:
        with _repeatable(plan):
            loop.run_until_complete(_run(plan, folder, worlds))
    except Stuck as error:
        worlds[0].fail(str(error))
    finally:
        loop.set_exception_handler(lambda loop, context: None)  # what is left is of no interest
        loop.close()
        shutil.rmtree(folder)
    (world,) = worlds
    return Outcome(plan, tuple(world.failures), world.situations, tuple(world.lines), len(world.orders))


@contextmanager
def _repeatable(plan: Plan) -> Iterator[None]:
    """Replace what the product takes from outside without a parameter: durations, the ids of replays, and the pauses of retries."""
    seed, ordinals = plan.seed, itertools.count()

    def new_id() -> str:
        return new_uuid(asyncio.get_running_loop().time(), f"{seed}/replay/{next(ordinals)}")

    nats_time = client_time(lambda: asyncio.get_running_loop().time())
    ids = mock.patch("app.messaging.dead_letters.rows.uuid7", new_id)
    file_id = mock.patch("app.analytics.analytics_file.token_hex", lambda length: "0" * 2 * length)
    with mock.patch("time.perf_counter", return_value=0.0), ids, file_id, nats_time, virtual_retries(plan.replicas, seed):
        yield


async def _run(plan: Plan, folder: Path, worlds: list[World]) -> None:
    loop = asyncio.get_running_loop()
    install(loop)
    world = World(plan, folder)
    worlds.append(world)
    loop.set_exception_handler(lambda loop, context: _on_loop_error(world, context))
    sink = logger.add(lambda text: _on_log(world, text), level="ERROR", format="{message}")
    try:
        await _play(world)
    finally:
        logger.remove(sink)
        world.close()


def _on_loop_error(world: World, context: dict[str, Any]) -> None:
    error = context.get("exception")
    if error is None or isinstance(error, Exception):
        world.fail(f"{context['message']}: {error!r}")


def _on_log(world: World, text: Any) -> None:
    record = text.record
    is_killed = record["exception"] is not None and record["exception"].type is Killed
    if is_killed or record["extra"].get("error") == repr(Killed()):
        return
    if not record["message"].startswith(EXPECTED_ERRORS):
        extra = {name: value for name, value in record["extra"].items() if name in ("error", "detail")}
        world.fail(f"the log has: {record['message']} {extra} {record['exception'] or ''}")


async def _play(world: World) -> None:
    plan, loop = world.plan, asyncio.get_running_loop()
    supervisors = [loop.create_task(world.keep_running(place)) for place in world.places]
    for stock in plan.stock:
        await _set_stock(world, stock)
    faults = [loop.create_task(world.cause(fault)) for fault in plan.faults]
    actors = [loop.create_task(run_customer(world, customer)) for customer in plan.customers]
    actors += [
        loop.create_task(run_restock(world, stock.product_id, number, at, quantity))
        for stock in plan.stock
        for number, (at, quantity) in enumerate(stock.restocks)
    ]
    watching = [loop.create_task(operate(world)), loop.create_task(check_deadlines(world))]
    analytics = None
    if plan.has_analytics:
        analytics = AnalyticsProcess(world, world.folder / "analytics.duckdb", random.Random(f"{plan.seed}/analytics"))
        watching.append(loop.create_task(analytics.keep_running()))
    if world.replicas.are_several:
        watching.append(loop.create_task(world.replicas.check_leads()))
    await asyncio.sleep(plan.seconds)
    for task in faults:
        task.cancel()
    await asyncio.gather(*faults, return_exceptions=True)
    world.heal()
    await _until_idle(world, actors)
    if not world.failures:
        await _trade(world)
    for task in watching:
        task.cancel()
        if task.done() and (error := task.exception()) is not None:
            world.fail(f"the operator: {error!r}")
    for task in actors:
        if task.done() and not task.cancelled() and (error := task.exception()) is not None:
            world.fail(f"a client: {error!r}")
    if analytics is not None and not world.failures:
        await asyncio.wait(watching)
        await analytics.check()
    await _check_loops(world)
    for task in (*supervisors, *actors):
        task.cancel()
    for place in world.places:
        if place.scope is not None:
            place.scope.is_killed = True
            await place.scope.clean_up()
        if place.process is not None:
            place.process.forget()
    if not world.failures:
        final_failures(world)
        check_outcomes(world)
        await history_failures(world)


async def _set_stock(world: World, stock: Stock) -> None:
    body = {"on_hand": stock.on_hand, "unit_price": {"amount": stock.price, "currency": stock.currency}}
    status, answer = await persistent(world, f"stock {stock.product_id}", "setProduct", {"product_id": stock.product_id}, body)
    if status != 200:
        world.fail(f"the stock of {stock.product_id}: {status} {answer}")
    world.stock[stock.product_id] = stock.on_hand


async def _until_idle(world: World, actors: list[asyncio.Task[None]]) -> None:
    """Wait until nothing is left to do, and every order is final within its time-out; or until something has failed."""
    began, seconds_max = world.now, REPLICAS_IDLE_SECONDS_MAX if world.replicas.are_several else IDLE_SECONDS_MAX
    while not world.failures and (left := [*_missing(world, actors), *unfinished(world)]):
        seconds = world.now - began
        is_late = seconds > world.plan.timeout_seconds + ORDER_SLACK_SECONDS + world.delay_seconds
        if is_late and (late := [each for each in left if each.startswith("order ")]):
            world.fail(f"liveness: {seconds:.0f} s after everything has healed: {late}")
        if seconds > seconds_max:
            world.fail(f"liveness: {seconds:.0f} s after everything has healed: {left}")
        await asyncio.sleep(1.0)
    world.note("idle")


def _missing(world: World, actors: list[asyncio.Task[None]]) -> list[str]:
    waiting = sum(not task.done() for task in actors)
    ended = [place for place in world.places if not place.is_dead and (place.process is None or place.process.scope.is_killed)]
    down = [f"process {place.number} is down" for place in ended]
    return [f"{waiting} clients wait", *down] if waiting else down


async def _trade(world: World) -> None:
    """Place orders of each kind now that everything works, and during some faults, at a provider without faults of its own."""
    provider = world.bank.provider
    provider.traits = evolve(
        provider.traits, limit=LIMIT, soft_declines=0.0, pending_charges=0.0, pending_refunds=0.0, failing_refunds=0.0
    )
    shop = Shop(world, lambda: _until_idle(world, []))
    try:
        await place_last_orders(shop)
        await run_fault_scenarios(shop)
    except Exception as error:
        world.fail(f"everything works, and a request ends with {error!r}")


async def _check_loops(world: World) -> None:
    """I7: no loop of a running process has ended, and nothing stays in its memory: what is in hand ends with its call."""
    running = [place.process for place in world.places if place.process is not None and not place.is_dead]
    for _ in range(round(CALL_SECONDS_MAX / _LOOK_SECONDS)):
        if not any(any(process.in_memory().values()) for process in running):
            break
        await asyncio.sleep(_LOOK_SECONDS)
    for place in world.places:
        if place.is_dead:
            continue
        if place.process is None:
            world.fail(f"liveness: process {place.number} does not run")
            continue
        for name, task in place.process.loops.items():
            if task.done():
                world.fail(f"{name} has ended: {task!r}")
        for what, count in place.process.in_memory().items():
            if count:
                world.fail(f"I7: {count} {what} are left in the memory of process {place.number}")
