"""One fault at a time, in a world in which everything else works: each has one right outcome, and takes a bounded time."""

from __future__ import annotations

__all__ = ["SCENARIOS", "run_fault_scenarios"]

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from attrs import evolve

from modules.values import Money
from tests.simulation.broker.faults import BrokerFault
from tests.simulation.checks.last_orders import LIMIT
from tests.simulation.checks.shop import Expected, Shop
from tests.simulation.database.server import DatabaseFault
from tests.simulation.disk.faults import DiskFault
from tests.simulation.provider.ledger import Refund
from tests.simulation.provider.weather import Answer, Call, Spell
from tests.simulation.world.network import BusFault
from tests.simulation.world.plan import Fault, FaultKind

PRODUCT = "sturdy"

RETRY_SECONDS = 30.0
"""How much later an order may end that had to be tried again."""

SCENARIOS_OF_A_RUN = 3
"""In a run with several processes of each module, which takes longer, it is one."""

LONG_SECONDS = 60.0
"""Orders that have as long until their time-out end before it, whatever the fault is."""


async def run_fault_scenarios(shop: Shop) -> None:
    """Go through those scenarios whose turn it is in this run, and note what is not as expected."""
    world = shop.world
    first = SCENARIOS_OF_A_RUN * world.plan.seed
    await shop.set_stock(PRODUCT, 1_000, 100, "EUR")
    for number in range(first, first + (1 if world.replicas.are_several else SCENARIOS_OF_A_RUN)):
        scenario = SCENARIOS[number % len(SCENARIOS)]
        if not world.failures:
            world.note(f"scenario: {(scenario.__doc__ or '').strip()}")
            await scenario(shop)
            await shop.until_idle()


# The provider


async def _charge_without_answer(shop: Shop) -> None:
    """A charge takes effect and is not answered: it is looked up, whether the provider knows its key or not."""
    provider = shop.world.bank.provider
    for remembers in (True,) if shop.world.replicas.are_several else (True, False):
        name = f"unanswered {remembers}"
        provider.traits = evolve(provider.traits, remembers_charges=remembers)
        with _webhooks(shop, are_sent=False), _answers(shop, Answer.TIMEOUT_AFTER, Call.CHARGE):
            await shop.place(_order(name))
            await shop.wait_for_payment(name, "status", "unknown")
        await shop.wait_until_final(name, RETRY_SECONDS)
        await shop.until_idle()
        shop.expect(f"how often {name} is charged", len(provider.charges[shop.ids[name]]), 1)
        if _has_time(shop):
            shop.check_end(_order(name))
            shop.check_payment(name, "captured", 100)
            shop.expect("whether it took several attempts", shop.payment(name)["attempts"] > 1, True)


async def _cancelled_without_answer(shop: Shop) -> None:
    """An order is cancelled while the outcome of its charge is unknown: what was taken goes back, and nothing is taken later."""
    provider = shop.world.bank.provider
    for name, answer, status in (("taken", Answer.TIMEOUT_AFTER, "refunded"), ("not taken", Answer.TIMEOUT_BEFORE, "declined")):
        with _webhooks(shop, are_sent=False), _answers(shop, answer, Call.CHARGE), _answers(shop, Answer.NOT_REACHED, Call.LOOK_UP):
            await shop.place(_order(name))
            await shop.wait_for_payment(name, "status", "unknown")
            await shop.cancel(name)
            await shop.wait_for_payment(name, "is_cancelled", 1)
            await asyncio.sleep(8.0)  # a look-up has failed since
        if not provider.calls(shop.ids[name], Call.CHARGE):  # a worker that has just started looks first, here in vain
            status = "declined"
        await shop.wait_for_payment(name, "status", status)
        await shop.until_idle()
        shop.check_payment(name, status, 0)
        shop.expect(f"how often {name} is charged", len(provider.charges[shop.ids[name]]), int(status == "refunded"))


