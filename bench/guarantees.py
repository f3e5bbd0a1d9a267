"""
Run this program without one of its guarantees, to measure what the guarantee costs.

``python -m bench.guarantees NAME ... serve`` replaces the functions that keep the guarantees NAME, in this process only, and
then runs the command line of the program. The program itself has no setting for any of them.
"""

from __future__ import annotations

__all__ = ["GUARANTEES", "Guarantee", "Patch", "main", "replace"]

import sys
from collections.abc import Callable, Iterable, Sequence
from pkgutil import resolve_name
from typing import Any

import orjson
from attrs import frozen

Original = Any
"""What a patch replaces: a function or a class attribute."""

Patch = tuple[str, Callable[[Original], Any]]
"""The dotted name that is replaced, ``package.module:name``, and the replacement as a function of the original."""


@frozen
class Guarantee:
    """Something that the program does for every order, and how to leave it out."""

    title: str
    patches: tuple[Patch, ...]


def _constant(value: Any) -> Callable[[Original], Any]:
    """Return a replacement that takes any arguments and returns *value*."""
    return lambda original: lambda *arguments, **options: value


def _without_sync(open_watched: Original) -> Any:
    return lambda path, watch, pragmas, options: open_watched(path, watch, (*pragmas, "PRAGMA synchronous = OFF"), options)


def _without_rows(save: Original) -> Any:
    """Leave out the outbox rows of events that are due now; those of timers stay."""

    def replacement(self: Any, connection: Any, *, outgoing: Sequence[Any], **rest: Any) -> None:
        save(self, connection, outgoing=[row for row in outgoing if row.timer is not None], **rest)

    return replacement


def _without_timers(save: Original) -> Any:
    def replacement(self: Any, connection: Any, *, outgoing: Sequence[Any], cancelled_timers: Any, **rest: Any) -> None:
        save(self, connection, outgoing=[row for row in outgoing if row.timer is None], cancelled_timers=(), **rest)

    return replacement


def _without_inbox(save: Original) -> Any:
    def replacement(self: Any, connection: Any, *, inbox_entries: Any, **rest: Any) -> None:
        save(self, connection, inbox_entries=(), **rest)

    return replacement


def _without_entry(with_timeline: Original) -> Any:
    from modules.module import evolve

    def replacement(order: Any, event: str, now: Any, detail: Any = None, **changes: Any) -> Any:
        return evolve(order, updated_at=now, **changes)

    return replacement


def _any_value(original: Original) -> Any:
    return lambda schema: lambda value: True


def _plain_json(original: Original) -> Any:
    return orjson.loads


_TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

GUARANTEES: dict[str, Guarantee] = {
    "sync": Guarantee(
        "a commit is on the disk before it is answered (``synchronous=FULL``)",
        (("app.storage.sql.sqlite:open_watched", _without_sync),),
    ),
    "outbox": Guarantee(
        "an outbox row for the charge request, marked when it is processed",
        (
            ("app.storage.module_store:ModuleStore.save", _without_rows),
            ("app.storage.module_store:ModuleStore.mark_sent", _constant(None)),
        ),
    ),
    "inbox": Guarantee(
        "inbox rows, so that an event is processed once",
        (("app.storage.module_store:ModuleStore.save", _without_inbox),),
    ),
    "history": Guarantee(
        "the history of all events, in the transaction that publishes them",
        (
            ("app.storage.module_store:ModuleStore.append_history", _constant(None)),
            ("app.runtime.batch:BatchProcessor._entry", _constant(())),
        ),
    ),
    "timers": Guarantee(
        "a deadline for each order, kept in the database",
        (("app.storage.module_store:ModuleStore.save", _without_timers),),
    ),
    "schemas": Guarantee(
        "each event is checked against its schema",
        (("bus.contracts.registry:validator", _any_value),),
    ),
    "requests": Guarantee(
        "each request body is strict JSON and is checked against its schema",
        (
            ("app.web.endpoints.module_routes:validator", _any_value),
            ("app.web.requests.command:loads", _plain_json),
        ),
    ),
    "timeline": Guarantee(
        "an order's timeline",
        (("modules.orders.decide:with_timeline", _without_entry),),
    ),
    "logs": Guarantee(
        "a log line for each order",
        (("app.runtime.order_metrics:log_fast", _constant(None)),),
    ),
    "metrics": Guarantee(
        "metrics",
        (
            ("app.telemetry.collectors:Counter.inc", _constant(None)),
            ("app.telemetry.collectors:Histogram.observe", _constant(None)),
        ),
    ),
    "traces": Guarantee(
        "a trace for each order",
        (
            ("app.web.endpoints.module_routes:traceparent", _constant(_TRACE)),
            ("app.runtime.work:child", _constant(_TRACE)),
        ),
    ),
    "files": Guarantee(
        "a look at the database file before each transaction",
        (("app.storage.sql.file_watch:FileWatch.verify", _constant(None)),),
    ),
}


def replace(names: Iterable[str]) -> None:
    """
    Replace the functions that keep the guarantees *names*.

    Raises:
        KeyError: There is no such guarantee.
        AttributeError: The program has no function of that name any more.
    """
    for name in names:
        for target, patch in GUARANTEES[name].patches:
            owner, _, attribute = target.replace(":", ".").rpartition(".")
            module, _, rest = target.partition(":")
            parent = resolve_name(f"{module}:{rest.rpartition('.')[0]}" if "." in rest else module)
            assert owner
            setattr(parent, attribute, patch(getattr(parent, attribute)))


def main(arguments: Sequence[str]) -> None:
    """Leave out the guarantees that *arguments* name before the command of the program, and run that command."""
    names = [each for each in arguments if each in GUARANTEES]
    replace(names)
    from app.cli.main import main as run

    sys.argv[1:] = arguments[len(names) :]
    run()


if __name__ == "__main__":
    main(sys.argv[1:])
