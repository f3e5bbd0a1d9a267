"""
The module descriptor, and the types of a decision.

A module owns states, consumes events and decides. It never waits, reads a clock, draws random numbers or logs: the
runtime passes the states and the time in, and carries out what the module decided.
"""

from __future__ import annotations

__all__ = [
    "CancelTimer",
    "Decide",
    "Decision",
    "DecisionOutcome",
    "IsFinished",
    "Key",
    "KeysOf",
    "Module",
    "Scheduled",
    "State",
    "Unexpected",
    "evolve",
    "load_schemas",
    "no_change",
]

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from importlib import resources
from typing import Any, TypeVar

from attrs import define, field, frozen
from sqlalchemy import Table

from bus.contracts.versions import DualPublish, Upcast
from bus.subjects import Event
from modules.errors import ModuleError
from modules.routes import Route

T = TypeVar("T")

State = Any
"""An instance of one of the module's state classes: attrs, frozen, no slots (see `evolve`), one row of one table."""

Key = tuple[type, str]
"""Identifies a state: its class and its primary key."""


class Unexpected(Exception):
    """The event has no meaning for the state it met; this is a fault in the program or in the data."""


@frozen
class Scheduled:
    """An event to publish at *due_at* and not before: a time-out, a retry."""

    event: Event
    due_at: datetime
    timer: str = ""
    """Name by which `CancelTimer` can cancel it, unique within the module; "" if it is never cancelled."""


@frozen
class CancelTimer:
    """Cancel the `Scheduled` event named *timer*, unless it has been published already."""

    timer: str


_TIMERS = (Scheduled, CancelTimer)


@define  # not frozen: each event makes one, and a frozen class takes three times as long to make
class Decision:
    """
    The result of deciding about one event.

    *states* are the states that changed, each in full. *events* are what the module emits, in order: events (classes
    with a subject, published on the bus), `Scheduled`, `CancelTimer`, and replies (classes without a subject), which
    only the submitter of the event receives. *express* sets the lane of what is published; None keeps the lane of the
    event that caused it.
    """

    states: tuple[State, ...] = ()
    events: tuple[Any, ...] = ()
    express: bool | None = None

    @property
    def emitted(self) -> tuple[Any, ...]:
        """The events and replies that are emitted at once: without `Scheduled` and `CancelTimer`."""
        return tuple([event for event in self.events if not isinstance(event, _TIMERS)])


def evolve(state: T, **changes: Any) -> T:
    """
    Return a copy of *state* with *changes*: `attrs.evolve` for `State` classes, in a quarter of the time.

    Raises:
        TypeError: *state* has no attribute of such a name.
    """
    evolved: T = object.__new__(type(state))
    members = evolved.__dict__
    members.update(state.__dict__)
    count = len(members)
    members.update(changes)
    if len(members) != count:
        raise TypeError(f"{type(state).__name__} has no {', '.join(changes.keys() - state.__dict__.keys())}")
    return evolved


def no_change(*events: Any) -> Decision:
    """Return a decision that changes no state and emits *events*."""
    return Decision(events=events)


@define
class DecisionOutcome:
    """What a submitted event led to: the states that `KeysOf` named, as they are now, and what the module emitted."""

    states: tuple[State | None, ...]
    events: tuple[Any, ...]


Decide = Callable[[Sequence[Any], Event, datetime], Decision]
"""``decide(states, event, now)``. *states* are those that `KeysOf` named, in its order; None for one without a row."""

KeysOf = Callable[[Event], tuple[Key, ...]]
"""``keys(event)``: the states to load before deciding about *event*."""


IsFinished = Callable[[Any, datetime], bool]
"""``is_finished(state, before)``: nothing more happens to the state by itself, and it has not changed since *before*."""


@frozen
class Module:
    """The module descriptor: everything the application needs to know to run a module."""

    name: str
    consumes: tuple[type, ...]
    """Event classes that it consumes, its own time-outs included. It receives their older versions upcast to these."""
    publishes: tuple[type, ...]
    """Event classes that it publishes, each in its newest version."""
    tables: Mapping[type, Table]
    """State classes and their tables; a table's columns have the names of the class's fields, the key first."""
    keys: KeysOf
    decide: Decide
    schemas: Mapping[str, Mapping[str, Any]]
    """JSON Schemas of the events that it publishes, by subject."""
    archivable: Mapping[type, IsFinished] = field(factory=dict)
    """
    The state classes whose old and finished states go to the archive.

    Such a state is read from there when it is needed again. Only one is moved whose key begins with a time in milliseconds
    that has passed as well, as an order's id does (`bus.ids`).
    """
    routes: tuple[Route, ...] = ()
    http_schemas: Mapping[str, Mapping[str, Any]] = field(factory=dict)
    """JSON Schemas of the request and response bodies of its routes, by name."""
    previous_versions: tuple[type, ...] = ()
    """Older versions of what it publishes, for as long as a consumer or a stored message may use one."""
    dual_publishes: tuple[DualPublish, ...] = ()
    """The older versions that it still publishes beside the newest one, and how each is converted."""
    upcasts: tuple[Upcast, ...] = ()
    """How the older versions that it no longer publishes are read as newer ones."""
    workers: Mapping[str, tuple[type, ...]] = field(factory=dict)
    """
    Consumers beside the module's own, by name, each with the event classes that it consumes.

    A worker calls something outside and submits the answer to the module; bootstrap builds it (``GATEWAYS``). Its name
    begins with the module's name and a dash.
    """


def load_schemas(package: str, folder: str) -> dict[str, Mapping[str, Any]]:
    """
    Return the content of every ``*.json`` file in *folder* of *package*, by file name without the suffix.

    Raises:
        ModuleError: There is no such folder.
    """
    found = {}
    path = resources.files(package).joinpath(folder)
    if not path.is_dir():
        raise ModuleError(f"{package.removeprefix('modules.')}: there is no folder {package.replace('.', '/')}/{folder}")
    for entry in sorted(path.iterdir(), key=lambda entry: entry.name):
        if entry.name.endswith(".json"):
            found[entry.name.removesuffix(".json")] = json.loads(entry.read_text(encoding="utf-8"))
    return found
