"""One caller cannot use up what all callers share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import make_mocked_request
from loguru import logger

from app.application import Application
from app.web.access.authentication import Authenticator
from app.web.access.gate import CALLER, Gate, HostRule
from app.web.access.limits import WRONG_KEYS_MAX, RateLimit
from app.web.access.refusal_log import RefusalLog
from app.web.endpoints import stripe_webhook
from app.web.endpoints.stripe_webhook import WEBHOOK_BYTES_MAX
from app.web.responses.problems import ProblemError
from app.web.server import RESERVED_CONNECTIONS
from app.web.streams import state_stream
from config.api_keys import MODULE, ApiKey
from config.settings import Settings
from modules.registry import MODULES
from tests.security.conftest import Program

CONNECTIONS_MAX = 8

Start = Callable[..., Coroutine[Any, Any, str]]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """Return a function that starts a server without keys, with the given settings; it returns host and port."""
    running: list[Application] = []

    async def begin(**more: Any) -> str:
        given: dict[str, Any] = {"database_url": f"sqlite:///{tmp_path}/test.db", "http_port": 0, "shutdown_grace_s": 2}
        running.append(Application(Settings(known_modules=MODULES, **given | more)))
        return await running[-1].start()

    yield begin
    for application in running:
        await application.stop()


@pytest.fixture
def warnings() -> Any:
    """The messages of the lines at WARNING."""
    found: list[str] = []
    id = logger.add(lambda message: found.append(message.record["message"]), level="WARNING", format="")
    yield found
    logger.remove(id)


async def ask(host: str, path: str) -> int:
    """Send one request on a connection of its own; return the status, or 0 if the connection is closed without one."""
    name, port = host.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(name, int(port))
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        line = await reader.readline()
        return int(line.split()[1]) if line else 0
    except ConnectionError:
        return 0
    finally:
        writer.close()


async def test_wrong_keys_are_refused_before_they_are_many(program: Program, warnings: list[str]) -> None:
    """429 and a closed connection after some within a minute; a right key from the same address is answered all the time."""
    answers = [await program.send("stranger", "GET", "/v1/orders") for _ in range(WRONG_KEYS_MAX + 5)]
    assert [answer.status for answer in answers] == [401] * WRONG_KEYS_MAX + [429] * 5
    assert answers[-1].body["code"] == "too_many_requests"
    assert int(answers[-1].headers["Retry-After"]) <= 60
    assert answers[-1].headers["Connection"] == "close"
    assert (await program.send("viewer", "GET", "/v1/orders")).status == 200
    assert warnings.count("limit reached: wrong API keys from one address") == 1


KEYS = {name: ApiKey(name, role, sha256(name.encode()).hexdigest()) for name, role in (("shop", "shop"), ("peer", MODULE))}

Try = Callable[[Gate], object]


def asked(key: str = "", path: str = "/", **headers: str) -> web.Request:
    return make_mocked_request("GET", path, {**headers, **({"Authorization": f"Bearer {key}"} if key else {})})


def status_of(gate: Gate, attempt: Try) -> int:
    """Return the status of the problem that *attempt* raises, or 200."""
    try:
        attempt(gate)
    except ProblemError as problem:
        return problem.status
    return 200


@pytest.mark.parametrize(
    "attempt",
    [
        lambda gate: gate.admit(asked("wrong"), {"shop"}, is_scoped=True),
        lambda gate: gate.admit(asked(path="/?token=shop~1~x"), {"shop"}, is_scoped=True, takes_token=True),
        lambda gate: gate.log_in(asked(), "wrong"),
    ],
    ids=["a key", "a token", "the form of the console"],
)
def test_wrong_keys_have_one_limit_wherever_they_are_tried(attempt: Try) -> None:
    """Also where no header carries them; what is right is admitted all the time."""
    gate = Gate(Authenticator(KEYS))
    assert [status_of(gate, attempt) for _ in range(WRONG_KEYS_MAX + 2)] == [401] * WRONG_KEYS_MAX + [429] * 2
    assert status_of(gate, lambda gate: gate.log_in(asked(), "also wrong")) == 429
    assert (gate.log_in(asked(), "shop").name, gate.admit(asked("shop"), {"shop"}, is_scoped=True).name) == ("shop", "shop")


@pytest.mark.parametrize(
    ("attempt", "is_limited"),
    [
        (lambda gate: gate.admit(asked("shop"), {"shop"}, is_scoped=True), True),
        (lambda gate: gate.permit(KEYS["shop"], {"shop"}, is_scoped=True), True),
        (lambda gate: gate.admit(asked("peer", **{CALLER: "ada:shop"}), {"shop"}, is_scoped=True), False),
    ],
    ids=["API", "console", "another process, for many persons"],
)
def test_the_rate_of_requests_is_that_of_one_caller(attempt: Try, is_limited: bool) -> None:
    """On each way into the program; a process that asks for all its users is no single caller."""
    gate = Gate(Authenticator(KEYS), requests_per_s=1)
    assert (429 in [status_of(gate, attempt) for _ in range(5)]) == is_limited


def test_a_key_for_processes_is_refused_in_the_form_of_the_console() -> None:
    """It could act under any name."""
    assert status_of(Gate(Authenticator(KEYS)), lambda gate: gate.log_in(asked(), "peer")) == 403


@pytest.mark.slow
def test_what_is_remembered_of_strangers_is_bounded() -> None:
    """Names of hosts, and addresses: a client can send from many, or name many."""
    rule, log = HostRule({"*"}), RefusalLog()
    for number in range(3_000):
        rule(asked(Host=f"h{number}.example"))
        log._is_new(f"2001:db8::{number}")
    assert len(rule._known) <= 1_000
    assert len(log._warned) <= 1_000


async def test_a_request_without_a_key_is_no_wrong_key(program: Program) -> None:
    """A client that sends its key only after a challenge is not locked out, nor are others at its address."""
    answers = [await program.send("", "GET", "/v1/orders") for _ in range(WRONG_KEYS_MAX + 5)]
    assert {answer.status for answer in answers} == {401}
    assert (await program.send("stranger", "GET", "/v1/orders")).status == 401


async def test_requests_of_one_caller_have_a_rate_where_one_is_set(start: Start) -> None:
    """Without keys an address is a caller; probes and metrics are not counted."""
    host = await start(requests_per_s=5)
    async with ClientSession() as session:

        async def status(path: str) -> int:
            async with session.get(host + path) as response:
                return response.status

        found = await asyncio.gather(*(status("/v1/orders") for _ in range(30)))
        assert found.count(200) <= 15
        assert found.count(429) >= 15
        assert set(await asyncio.gather(*(status("/livez") for _ in range(30)))) == {200}


@pytest.mark.slow
async def test_one_key_gets_half_of_the_streams(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next stream of that key is 429; another key still gets one."""
    monkeypatch.setattr(state_stream, "STREAMS_PER_KEY_MAX", 2)
    body = {"customer_id": "c-1", "items": [{"product_id": "SKU-1", "quantity": 1}]}
    price = {"on_hand": 0, "unit_price": {"amount": 100, "currency": "EUR"}}
    await program.send("stock", "PUT", "/v1/inventory/SKU-1", price)
    monkeypatch.setattr("modules.orders.state.Order.is_final", property(lambda order: False))
    order_id = (await program.send("shop", "POST", "/v1/orders", body)).body["order_id"]
    path = f"{program.address}/v1/orders/{order_id}/stream"

    async with AsyncExitStack() as stack:

        async def follow(caller: str) -> int:
            headers = {"Authorization": f"Bearer {caller}-key-0123456789"}
            return (await stack.enter_async_context(program.session.get(path, headers=headers))).status

        assert [await follow("shop") for _ in range(3)] == [200, 200, 429]
        assert await follow("viewer") == 200
    async with AsyncExitStack() as stack, asyncio.timeout(30):  # the streams of before have ended, at the latest with their next poll
        while await follow("shop") != 200:  # noqa: ASYNC110 - the server sets no event here
            await asyncio.sleep(0.01)


