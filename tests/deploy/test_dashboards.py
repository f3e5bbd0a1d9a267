"""Dashboard and alerts: whatever they ask for is there."""

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

WORDS = {
    *("and", "bool", "by", "group_left", "group_right", "ignoring", "inf", "nan", "offset", "on", "or", "unless", "without"),
    *("histogram_quantile", "increase", "max", "min", "rate", "sum", "time"),
}
"""What PromQL means by itself; a function that is not in here is taken for a metric, and not found."""

OF_A_TABLE = {"outbox_oldest_seconds", "outbox_pending"}
"""What every replica says of a table that they share; in a sum it would stand as often as there are replicas."""

OF_PROMETHEUS = {"up": {"job", "instance"}}
EVERYWHERE = {"instance", "job"}


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


def asked(expression: str) -> dict[str, set[str]]:
    """Return the metrics that *expression* names, each with the labels that it must have: its own matchers', and all groups'."""
    rest = re.sub(r'"[^"]*"', "", expression)
    matched: dict[str, set[str]] = {}
    for metric, matchers in re.findall(r"([\w:]+)\s*\{([^}]*)\}", rest):
        matched.setdefault(metric, set()).update(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers))
    rest = re.sub(r"\{[^}]*\}|\[[^\]]*\]", " ", rest)
    grouping = r"\b(?:by|on|ignoring|without)\s*\(([^)]*)\)"
    groups = {name.strip() for names in re.findall(grouping, rest) for name in names.split(",")}
    rest = re.sub(r"\boffset\s+\w+", " ", re.sub(grouping, " ", rest))
    metrics = {word for word in re.findall(r"[a-zA-Z_:][\w:]*", rest) if word.lower() not in WORDS}
    return {metric: matched.get(metric, set()) | groups for metric in metrics}


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, set[str]]:
    """What /metrics shows: each series' name, with the names of its labels."""
    folder: Path = tmp_path_factory.mktemp("metrics")
    application = Application(Settings(known_modules=MODULES, database_url=f"sqlite:///{folder}/fulfilment.db"))
    page = application.parts.metrics.render().decode()
    kinds = dict(re.findall(r"(?m)^# TYPE (\S+) (\S+)$", page))
    found = dict(OF_PROMETHEUS)
    for family in application.parts.metrics._registry.get_all():
        labels = set(family._names) | EVERYWHERE  # type: ignore[attr-defined]
        if kinds[family.name] == "histogram":
            found |= {f"{family.name}_bucket": labels | {"le"}, f"{family.name}_sum": labels, f"{family.name}_count": labels}
        else:
            found[family.name] = labels
    return found


@pytest.mark.parametrize(("where", "expression"), list(expressions()))
def test_every_metric_and_every_label_that_is_asked_for_is_shown(
    shown: Mapping[str, set[str]], where: str, expression: str
) -> None:
    """A renamed metric would leave a panel empty, and an alert silent, without anybody's noticing."""
    metrics = asked(expression)
    assert metrics, where
    assert metrics.keys() - shown.keys() == set()
    for metric, labels in metrics.items():
        assert labels - shown[metric] == set()


@pytest.mark.parametrize(
    ("where", "expression"), [each for each in expressions() if asked(each[1]).keys() & OF_A_TABLE]
)
def test_what_replicas_say_of_one_table_is_not_added_up(where: str, expression: str) -> None:
    """Of those who look at the same, the one who has seen most is right."""
    assert re.match(r"max by \(module\) \(\w+\)", expression), where


def test_every_label_in_a_legend_or_a_summary_is_one_that_the_expression_leaves() -> None:
    """Otherwise it would be shown as nothing."""
    pairs = [(target["expr"], target["legendFormat"], r"\{\{(\w+)\}\}") for panel in panels() for target in panel["targets"]]
    pairs += [(rule["expr"], rule["annotations"]["summary"], r"\$labels\.(\w+)") for rule in rules()]
    assert pairs
    for expression, text, pattern in pairs:
        left = set(re.findall(pattern, text))
        groups = [set(re.split(r"\s*,\s*", names)) for names in re.findall(r"\bby \(([^)]*)\)", expression)]
        for group in groups:
            assert left <= group, (expression, text)
        assert groups or left <= EVERYWHERE, (expression, text)


def test_every_metric_of_the_contract_is_on_the_dashboard(shown: Mapping[str, set[str]]) -> None:
    """What is measured can be seen."""
    seen = {metric for panel in panels() for target in panel["targets"] for metric in asked(target["expr"])}
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown} - OF_PROMETHEUS.keys()
    assert families - {re.sub(r"_bucket$", "", name) for name in seen} == set()


def test_an_expression_is_understood() -> None:
    """The checks above can fail."""
    assert asked('histogram_quantile(0.9, sum by (le, a) (rate(x_bucket{b=~"c|d"}[5m]))) > 1 or y offset 10m') == {
        "x_bucket": {"le", "a", "b"},
        "y": {"le", "a"},
    }
    assert asked('x{a="b"} - y{c!="d"} - x{e="f"}') == {"x": {"a", "e"}, "y": {"c"}}
    assert asked("avg(x)") == {"avg": set(), "x": set()}


def test_every_alert_says_how_bad_it_is_and_every_panel_has_its_place() -> None:
    """Severity routes it; a place or an id that is taken would hide a panel."""
    assert {rule["labels"]["severity"] for rule in rules()} == {"page", "ticket"}
    assert len({rule["alert"] for rule in rules()}) == len(rules()) >= 7
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels()]
    ids = [panel["id"] for panel in panels()]
    assert len(set(places)) == len(set(ids)) == len(places)
    datasource = yaml.safe_load((ROOT / "deploy/grafana/provisioning/datasources/prometheus.yaml").read_text(encoding="utf-8"))
    uids = {each["uid"] for each in datasource["datasources"]}
    assert {target["datasource"]["uid"] for panel in panels() for target in panel["targets"]} <= uids
    job = yaml.safe_load(PROMETHEUS.read_text(encoding="utf-8"))["scrape_configs"][0]["job_name"]
    assert {name for rule in rules() for name in re.findall(r'job="(\w+)"', rule["expr"])} == {job}
