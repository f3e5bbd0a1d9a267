"""The table of environment variables in the documents."""

from __future__ import annotations

__all__ = ["settings_table", "with_settings_table"]

from app.cli.new.tables import table, with_table
from config.environment import describe
from modules.registry import MODULES

_HEADS = ("name", "default", "meaning")


def with_settings_table(page: str) -> str:
    """
    Return *page* with the present table of variables.

    Raises:
        ValueError: *page* has no such table.
    """
    return with_table(page, _HEADS, settings_table())


def settings_table() -> str:
    """Return a reStructuredText table of every variable, with its default and its meaning."""
    return table(
        _HEADS,
        [
            (
                [f"``{variable.name}``" + (" \\*" if variable.is_secret else "")],
                [f"``{variable.default}``" if variable.default else "none"],
                [variable.help],
            )
            for variable in describe(MODULES)
        ],
    )