async def _provider_away(shop: Shop) -> None:
    """The provider is out of reach until the order times out: it is cancelled in time, and never charged."""
    began = shop.world.now
    with _answers(shop, Answer.NOT_REACHED, *Call):
        await asyncio.gather(*(shop.place(_order(f"{name} in vain")) for name in ("one", "two", "three")))
        for name in ("one", "two", "three"):
            await shop.wait_until_final(f"{name} in vain", shop.world.plan.timeout_seconds + 15.0)
        shop.check_end(evolve(_order("one in vain"), reason="payment_unavailable"))
        seconds = shop.world.now - began
        is_in_time = seconds >= shop.world.plan.timeout_seconds - 1.0
        shop.expect("whether the time-out is over", is_in_time, True)
        for name in ("one", "two", "three"):  # a charge that has begun before could succeed
            await shop.wait_for_payment(f"{name} in vain", "is_cancelled", 1)
    await shop.until_idle()
    shop.expect("how often it is charged", len(shop.world.bank.provider.charges[shop.ids["one in vain"]]), 0)
    delayed = shop.order("one in vain")["timeline"].count("payments.delayed")
    shop.expect("how often its delay is reported", delayed, 1)


async def _cancelled_while_away(shop: Shop) -> None:
    """An order is cancelled while the provider is out of reach: it is never charged."""
    with _answers(shop, Answer.NOT_REACHED, *Call):
        await shop.place(_order("given up"))
        await shop.wait_for_payment("given up", "status", "pending")
        await asyncio.sleep(1.0)
        await shop.cancel("given up")
        await asyncio.sleep(1.0)
    await shop.until_idle()
    shop.check_payment("given up", "declined", 0)
    shop.expect("how often it is charged", len(shop.world.bank.provider.charges[shop.ids["given up"]]), 0)


async def _cancelled_during_retry(shop: Shop) -> None:
    """An order is cancelled while its charge is tried again: what that takes goes back."""
    with _answers(shop, Answer.NOT_REACHED, Call.CHARGE):
        await shop.place(_order("cancelled too late"))
        await shop.wait_for_payment("cancelled too late", "attempts", 2)
    with _answers(shop, Answer.SLOW, Call.CHARGE):
        await _wait_for_charge(shop, "cancelled too late", 2)
        await shop.cancel("cancelled too late")
    await shop.until_idle()
    charges = shop.world.bank.provider.charges[shop.ids["cancelled too late"]]
    shop.check_payment("cancelled too late", "refunded" if charges else "declined", 0)


async def _refunded_in_dashboard(shop: Shop) -> None:
    """A refund is made at the provider itself, and orders does not know of it yet: no more is refunded than is left."""
    await _confirm(shop, "refunded elsewhere")
    provider = shop.world.bank.provider
    (charge,) = provider.charges[shop.ids["refunded elsewhere"]]
    refund = Refund(provider.reference("re", "dashboard"), "", 60, "succeeded")
    charge.refunds.append(refund)
    shop.world.poison("orders", "PaymentRefunded", "refunded elsewhere at the end", 20)
    with _webhooks(shop, are_sent=True):
        provider.change("refund", charge, refund)
    await shop.wait(lambda: '"amount":60' in (shop.payment("refunded elsewhere")["ledger"] or ""), "the refund at payments", RETRY_SECONDS)
    await shop.refund("refunded elsewhere", "of too much", 80, 202)
    shop.world.poison("orders", "PaymentRefunded", "refunded elsewhere at the end", 0)
    await shop.until_idle()
    shop.check_payment("refunded elsewhere", "captured", 40)


async def _asked_to_pause(shop: Shop) -> None:
    """The provider asks for a pause while a slow call is under way: all wait for it, and a probe ends it."""
    with _answers(shop, Answer.SLOW, Call.CHARGE):
        await shop.place(_order("slow"))
        await _wait_for_charge(shop, "slow")
        await asyncio.sleep(0.3)
    names = [f"paused {number}" for number in range(4)]
    with _answers(shop, Answer.PAUSE, Call.CHARGE):
        await asyncio.gather(*(shop.place(_order(name)) for name in names))
        await asyncio.sleep(1.0)
    for name in ("slow", *names):
        await shop.wait_until_final(name, RETRY_SECONDS)
        if _has_time(shop):
            shop.check_end(_order(name))


