"""The page of ``analytics report`` in a browser: accessible, in light and dark, narrow, and on paper."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from app.cli.main import main
from tests.analytics.report.shop import shop_file
from tests.browser.page import OpenedPages, assert_accessible, assert_fits


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of the report of a shop."""
    folder = tmp_path_factory.mktemp("report")
    file = shop_file(folder / "shop.duckdb")
    period = ("--since", "2026-03-01", "--until", "2026-03-09T12:00:00Z")
    found = CliRunner().invoke(main, ["analytics", "report", "--file", str(file), *period, "--output", f"{folder}/report.html"])
    assert found.exit_code == 0
    return Path(f"{folder}/report.html").as_uri()


def test_the_report_is_accessible(address: str, pages: OpenedPages) -> None:
    """By the rules of WCAG 2.2 AA, the contrasts in light and in dark; it has a table beside each chart."""
    page = pages.open(address)
    assert_accessible(page)
    assert page.locator("svg.chart").count() > 17
    assert page.locator("section:not(:has(table))").count() == 0


def test_the_report_fits_a_phone(address: str, pages: OpenedPages) -> None:
    """Wide tables scroll by themselves."""
    assert_fits(pages.open(address, viewport={"width": 320, "height": 640}))


def test_the_report_is_printed_whole(address: str, pages: OpenedPages) -> None:
    """Nothing is cut off in a box that scrolls, and paper is white in dark, too."""
    page = pages.open(address, color_scheme="dark")
    page.emulate_media(media="print")
    cut = "() => [...document.querySelectorAll('.scroll')].filter(box => box.scrollHeight > box.clientHeight + 1).length"
    assert page.evaluate(cut) == 0
    assert page.evaluate("() => getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
