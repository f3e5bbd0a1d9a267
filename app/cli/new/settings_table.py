"""The table of environment variables in the documents."""

from __future__ import annotations

__all__ = ["settings_table", "with_settings_table"]

import re

from config.environment import describe
from modules.registry import MODULES

_RULE = r"=+ =+ =+\n"
_TABLE = re.compile(rf"^{_RULE}name +default +meaning\n{_RULE}(?:.+\n)+?{_RULE}", re.MULTILINE)


def with_settings_table(page: str) -> str:
    """
    Return *page* with the present table of variables.

    Raises:
        ValueError: *page* has no such table.
    """
    updated, count = _TABLE.subn(lambda _: settings_table() + "\n", page, count=1)
    if not count:
        raise ValueError("the page has no table with the columns name, default and meaning")
    return updated


def settings_table() -> str:
    """Return a reStructuredText table of every variable, with its default and its meaning."""
    rows = [
        (
            f"``{variable.name}``" + (" \\*" if variable.is_secret else ""),
            f"``{variable.default}``" if variable.default else "none",
            variable.help,
        )
        for variable in describe(MODULES)
    ]
    heads = ("name", "default", "meaning")
    widths = [max(len(row[column]) for row in (heads, *rows)) for column in range(3)]
    rule = " ".join("=" * width for width in widths)
    lines = [rule, _line(heads, widths), rule, *(_line(row, widths) for row in rows), rule]
    return "\n".join(lines)


def _line(row: tuple[str, str, str], widths: list[int]) -> str:
    return " ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
