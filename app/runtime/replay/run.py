"""
Decide whole histories again: verify them with the code of today, and rebuild the tables of states from them.

The database stays in use. Everything that is finished when the replay begins is read in short transactions. What has been
committed since is read in one last snapshot, and so are the states that the result is compared with: a transaction is in
both, or in neither.
"""

from __future__ import annotations

__all__ = ["BaselineMismatch", "NotEmpty", "create_state_tables", "replay", "require_empty"]

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime, timedelta
from functools import partial
from operator import attrgetter

from sqlalchemy import Connection, Engine, MetaData, inspect

from app.runtime.replay.decisions import AnswerId, Replay
from app.runtime.replay.ends import compare_states
from app.runtime.replay.report import Report
from app.runtime.replay.source import DatabaseHistory, Transaction
from app.runtime.replay.states import Baseline, ReplayStore
from app.storage.module_store import FIRST_ID, ModuleStore
from app.storage.sql.database import Database
from app.storage.tables import archive_table
from bus.contracts.registry import ContractRegistry
from bus.ids import id_lower_bound
from modules.module import Module

MARGIN = timedelta(minutes=1)
"""How much later than its id an order may be decided about for the first time."""

COMMITTED_MAX = 2_000
"""Transactions of the history whose states are written in one transaction of the target."""

_FIRST_MAX = 64
"""The first number of a database that several processes share: a transaction that was rolled back has used up its number."""

_CHECKED = 4_096
"""Among so many of its last numbers, a baseline may miss some: those of transactions that were not finished."""


class NotEmpty(Exception):
    """The database has rows already."""


class BaselineMismatch(Exception):
    """The baseline is no earlier copy of the database, or the history does not reach back to it."""


def require_empty(engine: Engine, modules: Sequence[Module]) -> None:
    """
    Ensure that no table of *modules* has a row.

    Raises:
        NotEmpty: One of them has.
    """
    existing = set(inspect(engine).get_table_names())
    with engine.connect() as connection:
        for module in modules:
            own = [table.name for table in module.tables.values()]
            for name in (*own, *(f"{module.name}_{each}" for each in ("archive", "history", "inbox", "outbox"))):
                if name in existing and connection.exec_driver_sql(f"SELECT 1 FROM {name} LIMIT 1").first() is not None:
                    raise NotEmpty(f"the table {name} has rows: name an empty database")


def create_state_tables(engine: Engine, modules: Sequence[Module]) -> None:
    """Create the tables in which a replay keeps the states of *modules*."""
    for module in modules:
        for table in (*module.tables.values(), archive_table(module.name, MetaData())):
            table.create(engine)


def replay(
    modules: Sequence[Module],
    stores: Mapping[str, ModuleStore],
    histories: Sequence[DatabaseHistory],
    target: Database,
    contracts: ContractRegistry,
    report: Report,
    answer_id: AnswerId,
    *,
    baseline: Database | None = None,
    progress: Callable[[], object] = lambda: None,
) -> None:
    """
    Decide *histories*, those of *modules*, again; compare what follows with them, and the states with those of *stores*.

    The states are written to the tables of *target*, which are empty. They begin as they are in *baseline*, an earlier copy
    of the database with all modules, or empty. *progress* is called for each transaction. The result is in *report*.
    *answer_id* identifies the submitted events that are answers of a worker.

    Raises:
        BaselineMismatch: *baseline* does not fit.
        StorageUnavailable: A transaction does not end.
        sqlalchemy.exc.DBAPIError: A database cannot be used.
    """
    again = {module.name: ReplayStore(module, target) for module in modules}
    with ExitStack() as stack:
        connection = stack.enter_context(target.engine.connect())
        connection.begin()
        decide = Replay(modules, again, connection, contracts, report, answer_id).decide

        def decide_all(transactions: Iterator[Transaction]) -> None:
            for transaction in transactions:
                if report.first is None:
                    report.first = transaction.number, transaction.at
                report.last = transaction.number, transaction.at
                decide(transaction)
                progress()
                if report.transactions % COMMITTED_MAX == 0:
                    _commit(connection)

        starts = [_start(stack, each, again, stores, baseline) for each in histories]
        ends = [history.last_finished() for history in histories]
        decide_all(
            _merged([
                filter(is_wanted, history.transactions(after, until))
                for history, (after, is_wanted), until in zip(histories, starts, ends, strict=True)
            ])
        )
        snapshots = [_snapshot(stack, history.database) for history in histories]
        decide_all(
            _merged([
                history.transactions(max(after, until), history.largest(snapshot), snapshot)
                for history, (after, _), until, snapshot in zip(histories, starts, ends, snapshots, strict=True)
            ])
        )
        for history, snapshot in zip(histories, snapshots, strict=True):
            _compare(history, snapshot, stores, again, connection, report)
        _commit(connection)


