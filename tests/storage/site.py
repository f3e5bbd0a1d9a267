"""What the contract suite has to know about a database, and what it does to one."""

from __future__ import annotations

__all__ = ["Site"]

from typing import Protocol


class Site(Protocol):
    """An empty database for one test, and the power to take it away."""

    @property
    def url(self) -> str:
        """Its address."""

    def take_away(self) -> None:
        """Let nobody write to it."""

    def bring_back(self) -> None:
        """Let them again."""
