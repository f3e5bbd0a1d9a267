"""The rules: how they are written, which window they look at, and what is wrong with a bad one."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from attrs import evolve

from app.analytics.analytics_file import AnalyticsFile
from app.analytics.projections.declaration import load
from app.analytics.query import Answer, answer, gathered
from app.analytics.watch.rules import BadRule, Finding, Rule, evaluate, parse_rule, read_rules
from app.messaging.event_registry import build_registry
from tests.analytics.projections.conftest import store
from tests.analytics.projections.story import Happened, cancelled, created, paid_order

NOW = datetime(2026, 3, 2, 12, 30, tzinfo=UTC)
DAY = "2026-03-02"


@pytest.fixture(scope="module")
def opened() -> AnalyticsFile:
    return AnalyticsFile(None, build_registry(()))


def found(file: AnalyticsFile, rule: Rule | str, *events: Happened) -> Finding:
    """Evaluate *rule* over *events* alone."""
    for table in file.tables:
        file.connection.execute(f"DELETE FROM {table.name}")
    if events:
        store(file, events)

    def ask(sql: str, limit: int) -> Answer:
        return gathered(answer(file.connection.cursor(), sql, limit))

    parsed = parse_rule(rule) if isinstance(rule, str) else rule
    assert parsed is not None
    return evaluate(parsed, ask, load(), NOW)


def test_a_short_rule_names_projection_column_operator_and_threshold() -> None:
    """Its name is itself; the window follows from the operator."""
    rule = parse_rule("orders_per_hour.placed >= 100 for 10m")
    assert rule is not None
    assert (rule.projection, rule.column, rule.operator, rule.threshold) == ("orders_per_hour", "placed", ">=", 100)
    assert (rule.for_seconds, rule.window, rule.condition) == (600, "newest", "orders_per_hour.placed >= 100")
    below = parse_rule("order_rate_anomaly.z<-3")
    assert below is not None
    assert (below.threshold, below.window) == (-3, "ended")
    windows = {sign: rule.window for sign in ("<", "<=", ">", ">=", "=", "!=") if (rule := parse_rule(f"p.c {sign} 3")) is not None}
    assert windows == {"<": "ended", "<=": "ended", ">": "newest", ">=": "newest", "=": "newest", "!=": "newest"}
    assert parse_rule("few-orders") is None


def test_a_count_is_compared_in_the_newest_window(opened: AnalyticsFile) -> None:
    """It has not ended, but the count only grows."""
    events = [created(n, f"{DAY} 12:{n:02}:00") for n in range(5)]
    assert found(opened, "orders_per_hour.placed >= 5", *events) == Finding(
        True, 5, ({"hour": f"{DAY}T12:00:00Z", "placed": 5, "confirmed": 0, "cancelled": 0},)
    )
    assert not found(opened, "orders_per_hour.placed > 5", *events).holds


def test_too_little_is_looked_for_in_a_window_that_has_ended(opened: AnalyticsFile) -> None:
    """The hour that has just begun is nearly empty, and no reason for an alarm."""
    busy = [created(n, f"{DAY} 11:{n:02}:00") for n in range(5)]
    assert not found(opened, "orders_per_hour.placed < 5", *busy, created(9, f"{DAY} 12:00:00")).holds
    assert found(opened, "orders_per_hour.placed < 6", *busy).holds


def test_silence_is_less_than_one(opened: AnalyticsFile) -> None:
    """An hour without orders has no row; the rule still finds it."""
    assert found(opened, "orders_per_hour.placed < 1", created(1, f"{DAY} 10:59:59")) == Finding(True, 0)
    assert found(opened, "orders_per_hour.placed < 1") == Finding(True, 0)
    assert not found(opened, "orders_per_hour.placed < 1", created(1, f"{DAY} 11:00:00")).holds


def test_a_value_that_is_unknown_never_holds(opened: AnalyticsFile) -> None:
    """There is no z-score before three weeks have passed, and no time of a state that no order left."""
    assert not found(opened, "order_rate_anomaly.z < 3", created(1, f"{DAY} 09:00:00"), created(2, f"{DAY} 12:00:00")).holds
    assert not found(opened, "time_in_state.p95_seconds < 10").holds


def test_a_condition_chooses_the_rows(opened: AnalyticsFile) -> None:
    """One currency, or one reason."""
    events = [*paid_order(1, f"{DAY} 12:00:00"), *paid_order(2, f"{DAY} 12:00:00", currency="USD")]
    rule = Rule(name="r", projection="revenue_per_day", column="net", threshold=999, where="currency = 'USD'")
    assert [row["currency"] for row in found(opened, rule, *events).rows] == ["USD"]
    either = evolve(rule, where="currency = 'EUR' OR currency = 'USD'")
    events = [*paid_order(1, f"{DAY} 12:00:00"), *paid_order(2, "2026-03-01 12:00:00", currency="USD")]
    assert [row["currency"] for row in found(opened, either, *events).rows] == ["EUR"], "of the newest window only"


def test_any_sql_is_a_rule(opened: AnalyticsFile) -> None:
    """It holds if the first column of a row is true."""
    sql = "SELECT count(*) > 1 AS many, count(*) AS orders FROM orders_cancelled"
    assert found(opened, sql, cancelled(1, f"{DAY} 10:00:00")) == Finding(False)
    two = [cancelled(1, f"{DAY} 10:00:00"), cancelled(2, f"{DAY} 10:00:00")]
    assert found(opened, sql, *two) == Finding(True, True, ({"many": True, "orders": 2},))


@pytest.mark.parametrize(
    ("rule", "detail"),
    [
        ("order_rate.z < -3", "there is no projection 'order_rate'; known are cancellations"),
        ("orders_per_hour.ordered < 3", "orders_per_hour has no column 'ordered'; it has hour, placed, confirmed, cancelled"),
        ("cancellations.reason > 3", "cancellations.reason is VARCHAR, and no number"),
        ("SELECT 1", "SELECT 1: the first column must be true or false, and is INTEGER"),
        ("SELECT true FROM nowhere", "SELECT true FROM nowhere: Catalog Error: Table with name nowhere does not exist"),
        ("DROP TABLE x", "is no rule: write PROJECTION.COLUMN < NUMBER [for 10m], a SELECT, or the name"),
    ],
)
def test_a_wrong_rule_is_explained(opened: AnalyticsFile, rule: str, detail: str) -> None:
    """What is known is part of the message."""
    with pytest.raises(BadRule) as error:
        found(opened, rule)
    assert detail in str(error.value)


GOOD = """
[[rule]]
name = "refunds"
projection = "refund_rate"
column = "rate"
operator = ">"
threshold = 0.1
where = "currency = 'EUR'"
for = "1h"
url = "https://example.org/alerts"

