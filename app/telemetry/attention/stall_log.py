"""Log what makes no progress, and when it continues."""

from __future__ import annotations

__all__ = ["StallLog"]

from collections.abc import Sequence

from loguru import logger

_DURATION = " (for "


class StallLog:
    """Logs each stall once when it begins and once when it is over, however often it is reported."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def report(self, stalls: Sequence[str]) -> None:
        """Compare *stalls*, one line each, with those of the last call; their durations do not count."""
        current = {line.partition(_DURATION)[0]: line for line in stalls}
        for what in current.keys() - self._known:
            logger.warning("work makes no progress", what=current[what])
        for what in self._known - current.keys():
            logger.info("work makes progress again", what=what)
        self._known = set(current)
