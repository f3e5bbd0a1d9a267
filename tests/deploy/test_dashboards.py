"""Dashboard and alerts: every metric and label that they use exists."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.application import Application
from config.settings import Settings
from modules.registry import MODULES
from tests.architecture.tree import ROOT

DASHBOARD = ROOT / "deploy/grafana/dashboards/fulfilment.json"
ALERTS = ROOT / "deploy/prometheus/alerts.yaml"
PROMETHEUS = ROOT / "deploy/prometheus/prometheus.yaml"

PROMQL_WORDS = {
    *(
        "and",
        "bool",
        "by",
        "group_left",
        "group_right",
        "ignoring",
        "inf",
        "nan",
        "offset",
        "on",
        "or",
        "unless",
        "without",
    ),
    *("histogram_quantile", "increase", "max", "min", "rate", "sum", "time"),
}
"""Keywords and functions of PromQL; any other word of an expression is taken for a metric."""

PER_TABLE = {"outbox_oldest_seconds", "outbox_pending"}
"""Metrics about a table that all replicas report; a sum would count the table once per replica."""

PROMETHEUS_METRICS = {"up": {"job", "instance"}}
TARGET_LABELS = {"instance", "job"}


def panels() -> Iterator[dict[str, Any]]:
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    yield from (panel for panel in dashboard["panels"] if panel["type"] != "row")


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def expressions() -> Iterator[tuple[str, str]]:
    for panel in panels():
        yield from ((panel["title"], target["expr"]) for target in panel["targets"])
    yield from ((rule["alert"], rule["expr"]) for rule in rules())


def metrics_in(expression: str) -> dict[str, set[str]]:
    """Return the metrics of *expression*, each with its required labels: those of its matchers and of all groupings."""
    rest = re.sub(r'"[^"]*"', "", expression)
    matched: dict[str, set[str]] = {}
    for metric, matchers in re.findall(r"([\w:]+)\s*\{([^}]*)\}", rest):
        matched.setdefault(metric, set()).update(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers))
    rest = re.sub(r"\{[^}]*\}|\[[^\]]*\]", " ", rest)
    grouping = r"\b(?:by|on|ignoring|without)\s*\(([^)]*)\)"
    groups = {name.strip() for names in re.findall(grouping, rest) for name in names.split(",")}
    rest = re.sub(r"\boffset\s+\w+", " ", re.sub(grouping, " ", rest))
    metrics = {word for word in re.findall(r"[a-zA-Z_:][\w:]*", rest) if word.lower() not in PROMQL_WORDS}
    return {metric: matched.get(metric, set()) | groups for metric in metrics}


@pytest.fixture(scope="module")
def exposed(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, set[str]]:
    """The series of /metrics: the names of their labels by name."""
    folder: Path = tmp_path_factory.mktemp("metrics")
    application = Application(Settings(known_modules=MODULES, database_url=f"sqlite:///{folder}/fulfilment.db"))
    page = application.parts.metrics.render().decode()
    kinds = dict(re.findall(r"(?m)^# TYPE (\S+) (\S+)$", page))
    found = dict(PROMETHEUS_METRICS)
    for family in application.parts.metrics._registry.get_all():
        labels = set(family._names) | TARGET_LABELS  # type: ignore[attr-defined]
        if kinds[family.name] == "histogram":
            found |= {
                f"{family.name}_bucket": labels | {"le"},
                f"{family.name}_sum": labels,
                f"{family.name}_count": labels,
            }
        else:
            found[family.name] = labels
    return found


@pytest.mark.parametrize(("where", "expression"), list(expressions()))
def test_every_metric_and_label_of_an_expression_is_exposed(
    exposed: Mapping[str, set[str]], where: str, expression: str
) -> None:
    """Otherwise a renamed metric would leave a panel empty and an alert silent."""
    metrics = metrics_in(expression)
    assert metrics, where
    assert metrics.keys() - exposed.keys() == set()
    for metric, labels in metrics.items():
        assert labels - exposed[metric] == set()


@pytest.mark.parametrize(
    ("where", "expression"), [each for each in expressions() if metrics_in(each[1]).keys() & PER_TABLE]
)
def test_metrics_about_a_shared_table_are_not_summed(where: str, expression: str) -> None:
    """The highest value of all replicas is used."""
    assert re.match(r"max by \(module\) \(\w+\)", expression), where


def test_every_label_in_a_legend_or_summary_is_a_label_of_its_expression() -> None:
    """Otherwise it would be empty."""
    pairs = [
        (target["expr"], target["legendFormat"], r"\{\{(\w+)\}\}") for panel in panels() for target in panel["targets"]
    ]
    pairs += [(rule["expr"], rule["annotations"]["summary"], r"\$labels\.(\w+)") for rule in rules()]
    assert pairs
    for expression, text, pattern in pairs:
        labels = set(re.findall(pattern, text))
        groups = [set(re.split(r"\s*,\s*", names)) for names in re.findall(r"\bby \(([^)]*)\)", expression)]
        for group in groups:
            assert labels <= group, (expression, text)
        assert groups or labels <= TARGET_LABELS, (expression, text)


def test_every_metric_of_the_contract_is_on_the_dashboard(exposed: Mapping[str, set[str]]) -> None:
    """No metric is missing."""
    used = {metric for panel in panels() for target in panel["targets"] for metric in metrics_in(target["expr"])}
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in exposed} - PROMETHEUS_METRICS.keys()
    assert families - {re.sub(r"_bucket$", "", name) for name in used} == set()


def test_metrics_in_parses_expressions() -> None:
    """Matchers, groupings, offsets and functions; so the checks above can fail."""
    assert metrics_in('histogram_quantile(0.9, sum by (le, a) (rate(x_bucket{b=~"c|d"}[5m]))) > 1 or y offset 10m') == {
        "x_bucket": {"le", "a", "b"},
        "y": {"le", "a"},
    }
    assert metrics_in('x{a="b"} - y{c!="d"} - x{e="f"}') == {"x": {"a", "e"}, "y": {"c"}}
    assert metrics_in("avg(x)") == {"avg": set(), "x": set()}


def test_every_alert_has_a_severity_and_every_panel_its_own_position() -> None:
    """A severity routes the alert. Two panels with one position or one id would hide each other."""
    assert {rule["labels"]["severity"] for rule in rules()} == {"page", "ticket"}
    assert len({rule["alert"] for rule in rules()}) == len(rules()) >= 7
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels()]
    ids = [panel["id"] for panel in panels()]
    assert len(set(places)) == len(set(ids)) == len(places)
    datasource = yaml.safe_load(
        (ROOT / "deploy/grafana/provisioning/datasources/prometheus.yaml").read_text(encoding="utf-8")
    )
    uids = {each["uid"] for each in datasource["datasources"]}
    assert {target["datasource"]["uid"] for panel in panels() for target in panel["targets"]} <= uids
    job = yaml.safe_load(PROMETHEUS.read_text(encoding="utf-8"))["scrape_configs"][0]["job_name"]
    assert {name for rule in rules() for name in re.findall(r'job="(\w+)"', rule["expr"])} == {job}
