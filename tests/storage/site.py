"""What the contract suite needs of a database under test."""

from __future__ import annotations

__all__ = ["Site"]

from typing import Protocol


class Site(Protocol):
    """An empty database for one test, which the test can make unavailable."""

    @property
    def url(self) -> str:
        """The URL of the database."""

    def make_unavailable(self) -> None:
        """Make every write fail."""

    def make_available(self) -> None:
        """Let writes succeed again."""
