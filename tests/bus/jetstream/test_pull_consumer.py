"""What one durable asks of its server, and what it answers about each delivery: byte by byte, at any time."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from attrs import define, field

from bus.jetstream.admin.topology import ConsumerPlan
from bus.jetstream.delivery import Delivery, parse_ack_subject
from bus.jetstream.pull_consumer import _LATE_MAX, REQUEST_SECONDS, PullConsumer
from bus.port import ACK_WAIT_SECONDS, MAX_TRIES, DeadLetter
from tests.bus.contract import CREATED

OTHER = "orders.cancelled.v1"
STALE_SECONDS = ACK_WAIT_SECONDS / 3


@define
class Connection:
    """A client of NATS: it has inboxes, and a subscription of each."""

    inboxes: int = 0
    subscribed: set[str] = field(factory=set)

    def new_inbox(self) -> str:
        self.inboxes += 1
        return f"_INBOX.{self.inboxes}"

    async def subscribe_fast(self, inbox: str, handler: Any) -> Any:
        connection = self
        connection.subscribed.add(inbox)

        class Subscription:
            async def unsubscribe(self) -> None:
                connection.subscribed.discard(inbox)

        return Subscription()


@define(slots=False)
class Bench:
    """A consumer of one subject, on a clock that stands still; all that it sends is recorded."""

    seconds: float = 100.0
    wanted: int = 0
    sent: list[tuple[str, bytes]] = field(factory=list)
    letters: list[tuple[DeadLetter, Callable[[], None], Callable[[], bool]]] = field(factory=list)
    rebound: list[str] = field(factory=list)
    connection: Connection = field(factory=Connection)
    ack_wait_seconds: float = ACK_WAIT_SECONDS
    max_tries: int = MAX_TRIES

    def __attrs_post_init__(self) -> None:
        self.clock: Any = self
        host: Any = self
        self.consumer = PullConsumer(ConsumerPlan("inventory", "ORDERS", (CREATED,), 100), host)

    # The host

    def monotonic(self) -> float:
        return self.seconds

    def now(self) -> datetime:
        return datetime.fromtimestamp(1_700_000_000 + self.seconds, UTC)

    def send(self, subject: str, body: bytes, reply: str = "") -> None:
        self.sent.append((subject, body))

    def check_idle(self) -> None: ...

    def message_available(self, consumer: PullConsumer) -> None: ...

    def request_more(self, consumer: PullConsumer) -> None:
        if self.wanted:
            consumer.request(self.wanted)

    def rebind(self, consumer: PullConsumer, reason: str) -> None:
        self.rebound.append(reason)

    def dead_letter(self, dead_letter: DeadLetter, on_stored: Callable[[], None], extend: Callable[[], bool]) -> None:
        self.letters.append((dead_letter, on_stored, extend))

    # The server

    def deliver(self, sequence: int = 7, tries: int = 1, subject: str = CREATED, headers: str = "") -> None:
        reply = f"$JS.ACK.ORDERS.inventory.{tries}.{sequence}.{tries}.1700000000000000000.0"
        self.consumer._on_message(subject, reply, f"NATS/1.0\r\nNats-Msg-Id: m-{sequence}\r\n{headers}\r\n".encode(), b"{}")

    def status(self, line: str, **headers: str) -> None:
        lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        self.consumer._on_message("_INBOX.1", "", f"NATS/1.0 {line}\r\n{lines}\r\n".encode(), b"")

    # What was seen

    def take(self) -> list[Any]:
        subscription: Any = None
        return self.consumer.take(subscription, 10_000, self.seconds)

    def answers(self) -> list[tuple[int, bytes]]:
        """Return the answers since the last call, each with the number of the delivery that it is for."""
        found = [(int(subject.split(".")[4]), body) for subject, body in self.sent if subject.startswith("$JS.ACK.")]
        self.sent.clear()
        return found

    def requested(self) -> list[bytes]:
        """Return the requests since the last call."""
        found = [body for subject, body in self.sent if subject.startswith("$JS.API.")]
        self.sent.clear()
        return found


@pytest.fixture
async def bench() -> Bench:
    bench = Bench()
    client: Any = bench.connection
    await bench.consumer.bind(client)
    return bench


def request(count: int) -> bytes:
    return b'{"batch": %d, "expires": 5000000000}' % count


# Requests


async def test_what_is_missing_is_requested_once_half_of_it_has_arrived(bench: Bench) -> None:
    bench.consumer.request(10)
    assert bench.requested() == [request(10)]
    for sequence in range(5):
        bench.deliver(sequence)
        bench.consumer.request(10)
    assert bench.requested() == []
    bench.deliver(5)
    bench.consumer.request(10)
    assert bench.requested() == [request(6)]


async def test_a_request_that_ends_with_less_makes_room_for_another(bench: Bench) -> None:
    """The server reports how many messages it has not sent."""
    bench.consumer.request(10)
    bench.deliver()
    bench.status("408 Request Timeout", Nats_Pending_Messages="9")
    assert bench.consumer.outstanding == 0
    bench.requested()
    bench.consumer.request(4)
    bench.consumer.request(20)
    bench.status("408 Request Timeout", Nats_Pending_Messages="4")
    assert bench.consumer.outstanding == 16


async def test_a_request_without_an_answer_is_made_again(bench: Bench) -> None:
    """It may be lost with its leader; a fetch that waits wants it."""
    bench.wanted = 10
    bench.consumer.tick(bench.seconds)
    assert bench.requested() == [request(10)]
    bench.consumer.tick(bench.seconds)
    assert bench.requested() == []
    bench.seconds += REQUEST_SECONDS
    bench.consumer.tick(bench.seconds)
    assert bench.requested() == [request(10)]


async def test_a_new_inbox_begins_anew(bench: Bench) -> None:
    """The server drops the requests of the old one, and a pause that it was asked for concerned that."""
    bench.status("409 Exceeded MaxWaiting")
    bench.seconds += 0.11
    bench.consumer.request(10)
    bench.status("409 Leadership Change", Nats_Pending_Messages="0")
    assert (bench.requested(), bench.consumer.outstanding) == ([request(10)], 10)
    client: Any = bench.connection
    await bench.consumer.bind(client)
    assert bench.connection.subscribed == {"_INBOX.2"}
    bench.consumer.request(10)
    assert bench.requested() == [request(10)]


@pytest.mark.parametrize("line", ["409 Leadership Change", "409 Server Shutdown", "409 Batch Completed", "404 No Messages", "408 Request Timeout"])
async def test_what_passes_is_no_refusal(bench: Bench, line: str) -> None:
    """A refusal is what an operator has to correct; the end of one is noticed."""
    bench.status(line)
    assert bench.consumer.refusal == ""
    bench.status("409 Exceeded MaxRequestBatch of 5")
    assert bench.consumer.refusal == "Exceeded MaxRequestBatch of 5"
    if line.startswith("40") and not line.startswith("409"):
        bench.status(line)
        assert bench.consumer.refusal == ""


async def test_a_message_ends_a_refusal(bench: Bench) -> None:
    bench.status("409 Exceeded MaxWaiting")
    bench.deliver()
    assert bench.consumer.refusal == ""


@pytest.mark.parametrize("line", ["409 Consumer Deleted", "503"])
async def test_a_durable_that_is_gone_is_bound_again(bench: Bench, line: str) -> None:
    bench.consumer.request(10)
    bench.status(line)
    assert (len(bench.rebound), bench.consumer.outstanding) == (1, 0)


# Deliveries


async def test_an_overdue_message_is_not_delivered(bench: Bench) -> None:
    """The server redelivers it; and one that has waited is delivered with all of its time."""
    bench.deliver(1)
    bench.seconds += ACK_WAIT_SECONDS / 2
    bench.deliver(2)
    bench.seconds += ACK_WAIT_SECONDS / 2
    [delivery] = bench.take()
    assert delivery.message.id == "m-2"
    assert bench.answers() == [(1, b"+WPI")]
    assert delivery.overdue_at == bench.seconds + ACK_WAIT_SECONDS


async def test_what_waits_is_extended_each_third_of_its_time(bench: Bench) -> None:
    """Which spends no try, and no more requests than that takes."""
    bench.deliver()
    extended = 0
    for _ in range(12):
        bench.seconds += STALE_SECONDS / 4
        bench.consumer.tick(bench.seconds)
        extended += len(bench.answers())
    assert extended == 3
    assert len(bench.take()) == 1


@pytest.mark.parametrize(("answer", "arguments"), [("nak", (0,)), ("term", ("unreadable",))], ids=["nak", "term"])
async def test_an_earlier_delivery_answers_for_nothing_but_with_an_ack(bench: Bench, answer: str, arguments: tuple[Any, ...]) -> None:
    """Once the message is delivered again, an answer of the first handler does not settle, return or extend the later delivery."""
    bench.deliver(tries=1)
    [early] = bench.take()
    bench.deliver(tries=2)
    [late] = bench.take()
    await early.in_progress()
    await getattr(early, answer)(*arguments)
    assert (bench.answers(), bench.letters) == ([], [])
    assert bench.consumer.in_hand == {7: late}
    await late.nak(2)
    assert bench.answers() == [(2, b'-NAK {"delay": 2000000000}')]
    assert bench.consumer.in_hand == {}


async def test_an_early_ack_settles_the_later_delivery(bench: Bench) -> None:
    """Whether that is in hand, or waits to be fetched."""
    for number, is_fetched in (1, True), (2, False):
        bench.deliver(number, tries=1)
        [early] = bench.take()
        bench.seconds += ACK_WAIT_SECONDS
        bench.consumer.tick(bench.seconds)
        bench.deliver(number, tries=2)
        later = bench.take() if is_fetched else []
        await early.ack()
        for each in later:
            await each.nak(0)
            await each.term("unreadable")
        assert (bench.answers(), bench.take(), bench.letters) == ([(1, b"+ACK")], [], [])
        assert bench.consumer.in_hand == {}


async def test_the_latest_of_many_late_acks_is_remembered(bench: Bench) -> None:
    """The oldest are forgotten: what the server redelivers is acknowledged on arrival, and not handled again."""
    for number in range(_LATE_MAX + 5):
        bench.deliver(number)
    deliveries = bench.take()
    bench.seconds += ACK_WAIT_SECONDS
    for delivery in deliveries:
        await delivery.ack()
    bench.answers()
    for number in (_LATE_MAX + 4, 5):
        bench.deliver(number, tries=2)
    assert (bench.take(), bench.answers()) == ([], [(2, b"+ACK"), (2, b"+ACK")])
    assert len(bench.consumer._acked_late) == _LATE_MAX


# Dead letters


async def last_try(bench: Bench) -> Delivery:
    bench.deliver(tries=MAX_TRIES)
    [delivery] = bench.take()
    found: Delivery = delivery
    await found.nak(0, error="failed")
    return found


async def test_a_message_stays_in_hand_until_its_dead_letter_is_stored(bench: Bench) -> None:
    """Its deadline is extended in time, and it is terminated only then."""
    await last_try(bench)
    [(letter, on_stored, extend)] = bench.letters
    assert (letter.message.id, letter.error, letter.attempts) == ("m-7", "failed", MAX_TRIES)
    assert letter.first_seen == datetime.fromtimestamp(1_700_000_000, UTC)
    for _ in range(6):
        bench.seconds += STALE_SECONDS / 2
        assert extend()
        bench.consumer.tick(bench.seconds)
    assert bench.answers() == [(5, b"+WPI")] * 3
    on_stored()
    assert (bench.answers(), bench.consumer.in_hand) == ([(5, b"+TERM")], {})


async def test_a_redelivery_of_what_waits_for_its_dead_letter_takes_its_place(bench: Bench) -> None:
    """An extension may be lost. The redelivery is not handled; it is the one that is extended and terminated from now on."""
    await last_try(bench)
    [(_, on_stored, extend)] = bench.letters
    bench.seconds += ACK_WAIT_SECONDS
    bench.deliver(tries=MAX_TRIES + 1)
    assert (bench.take(), bench.answers()) == ([], [])
    assert extend()
    assert bench.answers() == [], "its time has just begun"
    bench.seconds += STALE_SECONDS
    assert extend()
    on_stored()
    assert bench.answers() == [(6, b"+WPI"), (6, b"+TERM")]
    assert len(bench.letters) == 1


async def test_a_message_that_was_acknowledged_needs_no_dead_letter(bench: Bench) -> None:
    """The first handler was slow; the queue drops the dead letter that the second one has asked for."""
    bench.deliver(tries=MAX_TRIES - 1)
    [early] = bench.take()
    await last_try(bench)
    [(_, _, extend)] = bench.letters
    assert extend()
    await early.ack()
    assert not extend()


async def test_the_server_is_asked_once_more_after_a_last_try_without_an_answer(bench: Bench) -> None:
    """Only on a request does it notice, and publish, that a last try is overdue."""
    bench.deliver(tries=MAX_TRIES)
    bench.take()
    bench.seconds += ACK_WAIT_SECONDS
    bench.consumer.tick(bench.seconds)
    assert bench.requested() == [request(1)]
    bench.deliver(8, tries=1)
    bench.take()
    bench.seconds += ACK_WAIT_SECONDS
    bench.consumer.tick(bench.seconds)
    assert bench.requested() == []


# The end


async def test_the_end_returns_what_another_process_can_still_receive(bench: Bench) -> None:
    """Not a last try, which would be lost; and nothing that is overdue, whose answer would be taken for that of a later delivery."""
    for sequence, tries in (1, 1), (2, MAX_TRIES):
        bench.deliver(sequence, tries)
    held = bench.take()
    bench.consumer.return_in_flight()
    assert bench.answers() == [(1, b"-NAK")]
    assert list(bench.consumer.in_hand.values()) == held[1:]
    await held[1].ack()
    bench.answers()
    for sequence, tries in (3, 1), (4, MAX_TRIES):
        bench.deliver(sequence, tries)
    bench.consumer.return_buffered()
    assert (bench.answers(), bench.take()) == ([(1, b"-NAK")], [])
    bench.deliver(5)
    bench.take()
    bench.deliver(6)
    bench.seconds += ACK_WAIT_SECONDS
    bench.consumer.return_buffered()
    bench.consumer.return_in_flight()
    assert bench.answers() == []


# Subjects that the durable delivers for another version of the program


async def test_a_message_for_another_version_is_returned_for_longer_each_time(bench: Bench) -> None:
    """And the process requests nothing meanwhile, so that the other one receives it; after the last try it is a dead letter."""
    for tries in range(1, MAX_TRIES):
        bench.deliver(tries=tries, subject=OTHER)
        delay = 2 ** (tries - 1)
        assert bench.answers() == [(tries, b'-NAK {"delay": %d}' % (delay * 10**9))]
        bench.seconds += 2 * delay - 0.01
        bench.consumer.request(5)
        assert bench.requested() == []
        bench.seconds += 0.01
        bench.consumer.request(5)
        assert len(bench.requested()) == 1
        bench.consumer.outstanding = 0
    bench.deliver(tries=MAX_TRIES, subject=OTHER)
    [(letter, on_stored, _)] = bench.letters
    assert (letter.error, letter.message.subject) == ("unknown_subject", OTHER)
    assert (bench.answers(), list(bench.consumer.in_hand)) == ([], [7])
    on_stored()
    assert bench.answers() == [(5, b"+TERM")]


async def test_an_event_that_is_also_published_in_a_version_of_ours_is_acknowledged(bench: Bench) -> None:
    bench.deliver(subject="orders.created.v2", headers="ce-versions: v1,v2\r\n")
    assert (bench.take(), bench.answers()) == ([], [(1, b"+ACK")])


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("$JS.ACK.ORDERS.inventory.2.7.9.1700000000000000001.4", ("ORDERS", "inventory", 2, 7, 1700000000000000001)),
        ("$JS.ACK.hub.ACC.ORDERS.inventory.2.7.9.1700000000000000001.4", ("ORDERS", "inventory", 2, 7, 1700000000000000001)),
        ("$JS.ACK._.ACC.ORDERS.inventory.2.7.9.1700000000000000001.4.rnd", ("ORDERS", "inventory", 2, 7, 1700000000000000001)),
        ("$JS.ACK.ORDERS.inventory.2.7.9.1700000000000000001", None),
        ("$JS.ACK.ACC.ORDERS.inventory.2.7.9.1700000000000000001.4", None),
        ("$JS.ACK.ORDERS.inventory.two.7.9.1700000000000000001.4", None),
        ("_INBOX.1", None),
    ],
)  # fmt: skip
def test_an_ack_subject_has_one_of_three_forms(reply: str, expected: tuple[Any, ...] | None) -> None:
    """The short one of today, and that with a domain and an account, which may have one more token at its end."""
    assert parse_ack_subject(reply) == expected
