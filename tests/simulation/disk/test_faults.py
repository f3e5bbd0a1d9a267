"""The simulated disk of a process: its commits fail as the run decides, and the process can end around each of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from app.storage.errors import StorageUnavailable
from tests.simulation.disk.faults import DiskFault, forget, open_file
from tests.simulation.world.loop import SimulatedLoop, Stuck
from tests.simulation.world.scope import Scope


def _write(path: Path, scope: Scope, draw_fault: Callable[[], DiskFault | None] = lambda: None) -> None:
    """Let the process *scope* write to the file at *path*, on virtual time."""
    database = open_file(path, scope, draw_fault)
    loop = SimulatedLoop()
    try:
        loop.run_until_complete(database.write(lambda connection: connection.execute(sa.text("CREATE TABLE a_row (number INTEGER)"))))
    finally:
        forget(database)
        loop.close()


@pytest.mark.parametrize("point", ["before write commit", "after write commit"])
def test_a_process_can_end_at_each_side_of_a_commit(tmp_path: Path, point: str) -> None:
    """There it is killed, or loses its power."""
    killed_at: list[str] = []
    scope = Scope("process", killed_at.append, left=0, counted=point)
    with pytest.raises(Stuck):  # nothing of a killed process goes on
        _write(tmp_path / "file.db", scope)
    assert killed_at == [point]


@pytest.mark.parametrize("fault", list(DiskFault))
def test_a_commit_fails_as_the_run_decides(tmp_path: Path, fault: DiskFault) -> None:
    """The program gets SQLite's error, and reports that the database is out of reach."""
    drawn: list[DiskFault] = []

    def draw_fault() -> DiskFault:
        drawn.append(fault)
        return fault

    with pytest.raises(StorageUnavailable):
        _write(tmp_path / "file.db", Scope("process", lambda point: None), draw_fault)
    assert drawn