async def _single_refusals(shop: Shop) -> None:
    """The provider has too many calls once, or does not know a parameter of some calls: that stops no other call."""
    openings = shop.world.breakers.openings
    # 30 errors would open a breaker; after one refusal for too many calls there is about one call a second.
    refusals = (10, 3) if _has_time(shop) else (1, 1)
    for answer, count, calls in ((Answer.THROTTLED, 1, 1), (Answer.WRONG_PARAMETER, *refusals)):
        names = [f"refused {number}, {answer.value}" for number in range(count)]
        with _answers(shop, answer, Call.CHARGE):
            await asyncio.gather(*(shop.place(_order(name)) for name in names))
            for name in names:
                await _wait_for_charge(shop, name, calls)
        await shop.place(_order(f"next after {answer.value}"))
        await shop.wait_until_final(f"next after {answer.value}", RETRY_SECONDS)
        if _has_time(shop):
            shop.check_end(_order(f"next after {answer.value}"))
        await shop.until_idle()
    shop.expect("the number of breakers that have opened", shop.world.breakers.openings - openings, 0)


async def _refused_refund(shop: Shop) -> None:
    """The provider refuses refunds: charges go on."""
    await _confirm(shop, "not to be refunded yet")
    with _answers(shop, Answer.WRONG_KEY, Call.REFUND):
        await shop.refund("not to be refunded yet", "refused", 40, 202)
        await asyncio.sleep(1.0)
        await shop.place(_order("charged meanwhile"))
        await shop.wait_until_final("charged meanwhile")
    await shop.until_idle()
    shop.check_payment("not to be refunded yet", "captured", 60)
    if _has_time(shop):
        shop.check_end(_order("charged meanwhile"))


async def _call_without_end(shop: Shop) -> None:
    """A charge has no end: the call is given up, and the order goes on."""
    provider = shop.world.bank.provider
    provider.traits = evolve(provider.traits, remembers_charges=True)  # one that does not is never asked again without a look-up
    with _answers(shop, Answer.HANG, Call.CHARGE):
        await shop.place(_order("endless"))
        await _wait_for_charge(shop, "endless")
        await asyncio.sleep(0.3)
    await shop.wait(lambda: not provider.is_called, "the end of a call that is not answered", RETRY_SECONDS)
    await shop.wait_until_final("endless", 2 * RETRY_SECONDS)
    if _has_time(shop):
        shop.check_end(_order("endless"))


async def _charged_after_decline(shop: Shop) -> None:
    """The provider declines a charge and takes the money nevertheless, which a webhook reports: it goes back."""
    await shop.set_stock("costly", 5, LIMIT + 1, "EUR")
    await shop.place(Expected("declined at first", (("costly", 1),)))
    await shop.wait_until_final("declined at first")
    await shop.until_idle()
    provider = shop.world.bank.provider
    (charge,) = provider.charges[shop.ids["declined at first"]]
    charge.status = "captured"
    with _webhooks(shop, are_sent=True):
        provider.change("charge", charge)
    await shop.wait(lambda: provider.kept(charge.order_id) == 0, "the refund of a late charge", RETRY_SECONDS)
    await shop.until_idle()
    shop.check_payment("declined at first", "refunded", 0)


async def _contradicting_webhooks(shop: Shop) -> None:
    """Webhooks that contradict the order change nothing: another amount, and a second charge."""
    await _confirm(shop, "reported")
    world = shop.world
    (charge,) = world.bank.provider.charges[shop.ids["reported"]]
    of_another_amount = evolve(charge, money=Money(charge.money.amount + 1, charge.money.currency))
    seen = world.situations[_PUT_ASIDE]
    for wrong in (of_another_amount, evolve(charge, reference="pi_another1")):
        with _webhooks(shop, are_sent=True):
            world.bank.provider.change("charge", wrong)
    await shop.wait(lambda: world.situations[_PUT_ASIDE] >= seen + 2, "the end of both webhooks", RETRY_SECONDS)
    await shop.until_idle()
    shop.check_end(_order("reported"))
    shop.check_payment("reported", "captured", 100)


_PUT_ASIDE = "webhook: payment_intent.succeeded put_aside"


async def _refund_without_balance(shop: Shop) -> None:
    """A refund fails for certain: it is requested again under a new key."""
    await _confirm(shop, "to be refunded")
    with _answers(shop, Answer.NO_BALANCE, Call.REFUND):
        await shop.refund("to be refunded", "without balance", 30, 202)
        await asyncio.sleep(4.0)
    await shop.until_idle()
    shop.check_payment("to be refunded", "captured", 70)


