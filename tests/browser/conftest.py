"""Fixtures: one browser for the tests of a file, a server with data of every kind, and pages that are logged in."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.browser.page import WAIT_SECONDS, OpenedPages

Open = Callable[..., Page]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder: it starts a browser and a server."""
    folder = f"{Path(__file__).parent}{os.sep}"
    for item in items:
        if str(item.path).startswith(folder):
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.process)


def chromium() -> str:
    """Return the path of Chromium; fail the test where it is not installed."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        pytest.fail(
            "Chromium is not installed, so the console cannot be tested;"
            " on Debian: apt-get install --no-install-recommends chromium"
        )
    return found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser without a window. It serves one file: Playwright's event loop must not run beside those of other tests."""
    # The sandbox does not start as root, as which continuous integration runs; /dev/shm is small in a container.
    arguments = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(
            executable_path=chromium(), args=arguments, timeout=1000 * WAIT_SECONDS
        )
        yield running
        running.close()


@pytest.fixture
def pages(browser: Browser) -> Iterator[OpenedPages]:
    """What opens pages; at the end of the test no page may have reported an error, and all of them are closed."""
    opened = OpenedPages(browser)
    yield opened
    opened.close()
