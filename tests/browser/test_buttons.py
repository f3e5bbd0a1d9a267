"""Every button of the screens Trouble, Stock and System once, and what is seen without a reload."""

from __future__ import annotations

import json
import re

from playwright.sync_api import Page, expect

from tests.browser.page import OpenedPages
from tests.browser.site import ORDER_TO_SETTLE, Site
from tests.console.letters import BODY, order_id


def button(page: Page, name: str) -> None:
    """Press the button *name*."""
    page.get_by_role("button", name=name, exact=True).click()


def heading(page: Page, text: str) -> None:
    """Wait for the page with this heading."""
    expect(page.get_by_role("heading", level=1)).to_have_text(text)


def open_group(page: Page, site: Site, detail: str) -> None:
    """Go from the screen Trouble to the group with *detail*."""
    page.goto(site.url_of("/console/trouble"))
    page.get_by_role("link", name=re.compile(detail)).click()
    heading(page, "Dead letters of inventory")


def test_a_poison_event_is_repaired_in_the_browser(site: Site, pages: OpenedPages) -> None:
    """The schema shows what is missing, a wrong edit is refused at its member, and the right one is replayed."""
    page = pages.as_role(site, "operator", "/console/trouble")
    open_group(page, site, "quantity")
    page.get_by_role("link", name=order_id(1)).click()
    heading(page, "Dead letter of inventory")
    expect(page.get_by_role("row", name=re.compile(r"items\[\]\.quantity"))).to_contain_text("1 to 1000000")
    body = page.get_by_label("Body of the new message, as JSON")
    body.fill(json.dumps({**BODY, "items": [{"product_id": "TEA-100", "quantity": "2"}]}))
    button(page, "Replay with this body")
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("must be an integer")
    expect(body).to_have_value(re.compile('"quantity": "2"'))
    alert.get_by_role("link", name="/items/0/quantity").click()
    expect(page.get_by_role("row", name=re.compile(r"items\[\]\.quantity"))).to_be_in_viewport()
    body.fill(json.dumps({**BODY, "items": [{"product_id": "TEA-100", "quantity": 2}]}))
    button(page, "Replay with this body")
    expect(page.get_by_role("status").filter(has_text="Done.")).to_contain_text("1 dead letter replayed with the edited body")


def test_dead_letters_are_replayed_and_discarded_in_the_browser(site: Site, pages: OpenedPages) -> None:
    """One, those that are selected, and a whole group after its dry run; a discard names its count first."""
    page = pages.as_role(site, "operator", "/console/trouble")
    done = page.get_by_role("status").filter(has_text="Done.")

    open_group(page, site, "no answer within")
    page.get_by_label(f"Select {order_id(6)}").check()
    button(page, "Replay selected")
    expect(done).to_contain_text("1 dead letter replayed")
    page.get_by_label(f"Select {order_id(7)}").check()
    button(page, "Discard selected")
    heading(page, "Discard 1 dead letter?")
    page.get_by_role("link", name="Back").click()
    page.get_by_role("link", name=order_id(7)).click()
    button(page, "Discard")
    heading(page, "Discard 1 dead letter?")
    button(page, "Discard 1")
    expect(done).to_contain_text("1 dead letter discarded")

    open_group(page, site, "no answer within")
    page.get_by_role("link", name=order_id(8)).click()
    button(page, "Replay as it is")
    expect(done).to_contain_text("1 dead letter replayed")

    open_group(page, site, "quantity")
    page.get_by_role("button", name=re.compile("Dry run")).click()
    expect(page.get_by_role("heading", level=1)).to_have_text(re.compile(r"Replay \d dead letters\?"))
    page.get_by_role("button", name=re.compile(r"Replay \d")).click()
    expect(done).to_contain_text("dead letters replayed")
    # They fail again, for their bodies still lack the quantity, and come back while the page is open.
    expect(page.get_by_role("link", name=re.compile("quantity"))).to_be_visible()
    page.get_by_role("link", name="AssertionError: amount").click()
    heading(page, "Dead letters of payments")
    button(page, "Discard all")
    button(page, "Discard 1")
    expect(done).to_contain_text("1 dead letter discarded")
    expect(page.get_by_role("link", name="AssertionError: amount")).to_have_count(0)


def test_a_payment_is_settled_in_the_browser(site: Site, pages: OpenedPages) -> None:
    """The form asks what happened, why, and whether the person has looked; the audit has it."""
    page = pages.as_role(site, "operator", "/console/trouble")
    case = page.get_by_role("article", name=ORDER_TO_SETTLE)
    case.get_by_text("Settle").first.click()
    case.get_by_label("What happened to the money").select_option("declined")
    case.get_by_label("Reason").fill("No charge at the provider.")
    case.get_by_label("I have looked at the payment provider").check()
    case.get_by_role("button", name="Settle").click()
    expect(page.get_by_role("status").filter(has_text="Done.")).to_contain_text("1 payment settled")
    expect(case).to_have_count(0)
    page.goto(site.url_of("/console/system"))
    page.get_by_role("link", name="Audit: who changed what").click()
    page.get_by_label("Action").fill("settlePayment")
    page.get_by_label("Module").select_option("payments")
    button(page, "Filter")
    expect(page.get_by_role("row", name=re.compile(ORDER_TO_SETTLE))).to_contain_text("operator")


