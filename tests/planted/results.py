"""The table of docs/explanation/planted-bugs.rst: what has found each planted bug when it was last tried."""

from __future__ import annotations

__all__ = ["EVERYDAY", "NIGHT", "NOTHING", "NOT_RUN", "PAGE", "UNTRIED", "Result", "page_with", "read", "summary"]

import csv
import io
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from attrs import astuple, fields, frozen

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "planted-bugs.rst"

EVERYDAY = "everyday"
NIGHT = "night"
UNTRIED = "night not tried"
NOT_RUN = "not run"
NOTHING = "-"

_MARK = ".. planted bugs, written by python -m tests.planted --store\n\n"
_TITLES = '   :header: "bug", "simulation", "other test", "day", "version", "Python"'


@frozen
class Result:
    """What has found one planted bug; each field is a column of the table."""

    bug: str
    simulation: str
    """
    EVERYDAY, NIGHT (its slow part), UNTRIED (the everyday part finds nothing, and the slow one has not run), NOT_RUN or NOTHING.
    """
    test: str
    """The first test that fails among those that stand beside the bug in the catalogue, ``file::name``, or NOTHING."""
    day: str
    """In ISO 8601."""
    version: str
    """Of this program."""
    python: str

    @property
    def is_found(self) -> bool:
        """Whether anything has found it."""
        return self.simulation in (EVERYDAY, NIGHT) or self.test != NOTHING


def read(page: str) -> dict[str, Result]:
    """
    Return the results in the text of the page by the name of their bug, in their order.

    Raises:
        ValueError: The page has no table, or a row has too few or too many columns.
    """
    _, mark, table = page.partition(_MARK)
    if not mark:
        raise ValueError("the page of planted bugs has no table")
    rows = csv.reader(line.strip() for line in table.splitlines() if line.startswith('   "'))
    results = []
    for row in rows:
        if len(row) != len(fields(Result)):
            raise ValueError(f"a row has {len(row)} columns: {row}")
        results.append(Result(*row))
    return {result.bug: result for result in results}


def page_with(page: str, results: Mapping[str, Result], names: Collection[str]) -> str:
    """Return the text of the page with the *results* of the bugs *names*, in that order; what is not among them is left out."""
    head, mark, _ = page.partition(_MARK)
    rows = io.StringIO()
    writer = csv.writer(rows, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerows(astuple(results[name]) for name in names if name in results)
    lines = [f"   {line}" for line in rows.getvalue().splitlines()]
    shown = [results[name] for name in names if name in results]
    return "\n".join([f"{head}{mark}{summary(shown, untried=len(names) - len(shown))}", "", ".. csv-table::", _TITLES, "", *lines, ""])


def summary(results: Iterable[Result], *, untried: int = 0) -> str:
    """Return one sentence that counts the *results*, and those bugs of the catalogue that are *untried*."""
    rows = list(results)
    everyday = sum(row.simulation == EVERYDAY for row in rows)
    night = sum(row.simulation == NIGHT for row in rows)
    other = sum(row.is_found and row.simulation not in (EVERYDAY, NIGHT) for row in rows)
    missed = sum(not row.is_found for row in rows)
    left = f"; {untried} not tried yet" if untried else ""
    return (
        f"{len(rows)} bugs: {everyday} found by the everyday simulation, {night} more by the night's, "
        f"{other} by another test only, {missed} by nothing{left}."
    )
