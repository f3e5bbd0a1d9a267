"""Turn measurements into tables of reStructuredText, and put them into a page of the documentation."""

from __future__ import annotations

__all__ = ["Row", "replace_section", "row_of", "section", "table"]

from collections.abc import Iterable, Sequence
from statistics import median

from attrs import frozen

from bench.measure import Measurement, Pair

HEADER = ("system", "orders a second", "ratio", "CPU ms an order", "of its servers", "CPU, ratio", "p99 of POST, ms")


@frozen
class Row:
    """One line of a table, as texts in the order of `HEADER`."""

    cells: tuple[str, ...]


def row_of(title: str, runs: Sequence[Measurement], found: Sequence[Pair]) -> Row:
    """Return the row for *runs* of the system *title*; *found* are its pairs with the reference, none for the reference."""
    return Row(
        (
            title,
            _spread([run.orders_per_second for run in runs], ",.0f"),
            _spread([pair.ratio for pair in found], ".2f") if found else "1",
            f"{median(run.own_cpu_ms for run in runs):.2f}",
            f"{median(run.server_cpu_ms for run in runs):.2f}" if any(run.server_cpu_ms for run in runs) else "",
            _spread([pair.cpu_ratio for pair in found], ".2f") if found else "1",
            _spread([run.p99_ms for run in runs], ",.0f"),
        )
    )


def _spread(values: Sequence[float], form: str) -> str:
    """Return the median of *values* with the smallest and the largest."""
    return f"{median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def table(rows: Iterable[Row], header: Sequence[str] = HEADER) -> str:
    """Return a simple table of reStructuredText."""
    lines = [tuple(header), *(row.cells for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    rule = "  ".join("=" * width for width in widths)
    texts = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([rule, texts[0], rule, *texts[1:], rule])


def section(name: str, text: str) -> str:
    """Return *text* between the comments that mark the part of a page which this program writes."""
    return f".. {name}: begin\n\n{text}\n\n.. {name}: end"


def replace_section(page: str, name: str, text: str) -> str:
    """
    Return *page* with *text* in its section *name*.

    Raises:
        ValueError: The page has no such section.
    """
    begin, end = f".. {name}: begin", f".. {name}: end"
    before, found, rest = page.partition(begin)
    _, found_end, after = rest.partition(end)
    if not found or not found_end:
        raise ValueError(f"the page has no section between {begin!r} and {end!r}")
    return before + section(name, text) + after
