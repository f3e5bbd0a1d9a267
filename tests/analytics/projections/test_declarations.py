"""The files of the projections: what their heads must have, and what a mistake in one is reported as."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from app.analytics.analytics_file import AnalyticsFile
from app.analytics.projections.declaration import (
    BadProjection,
    Projection,
    UnknownProjection,
    find,
    load,
)
from app.analytics.projections.statements import rows, sums
from app.analytics.projections.views import create_views
from bus.contracts.registry import ContractRegistry
from tests.analytics.projections.conftest import asked, store
from tests.analytics.projections.story import captured, created, paid_order, refunded

pytestmark = pytest.mark.slow

GOOD = """\
-- title: Orders per day
-- answers: How many orders were placed?
-- unit: orders
-- grain: one row a day
-- window: tumbling, 1 day
-- time: day
-- chart: line day orders
SELECT date_trunc('day', occurred_at) AS day, count(*) AS orders
FROM orders_created
GROUP BY 1
"""


@pytest.fixture
def fresh(contracts: ContractRegistry) -> Iterator[AnalyticsFile]:
    """A file without views."""
    file = AnalyticsFile(None, contracts)
    yield file
    file.close()


def written(folder: Path, **files: str) -> dict[str, Projection]:
    """Load the projections of a folder with *files*."""
    for name, text in files.items():
        (folder / f"{name}.sql").write_text(text)
    return load(folder)


def test_every_projection_has_a_test() -> None:
    """A projection without one is an opinion."""
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    assert [name for name in load() if f'"{name}")' not in tests] == []


@pytest.mark.parametrize("projection", load().values(), ids=lambda projection: projection.name)
def test_an_amount_never_lacks_its_currency(projection: Projection, duckdb_file: AnalyticsFile) -> None:
    """Amounts of two currencies would be added otherwise; over a period, too."""
    described = duckdb_file.connection.execute(f"DESCRIBE {projection.name}").fetchall()
    columns = {row[0] for row in described}
    assert set(projection.money) == columns & {"amount", "captured", "lost_revenue", "net", "refunded", "revenue"}
    if projection.money:
        assert "currency" in columns
        assert not projection.sums or "currency" in projection.keys


def test_all_three_kinds_of_windows_are_shown() -> None:
    """A reader finds an example of each."""
    assert {projection.window.partition(",")[0] for projection in load().values()} == {"tumbling", "sliding", "session"}


def test_an_unknown_projection_names_those_that_exist() -> None:
    """With the closest one first in mind."""
    with pytest.raises(UnknownProjection, match=r"'funel'; known are cancellations, .*; did you mean funnel\?"):
        find(load(), "funel")


@pytest.mark.parametrize(
    ("text", "line", "detail"),
    [
        (GOOD.replace("-- unit: orders\n", ""), 1, "lacks the comment `-- unit: of what its numbers are"),
        (GOOD.replace("-- unit", "-- units"), 3, "must be `-- name: value` with one of the names title, answers"),
        (GOOD.replace("-- time: day", "-- time: orders"), 6, "the step must be one of minute, hour, day"),
        (GOOD.replace("line day orders", "pie day"), 7, "must be `-- chart: line|bar X Y"),
        (GOOD.replace("line day orders", "bar day orders"), 7, "a bar chart needs `-- keys:` and `-- sums:`"),
        (GOOD.replace("-- chart:", "-- longest: soon\n-- chart:"), 7, "must be a number of minutes, hours or days"),
        (GOOD.replace("-- chart:", "-- ratios: half\n-- chart:"), 7, "must be `-- ratios: rate = refunded / captured`"),
        (GOOD.partition("SELECT")[0], 7, "has no SELECT after the comments"),
        ("", 1, "lacks the comment `-- title: what the reader sees`"),
    ],
)
def test_a_wrong_head_names_file_and_line(tmp_path: Path, text: str, line: int, detail: str) -> None:
    """What to write is part of the message."""
    with pytest.raises(BadProjection) as found:
        written(tmp_path, mine=text)
    assert str(found.value).startswith(f"{tmp_path}/mine.sql:{line}: {detail}")


@pytest.mark.parametrize(
    ("text", "line", "detail"),
    [
        (GOOD.replace("orders_created", "orders_craeted"), 9, "Catalog Error: Table with name orders_craeted does not exist"),
        (GOOD.replace("occurred_at", "happened_at"), 8, 'Binder Error: Referenced column "happened_at" not found'),
        (GOOD.replace("FROM", "FORM"), 9, "Parser Error: syntax error"),
        (GOOD.replace("line day orders", "line day order"), 7, "there is no column 'order'; the SELECT has day, orders"),
        (GOOD.replace("-- time: day", "-- time: at day"), 6, "there is no column 'at'; the SELECT has day, orders"),
        (GOOD.replace("count(*)", "max(customer_id)"), 7, "'orders' must be a number, and is VARCHAR"),
        (GOOD.replace("date_trunc('day', occurred_at)", "1"), 6, "'day' must be a TIMESTAMPTZ, and is INTEGER"),
        (GOOD.replace("-- chart:", "-- money: orders\n-- chart:"), 7, "amounts need a column 'currency' beside them"),
        (GOOD.replace("-- chart:", "-- sums: order\n-- chart:"), 7, "there is no column 'order'"),
    ],
)
def test_wrong_sql_names_file_and_line(tmp_path: Path, fresh: AnalyticsFile, text: str, line: int, detail: str) -> None:
    """The line is that of the file, its comments included."""
    with pytest.raises(BadProjection) as found:
        create_views(fresh.connection, written(tmp_path, mine=text))
    assert str(found.value).startswith(f"{tmp_path}/mine.sql:{line}: {detail}")


def test_wrong_sql_in_a_statement_names_the_file_that_has_the_mistake(tmp_path: Path, file: AnalyticsFile) -> None:
    """A statement contains several files."""
    found = written(
        tmp_path,
        first=GOOD.replace("occurred_at", "happened_at"),
        second=GOOD.replace("occurred_at", "day").replace("orders_created", "first"),
    )
    with pytest.raises(BadProjection, match=r"first\.sql:8: Binder Error: Referenced column \"happened_at\" not found"):
        asked(file, rows(found, found["second"]))
    found = written(
        tmp_path, first=GOOD, second=GOOD.replace("GROUP BY 1", "GROUP BY no").replace("occurred_at", "day").replace("orders_created", "first")
    )
    with pytest.raises(BadProjection, match=r"second\.sql:10: Binder Error"):
        asked(file, rows(found, found["second"]))


def test_a_value_that_cannot_be_computed_names_the_file(tmp_path: Path, file: AnalyticsFile) -> None:
    """Some mistakes show only with the data."""
    mine = written(tmp_path, mine=GOOD.replace("count(*)", "max(CAST(customer_id AS BIGINT))"))
    store(file, [created(1, "2026-03-02 10:00:00")])
    with pytest.raises(BadProjection, match=r"mine\.sql:8: Conversion Error: Could not convert string 'c-1'"):
        asked(file, rows(mine, mine["mine"]))


def test_the_views_of_the_file_are_those_of_the_release(tmp_path: Path, fresh: AnalyticsFile) -> None:
    """A projection that is gone leaves no view that answers for it; a mistake changes nothing."""
    create_views(fresh.connection, written(tmp_path, old=GOOD, new=GOOD))
    (tmp_path / "old.sql").unlink()
    create_views(fresh.connection, load(tmp_path))
    shown = "SELECT view_name FROM duckdb_views() WHERE NOT internal"
    assert fresh.connection.execute(shown).fetchall() == [("new",)]
    with pytest.raises(BadProjection):
        create_views(fresh.connection, written(tmp_path, new=GOOD.replace("FROM", "FORM")))
    assert fresh.connection.execute(shown).fetchall() == [("new",)]


def test_projections_that_read_each_other_are_created_in_order(tmp_path: Path, fresh: AnalyticsFile) -> None:
    """Not in the order of their names."""
    second = GOOD.replace("occurred_at", "day").replace("orders_created", "z_first")
    found = written(tmp_path, a_second=second, z_first=GOOD)
    assert list(found) == ["z_first", "a_second"]
    create_views(fresh.connection, found)


def test_a_circle_and_a_name_twice_are_refused(tmp_path: Path) -> None:
    """Neither can be created."""
    with pytest.raises(BadProjection, match="a, b read each other in a circle"):
        written(tmp_path, a=GOOD.replace("orders_created", "b"), b=GOOD.replace("orders_created", "a"))
    (tmp_path / "more").mkdir()
    (tmp_path / "more/a.sql").write_text(GOOD)
    with pytest.raises(BadProjection, match=r"a\.sql has the same name"):
        load(tmp_path)
    with pytest.raises(BadProjection, match="lower-case letters, digits and underscores"):
        written(tmp_path, **{"Not-a-name": GOOD})


def test_a_period_begins_with_the_window_that_contains_its_begin(file: AnalyticsFile) -> None:
    """Since noon is the whole day in days; a window must begin before *until*; the newest comes first."""
    store(file, [created(1, "2026-03-01 10:00:00"), created(2, "2026-03-02 10:00:00"), created(3, "2026-03-03 10:00:00")])
    since, until = datetime(2026, 3, 2, 12, tzinfo=UTC), datetime(2026, 3, 3, tzinfo=UTC)
    all_of_them = load()
    days, hours = all_of_them["orders_per_day"], all_of_them["orders_per_hour"]
    assert asked(file, rows(all_of_them, days, since=since, until=until)).rows == [["2026-03-02T00:00:00Z", 1, 0, 0]]
    assert [row[0] for row in asked(file, rows(all_of_them, hours, since=since)).rows] == ["2026-03-03T10:00:00Z"]
    assert [row[0][:10] for row in asked(file, rows(all_of_them, days)).rows] == ["2026-03-03", "2026-03-02", "2026-03-01"]


def test_the_longest_period_is_counted_back_from_the_end(file: AnalyticsFile) -> None:
    """A week in minutes is no chart: a report has the last hours of it."""
    store(file, [created(1, "2026-03-01 10:00:00"), created(2, "2026-03-02 10:00:00")])
    since, until = datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 3, 2, 12, tzinfo=UTC)
    all_of_them = load()
    found = asked(file, rows(all_of_them, all_of_them["orders_per_minute"], since=since, until=until))
    assert [row[0] for row in found.rows] == ["2026-03-02T10:00:00Z"]


def test_a_period_is_summed_up_by_the_keys(file: AnalyticsFile) -> None:
    """Ratios are those of the sums, not the mean of the days."""
    day, next_day = "2026-03-02 10:00:00", "2026-03-03 10:00:00"
    store(file, [captured(1, day, 100), refunded(1, day, 100), captured(2, next_day, 900), captured(3, day, 5, "USD")])
    all_of_them = load()
    found = asked(file, sums(all_of_them, all_of_them["refund_rate"]))
    assert found.columns == ["currency", "payments", "refunded_payments", "captured", "refunded", "rate"]
    assert found.rows == [["EUR", 2, 1, 1000, 100, 0.1], ["USD", 1, 0, 5, 0, 0.0]]


def test_sums_without_keys_are_one_row_or_none(file: AnalyticsFile) -> None:
    """Without data there is no row, rather than one of nulls."""
    all_of_them = load()
    sessions = all_of_them["customer_sessions"]
    assert asked(file, sums(all_of_them, sessions)).rows == []
    store(file, [created(1, "2026-03-02 10:00:00"), created(2, "2026-03-02 10:01:00")])
    assert asked(file, sums(all_of_them, sessions)).rows == [[1, 2, 1, 2.0]]
    assert sums(all_of_them, all_of_them["time_in_state"]) is None


@pytest.mark.parametrize("name", load())
def test_every_projection_is_answered_without_data_and_with_it(file: AnalyticsFile, name: str) -> None:
    """Rows and sums have the columns of the head."""
    all_of_them = load()
    projection = all_of_them[name]
    for events in ([], paid_order(1, "2026-03-02 10:00:00")):
        store(file, events)
        found = asked(file, rows(all_of_them, projection, since=datetime(2026, 3, 1, tzinfo=UTC)))
        assert {projection.time, *projection.keys, *projection.sums, *projection.chart.y} <= set(found.columns)
        if (statement := sums(all_of_them, projection)) is not None:
            assert asked(file, statement).columns == [*projection.keys, *projection.sums, *projection.ratios]
