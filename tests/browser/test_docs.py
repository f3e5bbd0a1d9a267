"""The page that documents the API."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.browser.page import OpenedPages
from tests.process.server import Server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("docs")).start()
    yield server
    server.end()


def test_the_documentation_shows_every_operation_and_loads_nothing_from_elsewhere(server: Server, pages: OpenedPages) -> None:
    """Swagger UI starts under its security policy, and lists the operations of the OpenAPI document."""
    page = pages.open(server.url_of("/docs"))
    page.get_by_text("/v1/orders/{order_id}/cancel").first.wait_for()
