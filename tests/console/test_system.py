"""The screen System, and the audit."""

from __future__ import annotations

import re

import pytest

from tests.console.conftest import Served
from tests.console.test_stock import api, put

pytestmark = pytest.mark.slow


async def test_the_set_up_of_the_process_is_shown(served: Served) -> None:
    """The process, its consumers, the versions of the events with who reads them, timers, and what is configured."""
    viewer = await served.as_role("viewer")
    seen = await viewer.get("/console/system")
    assert seen.status == 200
    assert re.search(r"orders, inventory, payments answers \S+ memory, connected", seen.words)
    assert re.search(r"inventory ?0 ?0 ?0 ?.*orders\.created\.v1", seen.words)
    assert re.search(r"Versions of events .*orders\.created\.v1 orders published beside the newest .*inventory", seen.words)
    assert re.search(r"Timers .* orders 0 –", seen.words)
    assert re.search(r"Configuration .*SHUTDOWN_GRACE_S ?2.* All variables .*BATCH_MAX ?256", seen.words)
    for secret in ("operator-key-0123456789", "viewer-key-0123456789"):
        assert secret not in seen.text


async def test_only_viewers_and_operators_see_it(served: Served) -> None:
    """Others get 403, for the audit as well."""
    for role in ("stock", "shop", "metrics"):
        browser = await served.as_role(role)
        for path in ("/console/system", "/console/system/audit"):
            assert (await browser.get(path)).status == 403


async def test_the_audit_is_filtered_and_has_pages(served: Served) -> None:
    """Who changed what, from which value to which; filters stay in their fields and in the address of the next page."""
    await put(served, "A-1", 5)
    for n in range(51):
        await api(served, "POST", "/v1/inventory/A-1/adjust", {"quantity": 1, "reason": f"n-{n}"})
    viewer = await served.as_role("viewer")
    seen = await viewer.get("/console/system/audit?actor=stock&action=adjustProduct&target=A-1")
    assert seen.elements.all("input", name="action", value="adjustProduct")
    assert len(seen.elements.all("tr")) == 51
    assert re.search(r"stock adjustProduct A-1 .*on_hand 55 .*on_hand 56", seen.words)
    (following,) = [own["href"] for own in seen.elements.all("a") if "cursor=" in own["href"]]
    last = await viewer.get(following)
    assert len(last.elements.all("tr")) == 2
    assert re.search(r"on_hand 5 .*on_hand 6", last.words)
    assert "No changes." in (await viewer.get("/console/system/audit?actor=none")).words
    assert "adjustProduct" not in (await viewer.get("/console/system/audit?module=payments")).words


async def test_a_filter_that_is_wrong_is_named(served: Served) -> None:
    """The page stays with what was entered."""
    seen = await (await served.as_role("viewer")).get("/console/system/audit?after=yesterday")
    assert seen.status == 400
    assert "Not found." in seen.words
    assert seen.elements.all("input", name="after", value="yesterday")