async def _refund_without_answer(shop: Shop) -> None:
    """Refunds take effect and are not answered: they are repeated under their keys, and made once."""
    await _confirm(shop, "to be refunded once")
    with _answers(shop, Answer.TIMEOUT_AFTER, Call.REFUND):
        await asyncio.gather(*(shop.refund("to be refunded once", f"unanswered {amount}", amount, 202) for amount in (30, 20)))
        await asyncio.sleep(4.0)
    await shop.until_idle()
    shop.check_payment("to be refunded once", "captured", 50)


async def _pending_refund(shop: Shop) -> None:
    """A refund is pending, and the webhook that reports its end is lost: it is looked up."""
    world = shop.world
    await _confirm(shop, "to be refunded later")
    provider = world.bank.provider
    provider.traits = evolve(provider.traits, pending_refunds=1.0)
    with _webhooks(shop, are_sent=False):
        await shop.refund("to be refunded later", "pending", None, 202)
        await shop.wait(lambda: provider.kept(shop.ids["to be refunded later"]) == 0, "the refund")
        provider.traits = evolve(provider.traits, pending_refunds=0.0)
        await shop.wait_for_payment("to be refunded later", "status", "refunded", 600.0)
    await shop.until_idle()
    shop.check_refunds("to be refunded later", [100], 0)


async def _soft_decline(shop: Shop) -> None:
    """The customer's bank asks to try again later: that is done if the order has the time."""
    provider = shop.world.bank.provider
    provider.traits = evolve(provider.traits, soft_declines=1.0)
    await shop.place(_order("declined softly"))
    await shop.wait(lambda: shop.payment("declined softly")["reason"] is not None, "the soft decline")
    provider.traits = evolve(provider.traits, soft_declines=0.0)
    await shop.wait_until_final("declined softly", 31.0 + RETRY_SECONDS)
    is_confirmed = shop.order("declined softly")["status"] == "confirmed"
    is_skewed = any(place.skew_seconds for place in shop.world.places)  # the time-out counts from the time in the id, which a client gave
    if not is_skewed:
        shop.expect("a charge that is tried again after half a minute succeeds", is_confirmed, shop.world.plan.timeout_seconds > RETRY_SECONDS)


# Handlers, processes, the bus and the files


async def _failing_handler(shop: Shop) -> None:
    """A handler raises an error for one order: the others are not held up, and it is tried again."""
    await _fail_handlers(shop, breaks_row=False)


async def _refused_row(shop: Shop) -> None:
    """The database refuses what one order writes: the others are not held up, and it is tried again."""
    await _fail_handlers(shop, breaks_row=True)


async def _fail_handlers(shop: Shop, *, breaks_row: bool) -> None:
    handlers = (("inventory", "OrderCreated"), ("orders", "StockReserved"), ("payments", "StockReserved"), ("orders", "PaymentCaptured"))
    for number, (module, event) in enumerate(handlers):
        failing = _order(f"poisoned {number}")
        innocent = [_order(f"innocent {number} {each}") for each in range(3)]
        shop.world.poison(module, event, f"{failing.name} at the end", 2, breaks_row=breaks_row)
        await asyncio.gather(*map(shop.place, [innocent[0], failing, *innocent[1:]]))
        for order in innocent:
            await shop.wait_until_final(order.name)
            if _has_time(shop):
                shop.check_end(order)
        await shop.wait_until_final(failing.name, RETRY_SECONDS)
        if _has_time(shop):
            shop.check_end(failing)
        await shop.until_idle()


async def _dead_letter(shop: Shop) -> None:
    """A handler raises an error until its event is a dead letter: it is replayed, and the order goes on."""
    shop.world.poison("inventory", "OrderCreated", "replayed at the end", 6)
    await shop.place(_order("replayed"))
    await shop.wait_until_final("replayed", 180.0)
    if shop.world.plan.timeout_seconds > 2 * LONG_SECONDS and shop.world.cluster is None:
        shop.check_end(_order("replayed"))


async def _kill(shop: Shop) -> None:
    """A process is killed at any point, or after an effect that it has not stored: after its start the order goes on."""
    seed = shop.world.plan.seed
    await _cause(shop, FaultKind.KILL, "killed", points=seed % 23)
    await _cause(shop, FaultKind.KILL, "killed later", point=_KILL_POINTS[seed % len(_KILL_POINTS)])


_KILL_POINTS = ("after charge", "before ack", "before write commit", "after write commit", "before publish", "at charge")


