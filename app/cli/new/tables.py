"""Simple tables of reStructuredText that are written into a page of the documents."""

from __future__ import annotations

__all__ = ["table", "with_table"]

import re
from collections.abc import Iterable, Sequence
from itertools import zip_longest

_RULE = r"=+(?: =+)*\n"


def table(heads: Sequence[str], rows: Iterable[Sequence[Sequence[str]]]) -> str:
    """
    Return a table with the columns *heads*.

    A row has a cell for each of them, and a cell the lines of its text.
    """
    lines = [line for row in rows for line in zip_longest(*row, fillvalue="")]
    widths = [max(map(len, texts)) for texts in zip(heads, *lines, strict=True)]
    rule = " ".join("=" * width for width in widths)
    return "\n".join([rule, _line(heads, widths), rule, *(_line(line, widths) for line in lines), rule])


def with_table(page: str, heads: Sequence[str], table: str) -> str:
    """
    Return *page* with *table* in the place of the one with the same *heads*.

    Raises:
        ValueError: *page* has no such table.
    """
    updated, count = re.subn(
        rf"^{_RULE}{' +'.join(heads)}\n{_RULE}(?:.+\n)+?{_RULE}", lambda _: f"{table}\n", page, count=1, flags=re.MULTILINE
    )
    if not count:
        raise ValueError(f"the page has no table with the columns {', '.join(heads[:-1])} and {heads[-1]}")
    return updated


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return " ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
