"""The SQL for RisingWave: the files in deploy/, copies of an event, and what is not translated."""

from __future__ import annotations

import sys
from pathlib import Path

import attrs
import pytest
from click.testing import CliRunner

from app.analytics.event_tables import event_tables
from app.analytics.projections.declaration import load
from app.analytics.projections.risingwave.script import PARTS, script
from app.cli.main import main
from bus.contracts.registry import ContractRegistry
from tests.analytics.projections.outboxes import Outboxes
from tests.analytics.projections.story import created, rejected, reserved
from tests.architecture.tree import ROOT

FOLDER = ROOT / "deploy/analytics/sql"

HEAD = """\
-- title: Mine
-- answers: How many?
-- unit: orders
-- grain: one row a day
-- window: tumbling, 1 day
-- time: day
-- chart: line day orders
"""
DAY = "SELECT date_trunc('day', occurred_at) AS day, {} AS orders FROM {} GROUP BY 1"


def left_out(contracts: ContractRegistry, folder: Path, **files: str) -> dict[str, str]:
    """Return what the script leaves out of the projections in *files*."""
    for name, text in files.items():
        (folder / f"{name}.sql").write_text(HEAD + text)
    return dict(script(event_tables(contracts), load(folder)).left_out)


def test_the_files_in_deploy_are_those_of_the_declarations(tmp_path: Path) -> None:
    """Print them again: ``python -m app analytics sql --output deploy/analytics/sql``."""
    done = CliRunner().invoke(main, ["analytics", "sql", "--output", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in FOLDER.iterdir()) == sorted(f"{part}.sql" for part in PARTS)
    for part in PARTS:
        assert (tmp_path / f"{part}.sql").read_text() == (FOLDER / f"{part}.sql").read_text()


def test_every_projection_is_translated(contracts: ContractRegistry) -> None:
    """None is missing on the engine for many machines."""
    made = script(event_tables(contracts), load())
    assert made.left_out == {}
    for name in load():
        assert f"CREATE MATERIALIZED VIEW IF NOT EXISTS {name} AS" in made.parts["projections"]


@pytest.mark.parametrize(
    ("sql", "reason"),
    [
        (DAY.format("median(1)", "orders_created"), "mine: not translated: Median"),
        (DAY.format("my_function(1)", "orders_created"), "mine: not translated: my_function"),
        (DAY.format("count(*)", "orders_created") + " QUALIFY true", "mine: not translated: Boolean, Qualify"),
        (DAY.format("unnest(lines)", "inventory_reserved"), "mine: not translated: UNNEST(lines); write unnest after FROM"),
        (DAY.format("count(*)", "orders_created AS o CROSS JOIN unnest(o.order_id) AS u(line)"), "mine: not translated: UNNEST(o.order_id)"),
        (DAY.format("sum(line.weight)", "inventory_reserved AS r CROSS JOIN unnest(r.lines) AS u(line)"),
         "mine: not translated: weight: an element of the list has no such member"),
        (DAY.format("max(line)", "inventory_reserved AS r CROSS JOIN unnest(r.lines) AS u(line)"), "mine: not translated: line without a member"),
        (DAY.format("1", "inventory_reserved AS r CROSS JOIN unnest(r.lines, r.lines) AS u(a, b)"), "mine: not translated: UNNEST(r.lines, r.lines)"),
        ("SELECT (", "mine: not translated: Required keyword: 'this' missing"),
    ],
)  # fmt: skip
def test_what_is_not_translated_is_named(contracts: ContractRegistry, tmp_path: Path, sql: str, reason: str) -> None:
    """Rather than printed as SQL that RisingWave refuses, or that counts something else."""
    assert left_out(contracts, tmp_path, mine=sql)["mine"].startswith(reason)


def test_what_reads_a_projection_that_is_left_out_is_left_out(contracts: ContractRegistry, tmp_path: Path) -> None:
    """It could not be created."""
    found = left_out(contracts, tmp_path, first=DAY.format("median(1)", "orders_created"), second="SELECT day, orders FROM first")
    assert found == {"first": "first: not translated: Median", "second": "second: reads first"}


def test_the_command_names_what_it_leaves_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On stderr and in the file; all else is printed."""
    (tmp_path / "mine.sql").write_text(HEAD + DAY.format("median(1)", "orders_created"))
    monkeypatch.setattr("app.analytics.projections.declaration.load.__defaults__", (tmp_path,))
    done = CliRunner().invoke(main, ["analytics", "sql"])
    assert (done.exit_code, done.stderr) == (1, "fulfilment: mine: not translated: Median\n")
    assert "CREATE MATERIALIZED VIEW IF NOT EXISTS orders_created AS" in done.stdout
    assert "-- Left out: mine: not translated: Median" in done.stdout


def test_without_the_extra_the_command_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest of the program needs no translator."""
    monkeypatch.setitem(sys.modules, "sqlglot", None)
    done = CliRunner().invoke(main, ["analytics", "sql"])
    assert (done.exit_code, done.stderr) == (2, "fulfilment: sqlglot: not installed: pip install 'fulfilment[risingwave]'\n")


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """A file stands where the folder would be."""
    (tmp_path / "file").touch()
    done = CliRunner().invoke(main, ["analytics", "sql", "--output", str(tmp_path / "file")])
    assert done.exit_code == 1
    assert done.stderr.startswith("fulfilment: --output: ")


@pytest.mark.slow
def test_an_event_that_comes_several_times_counts_once(outboxes: Outboxes) -> None:
    """Under another message id, and from the archive."""
    event = created(1, "2026-03-02 10:00:00")
    outboxes.insert(event)
    outboxes.insert(event, id="another")
    outboxes.connection.execute(
        "INSERT INTO archived_events SELECT event_id, 'c', 'c', subject, key, occurred_at, convert_from(body, 'UTF8')"
        " FROM orders_outbox WHERE id = 'another'"
    )
    assert outboxes.connection.execute("SELECT event_id, order_id FROM orders_created").fetchall() == [(event.id, event.data["order_id"])]


@pytest.mark.slow
def test_events_from_the_archive_count_like_those_of_the_outbox(outboxes: Outboxes) -> None:
    """What was before the first connection."""
    outboxes.insert(created(1, "2026-03-02 10:00:00"))
    before = outboxes.rows("orders_per_day")
    outboxes.connection.execute(
        "INSERT INTO archived_events SELECT event_id, 'c', 'c', subject, key, occurred_at, convert_from(body, 'UTF8') FROM orders_outbox"
    )
    outboxes.connection.execute("DELETE FROM orders_outbox")
    assert outboxes.rows("orders_per_day") == before != []


@pytest.mark.slow
def test_an_event_in_two_versions_counts_in_the_newest(outboxes: Outboxes) -> None:
    """One that only an older release has published is named, not lost."""
    both, old = created(1, "2026-03-02 10:00:00"), created(2, "2026-03-02 11:00:00")
    outboxes.insert(both)
    outboxes.insert(both, id="v1", subject="orders.created.v1")
    outboxes.insert(old, subject="orders.created.v1")
    assert outboxes.connection.execute("SELECT event_id FROM orders_created").fetchall() == [(both.id,)]
    assert outboxes.connection.execute("SELECT event_id, subject FROM unreadable_events").fetchall() == [(old.id, "orders.created.v1")]


@pytest.mark.slow
def test_timers_and_replays_are_no_events(outboxes: Outboxes) -> None:
    """A timer's row is there before it is due, and may be deleted; a replay is for one consumer."""
    timer, replay = created(1, "2026-03-02 10:00:00"), created(2, "2026-03-02 10:00:00")
    outboxes.insert(timer)
    outboxes.connection.execute("UPDATE orders_outbox SET name = 'later'")
    outboxes.insert(replay, subject="orders.replay.inventory.orders.created.v2")
    assert outboxes.rows("orders_created") == outboxes.rows("unreadable_events") == []


@pytest.mark.slow
def test_an_express_event_is_in_the_same_table(outboxes: Outboxes) -> None:
    """Its subject has the lane at the end."""
    outboxes.insert(created(1, "2026-03-02 10:00:00"))
    outboxes.insert(created(2, "2026-03-02 10:00:00"), subject="orders.created.v2.express")
    assert outboxes.connection.execute("SELECT is_express FROM orders_created ORDER BY event_id").fetchall() == [(False,), (True,)]


@pytest.mark.slow
def test_a_list_that_is_null_has_no_elements(outboxes: Outboxes) -> None:
    """A JSON null is no list; the projections that read lists count on."""
    event = rejected(1, "2026-03-02 10:00:00")
    outboxes.insert(attrs.evolve(event, data={**event.data, "shortages": None}))
    outboxes.insert(reserved(2, "2026-03-02 10:00:00"))
    assert outboxes.rows("stock_outs") == []
    assert outboxes.connection.execute("SELECT shortages FROM inventory_rejected").fetchall() == [(None,)]
