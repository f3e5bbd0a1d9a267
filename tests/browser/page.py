"""Open pages of a server in a browser, and check what holds for each of them."""

from __future__ import annotations

__all__ = ["WAIT_SECONDS", "OpenedPages", "assert_accessible", "assert_fits", "launched"]

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from attrs import define, field
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Page,
    Request,
    TimeoutError,
    expect,
    sync_playwright,
)

from tests.browser.site import KEYS, Site

WAIT_SECONDS = 60.0
"""Playwright waits at most this long for an element or a page; a busy machine is slow, and a failed test is rare."""

_REFUSED = "Failed to load resource: the server responded with a status of 4"


@contextmanager
def launched() -> Iterator[Browser]:
    """Start Chromium, which is installed on the machine."""
    # The sandbox does not start as root, as which continuous integration runs; /dev/shm is small in a container.
    arguments = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
    expect.set_options(timeout=1000 * WAIT_SECONDS)
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=arguments, timeout=1000 * WAIT_SECONDS
        )
        yield running
        running.close()


@define
class OpenedPages:
    """
    The pages that one test has opened in *browser*, each with cookies of its own.

    `close` fails the test when a page has raised an error in its scripts, has violated its security policy, or has asked
    another server for anything.
    """

    browser: Browser
    problems: list[str] = field(factory=list)
    _contexts: list[BrowserContext] = field(factory=list)

    def open(self, url: str, **options: Any) -> Page:
        """Open *url* in a new context with *options* of Playwright's ``new_context``; return the loaded page."""
        page = self.context(url, **options).new_page()
        page.goto(url)
        return page

    def as_role(self, site: Site, role: str, path: str = "/console", **options: Any) -> Page:
        """Log in with the key of *role* as a person does, and return the page at *path*."""
        page = self.context(site.url_of("/"), **options).new_page()
        page.goto(site.url_of(path))
        page.get_by_label("API key").fill(KEYS[role])
        page.get_by_role("button", name="Log in").click()
        page.wait_for_url(site.url_of(path))
        return page

    def context(self, url: str, **options: Any) -> BrowserContext:
        """Return a new context whose pages may ask only the server of *url*."""
        origin = "/".join(url.split("/")[:3])
        context = self.browser.new_context(**options)
        context.set_default_timeout(1000 * WAIT_SECONDS)
        self._contexts.append(context)

        def watch(page: Page) -> None:
            page.on("pageerror", lambda error: self.problems.append(f"{page.url}: {error}"))
            page.on("console", lambda line: self._report(page, line))

        def note(request: Request) -> None:
            if not request.url.startswith((origin, "data:", "blob:")):
                self.problems.append(f"another server was asked: {request.url}")

        context.on("page", watch)
        context.on("request", note)
        return context

    def _report(self, page: Page, line: ConsoleMessage) -> None:
        # A refused form is an answer of the server like any other, but the browser logs its status as an error.
        if line.type == "error" and not line.text.startswith(_REFUSED):
            self.problems.append(f"{page.url}: {line.text}")

    def close(self) -> None:
        """Close every page, and fail if one of them has reported a problem."""
        for context in self._contexts:
            context.close()
        assert not self.problems, "\n".join(self.problems)


def assert_accessible(page: Page) -> None:
    """
    Check *page* with axe-core in both colour schemes, by the rules of WCAG 2.2 at level AA and by the best practices.

    Only the contrasts depend on the scheme. Without ``resultTypes`` axe-core also describes each element that passes, which takes
    most of the time.
    """
    for scheme, options in (("light", {}), ("dark", {"runOnly": ["color-contrast"]})):
        # Without transitions: in the middle of one, a colour is that of neither scheme.
        page.emulate_media(color_scheme="light" if scheme == "light" else "dark", reduced_motion="reduce")
        found = Axe().run(page, options={**options, "resultTypes": ["violations"]})
        assert found.violations_count == 0, f"{page.url}, {scheme}\n{found.generate_report()}"


def assert_fits(page: Page) -> None:
    """Check that *page* is not scrolled sideways: nothing is wider than the window (WCAG 2.2, 1.4.10)."""
    with suppress(TimeoutError):  # a chart follows the size of the window with the next frame
        page.wait_for_function("() => document.documentElement.scrollWidth <= document.documentElement.clientWidth", timeout=10_000)
    wide = page.evaluate(
        """() => {
            const width = document.documentElement.clientWidth;
            if (document.documentElement.scrollWidth <= width) return [];
            return [...document.querySelectorAll("body *")]
                .filter(element => element.getBoundingClientRect().right > width + 1)
                .map(element => element.outerHTML.slice(0, 120));
        }"""
    )
    assert wide == [], f"{page.url} at {page.viewport_size}: {wide[:5]}"
