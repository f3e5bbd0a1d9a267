"""What tests in more than one room need: a PostgreSQL server of their own, and a place in the queue."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.postgres import PostgresServer
from tests.runtime.harness import Harness, harness_at

FIRST = (
    "gateways/test_faulty_provider.py",
    "bus/jetstream/test_cluster.py",
    "split/test_fire.py",
    "process/test_stripe.py",
    "bus/jetstream/test_contract.py",
    "split/test_replicas.py",
    "split/test_away.py",
    "split/test_ground.py",
    "split/test_cluster.py",
    "process/test_kill.py",
    "simulation/test_crashes.py",
    "process/test_faults.py",
    "process/test_postgres.py",
    "bus/jetstream/test_faults.py",
    "split/test_last_try.py",
    "split/test_signals.py",
    "storage/test_postgres.py",
)
"""
Files that take half a minute and more, about the longest first: who meets one of them last keeps the run waiting alone.

Those that keep a core busy stand between those that mostly wait.
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let `FIRST` be first, and leave the others in their order."""
    ranks = {Path(__file__).parent / name: rank for rank, name in enumerate(FIRST)}
    if gone := [str(path) for path in ranks if not path.is_file()]:
        raise pytest.UsageError(f"FIRST in tests/conftest.py names what is not there: {', '.join(gone)}")
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A server for the whole run; whoever stops it starts it again."""
    # Not under pytest's own folder: that one is closed to the user that the server runs as, and its name may be too
    # long for a socket.
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    folder.chmod(0o755)
    server = PostgresServer(folder).start()
    yield server
    server.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the test's database lies."""
    return tmp_path / "test.db"


@pytest.fixture
async def harness(path: Path) -> AsyncIterator[Harness]:
    """A stand on the machine's clock."""
    async with harness_at(path) as harness:
        yield harness
