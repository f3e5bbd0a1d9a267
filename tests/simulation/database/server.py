"""
A simulated database server for one module: several processes over one SQLite file, as PostgreSQL lets them.

Transactions are READ COMMITTED and overlap statement by statement; each reads what was committed before its statement, and
what it has written itself. A row that a transaction has written, or selected ``FOR UPDATE``, is locked until it ends: another
one waits, and then looks again at the rows that it has found. A statement locks its rows one by one, and keeps those that it has
while it waits for the next. An insert of a row that was committed meanwhile raises a conflict. An error undoes the transaction at
once. Every wait, for the network or for a lock, is on virtual time. `tests.simulation.database.contract` has these promises as
tests, which a real PostgreSQL passes, too.

Not simulated: how PostgreSQL plans, lock modes of whole tables, vacuum, ``statement_timeout`` and savepoints.
"""

from __future__ import annotations

__all__ = ["DatabaseFault", "DatabaseServer", "Transaction"]

import asyncio
import random
import sqlite3
from collections.abc import Callable, Collection
from contextvars import Context
from enum import StrEnum
from pathlib import Path
from typing import Any

from attrs import define, field
from sqlalchemy.util import await_only

from tests.simulation.database.errors import Disconnected, Row, SerializationFailure, TransactionAborted
from tests.simulation.database.locks import RowLocks
from tests.simulation.database.session import Session
from tests.simulation.world.scope import Scope

IDLE_IN_TRANSACTION_SECONDS = 5.0
OUTCOME_SECONDS = 5.0
"""As `app.storage.sql.postgres` sets them."""

AWAY_SECONDS = 8.0
"""How long a process does not reach the server after a commit whose outcome stays unknown."""

LOST_HOST_SECONDS = 10.0
"""How long the server takes to notice that the machine of a process is gone."""

ROUND_TRIPS = (0.0004, 0.004, 0.03)
"""Seconds that a statement takes on average, in different runs: the longer, the more transactions overlap."""


class DatabaseFault(StrEnum):
    """What is wrong between a process and its database server."""

    CUT = "connection cut"
    CUT_BEFORE_COMMIT = "connection cut before the commit"
    CUT_AFTER_COMMIT = "connection cut after the commit"
    OUTCOME_UNKNOWN = "commit without an outcome"
    CONFLICT = "serialization failure"
    SLOW = "slow statements"
    DOWN = "server down"


_AT_COMMIT = (DatabaseFault.CUT_BEFORE_COMMIT, DatabaseFault.CUT_AFTER_COMMIT, DatabaseFault.OUTCOME_UNKNOWN, DatabaseFault.CONFLICT)
_AT_STATEMENT = (DatabaseFault.CUT, DatabaseFault.CONFLICT, DatabaseFault.SLOW)


@define(eq=False)
class Transaction:
    """One transaction: the rows that it has written, and what waits for its end."""

    id: int
    written: dict[Row, None] = field(factory=dict)
    has_failed: bool = False
    """A statement has raised an error: everything is undone already, and every further statement fails."""
    ended: asyncio.Event = field(factory=asyncio.Event)


