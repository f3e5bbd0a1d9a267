"""
Decide the transactions of a history again, one after the other, and compare what is emitted with what was.

The batch processor of each module decides, as it does while the program runs; only its states come from elsewhere. A
decision gets the event that it was about. If that event follows differently today, it gets today's, and if it does not
follow today, there is no decision: so what a changed rule leads to in other modules is found, too. An event that follows
today and is not in the history is delivered within its transaction. What comes from outside (a request, the answer of the
payment provider, a timer that was due) is what the history has, and nothing else; the answer to a request of a worker that
does not follow today is left out.
"""

from __future__ import annotations

__all__ = ["AnswerId", "Replay"]

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from attrs import define, field
from sqlalchemy import Connection

from app.runtime.batch import BatchProcessor
from app.runtime.engine import ROUNDS_MAX
from app.runtime.replay.comparison import Pair, is_same, pairs
from app.runtime.replay.incoming import Incoming, NotDecided
from app.runtime.replay.report import Difference, Report
from app.runtime.replay.source import Transaction, events_of, rest_of
from app.runtime.replay.states import ReplayStore
from app.runtime.work import ItemResult, OutgoingEvent, UnitOfWork, WorkItem
from app.storage.archive.history_content import Entry
from app.storage.tables import DUE_NOW
from app.telemetry.trace import TraceContext
from bus.contracts.registry import ContractRegistry
from bus.ids import derived_id
from bus.subjects import EXPRESS, subject_of
from modules.module import Module

_TRACE = TraceContext("", "")
_MALFORMED = (AttributeError, LookupError, TypeError, ValueError)


AnswerId = Callable[[str, str, Any], str]
"""``answer_id(request_id, worker, answer)``: the id under which *worker* submits *answer* to the event *request_id*."""


@define(eq=False)
class _Current:
    """The transaction that is decided again now."""

    transaction: Transaction
    now: datetime
    emitted: dict[int, tuple[str, Entry, Sequence[Any]]]
    """The events of the history by position, each with its producer and with the decision that has emitted it."""
    pending: dict[str, list[Entry]]
    """The decisions that were not made again yet, by module."""
    followed: dict[int, OutgoingEvent | None] = field(factory=dict)
    """By position: what follows today; None if nothing does, or something else."""
    unchanged: set[int] = field(factory=set)
    """The positions of the events that are taken as the history has them, because their decisions cannot be made again."""
    additional: list[OutgoingEvent] = field(factory=list)
    """The events that are due now and that the history does not have."""
    units: dict[str, UnitOfWork] = field(factory=dict)

    def id_of(self, entry: Entry) -> str:
        """Return the id of the event that *entry* is about; it follows from what the row of its producer has."""
        if entry[0] != "l":
            id: str = entry[2]
            return id
        if entry[1] not in self.emitted:  # the row is damaged: nothing is known about what follows from the event
            return ""
        producer, cause, event = self.emitted[entry[1]]
        return derived_id(self.id_of(cause), f"{producer}.{event[1]}")


