"""Fixtures that several test packages share, and the order in which test files run."""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.examples import load_profile
from tests.postgres import PostgresServer
from tests.runtime.harness import Harness, harness_at

# Before any test imports them: the tests of several packages use these suites.
pytest.register_assert_rewrite(
    *(f"tests.storage.{name}" for name in ("archive_contract", "contract", "history_contract", "parquet_contract", "search_contract")),
    *(f"tests.simulation.database.{name}" for name in ("contract", "row_contract")),
)

load_profile()

MEMORY = Path("/dev/shm")
"""Where Linux keeps files in memory: a commit does not wait there for a disk that other tests keep busy."""

MEMORY_BYTES_MIN = 8 << 30
"""The space that must be free there; the tests need much less, and share the memory with everything else."""


def memory_is_usable() -> bool:
    """Return whether the tests may keep their files in memory; some run programs and make devices from them."""
    if not MEMORY.is_dir() or not os.access(MEMORY, os.W_OK):
        return False
    found = os.statvfs(MEMORY)
    return found.f_bavail * found.f_frsize >= MEMORY_BYTES_MIN and not found.f_flag & (os.ST_NOEXEC | os.ST_NODEV)


RUN_FIRST = (
    "gateways/test_faulty_provider.py",
    "bus/jetstream/test_cluster.py",
    "split/test_kill.py",
    "process/test_stripe.py",
    "bus/jetstream/test_delivery_contract.py",
    "bus/jetstream/test_tries_contract.py",
    "split/test_replicas.py",
    "split/test_outage.py",
    "split/test_topology.py",
    "split/test_cluster.py",
    "process/test_kill.py",
    "simulation/test_crashes.py",
    "process/test_faults.py",
    "process/test_postgres.py",
    "bus/jetstream/test_faults.py",
    "split/test_exhausted_deliveries.py",
    "split/test_signals.py",
    "storage/test_postgres.py",
)
"""
Test files that take half a minute or more, about the longest first.

One of them at the end would keep a single worker busy while the others are idle. Files that use a whole core stand
between files that mostly wait.
"""


def pytest_configure() -> None:
    """Let pytest create its temporary folders in memory, and collect the tests without the garbage collector."""
    gc.disable()
    if memory_is_usable():
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """
    Move the files of `RUN_FIRST` to the front, and keep the order of the others.

    A test for the night is slow, too.
    """
    for item in items:
        if item.get_closest_marker("night"):
            item.add_marker("slow")
    ranks = {Path(__file__).parent / name: rank for rank, name in enumerate(RUN_FIRST)}
    if missing := [str(path) for path in ranks if not path.is_file()]:
        raise pytest.UsageError(f"RUN_FIRST in tests/conftest.py names missing files: {', '.join(missing)}")
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


def pytest_collection_finish() -> None:
    """
    Turn the garbage collector on, and leave out what exists now.

    The modules and thousands of test items live until the end. To walk through them again in each full collection took
    a seventh of the processor time of all tests.
    """
    gc.freeze()
    gc.enable()


@contextmanager
def running_postgres() -> Iterator[PostgresServer]:
    """A running PostgreSQL server."""
    # Not in pytest's folder: the user that the server runs as cannot enter it, and its path may be too long for a
    # socket.
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir=os.environ.get("PYTEST_DEBUG_TEMPROOT")))
    folder.chmod(0o755)
    server = PostgresServer(folder).start()
    yield server
    server.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server for the whole run; a test that stops it must start it again."""
    with running_postgres() as server:
        yield server


@pytest.fixture(scope="module")
def logical_postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server whose log can be decoded, for one file."""
    with running_postgres() as server:
        server.query("ALTER SYSTEM SET wal_level = 'logical'")
        server.stop()
        yield server.start()


@pytest.fixture
def replicated() -> Iterator[tuple[PostgresServer, PostgresServer]]:
    """A running PostgreSQL server and its running standby."""
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir=os.environ.get("PYTEST_DEBUG_TEMPROOT")))
    folder.chmod(0o755)
    servers: list[PostgresServer] = []
    try:
        for name in ("primary", "standby"):
            (folder / name).mkdir()
            servers.append(PostgresServer(folder / name, primary=servers[0] if servers else None).start())
        yield servers[0], servers[1]
    finally:
        for server in servers:
            server.kill()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The path of the SQLite database of the test."""
    return tmp_path / "test.db"


@pytest.fixture
async def harness(path: Path) -> AsyncIterator[Harness]:
    """A stand on the machine's clock."""
    async with harness_at(path) as harness:
        yield harness
