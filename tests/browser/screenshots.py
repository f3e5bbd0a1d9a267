"""
Write a picture of each screen of the console into docs/images, with the data of the browser tests:

    python -m tests.browser.screenshots
"""

from __future__ import annotations

__all__ = ["BYTES_MAX", "FOLDER", "PICTURES", "take"]

import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, expect

from tests.browser.page import OpenedPages, launched
from tests.browser.site import Site, started

FOLDER = Path(__file__).parents[2] / "docs" / "images"

BYTES_MAX = 600_000
"""Of all pictures together."""

PICTURES = ("now", "orders", "order", "dead-letters", "dead-letter", "stock", "system")
"""One PNG for each."""


def take(browser: Browser, site: Site, folder: Path) -> None:
    """Write the pictures of the console of *site* into *folder*."""
    opened = OpenedPages(browser)
    size = {"width": 1000, "height": 640}
    page = opened.as_role(site, "operator", viewport=size, color_scheme="light", reduced_motion="reduce")
    (letter, *_) = site.request("GET", "/v1/dead-letters?consumer=inventory&error=invalid")["items"]
    paths = {
        "now": "/console",
        "orders": "/console/orders",
        "order": f"/console/orders/{site.placed_and_ended('TEA-100', 2, 'ada')}",
        "dead-letters": "/console/trouble",
        "dead-letter": f"/console/trouble/inventory/{letter['id']}",
        "stock": "/console/stock",
        "system": "/console/system",
    }
    for name in PICTURES:
        page.goto(site.url_of(paths[name]))
        expect(page.get_by_role("heading", level=1)).to_be_visible()
        page.screenshot(path=folder / f"{name}.png", animations="disabled")
    opened.close()


def main() -> None:
    """Write all pictures."""
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, started(Path(folder)) as site, launched() as browser:
        take(browser, site, FOLDER)
    sizes = [path.stat().st_size for path in FOLDER.glob("*.png")]
    sys.stdout.write(f"{len(sizes)} pictures, {sum(sizes)} bytes\n")


if __name__ == "__main__":
    main()