async def _stop(shop: Shop) -> None:
    """A process is stopped and started again: the order goes on."""
    await _cause(shop, FaultKind.STOP, "stopped")


async def _bus_away(shop: Shop) -> None:
    """The bus takes nothing for seconds: what waits is published later."""
    if shop.world.cluster is None:
        await _cause(shop, FaultKind.BUS, "unpublished", bus=BusFault.LOST)
        await _cause(shop, FaultKind.BUS, "published later", bus=BusFault.AWAY)
    else:
        await _cause(shop, FaultKind.BROKER, "unpublished", broker=BrokerFault.RESTART)


async def _nothing_written(shop: Shop) -> None:
    """Nothing can be written for seconds: the client gets no order, tries again, and the order goes on."""
    if shop.world.replicas.are_several:
        await _cause(shop, FaultKind.DATABASE, "without a database", database=DatabaseFault.DOWN)
    else:
        await _cause(shop, FaultKind.DISK, "on a full disk", disk=DiskFault.FULL)


async def _cause(
    shop: Shop, kind: FaultKind, name: str, *, points: int = 0, point: str = "", **what: BusFault | BrokerFault | DiskFault | DatabaseFault
) -> None:
    """Cause a fault of each process in turn while an order is placed; the order is confirmed nevertheless."""
    places = [place for place in shop.world.places if not place.is_dead]
    for place in places[: 1 if kind is FaultKind.BROKER else 3]:
        order = _order(f"{name} {place.number}")
        seconds = 1.0 if kind in (FaultKind.KILL, FaultKind.STOP) else 3.0
        fault = Fault(kind, 0.0, seconds, place.number, points, point, share=1.0, **what)  # type: ignore[arg-type]
        causing = asyncio.ensure_future(shop.world.cause(fault))
        await asyncio.sleep(0)
        await shop.place(order)
        await causing
        await shop.wait_until_final(order.name, RETRY_SECONDS)
        await shop.until_idle()
        if _has_time(shop):
            shop.check_end(order)


SCENARIOS: tuple[Callable[[Shop], Awaitable[None]], ...] = (
    _charge_without_answer, _failing_handler, _provider_away, _bus_away, _cancelled_without_answer, _charged_after_decline, _kill,
    _refund_without_balance, _refused_row, _cancelled_while_away, _nothing_written, _refund_without_answer, _dead_letter, _pending_refund,
    _call_without_end, _soft_decline, _asked_to_pause, _single_refusals, _refused_refund, _contradicting_webhooks,
    _cancelled_during_retry, _refunded_in_dashboard, _stop,
)  # fmt: skip


async def _confirm(shop: Shop, name: str) -> None:
    """Place an order, and wait until it has ended and nothing is left to do."""
    await shop.place(_order(name))
    await shop.wait_until_final(name)
    await shop.until_idle()


def _order(name: str) -> Expected:
    return Expected(name, ((PRODUCT, 1),), total=100)


def _has_time(shop: Shop) -> bool:
    """Return whether the time-out of an order leaves enough time to overcome a fault."""
    return shop.world.plan.timeout_seconds >= (2 * LONG_SECONDS if shop.world.cluster is not None else LONG_SECONDS)


async def _wait_for_charge(shop: Shop, name: str, calls: int = 1) -> None:
    """Wait until the provider has been called so often for the charge of an order."""
    provider = shop.world.bank.provider
    await shop.wait(lambda: provider.calls(shop.ids[name], Call.CHARGE) >= calls, f"the charge of {name}", RETRY_SECONDS)


@contextmanager
def _webhooks(shop: Shop, *, are_sent: bool) -> Iterator[None]:
    """Let the provider send webhooks of what happens, or lose all of them."""
    before = shop.world.plan.has_webhooks
    shop.world.plan = evolve(shop.world.plan, has_webhooks=are_sent)
    try:
        yield
    finally:
        shop.world.plan = evolve(shop.world.plan, has_webhooks=before)


@contextmanager
def _answers(shop: Shop, answer: Answer, *calls: Call) -> Iterator[None]:
    """Let the provider answer all *calls* so."""
    spell = Spell(answer, calls, 1.0)
    spells = shop.world.bank.weather.spells
    spells.append(spell)
    try:
        yield
    finally:
        spells.remove(spell)
