"""The screen Analytics."""

from __future__ import annotations

from tests.console.conftest import Served


async def test_without_a_process_that_counts_the_screen_shows_how_to_start_it(served: Served) -> None:
    """All projections are listed with their questions; one that does not exist is 404."""
    viewer = await served.as_role("viewer")
    for path in ("/console/analytics", "/console/analytics?show=orders_per_hour&period=7d"):
        seen = await viewer.get(path)
        assert seen.status == 200
        assert "python -m app analytics run" in seen.words
        assert "How much was sold in each day" in seen.words
    assert (await viewer.get("/console/analytics?show=none")).status == 404
    assert (await viewer.get("/console/analytics?period=none")).status == 404
    assert (await (await served.as_role("stock")).get("/console/analytics")).status == 403