[[rule]]
name = "silence"
sql = "SELECT count(*) = 0 FROM orders_created WHERE occurred_at > now() - INTERVAL 1 HOUR"
"""


def test_rules_in_a_file(tmp_path: Path) -> None:
    """By name; what is not given has its default."""
    (tmp_path / "rules.toml").write_text(GOOD)
    rules = read_rules(tmp_path / "rules.toml")
    assert list(rules) == ["refunds", "silence"]
    assert (rules["refunds"].for_seconds, rules["refunds"].window) == (3600, "newest")
    assert rules["silence"].url is None


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        (GOOD.replace('column = "rate"\n', ""), "rule 1: refunds: lacks column"),
        (GOOD.replace('"refunds"', '"a b"'), "rule 1: name: must be 1 to 64 letters, digits, - and _"),
        (GOOD.replace("0.1", '"much"'), "rule 1: refunds: threshold: must be a number"),
        (GOOD.replace('">"', '"=>"'), "rule 1: refunds: operator: must be one of < <= > >= = !="),
        (GOOD.replace('"1h"', '"long"'), "rule 1: refunds: for: must be a number of seconds, minutes, hours or days"),
        (GOOD.replace("https:", "ftp:"), "rule 1: refunds: url: must begin with http:// or https://"),
        (GOOD.replace("where", "when"), "rule 1: when: unknown; a rule has column, for, name, operator"),
        (GOOD.replace("sql =", 'column = "x"\nsql ='), "rule 2: silence: sql: cannot stand beside column"),
        (GOOD.replace('"silence"', '"refunds"'), "rule 2: there is another rule 'refunds'"),
        (GOOD.replace("[[rule]]", "[rule"), "is not TOML"),
        ("x = 1", "must have tables [[rule]] and nothing else"),
    ],
)
def test_a_wrong_file_names_the_rule_and_the_field(tmp_path: Path, text: str, detail: str) -> None:
    """So that the line is found quickly."""
    path = tmp_path / "rules.toml"
    path.write_text(text)
    with pytest.raises(BadRule) as error:
        read_rules(path)
    assert str(error.value).startswith(f"{path}: {detail}")
