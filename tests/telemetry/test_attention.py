"""What needs attention: one table, a check in the process, and files and documents that follow from it."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest
import yaml

from app.cli.new.attention import alert_rules, alerts_table, with_condition_panels
from app.telemetry.attention import CONDITIONS, Attention, AttentionWatch, Condition
from app.telemetry.attention.checks import Scraped
from app.telemetry.metrics import Metrics
from modules.orders.routes import REASONS
from tests.architecture.tree import ROOT

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
TITLES = re.compile(r"^(?P<title>\S.*)\n-+$", re.MULTILINE)


class Watched:
    """Metrics and a watch, whose time the test moves."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.metrics.bus_connected.set(1)
        self.metrics.ready.set(1)
        self.watch = AttentionWatch(self.metrics.families)
        self.now = NOON
        self.watch.step(self.now)

    def after(self, seconds: float, every: float = 5.0) -> list[Attention]:
        """Step until *seconds* have passed; return what needs attention then."""
        for _ in range(int(seconds / every)):
            self.now += timedelta(seconds=every)
            self.watch.step(self.now)
        return list(self.watch.current)


@pytest.fixture
def watched() -> Watched:
    return Watched()


def test_a_process_in_order_needs_no_attention(watched: Watched) -> None:
    """A list that is never empty would not be read."""
    assert watched.after(600) == []


def test_an_open_breaker_is_shown_at_once_and_since_when(watched: Watched) -> None:
    """The sentence, the severity and the section of the guide come from the table."""
    watched.metrics.circuit_breaker_state.labels("stripe:refund").set(2)
    watched.after(5)
    (found,) = watched.after(60)
    assert (found.name, found.severity) == ("BreakerOpen", "page")
    assert found.what == "Calls to the payment provider stripe:refund are suspended; orders or refunds wait."
    assert found.since == NOON + timedelta(seconds=5)
    assert found.guide == "howto/operate.html#when-the-circuit-breaker-is-open"
    watched.metrics.circuit_breaker_state.labels("stripe:refund").set(1)
    assert watched.after(5) == []


def test_each_group_is_a_condition_of_its_own(watched: Watched) -> None:
    """Two modules with a stuck outbox are two lines, each with its own time; what has just begun comes last."""
    watched.metrics.outbox_oldest_seconds.labels("orders").set(61)
    watched.after(10)
    watched.metrics.outbox_oldest_seconds.labels("payments").set(3600)
    first, second = watched.after(5)
    assert first.what == "The oldest unsent event of orders has waited 1m 1s for the bus."
    assert second.what == "The oldest unsent event of payments has waited 1h 0m 0s for the bus."
    assert first.since < second.since


def test_a_dead_letter_is_shown_for_the_window_of_its_alert(watched: Watched) -> None:
    """Its series begins with the first one; ten minutes later the increase is zero again."""
    watched.metrics.dead_letters.labels("inventory", "orders.created.v1").inc()
    (found,) = watched.after(500)
    assert found.what == "Inventory has a new dead letter with the subject orders.created.v1."
    assert watched.after(125) == []


def test_a_share_counts_what_happened_within_its_window(watched: Watched) -> None:
    """Four of a hundred responses are not too many, six are; responses of long ago do not count."""
    good = watched.metrics.http_requests.labels("POST", "/v1/orders", "202")
    bad = watched.metrics.http_requests.labels("POST", "/v1/orders", "503")
    good.inc(96)
    bad.inc(4)
    assert watched.after(5) == []
    bad.inc(2)
    (found,) = watched.after(5)
    assert found.what == "5.88% of the responses of this process are 5xx."
    good.inc(100)
    assert watched.after(250) == []
    good.inc(10)
    bad.inc(1)
    assert [each.name for each in watched.after(100)] == ["ServerErrors"], "what came before is out of the window"


def test_a_quantile_is_interpolated_as_prometheus_does(watched: Watched) -> None:
    """99 of 100 orders in the bucket up to 10 s: the quantile is its upper bound."""
    for _ in range(100):
        watched.metrics.order_duration_seconds.observe(6)
    (found,) = watched.after(5)
    assert found.what == "The slowest hundredth of the orders takes 10s."  # 5 + 5 * 0.99
    assert watched.after(400) == []


@pytest.mark.parametrize(
    ("check", "name"),
    [
        ("database:orders", "DatabaseUnavailable"), ("topology", "TopologyDrift"), ("work", "WorkStalled"), ("clock", "ClockWrong"),
        ("retired_versions", "RetiredVersionNeeded"),
    ],
)  # fmt: skip
def test_a_failed_check_of_readiness_needs_attention(watched: Watched, check: str, name: str) -> None:
    """Each check that has no metric of its own has a condition."""
    watched.metrics.health_check_failed.labels(check).set(1)
    (found,) = watched.after(5)
    assert found.name == name


