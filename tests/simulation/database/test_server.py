"""The faults of the simulated database server, and the situations that it reports; see the contract suite for all else."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.util import await_only, greenlet_spawn

from tests.databases import migrated_file
from tests.simulation.database.errors import Disconnected, SerializationFailure
from tests.simulation.database.server import DatabaseFault, DatabaseServer
from tests.simulation.database.session import Session
from tests.simulation.world.loop import SimulatedLoop
from tests.simulation.world.scope import Scope, install

_INSERT = "INSERT INTO orders_inbox (id, heard_at) VALUES ('{}', '{}')"
_SELECT = "SELECT id, heard_at FROM orders_inbox WHERE id IN ('1', '2') ORDER BY id"


class Bench:
    """A server, and transactions of several sessions on it, each step at a second of its own."""

    def __init__(self, path: Path) -> None:
        self.faults: list[DatabaseFault] = []
        self.saw: list[str] = []
        self.server = DatabaseServer("orders", path, random.Random(1), self._fault, self.saw.append, lambda name, rows: None)

    def _fault(self, scope: Scope, possible: Any) -> DatabaseFault | None:
        return self.faults.pop() if self.faults and self.faults[-1] in possible else None

    def run(self, *transactions: Callable[[Session], Any]) -> list[Any]:
        """Run *transactions* beside each other; return their results or errors."""
        loop = SimulatedLoop()
        install(loop)
        try:
            work = [greenlet_spawn(self._run, Scope(str(number), lambda point: None), each) for number, each in enumerate(transactions)]
            return loop.run_until_complete(_all(work))
        finally:
            self.server.end_sessions()
            loop.close()

    def _run(self, scope: Scope, transaction: Callable[[Session], Any]) -> Any:
        session = self.server.connect(scope)
        session.begin(is_reading=False)
        found = transaction(session)
        session.commit()
        return found

    def rows(self) -> list[Any]:
        """Return what is committed."""
        with sqlite3.connect(self.server.path) as file:
            found = file.execute(_SELECT).fetchall()
        file.close()
        return found


async def _all(work: list[Any]) -> list[Any]:
    return await asyncio.gather(*work, return_exceptions=True)


def at(second: float) -> None:
    """Wait until *second*."""
    await_only(asyncio.sleep(max(0.0, second - asyncio.get_running_loop().time())))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    path = tmp_path / "orders.db"
    migrated_file(path)
    return Bench(path)


def test_an_insert_waits_for_the_same_key_and_then_conflicts(bench: Bench) -> None:
    """The first to commit has the row."""

    def first(session: Session) -> Any:
        session.execute(_INSERT.format(1, "a"))
        at(1.5)

    def second(session: Session) -> Any:
        at(1)
        session.execute(_INSERT.format(1, "b"))

    results = bench.run(first, second)
    assert "UNIQUE" in str(results[1])
    assert bench.rows() == [("1", "a")]
    assert bench.saw == ["waits for a row", "insert conflict, inbox"]


@pytest.mark.parametrize(
    ("fault", "error", "is_committed"),
    [
        (DatabaseFault.CUT_BEFORE_COMMIT, Disconnected, False),
        (DatabaseFault.CUT_AFTER_COMMIT, Disconnected, True),
        (DatabaseFault.CONFLICT, SerializationFailure, False),
    ],
)
def test_a_commit_that_fails_has_an_outcome(bench: Bench, fault: DatabaseFault, error: type, is_committed: bool) -> None:
    """A new connection can ask for it."""
    found: list[Any] = []

    def transaction(session: Session) -> Any:
        session.execute(_INSERT.format(1, "a"))
        bench.faults = [fault]
        try:
            session.commit()
        finally:
            found.append(bench.server.outcome(session.scope, session.last_transaction))

    (result,) = bench.run(transaction)
    assert isinstance(result, error)
    assert found == [is_committed]
    assert bench.rows() == ([("1", "a")] if is_committed else [])
