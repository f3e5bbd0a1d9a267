"""What the contract suite needs of a database under test."""

from __future__ import annotations

__all__ = ["Site"]

from typing import Protocol


class Site(Protocol):
    """A database for one test, with empty tables of every module; the test can make it unavailable."""

    @property
    def url(self) -> str:
        """The URL of the database."""

    def empty_url(self) -> str:
        """Return the URL of a database without tables."""

    def make_unavailable(self) -> None:
        """Make every write fail."""

    def make_available(self) -> None:
        """Let writes succeed again."""
