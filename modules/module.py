"""
What a module is.

A module remembers states, hears events and decides. It never waits, looks at a clock, rolls dice or writes a log:
whoever runs it brings the states and the time, and carries away what was decided.
"""

from __future__ import annotations

__all__ = [
    "CancelTimer",
    "Decide",
    "Decision",
    "DecisionOutcome",
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
from modules.routes import Route

T = TypeVar("T")

State = Any
"""An instance of one of the module's state classes: attrs, frozen, without slots (see `evolve`), one row of one table."""

Key = tuple[type, str]
"""Which state: its class and its primary key."""


class Unexpected(Exception):
    """Nobody should be here: the event has no meaning for the state it met."""


@frozen
class Scheduled:
    """An event that is to be said at *at*, not before: a time-out, a retry."""

    event: Event
    due_at: datetime
    timer: str = ""
    """With a name it can be withdrawn; the name says which one, among all the module's."""


@frozen
class CancelTimer:
    """Take back the `Scheduled` of that *name*, if it has not been said yet."""

    timer: str


@define  # not frozen, for each event makes one: that would take three times as long
class Decision:
    """
    What follows from an event.

    *states* are the states that changed, whole. *events* are, in their order, what the module says: events (with a
    subject: they go out on the bus), `Scheduled` and `CancelTimer`, and replies (classes without a subject), which only
    whoever told the event gets to see. *express* overrides the lane of what goes out; None keeps the lane of the
    cause.
    """

    states: tuple[State, ...] = ()
    events: tuple[Any, ...] = ()
    express: bool | None = None

    @property
    def emitted(self) -> tuple[Any, ...]:
        """The events and replies that are said at once."""
        return tuple(event for event in self.events if not isinstance(event, Scheduled | CancelTimer))


def evolve(state: T, **changes: Any) -> T:
    """
    Return *state* with *changes*: `attrs.evolve` for our `State` classes, at a quarter of its price.

    Raises:
        TypeError: There is no such member.
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
    """Return the decision to leave everything as it is, and perhaps to say something."""
    return Decision(events=events)


@define
class DecisionOutcome:
    """What became of an event that somebody told: the states it touched, as they are now, and what was said."""

    states: tuple[State | None, ...]
    events: tuple[Any, ...]


Decide = Callable[[Sequence[Any], Event, datetime], Decision]
"""``decide(states, event, now)``: *states* are those that `KeysOf` named, in its order; None for one never met."""

KeysOf = Callable[[Event], tuple[Key, ...]]


@frozen
class Module:
    """The door plate: everything the house needs to know to run a module."""

    name: str
    consumes: tuple[type, ...]
    """Event classes it wants from the bus, its own time-outs included; older versions of them come along."""
    publishes: tuple[type, ...]
    """Event classes it sends out, each in its newest version."""
    tables: Mapping[type, Table]
    """State classes and their tables; the table's columns are named as the class's fields, the key comes first."""
    keys: KeysOf
    decide: Decide
    schemas: Mapping[str, Mapping[str, Any]]
    """JSON Schemas of what it says, by subject."""
    routes: tuple[Route, ...] = ()
    http_schemas: Mapping[str, Mapping[str, Any]] = field(factory=dict)
    """JSON Schemas of the bodies that its routes take and give, by name."""
    previous_versions: tuple[type, ...] = ()
    """Older versions of what it says, for as long as anybody may still hear them or meet one."""
    dual_publishes: tuple[DualPublish, ...] = ()
    """Which of those are still said beside the newest, and how each is made."""
    upcasts: tuple[Upcast, ...] = ()
    """How the others, which are no longer said, are read as newer ones."""


def load_schemas(package: str, folder: str) -> dict[str, Mapping[str, Any]]:
    """Read every ``*.json`` in *folder* of *package*; the file's name without its ending is the key."""
    found = {}
    for entry in sorted(resources.files(package).joinpath(folder).iterdir(), key=lambda entry: entry.name):
        if entry.name.endswith(".json"):
            found[entry.name.removesuffix(".json")] = json.loads(entry.read_text(encoding="utf-8"))
    return found