async def test_idle_connections_are_closed_for_new_ones(start: Start, warnings: list[str]) -> None:
    """The oldest idle one is closed; the limit is logged once."""
    host = await start(connections_max=CONNECTIONS_MAX)
    name, port = host.removeprefix("http://").split(":")
    async with AsyncExitStack() as stack:
        for _ in range(5 * CONNECTIONS_MAX):
            _, writer = await asyncio.open_connection(name, int(port))
            stack.callback(writer.close)
        for _ in range(5):
            assert await ask(host, "/v1/orders") == 200
    assert warnings.count("limit reached: open connections") == 1


async def test_probes_are_answered_beyond_the_limit_and_nothing_else_is(start: Start) -> None:
    """Connections that are busy stay; those of the reserve answer probes, and beyond it they are closed at once."""
    host = await start(connections_max=CONNECTIONS_MAX)
    name, port = host.removeprefix("http://").split(":")
    async with AsyncExitStack() as stack:

        async def busy() -> None:
            """Open a connection whose request never ends: its body does not arrive."""
            _, writer = await asyncio.open_connection(name, int(port))
            stack.callback(writer.close)
            writer.write(
                b"POST /v1/orders HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
            )
            await writer.drain()

        for _ in range(CONNECTIONS_MAX):
            await busy()
        async with asyncio.timeout(30):
            while await ask(host, "/v1/orders") != 503:  # noqa: ASYNC110 - the server sets no event here
                await asyncio.sleep(0.01)
        assert [await ask(host, path) for path in ("/livez", "/readyz", "/v1/orders")] == [200, 200, 503]
        for _ in range(RESERVED_CONNECTIONS):
            _, writer = await asyncio.open_connection(name, int(port))
            stack.callback(writer.close)


