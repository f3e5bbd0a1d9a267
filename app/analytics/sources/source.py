"""What the analytics read events from."""

from __future__ import annotations

__all__ = ["Batch", "Source"]

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from attrs import frozen

from app.analytics.analytics_file import Position
from app.analytics.events import Incoming


@frozen
class Batch:
    """Events that follow each other in a source."""

    events: Incoming
    position: Position
    """What is to be stored with them."""
    is_last: bool
    """True if the source had no more when it was asked."""
    unreadable: Sequence[Mapping[str, Any]] = ()
    """What is no event: the columns of `app.analytics.events.SCHEMA` and the member ``reason``."""
    gap: tuple[int, int] | None = None
    """The first and the last number of what is missing before them, because the source has deleted it."""
    is_followed: bool = False
    """True if the next one is read without a wait, and before `Source.stored`: one transaction may store both."""


class Source(Protocol):
    """A source of events, read from where its last position was stored."""

    @property
    def name(self) -> str:
        """What it is, in a word or two."""

    async def read(self, positions: Mapping[str, Position]) -> Batch | None:
        """
        Return the events after *positions*, or None if there are none now. The source has chosen the names of the positions.

        A batch that was returned and not stored is returned again.

        Raises:
            SourceUnavailable, StorageUnavailable: The source is out of reach; ask again later.
            ValueError: What is there is damaged, or of a newer release.
        """

    async def stored(self) -> None:
        """
        Take note that the last batch is stored, with its position.

        Raises:
            SourceUnavailable: The source is out of reach; reading goes on after the position that was stored.
        """
