"""A request for a command route, read and checked, and what submits its event."""

from __future__ import annotations

__all__ = ["Command", "RunCommand", "command_runner"]

from collections.abc import Awaitable, Callable

from attrs import define
from uuid_utils import uuid7

from app.runtime.service import ModuleService, Reply
from app.storage.audit import Audit
from app.telemetry.trace import TraceContext
from modules.routes import CommandRoute, Request


@define  # not frozen: every order creates one
class Command:
    """A valid request for a `modules.routes.CommandRoute`, and who sends it."""

    request: Request
    traceparent: str
    """Of the trace that the request belongs to (W3C Trace Context)."""
    caller: str
    """The name of the API key."""
    key: str | None = None
    """The idempotency key, unique to the caller and the route; None without one."""
    fingerprint: str = ""
    """With a *key*: differs if the body of the request differs."""


RunCommand = Callable[[Command], Awaitable[Reply]]
"""Submits the event of a command; raises as `app.runtime.service.ModuleService.submit` does."""


def command_runner(service: ModuleService, route: CommandRoute) -> RunCommand:
    """Return what submits the events of *route* to *service*."""
    make_event, respond, is_express = route.event, route.respond, route.express
    name, is_audited, sheds_load = route.name, route.is_audited, route.sheds_load
    submit = service.submit

    def run(command: Command) -> Awaitable[Reply]:
        request = command.request
        audit = None
        if is_audited:  # about the resource that the path names, or the new one
            target = "/".join(request.path.values()) or request.new_id
            audit = Audit(command.caller, name, target, request.correlation_id)
        return submit(
            make_event(request),
            id=str(uuid7()),
            trace=TraceContext(request.correlation_id, command.traceparent),
            respond=respond,
            is_express=is_express(request),
            key=command.key,
            fingerprint=command.fingerprint,
            sheds_load=sheds_load,
            new_key=request.new_id,
            audit=audit,
        )

    return run
