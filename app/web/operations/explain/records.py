"""What one process knows of one order: the events in its histories, where they are, and what they have led to."""

from __future__ import annotations

__all__ = ["OrderRecords"]

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any

from sqlalchemy import Connection

from app.gateways.gateway_request import result_ids
from app.gateways.payment_worker import CONSUMER
from app.messaging.consumers import EXPRESS_LANE
from app.messaging.dead_letters import DeadLetterStore
from app.runtime.service import ModuleService
from app.storage.archive.event_search import EventSearch, Found
from app.storage.archive.history_content import HistoryEvent
from app.storage.audit import AuditTrail
from app.storage.databases import Storage
from app.storage.sql.database import Database
from app.web.endpoints.audit import to_json as audit_to_json
from app.web.endpoints.dead_letters import to_json as dead_letter_to_json
from bus.ids import derived_id
from bus.port import WAITS
from bus.subjects import without_lane
from modules.inventory.state import Reservation
from modules.module import Module
from modules.payments.routes import show as show_payment
from modules.payments.state import Payment

SEARCHES_MAX = 4
"""Rounds over the databases of one process: what is found in one leads on in another."""

AUDIT_MAX = 50

TIMERS: Mapping[str, Sequence[str]] = {"orders": ("timeout",), "payments": ("charge", "refund")}
"""The first part of the names of an order's timers, by module; the order's id follows."""

OUTBOX = "-outbox"
"""Suffix of the consumer that stands for the outbox of a module, in dead letters of events that could not be published."""

Json = dict[str, Any]


