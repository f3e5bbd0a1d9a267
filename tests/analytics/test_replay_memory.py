"""`analytics run` takes a bounded amount of memory: twice as many events take no more (``EXAMPLES=all``)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench.analytics import build, run
from tests.examples import SHARE

pytestmark = pytest.mark.slow

LIMIT_MB = 100
"""ANALYTICS_MEMORY: what DuckDB takes."""

MORE_MIB = 600
"""What the process takes at most beside it for so many events, as ``docs/explanation/analytics.rst`` states."""

NOISE_MIB = 60
"""By how much two runs of one history may differ: threads take turns in another way."""

EVENTS = (1_200_000, 2_400_000)[: 2 if SHARE == 1 else 1]
"""Both are more than one transaction stores. The growth is seen by the night's run alone, which takes twice as long."""


@pytest.mark.night
def test_memory_is_bounded_and_does_not_grow_with_the_history(tmp_path: Path) -> None:
    """It stays under the limit that the documentation states, for twice as many events, too."""
    peaks = []
    for events in EVENTS:
        folder = tmp_path / str(events)
        folder.mkdir()
        build(folder, events, recent=10_000)
        arguments = ("analytics", "run", "--once", "--file", "analytics.duckdb")
        _, _, peak = run(folder, *arguments, HISTORY_ARCHIVE="archive", ANALYTICS_MEMORY=f"{LIMIT_MB}MB")
        peaks.append(peak)
    assert max(peaks) < LIMIT_MB + MORE_MIB, peaks
    assert peaks[-1] < peaks[0] + NOISE_MIB, peaks