@define(eq=False, slots=False)
class DatabaseServer:
    """The server of the module *name*, whose file is at *path*; it goes on when processes end."""

    name: str
    path: Path
    rng: random.Random
    draw_fault: Callable[[Scope, Collection[DatabaseFault]], DatabaseFault | None]
    """Returns which of some faults a process meets now."""
    saw: Callable[[str], None]
    on_commit: Callable[[str, Collection[Row]], None]
    """Called with the name and the rows that were written, in the order of the commits."""
    sessions: dict[Session, None] = field(factory=dict)
    locks: RowLocks = field(init=False)
    leads: dict[str, Session] = field(factory=dict)
    committed_at: dict[Scope | None, float] = field(factory=dict)
    """When a process has last committed something."""
    is_down: bool = False
    _led: dict[str, Scope] = field(factory=dict)
    _current: Session | None = None
    """The session whose transaction is in the file."""
    _transactions: int = 0
    _committed: set[int] = field(factory=set)
    _away_until: dict[Scope, float] = field(factory=dict)
    """Until when a process does not reach the server."""
    _number: int = 0

    def __attrs_post_init__(self) -> None:
        self.locks = RowLocks(self.saw)
        self._round_trip_seconds = self.rng.choice(ROUND_TRIPS)
        with sqlite3.connect(self.path) as file:
            file.execute("PRAGMA journal_mode = WAL")
            tables = [name for (name,) in file.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name GLOB ?", (f"{self.name}_*",))]
            self.keys = {table: next(f'"{row[1]}"' for row in file.execute(f"PRAGMA table_info({table})") if row[5]) for table in tables}
        file.close()

    # Sessions

    def connect(self, scope: Scope) -> Session:
        """
        Return a connection of the process *scope*.

        Raises:
            Disconnected: The server is out of reach.
        """
        scope.point("before write connect")
        self._wait()
        if self._is_away(scope):
            raise Disconnected("connection refused")
        session: Session = sqlite3.connect(self.path, isolation_level=None, factory=Session)
        session.prepare(self, scope)
        session.physically("PRAGMA synchronous = OFF")
        self.sessions[session] = None
        scope.point("after write connect")
        return session

    def end(self, session: Session) -> None:
        """End *session*: what it has not committed is rolled back, and its locks are free."""
        if self.sessions.pop(session, session) is None:
            if session.transaction is not None:
                self.roll_back(session)
            self.leads = {name: leader for name, leader in self.leads.items() if leader is not session}
            session.has_ended = True
            if session.scope.is_killed:
                session.close_file()

    def end_sessions(self, scope: Scope | None = None, *, only_in_transaction: bool = False) -> None:
        """End the sessions of *scope*, or all."""
        for session in list(self.sessions):
            if scope in (None, session.scope) and (session.transaction is not None or not only_in_transaction):
                self.end(session)

    def notice_end(self, scope: Scope) -> None:
        """End the sessions of a process that was killed: at once, or later if its machine is lost."""
        if self.rng.random() < 0.7:
            self.end_sessions(scope)
        else:
            self.saw("sessions of a lost machine")
            asyncio.get_running_loop().call_later(LOST_HOST_SECONDS, self.end_sessions, scope, context=Context())

    def notice_pause(self, scope: Scope) -> None:
        """End the transactions of a process that has halted, after a while."""

        def end() -> None:
            if scope.is_paused and any(each.scope is scope and each.transaction for each in self.sessions):
                self.saw("transaction of a halted process ended")
                self.end_sessions(scope, only_in_transaction=True)

        asyncio.get_running_loop().call_later(IDLE_IN_TRANSACTION_SECONDS, end, context=Context())

    # Transactions

    def begin(self, session: Session) -> None:
        """Begin a transaction of *session*."""
        if not session.has_ended:
            self._transactions += 1
            session.transaction, session.last_transaction = Transaction(self._transactions), self._transactions
            if session.is_reading:
                session.physically("BEGIN")

    def execute(self, session: Session, run: Callable[[], Any]) -> Any:
        """
        Return what *run* returns, which executes one statement of the transaction of *session*.

        An error undoes the whole transaction at once.

        Raises:
            Disconnected, SerializationFailure, Deadlock, LockTimeout, TransactionAborted: See there.
            sqlite3.Error: The statement failed.
        """
        try:
            self._step(session, "statement", _AT_STATEMENT)
            if session.transaction.has_failed:
                raise TransactionAborted("current transaction is aborted, commands are ignored until its end")
            return run() if session.is_reading else self._execute(session, run)
        except Exception:
            self._undo(session)
            raise

    def _execute(self, session: Session, run: Callable[[], Any]) -> Any:
        """Execute a statement; after each wait for a lock again, but only on the rows that it has found at first."""
        candidates: list[Row] | None = None
        while True:
            self._enter(session)
            found, rows, error = session.attempt(run, candidates)
            candidates = rows if candidates is None else candidates
            holder = self.locks.take(rows, session)
            if holder is None and error is None:
                session.keep()
                return found
            session.take_back()
            if holder is not None:
                self.locks.wait_for(holder, session)
            elif error is not None:
                if "UNIQUE constraint" in str(error):
                    self.saw(f"insert conflict, {str(error).partition('_')[2].partition('.')[0]}")
                raise error

    def commit(self, session: Session) -> None:
        """
        Commit the transaction of *session*.

        Raises:
            Disconnected: The connection is cut; whether it is committed is known by `outcome`, or not at all.
            SerializationFailure: It is rolled back.
        """
        written = session.transaction.written if session.transaction is not None else ()
        decides = any(table.endswith("_history") for table, _ in written)
        # Most transactions are the scans of relays, and few of them matter.
        try:
            fault = self._step(session, "commit", _AT_COMMIT if decides or self.rng.random() < 0.2 else ())
        except SerializationFailure:
            self._undo(session)
            raise
        if session.is_reading or session.transaction.has_failed:
            self.roll_back(session)
            return
        is_cut = fault not in (None, DatabaseFault.CONFLICT)
        is_done = fault is not DatabaseFault.CUT_BEFORE_COMMIT and (fault is not DatabaseFault.OUTCOME_UNKNOWN or self.rng.random() < 0.5)
        transaction = session.transaction
        if is_done:
            self._enter(session)
            session.physically("COMMIT")
            self._current = None
            self._committed.add(transaction.id)
            self.committed_at[session.scope] = asyncio.get_running_loop().time()
            self._release(session)
            session.transaction = None
            self.on_commit(self.name, transaction.written)
        if is_cut:
            if fault is DatabaseFault.OUTCOME_UNKNOWN:
                self._away_until[session.scope] = asyncio.get_running_loop().time() + AWAY_SECONDS
                self.saw(f"commit without an outcome, {'had' if is_done else 'had not'} happened")
            self.end(session)
            raise Disconnected("the connection is cut during the commit")
        self._wait()
        session.scope.point("after write commit")

    def roll_back(self, session: Session) -> None:
        """End the transaction of *session* without effect."""
        self._undo(session)
        session.transaction = None

    def _undo(self, session: Session) -> None:
        """Undo what the transaction of *session* has written, and release its locks."""
        transaction = session.transaction
        if transaction is None or transaction.has_failed:
            return
        transaction.has_failed = True
        if session.is_reading or session is self._current:
            session.physically("ROLLBACK")
        if session is self._current:
            self._current = None
        self._release(session)

    def outcome(self, scope: Scope, id: int) -> bool | None:
        """Return whether the transaction *id* of the process *scope* is committed; None if the server is out of reach for too long."""
        if self._is_away(scope):
            self._wait(OUTCOME_SECONDS)
        return None if self._is_away(scope) else id in self._committed

    def _is_away(self, scope: Scope) -> bool:
        return self.is_down or asyncio.get_running_loop().time() < self._away_until.get(scope, 0.0)

    def next_number(self, session: Session, *, is_next: bool) -> int:
        """Return the next number of a history, or the one that *session* got last; one that is rolled back leaves a gap."""
        if is_next:
            self._number += 1
            session.last_number = self._number
        return session.last_number

    # Leads

    def try_lead(self, session: Session, name: str, *, is_eligible: bool) -> bool:
        """Give the lead in *name* to *session* if it is free, or take it back; return whether the session has it."""
        leader = self.leads.get(name)
        if is_eligible == (leader is session):
            return is_eligible
        self._step(session, "statement", ())
        leader = self.leads.get(name)
        if is_eligible and leader is None:
            leader = self.leads[name] = session
            if self._led.get(name, session.scope) is not session.scope:
                self.saw("lead handed over")
            self._led[name] = session.scope
        elif not is_eligible and leader is session:
            del self.leads[name]
            leader = None
        return leader is session

    def _step(self, session: Session, name: str, faults: Collection[DatabaseFault]) -> DatabaseFault | None:
        """Wait for the server; raise or return the fault that *session* meets there."""
        session.scope.point(f"before {'read' if session.is_reading else 'write'} {name}")
        fault = self.draw_fault(session.scope, faults)
        self._wait(self.rng.uniform(0.0, 0.8) if fault is DatabaseFault.SLOW else 0.0)
        if session.has_ended:
            raise Disconnected("the server has closed the connection")
        if fault is DatabaseFault.CUT:
            self.end(session)
            raise Disconnected("the connection is cut")
        if fault is DatabaseFault.CONFLICT:
            raise SerializationFailure("could not serialize access")
        return fault

    def _wait(self, seconds: float = 0.0) -> None:
        await_only(asyncio.sleep(seconds + self.rng.expovariate(1 / self._round_trip_seconds)))

    def _enter(self, session: Session) -> None:
        if self._current is not session:
            if self._current is not None:
                self._current.leave()
            session.enter()
            self._current = session

    def _release(self, session: Session) -> None:
        self.locks.release(session)
        session.transaction.ended.set()
        session.forget()