class OrderRecords:
    """
    The records of the modules of this process about one order.

    *consumers* are the names of all consumers of the system, without lanes; *remote* the subjects that are not delivered
    locally. With *delivers_locally* all others are.
    """

    def __init__(
        self,
        storage: Storage,
        services: Mapping[str, ModuleService],
        dead_letters: DeadLetterStore,
        trail: AuditTrail,
        modules: Sequence[Module],
        remote: Collection[str],
        *,
        delivers_locally: bool,
    ) -> None:
        self._stores = storage.stores
        self._services = services
        self._dead_letters = dead_letters
        self._trail = trail
        self._remote = frozenset(remote)
        self._delivers_locally = delivers_locally
        names = [name for module in modules for name in (module.name, f"{module.name}{OUTBOX}", *module.workers)]
        self._consumers = [*names, *(name + EXPRESS_LANE for name in names)]
        self._searches = [
            EventSearch(
                database, {name: store.history for name, store in self._stores.items() if store.database is database},
                partial(result_ids, consumer=CONSUMER),
            )
            for database in storage.databases.values()
        ]  # fmt: skip

    @property
    def modules(self) -> Collection[str]:
        """The names of the modules."""
        return self._stores.keys()

    async def of(
        self, order_id: str, moments: Collection[datetime], ids: Collection[str], *, has_states: bool = False
    ) -> Json:
        """
        Return the records of each module, by its name, about the order *order_id*.

        *moments* are those of the order's timeline, *ids* those of events that other processes know. With *has_states* the
        stored states and the rows of the histories are there, too.

        Raises:
            StorageUnavailable: A database is out of reach.
            ValueError: A row of a history is damaged, or was written by a newer release.
        """
        found = await self._found(order_id, moments, ids)
        events = {event.event_id: event for each in found for event in each.events.values()}
        timers = {id: timer for each in found for id, timer in each.timers.items()}
        answers = {answer: id for id in (*events, *timers) for answer in result_ids(id, CONSUMER)}
        letters = await self._letters({*events, *timers, *ids})
        records: Json = {}
        for name in self._stores:
            own = [event for event in events.values() if event.module == name]
            rows = await self._outbox(name, [*(event.event_id for event in own), *timers])
            shown = [self._event(event, rows, letters, events, answers) for event in own]
            shown += [
                self._fired(id, *timer, rows, answers)
                for id, timer in timers.items()
                if timer[0].module == name and id not in events and (rows.get(id) or _has_consequence(id, found))
            ]
            records[name] = {
                "events": sorted(shown, key=lambda event: event["at"]),
                "consumed": _consumed(name, found, events),
                "answers": _answers(name, found, answers),
                "timers": await self._timers(name, order_id),
                "dead_letters": [letter for letter in letters if _module_of(letter["consumer"]) == name],
                "audit": [audit_to_json(each) for each in await self._trail.list(module=name, target=order_id, limit=AUDIT_MAX)],
                "is_complete": all(each.is_complete for each in found),
                **await self._state(name, order_id),
            }
            if has_states:
                records[name] |= {"states": await self._states(name, order_id), "rows": _rows(name, found)}
        return records

    async def _found(self, order_id: str, moments: Collection[datetime], ids: Collection[str]) -> list[Found]:
        known, found = {*ids}, [Found() for _ in self._searches]
        for _ in range(SEARCHES_MAX):
            found = [await search.find(order_id, moments, known) for search in self._searches]
            ids_now = known.union(*(each.events for each in found), *(each.timers for each in found))
            if len(self._searches) == 1 or ids_now == known:
                break
            known = ids_now
        return found

    async def _letters(self, ids: Collection[str]) -> list[Json]:
        """Return the dead letters of the events *ids*: of each consumer that may have one, under the id that it then has."""
        wanted = [derived_id(id, consumer) for id in ids for consumer in self._consumers]
        return [dead_letter_to_json(stored) for stored in await self._dead_letters.find(wanted)]

    async def _outbox(self, name: str, ids: Sequence[str]) -> dict[str, bool]:
        """Return whether each row of the outbox was sent, by its id."""

        def read(connection: Connection) -> dict[str, bool]:
            marks = ", ".join("?" * len(ids))
            sql = f"SELECT id, CASE WHEN sent_at IS NULL THEN 0 ELSE 1 END FROM {name}_outbox WHERE id IN ({marks})"
            return {id: bool(is_sent) for id, is_sent in _run(self._stores[name].database, connection, sql, ids)}

        return await self._stores[name].database.read(read) if ids else {}

    async def _timers(self, name: str, order_id: str) -> list[Json]:
        database = self._stores[name].database

        def read(connection: Connection) -> list[Json]:
            found: list[Json] = []
            due_at = database.dialect.timestamp_sql("due_at")
            for prefix in TIMERS.get(name, ()):
                sql = f"SELECT name, subject, {due_at} FROM {name}_outbox WHERE name >= ? AND name < ? AND sent_at IS NULL"
                bounds = f"{prefix}:{order_id}", f"{prefix}:{order_id};"  # the semicolon follows the colon
                found += [
                    {"module": name, "name": timer, "subject": subject, "due_at": _rfc3339(due)}
                    for timer, subject, due in _run(database, connection, sql, bounds)
                    if not due.startswith("1970")  # found to be due: it is an event now
                ]
            return found

        return await database.read(read)

    async def _state(self, name: str, order_id: str) -> Json:
        if name == "inventory":
            reservation: Any = await self._services[name].get(Reservation, order_id)
            if reservation is None:
                return {"reservation": None}
            lines = [{"product_id": line.product_id, "quantity": line.quantity} for line in reservation.lines]
            return {"reservation": {"status": reservation.status.value, "lines": lines}}
        if name == "payments":
            payment: Any = await self._services[name].get(Payment, order_id)
            return {"payment": None if payment is None else show_payment(payment)}
        return {}

    async def _states(self, name: str, order_id: str) -> Json:
        """Return the stored states of the module *name* whose key is *order_id*, by class."""
        found: Json = {}
        for cls, mapper in self._stores[name].mappers.items():
            if mapper.key_name == "order_id" and (state := await self._services[name].get(cls, order_id)) is not None:
                found[cls.__name__] = mapper.to_document(state)
        return found

    def _event(
        self, event: HistoryEvent, rows: Mapping[str, bool], letters: Sequence[Json], events: Collection[str], answers: Mapping[str, str]
    ) -> Json:
        dead = [letter for letter in letters if _event_of(letter) == event.event_id]
        attempts = 1
        if dead and all(letter["error"] == WAITS for letter in dead):
            delivery, attempts = "pending", 0
        elif dead:
            delivery, attempts = "dead", max(letter["attempts"] for letter in dead)
        elif event.event_id in rows:
            delivery = "published" if rows[event.event_id] else "pending"
            attempts = int(rows[event.event_id])
        else:
            is_local = self._delivers_locally and without_lane(event.subject) not in self._remote
            delivery = "local" if is_local else "published"
        return {
            "event_id": event.event_id,
            "cause_id": event.cause_id,
            "parent_id": event.cause_id if event.cause_id in events else answers.get(event.cause_id),
            "subject": event.subject,
            "module": event.module,
            "at": _rfc3339(event.at),
            "data": event.data,
            "delivery": delivery,
            "attempts": attempts,
        }

    @staticmethod
    def _fired(
        id: str, decided: Any, subject: str, due_at: str, rows: Mapping[str, bool], answers: Mapping[str, str]
    ) -> Json:
        """Return a timer that was due, whose row in the history no moment leads to, as the event that it is."""
        return {
            "event_id": id,
            "cause_id": decided.id,
            "parent_id": answers.get(decided.id),
            "subject": subject,
            "module": decided.module,
            "at": _rfc3339(due_at),
            "data": next((each.data for each in decided.emitted if each.position is None and each.subject == subject), {}),
            "delivery": "published",
            "attempts": 1,
        }


