"""The page that documents the API."""

from __future__ import annotations

from tests.browser.page import OpenedPages
from tests.browser.site import Site


def test_the_documentation_shows_every_operation_and_loads_nothing_from_elsewhere(site: Site, pages: OpenedPages) -> None:
    """Swagger UI starts under its security policy, and lists the operations of the OpenAPI document."""
    page = pages.open(site.url_of("/docs"))
    page.get_by_text("/v1/orders/{order_id}/cancel").first.wait_for()
