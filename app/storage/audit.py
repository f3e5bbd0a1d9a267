"""
The audit table of a module: who changed what, from which value to which.

A row is written in the transaction of the change itself, so neither exists without the other. Rows are never changed, and
stay until the operator deletes them.
"""

from __future__ import annotations

__all__ = ["Audit", "AuditEntry", "AuditRecord", "AuditTrail", "audit_entry", "changes"]

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

import attrs
import orjson
from attrs import frozen
from sqlalchemy import Connection, MetaData, Select, select

from app.storage.module_store import ModuleStore
from app.storage.tables import AuditEntry, audit_table

VALUE_CHARACTERS_MAX = 4_000
"""Longest JSON text of what there was before or after a change; a longer one is stored as its length only."""


@frozen
class Audit:
    """Who requests a change: the name of an API key or of a command's user; the operation; and what it is about."""

    actor: str
    action: str
    target: str
    correlation_id: str = ""


@frozen
class AuditRecord:
    """One row of the audit of *module*."""

    id: str
    module: str
    at: datetime
    actor: str
    action: str
    target: str
    before: Any
    after: Any
    correlation_id: str


def audit_entry(audit: Audit, id: str, now: datetime, before: Any, after: Any) -> AuditEntry:
    """Return the row for a change from *before* to *after*, JSON values or what `changes` returns."""
    texts = (_stored(audit.actor, 64), _stored(audit.action, 64), _stored(audit.target, 255))
    return AuditEntry(id, now.astimezone(UTC), *texts, _json(before), _json(after), audit.correlation_id)


def changes(pairs: Iterable[tuple[Any | None, Any]]) -> tuple[Any, Any]:
    """
    Return the attributes in which states differ, before and after, for each pair of a state before and after.

    A state that did not exist before is None before, and whole after.
    """
    before: dict[str, Any] | None = {}
    after: dict[str, Any] = {}
    for old, new in pairs:
        found = {field.name: getattr(new, field.name) for field in attrs.fields(type(new))}
        if old is None:
            before = None
            after |= found
            continue
        differing = {name: value for name, value in found.items() if getattr(old, name) != value}
        after |= differing
        if before is not None:
            before |= {name: getattr(old, name) for name in differing}
    return before, after


class AuditTrail:
    """The audit of all modules of this process."""

    def __init__(self, stores: Mapping[str, ModuleStore]) -> None:
        self._stores = dict(stores)
        self._tables = {name: audit_table(name, MetaData()) for name in stores}
        self.modules = frozenset(stores)

    async def list(
        self,
        *,
        module: str | None = None,
        actor: str | None = None,
        action: str | None = None,
        target: str | None = None,
        after: datetime | None = None,
        before: datetime | None = None,
        beyond: str | None = None,
        limit: int = 50,
    ) -> Sequence[AuditRecord]:
        """
        Return up to *limit* records that meet all conditions, the newest first, with ids below *beyond*.

        *after* is inclusive, *before* exclusive.

        Raises:
            StorageUnavailable: A database is unavailable.
        """
        found: list[AuditRecord] = []
        for name, table in self._tables.items():
            if module not in (None, name):
                continue
            texts = {"actor": actor, "action": action, "target": target}
            conditions = [table.c[column] == value for column, value in texts.items() if value is not None]
            if after is not None:
                conditions.append(table.c.at >= after)
            if before is not None:
                conditions.append(table.c.at < before)
            if beyond is not None:
                conditions.append(table.c.id < beyond)
            query = select(table).where(*conditions).order_by(table.c.id.desc()).limit(limit)
            found += await self._stores[name].database.read(partial(_records, name, query))
        return sorted(found, key=lambda record: record.id, reverse=True)[:limit]


def _records(module: str, query: Select[Any], connection: Connection) -> list[AuditRecord]:
    return [
        AuditRecord(
            row.id, module, row.at if row.at.tzinfo is not None else row.at.replace(tzinfo=UTC), row.actor, row.action,
            row.target, _value(row.before), _value(row.after), row.correlation_id,
        )
        for row in connection.execute(query)
    ]  # fmt: skip


def _json(value: Any) -> str | None:
    if value is None:
        return None
    text = orjson.dumps(value, default=_plain, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_SORT_KEYS).decode()
    return text if len(text) <= VALUE_CHARACTERS_MAX else orjson.dumps({"characters": len(text)}).decode()


def _plain(value: Any) -> Any:
    """Return *value*, an attribute of a state, in a form that JSON has."""
    return attrs.asdict(value, recurse=False) if attrs.has(type(value)) else str(value)


def _value(text: str | None) -> Any:
    return None if text is None else orjson.loads(text)


def _stored(text: str, length_max: int) -> str:
    return text.encode("utf-8", "replace").decode().replace("\0", "\ufffd")[:length_max]
