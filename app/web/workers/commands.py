"""
Pass commands from a worker to the process that runs the modules, and the replies back.

Messages::

    ["command", number, module, route, command]         from the worker; *route* is the position in the module's routes
    ["reply", number, [status, body, headers], is_replay]
    ["rejection", number, [status, code, detail, pointer], is_replay]
    ["error", number, code, detail, retry_after_seconds]

The numbers are the worker's own. An unforeseen error has the code `FAILED`, and its stack as the detail, which the worker
logs.
"""

from __future__ import annotations

__all__ = ["FAILED", "CommandClient", "CommandFailed", "CommandServer"]

import asyncio
from collections.abc import Iterable, Mapping
from itertools import count
from traceback import format_exception

import attrs

from app.runtime.service import IdempotencyKeyReused, ModuleService, Overloaded, Reply
from app.storage.errors import CommitOutcomeUnknown, StorageUnavailable, TemporarilyUnavailable
from app.web.endpoints.module_routes import Command, RunCommand, command_runner
from app.web.workers.channel import Channel, Message
from modules.module import Module
from modules.routes import CommandRoute, Rejection, Request, Response
from modules.values import UNCONDITIONAL, Precondition

FAILED = "failed"

_UNAVAILABLE: Mapping[str, type[TemporarilyUnavailable]] = {
    cls.code: cls for cls in (Overloaded, CommitOutcomeUnknown, StorageUnavailable)
}
"""What a worker raises, by the code of the error."""


class CommandFailed(Exception):
    """An unforeseen error in the process that runs the modules; its stack is the text of this error."""


class CommandClient:
    """The side of a worker: submits commands over *channel*."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._numbers = count()
        self._waiting: dict[int, asyncio.Future[Reply]] = {}
        self._loop = asyncio.get_running_loop()

    def runner(self, module: Module, route: CommandRoute) -> RunCommand:
        """Return what submits the commands of *route*, one of *module*'s routes."""
        name, position = module.name, module.routes.index(route)
        channel, waiting, numbers, create_future = self._channel, self._waiting, self._numbers, self._loop.create_future

        async def run(command: Command) -> Reply:
            number = next(numbers)
            future: asyncio.Future[Reply] = create_future()
            waiting[number] = future
            channel.send(["command", number, name, position, _encode(command)])
            try:
                return await future
            finally:
                waiting.pop(number, None)

        return run

    def receive(self, message: Message) -> None:
        """Answer the caller whose number *message* has; one that has gone is not missed."""
        future = self._waiting.get(message[1])
        if future is None or future.done():
            return
        kind, _, *content = message
        if kind == "reply":
            (status, body, headers), is_replay = content
            future.set_result(Reply(Response(status, body, headers), is_replay))
        elif kind == "rejection":
            members, is_replay = content
            future.set_result(Reply(Rejection(*members), is_replay))
        else:
            future.set_exception(_to_error(*content))


class CommandServer:
    """The side of the modules: submits to *services* what one worker sends over *channel*."""

    def __init__(self, services: Iterable[ModuleService], channel: Channel) -> None:
        self._channel = channel
        self._runners = {
            (service.module.name, position): command_runner(service, route)
            for service in services
            for position, route in enumerate(service.module.routes)
            if isinstance(route, CommandRoute)
        }
        self._running: set[asyncio.Task[None]] = set()

    def receive(self, message: Message) -> None:
        """Submit the command in *message* and send the reply once it is known."""
        _, number, module, position, command = message
        task = asyncio.ensure_future(self._run(number, self._runners[module, position], _decode(command)))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _run(self, number: int, run: RunCommand, command: Command) -> None:
        try:
            reply = await run(command)
        except IdempotencyKeyReused as error:
            self._channel.send(["error", number, error.code, str(error), 0])
        except TemporarilyUnavailable as error:
            self._channel.send(["error", number, error.code, error.detail, error.retry_after_seconds])
        except Exception as error:
            self._channel.send(["error", number, FAILED, "".join(format_exception(error)), 0])
        else:
            outcome = reply.response
            if isinstance(outcome, Response):
                self._channel.send(["reply", number, [outcome.status, outcome.body, dict(outcome.headers)], reply.is_replay])
            else:
                self._channel.send(["rejection", number, attrs.astuple(outcome), reply.is_replay])


def _encode(command: Command) -> list[object]:
    request, condition = command.request, command.request.precondition
    return [
        request.path, request.body, request.new_id, request.correlation_id,
        None if condition is UNCONDITIONAL else [condition.if_match, condition.if_none_match],
        command.traceparent, command.caller, command.key, command.fingerprint,
    ]  # fmt: skip


def _decode(members: list[object]) -> Command:
    path, body, new_id, correlation_id, condition, *others = members
    precondition = UNCONDITIONAL
    if condition is not None:
        precondition = Precondition(*(None if tags is None else tuple(tags) for tags in condition))  # type: ignore[attr-defined]
    return Command(Request(path, body, new_id, correlation_id, precondition), *others)  # type: ignore[arg-type]


def _to_error(code: str, detail: str, retry_after_seconds: int) -> Exception:
    if code == IdempotencyKeyReused.code:
        return IdempotencyKeyReused(detail)
    if code == FAILED:
        return CommandFailed(detail)
    return _UNAVAILABLE[code](detail, retry_after_seconds)
