"""The report: the same numbers as a page and as JSON, and nothing in the page that needs a network."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from app.cli.main import main
from tests.analytics.report.shop import shop_file

pytestmark = pytest.mark.slow

PERIOD = ("--since", "2026-03-01", "--until", "2026-03-09T12:00:00Z")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The analytics file of the shop."""
    return shop_file(tmp_path_factory.mktemp("shop") / "shop.duckdb")


def report(file: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["analytics", "report", "--file", str(file), *arguments])


class Tables(HTMLParser):
    """Collects the values of the cells of each section, row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, list[list[str]]] = {}
        self._section = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "section":
            self._section = values["id"] or ""
        elif tag == "tr":
            self.found.setdefault(self._section, []).append([])
        elif tag == "data":
            self.found[self._section][-1].append(values["value"] or "")


def test_the_page_has_the_numbers_of_the_json(shop: Path) -> None:
    """Each row of sums and windows is in the table of its section, in the same order."""
    as_json: dict[str, Any] = json.loads(report(shop, *PERIOD, "--json").stdout)
    parser = Tables()
    parser.feed(report(shop, *PERIOD, "--output", "-").stdout)
    assert len(as_json["projections"]) == 17
    for projection in as_json["projections"]:
        rows = [*(projection["sums"] or []), *projection["rows"]]
        expected = [["" if value is None else str(value) for value in row.values()] for row in rows]
        assert [row for row in parser.found[projection["name"]] if row] == expected
        assert projection["rows"], projection["name"]


def test_the_json_has_the_right_numbers(shop: Path) -> None:
    """Nine days: in EUR 1250 a piece for 1 to 9 pieces, and 99 a day; in JPY 500 a day; 700 and 500 were refunded."""
    found = json.loads(report(shop, *PERIOD, "--json", "--projection", "revenue_per_day", "--projection", "funnel").stdout)
    assert (found["since"], found["until"]) == ("2026-03-01T00:00:00Z", "2026-03-09T12:00:00Z")
    assert found["newest_at"] == "2026-03-09T10:30:00Z"
    revenue, funnel = found["projections"]
    assert revenue["sums"] == [
        {"currency": "EUR", "orders": 9, "revenue": 57141, "refunded": 700, "net": 56441},
        {"currency": "JPY", "orders": 9, "revenue": 4500, "refunded": 500, "net": 4000},
    ]
    assert [row["orders"] for row in funnel["sums"]] == [36, 27, 18, 18, 17]
    assert revenue["rows"][0]["day"] == "2026-03-09T00:00:00Z"


def test_the_page_needs_no_network_and_no_script(shop: Path) -> None:
    """It is one file."""
    page = report(shop, *PERIOD, "--output", "-").stdout
    assert not re.search(r"<script|<link|<img|<iframe|@import|url\(|src=|https?://", page)
    assert page.startswith("<!doctype html>")
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page


def test_what_comes_from_events_is_escaped(shop: Path) -> None:
    """A product id may be anything."""
    page = report(shop, *PERIOD, "--output", "-", "--projection", "stock_outs").stdout
    assert "<b>SKU" not in page
    assert page.count("&lt;b&gt;SKU &amp; 3&lt;/b&gt;") >= 3


def test_amounts_are_shown_in_the_unit_of_their_currency(shop: Path) -> None:
    """Yen have no cents; each currency has a chart of its own."""
    page = report(shop, *PERIOD, "--output", "-", "--projection", "revenue_per_day").stdout
    assert '<data value="57141">571.41 EUR</data>' in page
    assert '<data value="4500">4\u202f500 JPY</data>' in page
    assert re.findall(r'aria-label="(Revenue per day: [^"]*)"', page) == ["Revenue per day: net, EUR", "Revenue per day: net, JPY"]


def test_the_page_is_written_to_a_file(shop: Path, tmp_path: Path) -> None:
    """The command names it."""
    result = report(shop, *PERIOD, "--output", str(tmp_path / "r.html"))
    assert (result.exit_code, result.stdout) == (0, f"written: {tmp_path}/r.html\n")
    assert (tmp_path / "r.html").read_text().endswith("</html>\n")


def test_a_period_without_data_is_reported_as_one(shop: Path) -> None:
    """The page and the command name it, and the newest order; the exit code stays 0."""
    result = report(shop, "--since", "2025-01-01", "--until", "2025-02-01", "--output", "-")
    assert result.exit_code == 0
    assert "There is no data for this period." in result.stdout
    assert f"no data for this period; the newest order in {shop} was placed at: 2026-03-09T10:30:00Z" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("--projection", "funel"), 2, "--projection: there is no projection 'funel'; known are cancellations, "),
        (("--since", "2026-03-02", "--until", "2026-03-01"), 2, "must be before --until"),
        (("--since", "yesterday"), 2, "'yesterday' is not a time"),
        (("--output", "/no/such/folder/r.html"), 2, "--output: /no/such/folder/r.html: No such file or directory"),
    ],
)
def test_wrong_usage_is_one_line(shop: Path, arguments: tuple[str, ...], code: int, text: str) -> None:
    """It names what is wrong, and what is known."""
    result = report(shop, *arguments)
    assert result.exit_code == code
    assert text in result.stderr


def test_a_file_that_does_not_exist_is_not_created(tmp_path: Path) -> None:
    """The message names what makes it."""
    result = report(tmp_path / "no.duckdb")
    assert result.exit_code == 1
    assert "there is no such file: `analytics run` makes it" in result.stderr
    assert list(tmp_path.iterdir()) == []
