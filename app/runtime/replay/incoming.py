"""Make what a module receives: from the data that the history has, or from an event that follows today."""

from __future__ import annotations

__all__ = ["Incoming", "NotDecided", "Unreadable"]

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from app.runtime.engine import LocalRoutes
from app.runtime.receiving import EventReader
from app.runtime.work import OutgoingEvent
from bus.contracts.registry import ContractRegistry
from bus.subjects import subject_of
from modules.module import Module


class NotDecided(Exception):
    """The event does not follow today, or the module does not consume it: there is no decision."""


class Unreadable(Exception):
    """The code of today does not know the event."""


class Incoming:
    """What each of *modules* receives."""

    def __init__(self, modules: Sequence[Module], contracts: ContractRegistry) -> None:
        self._contracts = contracts
        self._readers = {module.name: EventReader(module.name, contracts, module.consumes) for module in modules}
        self.routes = LocalRoutes(self._readers, (), contracts)
        self._classes: dict[tuple[str, str], type] = {}

    def submitted(self, module: str, name: str, data: Any) -> Any:
        """
        Return the event with *data* that was submitted to *module*; *name* is its class, or its subject.

        Raises:
            Unreadable: There is no such class.
        """
        return self._contracts.from_plain(data, self._class(module, name))

    def published(self, module: str, subject: str, data: Any) -> Any:
        """
        Return the event with *data* that was published under *subject*, in the version that *module* reads.

        Raises:
            Unreadable: There is no such subject, or *module* does not consume it.
        """
        event, reader = self._contracts.from_plain(data, self._class(module, subject)), self._readers[module]
        if reader.reads(subject):
            for upcast in reader.upcasts(subject):
                event = upcast(event)
            return event
        for name, _, convert in self.routes[type(event), False].subscribers:
            if name == module:
                return convert(event)
        raise Unreadable(f"{module} does not consume {subject}")

    def delivered(self, module: str, event: OutgoingEvent) -> tuple[str, Any]:
        """
        Return *event*, which follows today, as *module* receives it, with its subject.

        Raises:
            NotDecided: *module* does not consume it.
        """
        for name, subject, convert in self.routes[type(event.event), event.is_express].subscribers:
            if name == module:
                return subject, convert(event.event)
        raise NotDecided

    def upgraded(self, subject: str, data: Any, cls: type) -> tuple[str, Any]:
        """Return *data*, published under *subject*, as an event of *cls*, if that is a newer version; else unchanged."""
        upcasts = self._contracts.readable_subjects(cls).get(subject)
        if not upcasts:
            return subject, data
        event = self._contracts.from_plain(data, self._contracts[subject].cls)
        for upcast in upcasts:
            event = upcast(event)
        return subject_of(cls), self._contracts.to_json(event)

    def _class(self, module: str, name: str) -> type:
        found = self._classes.get((module, name))
        if found is None:
            if "." in name:
                if name not in self._contracts:
                    raise Unreadable(f"no contract for {name}")
                found = self._contracts[name].cls
            else:
                found = getattr(import_module(f"modules.{module}.events"), name, None)
                if found is None:
                    raise Unreadable(f"modules.{module}.events has no class {name}")
            self._classes[module, name] = found
        return found
