"""The screen Analytics beside the process that counts."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
from playwright.sync_api import expect

from app.analytics.projections.declaration import load
from tests.browser.page import OpenedPages, assert_accessible, assert_fits
from tests.browser.site import Site
from tests.process.server import environment_of


@pytest.fixture
def counting(site: Site) -> Iterator[subprocess.Popen[bytes]]:
    """``python -m app analytics run`` beside the server, with the same environment."""
    settings = {name: value for name, value in site.server.settings.items() if name != "HTTP_PORT"}
    process = subprocess.Popen(
        [sys.executable, "-m", "app", "analytics", "run"], cwd=site.server.folder, env=environment_of(settings),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    yield process
    process.kill()
    process.wait()


@pytest.mark.night
def test_results_are_shown_once_they_are_counted_and_follow_the_orders(
    site: Site, pages: OpenedPages, counting: subprocess.Popen[bytes]
) -> None:
    """The page is open before there are results; then it has a table, and changes with an order that is placed."""
    page = pages.as_role(site, "viewer", "/console/analytics")
    page.get_by_label("Projection", exact=True).select_option("top_products")
    page.get_by_role("button", name="Show").click()
    expect(page).to_have_url(re.compile("show=top_products"))
    row = page.get_by_role("group", name="Sums of the period").get_by_role("row", name=re.compile("TEA-100"))
    expect(row).to_be_visible()
    site.placed_and_ended("TEA-100", 3)
    expect(row).to_contain_text("125.00 EUR")
    page.get_by_label("Projection", exact=True).select_option("orders_per_minute")
    page.get_by_role("button", name="Show").click()
    expect(page.get_by_role("heading", level=2, name="Orders per minute")).to_be_visible()
    assert_accessible(page)
    page.set_viewport_size({"width": 360, "height": 740})
    assert_fits(page)
    for name in load():
        answer = page.goto(site.url_of(f"/console/analytics?show={name}&period=24h"))
        assert answer is not None
        assert answer.status == 200, name
        expect(page.get_by_role("heading", level=2, name="No results")).to_have_count(0)
    assert counting.poll() is None
