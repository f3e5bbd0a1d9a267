"""The history that the measurement of the analytics builds is one that the program could have written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pyarrow.dataset
import pytest

from app.storage.archive.history_content import Row, TransactionHistory
from tests.bench.analytics import build


@pytest.mark.slow
def test_the_archive_that_is_built_has_the_events_of_its_rows(tmp_path: Path) -> None:
    """The builder copies events beside the rows, because that is quicker than to derive them."""
    build(tmp_path, 12_000, recent=4_000)
    rows: dict[int, list[Row]] = {}
    for row in _dataset(tmp_path, "rows"):
        at = row["at"].isoformat(timespec="microseconds")
        rows.setdefault(row["number"], []).append(Row(row["module"], row["number"], at, orjson.loads(row["content"])))
    derived = [each for number in sorted(rows) for each in TransactionHistory(sorted(rows[number], key=lambda row: row.module)).events()]
    names = ("seq", "module", "event_id", "cause_id", "correlation_id", "subject", "key")
    written = [(*(row[name] for name in names), orjson.loads(row["data"])) for row in _dataset(tmp_path, "events")]
    assert sorted(written, key=lambda event: event[0]) == [(*(getattr(each, name) for name in names), each.data) for each in derived]
    assert len(written) > 4_000


def _dataset(folder: Path, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pyarrow.dataset.dataset(folder / "archive" / name, format="parquet", partitioning="hive").to_table().to_pylist()
    return found