def _run(database: Database, connection: Connection, sql: str, values: Iterable[str]) -> Any:
    return connection.exec_driver_sql(database.dialect.to_driver_sql(sql), tuple(values))


def _has_consequence(id: str, found: Sequence[Found]) -> bool:
    """Return whether the worker has answered the event *id*: a timer that was cancelled has no answer."""
    results = {*result_ids(id, CONSUMER)}
    return any(decided_id in results for each in found for decided_id, _ in each.decided)


def _consumed(name: str, found: Sequence[Found], events: Collection[str]) -> list[Json]:
    """Return the events of other processes that the module *name* has decided about: their producers may be out of reach."""
    return [
        {"event_id": decided.id, "subject": decided.source, "at": _rfc3339(decided.at), "data": decided.data}
        for each in found
        for decided in each.decided.values()
        if decided.module == name and "." in decided.source and decided.id not in events
    ]


def _answers(name: str, found: Sequence[Found], answers: Mapping[str, str]) -> list[Json]:
    """Return what the payment worker has submitted to the module *name*, each with the request that it answers."""
    return sorted(
        (
            {
                "id": decided.id,
                "request_id": answers[decided.id],
                "answer": re.sub(r"(?<!^)(?=[A-Z])", "_", decided.name).lower(),
                "at": _rfc3339(decided.at),
                "detail": {key: value for key, value in decided.data.items() if key != "order_id"},
            }
            for each in found
            for decided in each.decided.values()
            if decided.module == name and decided.id in answers
        ),
        key=lambda answer: str(answer["at"]),
    )


def _rows(name: str, found: Sequence[Found]) -> list[Json]:
    rows = [row for each in found for row in each.rows.values() if row.module == name]
    return [{"number": row.number, "at": row.at, "entries": row.entries} for row in sorted(rows, key=lambda row: (row.at, row.number))]


def _event_of(letter: Json) -> str:
    headers = letter["message"]["headers"]
    return str(headers.get("ce-id") or letter["message"]["id"])


def _module_of(consumer: str) -> str:
    return consumer.partition("-")[0]


def _rfc3339(at: str) -> str:
    return at.replace("+00:00", "Z")
