"""A command that a worker passes on has the same effect and the same answer as one that the process reads itself."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import attrs
import orjson
import pytest
from attrs import define, evolve

from app.runtime.service import IdempotencyKeyReused, Overloaded, Reply
from app.storage.errors import CommitOutcomeUnknown, StorageRefused, StorageUnavailable, TemporarilyUnavailable
from app.web.endpoints.module_routes import Command, command_runner
from app.web.handler import problem_for
from app.web.workers.channel import Channel
from app.web.workers.commands import CommandClient, CommandFailed, CommandServer
from modules.routes import CommandRoute, Rejection, Request
from modules.values import Precondition
from tests.web.example import SHIPMENTS
from tests.web.fake_service import FakeService

ROUTES = [route for route in SHIPMENTS.routes if isinstance(route, CommandRoute)]
CREATE = next(route for route in ROUTES if route.method == "POST" and "{" not in route.path)
COMMAND = Command(
    Request({}, {"owner": "ö", "items": [{"n": 1}]}, "s-1", "correlation-1"),
    "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "shop",
)


@define
class Pair:
    """A worker's side and the side of the modules, connected."""

    service: FakeService
    client: CommandClient
    channels: tuple[Channel, Channel]


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    service = FakeService(SHIPMENTS)
    near, far = socket.socketpair()
    loop = asyncio.get_running_loop()
    worker = Channel(lambda message: client.receive(message), lambda: None)
    client = CommandClient(worker)
    modules = Channel(lambda message: server.receive(message), lambda: None)
    server = CommandServer([service], modules)
    await loop.create_connection(lambda: worker, sock=near)
    await loop.create_connection(lambda: modules, sock=far)
    yield Pair(service, client, (worker, modules))
    worker.close()
    modules.close()


async def passed_on(pair: Pair, command: Command, route: CommandRoute = CREATE) -> Reply:
    async with asyncio.timeout(30):
        return await pair.client.runner(SHIPMENTS, route)(command)


async def test_a_command_has_the_same_effect_and_the_same_reply(pair: Pair) -> None:
    """Event, id of the caller, trace, lane and audit arrive as they are."""
    direct = FakeService(SHIPMENTS)
    expected = await command_runner(direct, CREATE)(COMMAND)
    reply = await passed_on(pair, COMMAND)
    assert attrs.asdict(reply) == attrs.asdict(expected)
    (event, _, trace, is_express), (wanted, _, wanted_trace, wanted_express) = pair.service.submitted[0], direct.submitted[0]
    assert (event, trace, is_express) == (wanted, wanted_trace, wanted_express)
    assert pair.service.audited == direct.audited
    assert pair.service.states == direct.states


@pytest.mark.parametrize(
    "condition", [Precondition(), Precondition(if_match=('"1"', '"2"')), Precondition(if_none_match=("*",)), Precondition((), ())]
)
async def test_every_part_of_a_request_arrives_as_it_is(condition: Precondition) -> None:
    """A precondition that is absent is not an empty one."""
    seen: list[Command] = []
    server = CommandServer([], Channel(lambda message: None, lambda: None))
    client = CommandClient(Channel(lambda message: None, lambda: None))
    position = SHIPMENTS.routes.index(CREATE)

    async def run(command: Command) -> Reply:
        seen.append(command)
        return Reply(Rejection(409, "no", "A sentence."))

    server._runners[SHIPMENTS.name, position] = run
    client._channel.send = lambda message: server.receive(orjson.loads(orjson.dumps(message)))  # type: ignore[method-assign]
    server._channel.send = lambda message: client.receive(orjson.loads(orjson.dumps(message)))  # type: ignore[method-assign]
    request = Request({"id": "ü"}, {"owner": "ö"}, "s-1", "correlation-1", condition)
    command = Command(request, COMMAND.traceparent, "shop", "k", "f")
    await client.runner(SHIPMENTS, CREATE)(command)
    assert seen == [command]


@pytest.mark.parametrize(
    "error",
    [
        Overloaded("too much", 7),
        StorageUnavailable("out of reach", 3),
        StorageRefused("refused"),
        CommitOutcomeUnknown("unknown"),
        IdempotencyKeyReused("again"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_an_error_is_answered_as_if_it_had_occurred_in_the_worker(pair: Pair, error: Exception) -> None:
    """With its status, code, sentence and Retry-After."""
    pair.service.failure = error
    with pytest.raises((TemporarilyUnavailable, IdempotencyKeyReused)) as raised:
        await passed_on(pair, COMMAND)
    assert attrs.asdict(problem_for(raised.value)) == attrs.asdict(problem_for(error))


async def test_an_unforeseen_error_keeps_its_stack(pair: Pair) -> None:
    """The worker logs it; the client gets a 500 without it."""
    pair.service.failure = ZeroDivisionError("db-seven")
    with pytest.raises(CommandFailed, match="ZeroDivisionError: db-seven") as raised:
        await passed_on(pair, COMMAND)
    problem = problem_for(raised.value)
    assert (problem.status, "db-seven" in problem.detail) == (500, False)


async def test_a_rejection_and_a_replay_arrive_as_they_are(pair: Pair) -> None:
    """The second request with the key gets the first reply."""
    command = evolve(COMMAND, key="k", fingerprint="f")
    first = await passed_on(pair, command)
    assert await passed_on(pair, command) == evolve(first, is_replay=True)
    with pytest.raises(IdempotencyKeyReused):
        await passed_on(pair, evolve(command, fingerprint="other"))
    pair.service.idempotent_replies["r"] = "f", Rejection(409, "no", "A sentence.", "/owner")
    assert await passed_on(pair, evolve(command, key="r")) == Reply(Rejection(409, "no", "A sentence.", "/owner"), is_replay=True)


async def test_a_caller_that_has_gone_is_not_missed(pair: Pair) -> None:
    """Its command takes effect, and the reply is dropped; nothing waits for it any more."""
    pair.service.gate.clear()
    gone = asyncio.ensure_future(passed_on(pair, COMMAND))
    await asyncio.sleep(0)
    gone.cancel()
    pair.service.gate.set()
    reply = await passed_on(pair, evolve(COMMAND, request=evolve(COMMAND.request, new_id="s-2")))
    assert reply.response.status == CREATE.status
    assert len(pair.service.submitted) == 2
    assert pair.client._waiting == {}