class Replay:
    """Decides the history of *modules* again; *stores* has their states, over *connection*."""

    def __init__(
        self,
        modules: Sequence[Module],
        stores: Mapping[str, ReplayStore],
        connection: Connection,
        contracts: ContractRegistry,
        report: Report,
        answer_id: AnswerId,
    ) -> None:
        self._modules = {module.name: module for module in modules}
        self._stores = stores
        self._connection = connection
        self._report = report
        self._incoming = Incoming(modules, contracts)
        self._processors = {module.name: BatchProcessor(module, stores[module.name], contracts) for module in modules}
        self._replaced: dict[str, OutgoingEvent | None] = {}
        """By the id of an event that differs today: what it is today; None if it does not follow."""
        self._answer_id = answer_id
        self._workers = {subject_of(cls): name for each in modules for name, classes in each.workers.items() for cls in classes}
        self._unasked: dict[str, list[tuple[str, str]]] = {}
        """By key: the ids of the requests to a worker that do not follow today, each with the worker."""

    def decide(self, transaction: Transaction) -> None:
        """Decide *transaction* again; a module that cannot is stopped, and the report has the reason."""
        current = self._begin(transaction)
        pending = current.pending
        while pending:
            before = sum(map(len, pending.values()))
            for module in list(pending):
                self._decide_ready(current, module)
            if sum(map(len, pending.values())) == before:
                for module in list(pending):
                    self._stop(current, module, "its decisions wait for each other")
        self._decide_additional(current)
        for module, unit in current.units.items():
            self._stores[module].put(self._connection, unit.changed)
        self._report.transactions += 1

    def _begin(self, transaction: Transaction) -> _Current:
        emitted: dict[int, tuple[str, Entry, Sequence[Any]]] = {}
        current = _Current(transaction, datetime.fromisoformat(transaction.at), emitted, {})
        for module, why in transaction.damaged.items():
            self._stop(current, module, why)
        for module, entries in transaction.entries.items():
            try:
                decisions = [entry for entry in entries if entry[0] != "t"]
                for entry in decisions:
                    for event in events_of(entry):
                        if event[0] is not None:
                            emitted[event[0]] = module, entry, event
            except _MALFORMED as error:
                self._stop(current, module, f"a row of the history is damaged: {error!r}")
                continue
            if decisions and module in self._modules and module not in self._report.stopped:
                current.pending[module] = decisions
        return current

    def _stop(self, current: _Current, module: str, why: str) -> None:
        """Decide nothing more in *module*."""
        current.pending.pop(module, None)
        current.units.pop(module, None)
        if module in self._modules:
            self._report.stop(module, current.transaction.number, why)

    def _decide_ready(self, current: _Current, module: str) -> None:
        """Decide about the next events of *module* whose producers have decided."""
        entries = current.pending[module]
        ready: list[Entry] = []
        for entry in entries:
            if entry[0] == "l" and entry[1] not in current.followed and entry[1] not in current.unchanged:
                if entry[1] not in current.emitted:
                    self._stop(current, module, "it refers to an event that no history in this database has")
                    return
                if current.emitted[entry[1]][0] in current.pending:
                    break
            ready.append(entry)
        if len(ready) == len(entries):
            del current.pending[module]
        else:
            current.pending[module] = entries[len(ready) :]
        try:
            self._decide_entries(current, module, ready)
        except _MALFORMED as error:
            self._stop(current, module, f"a row of the history is damaged: {error!r}")

    def _decide_entries(self, current: _Current, module: str, entries: Sequence[Entry]) -> None:
        known: list[Entry] = []
        items: list[WorkItem] = []
        for entry in entries:
            try:
                item = self._item(current, module, entry)
            except NotDecided:
                self._nothing_follows(current, module, entry)
            except Exception as error:
                self._fails(current, module, entry, error)
            else:
                if self._begins_before(module, item, entry):
                    current.unchanged.update(event[0] for event in events_of(entry) if event[0] is not None)
                else:
                    known.append(entry)
                    items.append(item)
        for entry, item, result in zip(known, items, self._decided(current, module, items), strict=True):
            has_changed = result.decision is not None and bool(result.decision.states)
            if result.error is not None:
                self._fails(current, module, entry, result.error)
            elif is_same(entry, has_changed, result.emitted):
                for event, each in zip(events_of(entry), result.emitted, strict=True):
                    if event[0] is not None:
                        current.followed[event[0]] = each
            else:
                self._differs(current, module, entry, item, has_changed, result.emitted)

    def _decided(
        self, current: _Current, module: str, items: Sequence[WorkItem]
    ) -> list[ItemResult]:
        """Decide about *items*; return the result of each."""
        if not items:
            return []
        unit = current.units.get(module)
        if unit is None:
            unit = current.units[module] = UnitOfWork()
        results, _ = self._processors[module].decide(items, unit, current.now, self._connection)
        self._report.decisions += len(items)
        return results

    def _item(self, current: _Current, module: str, entry: Entry) -> WorkItem:
        """Return the event that *entry* was about, as *module* gets it today."""
        if entry[0] == "l":
            return self._local_item(current, module, entry)
        _, name, id, _, is_express, data = entry[:6]
        if entry[0] == "b" and id in self._replaced:
            today = self._replaced[id]
            if today is None:
                raise NotDecided
            return WorkItem(self._incoming.delivered(module, today)[1], id, _TRACE, today.is_express, None)
        if entry[0] == "b":
            event = self._incoming.published(module, name, data)
        else:
            event = self._incoming.submitted(module, name, data)
            if self._unasked and self._is_unasked(module, event, id):
                raise NotDecided
        return WorkItem(event, id, _TRACE, is_express, None)

    def _is_unasked(self, module: str, event: Any, id: str) -> bool:
        """Return whether *event*, submitted under *id*, is the answer to a request that does not follow today."""
        keys = self._modules[module].keys(event)
        requests = self._unasked.get(keys[0][1], ()) if keys else ()
        return any(self._answer_id(request, worker, event) == id for request, worker in requests)

    def _local_item(self, current: _Current, module: str, entry: Entry) -> WorkItem:
        position = entry[1]
        if position not in current.followed:
            # As the history has it: this process does not run its producer, or does not know its state.
            _, cause, (_, _, source, data, *_) = current.emitted[position]
            event = self._incoming.published(module, source, data)
            return WorkItem(event, current.id_of(entry), _TRACE, bool(rest_of(cause)[0]), None)
        today = current.followed[position]
        if today is None:
            raise NotDecided
        subject, event = self._incoming.delivered(module, today)
        return WorkItem(event, None, _TRACE, today.is_express, None, subject=subject, cause=today)

    def _begins_before(self, module: str, item: WorkItem, entry: Entry) -> bool:
        """Return whether *item* is about a state of which the history does not have the beginning; note it."""
        store = self._stores[module]
        if store.begins_with is None:
            return False
        keys = self._modules[module].keys(item.event)
        unknown = [key for key in keys if store.is_unknown(self._connection, key)]
        if not unknown:
            return False
        store.set_unknown(self._connection, unknown if list(rest_of(entry)) == [0] else keys)
        return True

    def _nothing_follows(self, current: _Current, module: str, entry: Entry) -> None:
        """Note that what *entry* has emitted does not follow today, because there is no decision."""
        for event in events_of(entry):
            pair = Pair(event[1], event, None, f"{event[2]} does not follow any more: nor does its cause")
            self._note(current, module, entry, None, pair)

    def _fails(self, current: _Current, module: str, entry: Entry, error: Exception) -> None:
        why = f"fails today: {type(error).__name__}: {error}"
        for event in events_of(entry) or [(None, 0, None, None)]:
            self._note(current, module, entry, None, Pair(event[1], event, None, why))

    def _differs(
        self, current: _Current, module: str, entry: Entry, item: WorkItem, changed: bool, emitted: Sequence[OutgoingEvent]
    ) -> None:
        found = list(pairs(entry, current.transaction.at, emitted, self._incoming.upgraded))
        for pair in found:
            if pair.detail:
                self._note(current, module, entry, item, pair)
            elif pair.recorded is not None:
                if pair.shift:
                    self._report.shifted[module, pair.recorded[2], pair.shift] += 1
                if pair.recorded[0] is not None:
                    current.followed[pair.recorded[0]] = pair.today
        if not found:
            why = "changes a state today, and did not" if changed else "changes no state today, and did"
            self._note(current, module, entry, item, Pair(0, None, None, why))

    def _note(self, current: _Current, module: str, entry: Entry, item: WorkItem | None, pair: Pair) -> None:
        """Report *pair*, and have today's event delivered in the place of the one that the history has."""
        recorded, today = pair.recorded, pair.today
        key = self._key(current, module, entry, item)
        replacement = today if pair.is_event_same else None
        if recorded is not None and recorded[2] is not None:
            if recorded[0] is not None:
                current.followed[recorded[0]] = replacement
            id = derived_id(current.id_of(entry), f"{module}.{pair.ordinal}")
            self._replaced[id] = replacement
            if replacement is None and recorded[2] in self._workers:
                self._unasked.setdefault(key, []).append((id, self._workers[recorded[2]]))
        if today is not None and replacement is None and today.due_at is DUE_NOW:
            current.additional.append(today)
        cause = current.emitted[entry[1]][2][2] if entry[0] == "l" else entry[1]
        was, now = recorded[2] if recorded is not None else None, subject_of(today.event) if today is not None else None
        self._report.add(
            Difference(
                module, current.transaction.number, current.transaction.at, key, cause, pair.ordinal, was, now, pair.detail,
                key in self._report.affected,
            )
        )  # fmt: skip

    def _key(self, current: _Current, module: str, entry: Entry, item: WorkItem | None) -> str:
        """Return the key of the first state that *entry* is about."""
        if item is not None:
            keys = self._modules[module].keys(item.event)
            return keys[0][1] if keys else ""
        data = current.emitted[entry[1]][2][3] if entry[0] == "l" else entry[5]
        return str(data.get("order_id") or data.get("product_id") or "")

    def _decide_additional(self, current: _Current) -> None:
        """Deliver the events that follow today only, and what follows from them, to the modules that consume them."""
        for _ in range(ROUNDS_MAX):
            events, current.additional = current.additional, []
            for event in events:
                for module, subject, convert in self._incoming.routes[type(event.event), event.is_express].subscribers:
                    if module not in self._report.stopped:
                        self._deliver(current, module, event, subject, convert(event.event))
            if not current.additional:
                return

    def _deliver(self, current: _Current, module: str, cause: OutgoingEvent, subject: str, event: Any) -> None:
        item = WorkItem(event, None, _TRACE, cause.is_express, None, subject=subject, cause=cause)
        if self._stores[module].begins_with is not None and self._is_unknown(module, event):
            return
        (result,) = self._decided(current, module, [item])
        keys = self._modules[module].keys(event)
        key, name = keys[0][1] if keys else "", subject.removesuffix(EXPRESS)
        found: Iterable[tuple[int, str | None, str]] = [(0, None, f"fails: {type(result.error).__name__}: {result.error}")]
        if result.error is None:
            found = [(each.ordinal, subject_of(each.event), f"{subject_of(each.event)} is new") for each in result.emitted]
        for ordinal, now, detail in found:
            transaction = current.transaction
            self._report.add(
                Difference(module, transaction.number, transaction.at, key, name, ordinal, None, now, detail, True)
            )
        current.additional += [each for each in result.emitted if each.due_at is DUE_NOW]

    def _is_unknown(self, module: str, event: Any) -> bool:
        store = self._stores[module]
        return any(store.is_unknown(self._connection, key) for key in self._modules[module].keys(event))
