"""The table of variables, as the documents must show it."""

from __future__ import annotations

__all__ = ["settings_table"]

from config.settings import describe


def settings_table() -> str:
    """Return every variable, with its default and its meaning, as a reStructuredText table."""
    rows = [
        (
            f"``{variable.name}``" + (" \\*" if variable.is_secret else ""),
            "" if not variable.default else f"``{variable.default}``",
            variable.help,
        )
        for variable in describe()
    ]
    rows = [(name, default or "none", meaning) for name, default, meaning in rows]
    heads = ("name", "default", "meaning")
    widths = [max(len(row[column]) for row in (heads, *rows)) for column in range(3)]
    rule = " ".join("=" * width for width in widths)
    lines = [rule, _line(heads, widths), rule, *(_line(row, widths) for row in rows), rule]
    return "\n".join(lines)


def _line(row: tuple[str, str, str], widths: list[int]) -> str:
    return " ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