def test_what_wakes_the_operator_comes_first(watched: Watched) -> None:
    """Also if something else has needed attention for longer."""
    watched.metrics.health_check_failed.labels("topology").set(1)
    watched.after(60)
    watched.metrics.outbox_oldest_seconds.labels("orders").set(61)
    found = watched.after(5)
    assert [(each.name, each.severity) for each in found] == [("OutboxStuck", "page"), ("TopologyDrift", "ticket")]


def test_a_condition_that_comes_back_begins_anew(watched: Watched) -> None:
    watched.metrics.ready.set(0)
    watched.after(60)
    watched.metrics.ready.set(1)
    watched.after(60)
    watched.metrics.ready.set(0)
    (found,) = watched.after(5)
    assert found.since == NOON + timedelta(seconds=125)


@pytest.mark.parametrize("check", ["my-database:orders", "database", "clocks", "topology:orders"])
def test_the_value_of_a_label_has_to_match_as_a_whole(watched: Watched, check: str) -> None:
    watched.metrics.health_check_failed.labels(check).set(1)
    assert watched.after(5) == []


@pytest.mark.parametrize("every", [1.0, 5.0, 60.0, 400.0])
def test_what_was_counted_before_the_window_does_not_count(every: float) -> None:
    """However often the watch looks; what a young process has counted before its first look does."""
    watched = Watched()
    dead = watched.metrics.dead_letters.labels("inventory", "orders.created.v1")
    dead.inc()
    assert [each.name for each in watched.after(every, every)] == ["DeadLetters"]
    assert watched.after(600 + max(every, 600 / 32), every) == []
    dead.inc()
    assert [each.name for each in watched.after(every, every)] == ["DeadLetters"]


@pytest.mark.parametrize("reason", REASONS)
def test_orders_that_end_for_want_of_stock_are_too_many(watched: Watched, reason: str) -> None:
    """One in twenty; those that end for another reason do not count."""
    watched.metrics.orders.labels("processing").inc(100)
    watched.metrics.orders_cancelled.labels(reason).inc(6)
    assert [each.name for each in watched.after(5)] == (["StockOut"] if reason == "insufficient_stock" else [])


@pytest.mark.parametrize("condition", CONDITIONS, ids=lambda condition: condition.name)
def test_the_values_that_a_condition_looks_for_are_documented(condition: Condition) -> None:
    """One that no series has would leave the condition silent."""
    text = (ROOT / "docs/reference/metrics.rst").read_text(encoding="utf-8")
    for name, pattern in getattr(condition.check, "where", {}).items():
        if name in ("outcome", "reason"):
            section = text.partition(f"``{condition.check.metric}{{{name}}}``\n")[2].partition("\n``")[0]  # type: ignore[attr-defined]
            assert {*pattern.split("|")} <= {*re.findall(r"``(\w+)``", section)}


@pytest.mark.parametrize("condition", CONDITIONS, ids=lambda condition: condition.name)
def test_the_section_that_a_condition_names_exists(condition: Condition) -> None:
    """An operator who follows the link finds what to do."""
    page, title = condition.guide
    text = (ROOT / "docs" / f"{page}.rst").read_text(encoding="utf-8")
    assert title in {found["title"].replace("``", "") for found in TITLES.finditer(text)}


@pytest.mark.parametrize("condition", CONDITIONS, ids=lambda condition: condition.name)
def test_the_process_finds_the_metric_and_the_labels_of_a_condition(condition: Condition) -> None:
    """A misspelt name would leave the condition silent: each check reads real metrics, and its labels are theirs."""
    families = Metrics().families
    if not isinstance(condition.check, Scraped):
        condition.check.read(families)
        labels = set(families[condition.check.metric]._names)  # type: ignore[attr-defined]
        assert {*condition.check.where, *condition.check.by} - {"instance"} <= labels  # type: ignore[attr-defined]
    placeholders = set(re.findall(r"\{(\w+)\}", condition.sentence)) - {"duration", "share", "number"}
    assert placeholders <= set(condition.check.by)


def test_the_files_follow_from_the_table() -> None:
    """`python -m app new documents` has written the rules, the panels and the table in the documents."""
    dashboard = (ROOT / "deploy/grafana/dashboards/fulfilment.json").read_text(encoding="utf-8")
    assert (ROOT / "deploy/prometheus/alerts.yaml").read_text(encoding="utf-8") == alert_rules()
    assert with_condition_panels(dashboard) == dashboard
    assert alerts_table() in (ROOT / "docs/howto/deploy.rst").read_text(encoding="utf-8")


def test_the_rules_have_the_threshold_and_the_time_of_the_table() -> None:
    """The number in the rule is the one that the process compares with."""
    (group,) = yaml.safe_load(alert_rules())["groups"]
    rules = {rule["alert"]: rule for rule in group["rules"]}
    assert rules.keys() == {condition.name for condition in CONDITIONS}
    for condition in CONDITIONS:
        rule = rules[condition.name]
        assert rule["expr"].endswith(f"{condition.check.comparison} {condition.check.threshold:g}")
        assert rule["labels"] == {"severity": condition.severity.value}
        assert ("for" in rule) == bool(condition.for_seconds)
