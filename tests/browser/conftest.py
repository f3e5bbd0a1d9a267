"""Fixtures: one browser and one server for the tests of a file, and pages that are logged in."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.browser.page import OpenedPages, launched
from tests.browser.site import Site, started
from tests.debian import require_programs


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder: it starts a browser and a server."""
    folder = f"{Path(__file__).parent}{os.sep}"
    for item in items:
        if str(item.path).startswith(folder):
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.process)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser without a window. It serves one file: Playwright's event loop must not run beside those of other tests."""
    require_programs({"chromium": "chromium"})
    with launched() as running:
        yield running


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server with data of every kind."""
    with started(tmp_path_factory.mktemp("site")) as site:
        yield site


@pytest.fixture
def pages(browser: Browser) -> Iterator[OpenedPages]:
    """What opens pages; at the end of the test no page may have reported an error, and all of them are closed."""
    opened = OpenedPages(browser)
    yield opened
    opened.close()