def _compare(
    history: DatabaseHistory,
    snapshot: Connection,
    stores: Mapping[str, ModuleStore],
    again: Mapping[str, ReplayStore],
    connection: Connection,
    report: Report,
) -> None:
    """Write the last states of *history*'s modules; compare them with those in *snapshot*, or count the unknown ones of a stopped module."""
    for name in (name for name in stores if name in history.modules):
        store = again[name]
        store.flush(connection)
        if name not in report.stopped:
            compare_states(stores[name], snapshot, store, connection, report)
            continue
        for cls, unknown in store.begun_before.items():
            if unknown:
                report.before[name, cls.__name__.lower()] = len(unknown)


def _merged(streams: Sequence[Iterator[Transaction]]) -> Iterator[Transaction]:
    """Yield the transactions of several databases by their times: a cause in another database comes before its effects."""
    return heapq.merge(*streams, key=attrgetter("at")) if len(streams) > 1 else streams[0]


def _commit(connection: Connection) -> None:
    transaction = connection.get_transaction()
    assert transaction is not None
    transaction.commit()
    connection.begin()


def _snapshot(stack: ExitStack, database: Database) -> Connection:
    """Return a connection with a snapshot of *database* that lasts as long as *stack*."""
    connection = stack.enter_context(database.engine.execution_options(reading=True).connect())
    connection.begin()
    connection.exec_driver_sql("SELECT 1").one()
    return connection


_Start = tuple[int, Callable[[Transaction], bool]]
"""The number to begin after, and which of the transactions that follow are wanted."""


def _start(
    stack: ExitStack,
    history: DatabaseHistory,
    again: Mapping[str, ReplayStore],
    stores: Mapping[str, ModuleStore],
    baseline: Database | None,
) -> _Start:
    """Return where to begin in *history*, and set what the states begin with."""
    with history.database.engine.execution_options(reading=True).connect() as connection, connection.begin():
        first = history.first_shown(connection)
        if baseline is not None:
            return _start_after(stack, history, connection, again, baseline)
        begins_with = None if _is_whole(history, connection, first, stores) else _begins_with(first)
    for name in history.modules:
        again[name].begins_with = begins_with
    return (first[0] - 1 if first is not None else 0), lambda transaction: True


def _begins_with(first: tuple[int, str] | None) -> str:
    """Return a key below all orders that were placed after the *first* transaction."""
    return "\U0010ffff" if first is None else id_lower_bound(datetime.fromisoformat(first[1]) + MARGIN)


def _is_whole(
    history: DatabaseHistory, connection: Connection, first: tuple[int, str] | None, stores: Mapping[str, ModuleStore]
) -> bool:
    """Return whether *history* begins with the database: with its first number, and no order is older."""
    is_purged = any(stores[name].history.kept is not None for name in history.modules)
    if first is None or first[0] > (_FIRST_MAX if history.database.dialect.is_shared and not is_purged else 1):
        return False
    oldest = id_lower_bound(datetime.fromisoformat(first[1]) - MARGIN)
    for store in (stores[name] for name in history.modules):
        for cls in store.module.archivable:
            if store.mappers[cls].rows_between(connection, FIRST_ID, oldest, 1):
                return False
            if any(store.mappers[cls].key_of(each) < oldest for each in store.archive.page(connection, cls, FIRST_ID, 1)):
                return False
    return True


def _start_after(
    stack: ExitStack,
    history: DatabaseHistory,
    connection: Connection,
    again: Mapping[str, ReplayStore],
    baseline: Database,
) -> _Start:
    """Begin after what *baseline* has."""
    stores = {name: ModuleStore(again[name].module, baseline) for name in history.modules}
    copy = DatabaseHistory(baseline, stores)
    snapshot = _snapshot(stack, baseline)
    last = copy.largest(snapshot)
    copied = list(copy.transactions(last - _CHECKED, last, snapshot))
    included = {(each.number, each.at) for each in copied}
    # A row without a decision is one that a purge has emptied, because it was in the archive: so is everything before it.
    purged = max((each.number for each in copied if not all(each.entries.values())), default=0)
    if not last or not {(each.number, each.at) for each in history.transactions(last - 1, last, connection)} <= included:
        raise BaselineMismatch("the baseline is no earlier copy of this database")
    if next(history.transactions(last - 1, last, connection), None) is None:
        raise BaselineMismatch("the history of this database does not reach back to the baseline; name a later copy")
    for name, store in stores.items():
        again[name].baseline = Baseline(store, snapshot)
    return max(purged, last - _CHECKED), partial(_is_missing, included)


def _is_missing(included: set[tuple[int, str]], transaction: Transaction) -> bool:
    return (transaction.number, transaction.at) not in included