def test_stock_is_changed_in_the_browser(site: Site, pages: OpenedPages) -> None:
    """Create, restock, adjust and price; a price that was changed meanwhile is shown beside the entered one."""
    page = pages.as_role(site, "stock", "/console/stock")
    expect(page.get_by_role("table").first.locator("tbody tr").first).to_contain_text("CUP-BLUE")
    page.get_by_label("Product id", exact=True).fill("MUG/RED")
    page.get_by_label("Name (optional)").fill("Mug, red")
    page.get_by_label("Pieces on hand").fill("4")
    page.get_by_label("Price in minor units").fill("550")
    page.get_by_label("Currency").fill("EUR")
    button(page, "Create")
    heading(page, "MUG/RED")
    page.get_by_label("Pieces that arrived").fill("10")
    button(page, "Restock")
    status = page.get_by_role("status")
    expect(status).to_contain_text("The stock is added.")
    page.get_by_label("Difference").fill("-3")
    page.get_by_label("Reason, for the audit").fill("damaged")
    button(page, "Adjust")
    expect(status).to_contain_text("The stock is adjusted.")
    expect(page.get_by_text("11", exact=True).first).to_be_visible()
    site.request("PATCH", "/v1/inventory/MUG%2FRED", {"unit_price": {"amount": 777, "currency": "EUR"}}, role="stock")
    page.get_by_label("Price in minor units").fill("600")
    button(page, "Set")
    expect(page.get_by_role("alert")).to_contain_text("Compare both values")
    expect(page.get_by_role("row", name="Price")).to_contain_text("777 EUR")
    button(page, "Set")
    expect(status).to_contain_text("Price and name are set.")
    assert site.request("GET", "/v1/inventory/MUG%2FRED")["unit_price"]["amount"] == 600
    page.goto(site.url_of("/console/stock"))
    page.get_by_label("Low means available at most").fill("100")
    button(page, "Search")
    expect(page.get_by_role("region", name="Low stock").get_by_role("link", name="MUG/RED")).to_be_visible()


def test_an_order_is_seen_without_a_reload(site: Site, pages: OpenedPages) -> None:
    """The list of orders gets a new row and then its end; a pause keeps the page as it is."""
    page = pages.as_role(site, "operator", "/console/orders")
    placed = site.place("TEA-100", 1, "live")
    row = page.get_by_role("row", name=re.compile(placed))
    expect(row).to_contain_text("confirmed")
    button(page, "Pause updates")
    expect(page.get_by_role("button", name="Continue updates")).to_be_visible()
    expect(page.get_by_role("row", name=re.compile(site.place("TEA-100", 1, "paused")))).to_have_count(0)
    button(page, "Continue updates")
    expect(page.get_by_role("row", name=re.compile("paused"))).to_be_visible()


def test_an_order_is_refunded_and_cancelled_in_the_browser(site: Site, pages: OpenedPages) -> None:
    """Each button leads to a page that asks first; the page of the order shows the change without a reload."""
    order_id = site.placed_and_ended("TEA-100", 2, "refund")
    page = pages.as_role(site, "operator", f"/console/orders/{order_id}")
    page.get_by_role("link", name="Refund", exact=True).click()
    page.get_by_label("an amount", exact=True).check()
    page.get_by_label("Amount in EUR").fill("5.00")
    page.get_by_label("Reason").fill("late")
    button(page, "Refund")
    expect(page.get_by_role("status").filter(has_text="The refund is requested.")).to_be_visible()
    expect(page.get_by_text("of which 5.00 EUR refunded")).to_be_visible()
    page.get_by_role("link", name="Cancel the order").click()
    page.get_by_role("link", name="Back, change nothing").click()
    page.get_by_role("link", name="Cancel the order").click()
    button(page, "Cancel the order")
    expect(page.get_by_role("heading", level=2, name="cancelled")).to_be_visible()
    expect(page.get_by_role("region", name="Payment")).to_contain_text(re.compile(r"Refunded\s*25\.00 EUR"))


def test_a_list_of_orders_is_searched_and_exported_in_the_browser(site: Site, pages: OpenedPages) -> None:
    """The filters are in the address, so that it can be sent to a colleague; the export has what they select."""
    page = pages.as_role(site, "viewer", "/console/orders")
    page.get_by_label("Cancelled because").select_option("payment_declined")
    button(page, "Search")
    expect(page).to_have_url(re.compile("reason=payment_declined"))
    expect(page.locator("tbody tr")).to_have_count(1)
    with page.expect_download() as downloading:
        page.get_by_role("link", name="Export as NDJSON").click()
    (line,) = downloading.value.path().read_text().splitlines()
    assert json.loads(line)["reason"] == "payment_declined"


def test_a_person_logs_out_in_the_browser(site: Site, pages: OpenedPages) -> None:
    """Then the page asks for a key again."""
    page = pages.as_role(site, "viewer", "/console/system")
    button(page, "Log out")
    heading(page, "Log in")
    page.goto(site.url_of("/console/system"))
    heading(page, "Log in")
