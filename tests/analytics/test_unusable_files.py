"""Files that cannot be used, and what an upgrade makes readable: a clear reason, and nothing is lost."""

from __future__ import annotations

import subprocess
import sys
from contextlib import closing
from pathlib import Path

import duckdb
import pytest

from app.analytics import analytics_file
from app.analytics.analytics_file import AnalyticsFile, Position
from app.analytics.connection import connect
from app.analytics.errors import FileInUse, FileUnusable
from tests.analytics.events import CONTRACTS, event, example, incoming, order_events

HOLD = "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print('open', flush=True); sys.stdin.read()"


def test_two_processes_do_not_write_one_file(tmp_path: Path) -> None:
    """The second one names the first, and changes nothing."""
    path = tmp_path / "analytics.duckdb"
    with closing(AnalyticsFile(path, CONTRACTS)):
        pass
    with subprocess.Popen([sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(FileInUse, match=rf"another process has it open \(PID {process.pid}\): end that first"):
            AnalyticsFile(path, CONTRACTS)
        process.communicate(b"")


@pytest.mark.parametrize("content", [b"no database" * 2_000, b"x"])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    """It is not overwritten."""
    path = tmp_path / "analytics.duckdb"
    path.write_bytes(content)
    with pytest.raises(FileUnusable, match="is damaged: move it away and start again"):
        AnalyticsFile(path, CONTRACTS)
    assert path.read_bytes() == content


def test_an_empty_file_is_begun(tmp_path: Path) -> None:
    """A process that is killed before its first write leaves one."""
    path = tmp_path / "analytics.duckdb"
    path.touch()
    with closing(AnalyticsFile(path, CONTRACTS)) as file:
        assert file.take(incoming(order_events(1))).count == 5


def test_a_file_of_a_newer_release_is_refused(tmp_path: Path) -> None:
    """The older release does not write into it."""
    path = tmp_path / "analytics.duckdb"
    with closing(AnalyticsFile(path, CONTRACTS)) as file:
        file.connection.execute("UPDATE analytics_format SET format = 99")
    with pytest.raises(FileUnusable, match="was written by a newer release"):
        AnalyticsFile(path, CONTRACTS)


def test_a_member_that_is_added_becomes_a_column(tmp_path: Path) -> None:
    """Rows from before the upgrade have null there."""
    path = tmp_path / "analytics.duckdb"
    with closing(AnalyticsFile(path, CONTRACTS)) as file:
        file.take(incoming(order_events(1)))
        file.connection.execute("ALTER TABLE orders_created DROP COLUMN payment_method")
    with closing(AnalyticsFile(path, CONTRACTS)) as file:
        file.take(incoming([event("orders.created.v2", "new", data={"payment_method": "pm_1"})]))
        found = file.connection.execute("SELECT payment_method FROM orders_created ORDER BY payment_method").fetchall()
        assert found == [("pm_1",), (None,)]


def test_what_no_version_read_is_taken_after_an_upgrade(tmp_path: Path) -> None:
    """It leaves the unreadable events, and is counted once, however often the file is opened."""
    path = tmp_path / "analytics.duckdb"
    with closing(AnalyticsFile(path, CONTRACTS)) as file:
        file.take(incoming([event("orders.created.v9", "later", data=example("orders.created.v2")), event("orders.moved.v1", "never")]))
        file.connection.execute("UPDATE unreadable_events SET subject = 'orders.created.v2' WHERE event_id = 'later'")
    for _ in range(2):
        with closing(AnalyticsFile(path, CONTRACTS)) as file:
            assert file.connection.execute("SELECT event_id FROM orders_created").fetchall() == [("later",)]
            assert file.connection.execute("SELECT event_id FROM unreadable_events").fetchall() == [("never",)]


def test_from_zero_empties_the_file(tmp_path: Path) -> None:
    """Rows, positions and views are gone; the tables are there."""
    path = tmp_path / "analytics.duckdb"
    with closing(AnalyticsFile(path, CONTRACTS)) as file:
        file.take(incoming(order_events(1)), Position("history", 14))
        file.connection.execute("CREATE VIEW counted AS SELECT count(*) AS n FROM orders_created")
    with closing(AnalyticsFile(path, CONTRACTS, from_zero=True)) as file:
        assert file.positions() == {}
        assert file.take(incoming(order_events(1))).count == 5


def test_emptying_the_file_is_done_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill in between would leave a position without its rows: they would never be read again."""
    path = tmp_path / "analytics.duckdb"
    with closing(AnalyticsFile(path, CONTRACTS)) as file:
        file.take(incoming(order_events(1)), Position("history", 14))

    def quoted(name: str) -> str:
        if name == "orders_confirmed":
            raise KeyboardInterrupt
        return f'"{name}"'

    with monkeypatch.context() as patch:
        patch.setattr(analytics_file, "quoted", quoted)
        with pytest.raises(KeyboardInterrupt):
            AnalyticsFile(path, CONTRACTS, from_zero=True)
    with closing(AnalyticsFile(path, CONTRACTS)) as file:
        counts = file.connection.execute("SELECT (SELECT count(*) FROM orders_created), (SELECT count(*) FROM analytics_sources)")
        assert counts.fetchall() == [(1, 1)]


def test_a_database_in_memory_writes_nothing_to_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What exceeds its memory fails instead; and it keeps to the number of threads that it was given."""
    monkeypatch.chdir(tmp_path)
    connection = connect(None, "32MB", threads=1)
    assert connection.execute("SELECT current_setting('threads')").fetchall() == [(1,)]
    with pytest.raises(duckdb.OutOfMemoryException):
        connection.execute("SELECT count(*) FROM (SELECT DISTINCT md5(range::VARCHAR) FROM range(3000000))").fetchall()
    connection.close()
    assert list(tmp_path.iterdir()) == []
