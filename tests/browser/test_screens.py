"""Every screen of the console: whom it can be read by, and on which screens."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from tests.browser.page import OpenedPages, assert_accessible, assert_fits
from tests.browser.site import Site

PHONE, ZOOMED, DESKTOP = {"width": 360, "height": 740}, {"width": 640, "height": 400}, {"width": 1280, "height": 800}
"""A window of 1280 pixels at a zoom of 200 % is one of 640."""

GROUP = "/console/trouble/group?consumer=inventory&subject=orders.created.v1&error=invalid"

SCREENS = {
    "/console": "Now",
    "/console/orders": "Orders",
    "/console/trouble": "Trouble",
    GROUP: "Dead letters of inventory",
    f"/console/trouble/many?action=replay&{GROUP.partition('?')[2]}": "Replay 5 dead letters?",
    "/console/stock": "Stock",
    "/console/stock/TEA-100": "TEA-100",
    "/console/system": "System",
    "/console/system/audit": "Audit",
    "/console/analytics": "Analytics",
}
"""The heading of each page by its path."""


@pytest.fixture
def screens(site: Site) -> dict[str, str]:
    """`SCREENS`, with the pages of a dead letter and of an order."""
    (letter, *_) = site.request("GET", "/v1/dead-letters?consumer=inventory&error=invalid")["items"]
    order_id = site.placed_and_ended()
    return {
        **SCREENS,
        f"/console/trouble/inventory/{letter['id']}": "Dead letter of inventory",
        f"/console/orders/{order_id}": f"Order {order_id}",
        f"/console/orders/{order_id}/cancel": "Cancel the order",
    }


def check(page: Page, heading: str) -> None:
    """Check the page that *page* shows: accessible in both colour schemes, and not wider than any window."""
    expect(page.get_by_role("heading", level=1)).to_have_text(heading)
    assert_accessible(page)
    for size in (PHONE, ZOOMED):
        page.set_viewport_size(size)  # type: ignore[arg-type]
        assert_fits(page)
    page.set_viewport_size(DESKTOP)  # type: ignore[arg-type]


def test_every_screen_is_accessible_and_fits_on_a_phone(site: Site, pages: OpenedPages, screens: dict[str, str]) -> None:
    """axe-core finds nothing in either colour scheme; at 360 pixels and at 200 % nothing is scrolled sideways."""
    page = pages.as_role(site, "operator", reduced_motion="reduce")
    problems = []
    for path, heading in screens.items():
        page.goto(site.url_of(path))
        try:
            check(page, heading)
        except AssertionError as error:
            problems.append(f"{path} {error}")
    assert not problems, "\n".join(problems)


def test_the_log_in_is_accessible_and_fits_on_a_phone(site: Site, pages: OpenedPages) -> None:
    """With and without a message."""
    page = pages.open(site.url_of("/console"))
    check(page, "Log in")
    page.get_by_label("API key").fill("wrong-key-0123456789")
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("alert")).to_be_visible()
    check(page, "Log in")


def test_every_screen_can_be_read_without_javascript(site: Site, pages: OpenedPages, screens: dict[str, str]) -> None:
    """Log-in, lists, filters and forms are plain HTML."""
    page = pages.as_role(site, "operator", java_script_enabled=False)
    for path, heading in screens.items():
        page.goto(site.url_of(path))
        expect(page.get_by_role("heading", level=1)).to_have_text(heading)
    page.goto(site.url_of("/console/stock"))
    page.get_by_label("Product id begins with").fill("TEA")
    page.get_by_role("button", name="Search").click()
    expect(page.get_by_role("link", name="TEA-100")).to_be_visible()
    page.goto(site.url_of("/console/trouble"))
    page.get_by_role("link", name=re.compile("quantity")).click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Dead letters of inventory")


def test_each_role_sees_its_screens_and_no_button_that_it_may_not_use(site: Site, pages: OpenedPages) -> None:
    """A viewer sees no form; the role for stock has one screen with forms."""
    viewer = pages.as_role(site, "viewer")
    navigation = viewer.get_by_role("navigation", name="Screens").get_by_role("link")
    expect(navigation).to_contain_text(["Now", "Orders", "Trouble", "Stock", "System", "Analytics"])
    for path in SCREENS:
        answer = viewer.goto(site.url_of(path))
        assert answer is not None
        assert answer.status == (403 if "/many" in path else 200), path
        shown = {button.inner_text() for button in viewer.locator("main form[method=post] button:visible").all()}
        assert shown == set(), path
    stock = pages.as_role(site, "stock", "/console/stock")
    expect(stock.get_by_role("button", name="Create")).to_be_visible()
    for path in ("/console/trouble", "/console/system"):
        answer = stock.goto(site.url_of(path))
        assert answer is not None
        assert answer.status == 403


def test_the_console_is_used_by_keyboard_alone(site: Site, pages: OpenedPages) -> None:
    """Log in, skip to the content, go to a screen, open a group: with Tab, Enter and typing."""
    page = pages.open(site.url_of("/console/trouble"))
    expect(page.get_by_label("API key")).to_be_focused()
    page.keyboard.type("operator-key-0123456789")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("Trouble")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    link = page.get_by_role("link", name=re.compile("quantity"))
    for _ in range(10):
        page.keyboard.press("Tab")
        if link.evaluate("element => element === document.activeElement"):
            break
    expect(link).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("Dead letters of inventory")
