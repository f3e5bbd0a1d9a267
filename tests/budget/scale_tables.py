"""The tables of docs/explanation/scale.rst that follow from the budget; ``python -m tests.budget --write`` writes them."""

from __future__ import annotations

__all__ = ["PAGE", "page_with_tables"]

from collections.abc import Iterable, Mapping
from pathlib import Path

from tests.budget.deployment import Counts

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "scale.rst"

Budget = Mapping[str, Mapping[int, Counts]]

_DEPLOYMENTS = {
    "one-process-sqlite": "one process, SQLite",
    "three-modules-sqlite": "three modules, NATS, SQLite each",
    "one-process-postgres": "one process, PostgreSQL",
    "three-modules-retired": "three modules, orders.created.v1 retired",
}
_ROWS = {
    "statements": "statements",
    "rows_written": "rows written",
    "transactions": "transactions",
    "fsyncs": "waits for the disk",
    "round_trips": "round trips to the server",
    "messages": "messages on the bus",
    "message_bytes": "bytes of them",
    "disk_bytes": "bytes to the disk, without checkpoints",
    "http_bytes": "bytes of HTTP",
    "calls": "calls of the program's functions",
}
_RATES = (10_000, 100_000, 1_000_000)
_PER_SECOND: Mapping[str, tuple[str, float]] = {
    "messages": ("messages", 1),
    "message_bytes": ("megabytes of messages", 1e6),
    "rows_written": ("rows written", 1),
    "transactions": ("transactions in batches of 32", 1),
    "disk_bytes": ("megabytes to the disks", 1e6),
}


def page_with_tables(page: str, budget: Budget) -> str:
    """Return the text *page* with the tables of *budget* behind their comments."""
    for name, table in (("work of an order", _work(budget)), ("work a second", _a_second(budget))):
        before, comment, rest = page.partition(f".. {name}, written by python -m tests.budget --write\n\n")
        page = "".join((before, comment, table, *rest.partition("\n.. end")[1:]))
    return page


def _work(budget: Budget) -> str:
    header = ["an order: alone / one of 32", *_DEPLOYMENTS.values()]
    rows = []
    for what, text in _ROWS.items():
        cells = [_pair(budget[name], what) for name in _DEPLOYMENTS]
        rows.append([text, *cells])
    return _table(header, rows)


def _pair(batches: Mapping[int, Counts], what: str) -> str:
    if what not in batches[1]:
        return "not counted" if what == "disk_bytes" else "none"
    return " / ".join(f"{count:.4g}" if count < 1_000 else f"{count:,.0f}" for count in (batches[n][what] for n in (1, 32)))


def _a_second(budget: Budget) -> str:
    counts = budget["three-modules-sqlite"][32]
    header = ["a second", *(f"{rate:,} orders" for rate in _RATES)]
    rows = [
        [text, *(f"{counts[what] * rate / unit:,.0f}" for rate in _RATES)] for what, (text, unit) in _PER_SECOND.items()
    ]
    return _table(header, rows)


def _table(header: list[str], rows: Iterable[list[str]]) -> str:
    lines = [".. csv-table::", f"   :header: {_line(header)}", "", *(f"   {_line(row)}" for row in rows)]
    return "\n".join(lines) + "\n"


def _line(cells: list[str]) -> str:
    return ", ".join(f'"{cell}"' for cell in cells)