async def test_webhooks_that_never_end_take_a_bounded_memory(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client needs no key to begin one. The next one is 503; once the others have gone, it is read again."""
    monkeypatch.setattr(stripe_webhook, "WEBHOOKS_BYTES_MAX", 500_000)
    monkeypatch.setattr(stripe_webhook, "BODY_SECONDS_MAX", 600.0)
    host = await start(payment_gateway="stripe", stripe_api_key="sk_test_1", stripe_webhook_secret="whsec_1")
    name, port = host.removeprefix("http://").split(":")
    head = f"POST /v1/payments/webhooks/stripe HTTP/1.1\r\nHost: localhost\r\nContent-Length: {WEBHOOK_BYTES_MAX}\r\n\r\n".encode()
    async with AsyncExitStack() as stack:

        async def begin(size: int) -> asyncio.StreamReader:
            reader, writer = await asyncio.open_connection(name, int(port))
            stack.callback(writer.close)
            writer.write(head + b"x" * size)
            await writer.drain()
            return reader

        async with asyncio.timeout(30):
            answers = asyncio.as_completed([(await begin(200_000)).readline() for _ in range(4)])
            for line in next(answers), next(answers), (await begin(WEBHOOK_BYTES_MAX)).readline():
                assert (await line).split()[1] == b"503"
    async with asyncio.timeout(30):
        while await webhook(host) != 400:  # noqa: ASYNC110 - the server sets no event when it notices that clients have gone
            await asyncio.sleep(0.01)


async def webhook(host: str) -> int:
    """Send a webhook without a signature; return the status."""
    async with ClientSession() as session, session.post(f"{host}/v1/payments/webhooks/stripe", data=b"x" * 200_000) as response:
        return response.status


def test_many_callers_over_a_limit_are_one_line_a_minute(warnings: list[str]) -> None:
    """Whether in one window or in several."""
    now = 0.0
    limit = RateLimit("tries", 1, 1.0, lambda: now)
    for second in range(120):
        now = float(second)
        for caller in "abcde":
            assert limit.take(caller) == 0.0
            assert limit.take(caller) == 1.0
    assert warnings == ["limit reached: tries"] * 2


def test_a_rate_limit_counts_each_caller_by_itself_in_each_window() -> None:
    """It returns after how many seconds to try again; its memory is bounded."""
    now = 0.0
    limit = RateLimit("tries", 2, 10.0, lambda: now)
    assert [limit.take("a") for _ in range(3)] == [0.0, 0.0, 10.0]
    now = 4.0
    assert (limit.take("a"), limit.take("b")) == (6.0, 0.0)
    now = 13.0
    assert [limit.take("a") for _ in range(3)] == [0.0, 0.0, 10.0]
    for number in range(30_000):
        limit.take(str(number))
    assert len(limit._counts) <= 10_001
