"""Check the conditions within the process, and remember since when each holds."""

from __future__ import annotations

__all__ = ["Attention", "AttentionWatch"]

from collections import deque
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from attrs import define, field, frozen

from app.telemetry.attention.checks import Labels, Snapshot
from app.telemetry.attention.condition import Condition, Severity
from app.telemetry.attention.conditions import CONDITIONS
from app.telemetry.collectors import Family

SNAPSHOTS_MAX = 32
"""Snapshots that are kept of one window: its beginning is known to a thirty-second part of it."""


@frozen(kw_only=True)
class Attention:
    """
    Something that needs attention now.

    *what* is a sentence, *since* when it was noticed first, *do* what to do first, and *guide* the end of the URL of the
    section with the rest (``howto/operate.html#...``).
    """

    name: str
    severity: Severity
    what: str
    since: datetime
    do: str
    guide: str


@define(eq=False)
class _Watched:
    """What is remembered of one condition."""

    condition: Condition
    snapshots: deque[tuple[datetime, Snapshot]] = field(factory=deque)
    """The oldest one is at the beginning of the window, or older; empty while the process is younger than that."""
    since: dict[Labels, datetime] = field(factory=dict)

    def step(self, now: datetime, families: Mapping[str, Family[Any]]) -> list[Attention]:
        condition, check = self.condition, self.condition.check
        snapshot = check.read(families)
        values = check.values(snapshot, self._before(now, snapshot))
        held = {group: value for group, value in values.items() if check.holds(value)}
        self.since = {group: self.since.get(group, now) for group in held}
        return [
            Attention(
                name=condition.name,
                severity=condition.severity,
                what=condition.describe(dict(zip(check.by, group, strict=True)), value),
                since=self.since[group],
                do=condition.do,
                guide=condition.anchor,
            )
            for group, value in held.items()
        ]

    def _before(self, now: datetime, snapshot: Snapshot) -> Snapshot:
        """Keep *snapshot*, and return the one from the beginning of the window that ends *now*."""
        window = timedelta(seconds=self.condition.check.window_seconds)
        if not window:
            return {}
        snapshots = self.snapshots
        if not snapshots or now - snapshots[-1][0] >= window / SNAPSHOTS_MAX:
            snapshots.append((now, snapshot))
        while len(snapshots) > 1 and snapshots[1][0] <= now - window:
            snapshots.popleft()
        return snapshots[0][1] if snapshots[0][0] <= now - window else {}


class AttentionWatch:
    """
    The conditions that hold in this process.

    `step` is called regularly, so that windows have a beginning and *since* is known; it reads memory only.
    """

    def __init__(self, families: Mapping[str, Family[Any]], conditions: Sequence[Condition] = CONDITIONS) -> None:
        """Watch *families*, the metrics by name (`app.telemetry.metrics.Metrics.families`)."""
        self._families = families
        self._watched = [_Watched(condition) for condition in conditions]
        self.current: Sequence[Attention] = ()
        """What needed attention at the last step: what wakes the operator first, and the oldest first."""

    def step(self, now: datetime) -> Sequence[Attention]:
        """Check all conditions, and return what needs attention *now*."""
        found = [each for watched in self._watched for each in watched.step(now, self._families)]
        self.current = sorted(found, key=lambda each: (each.severity is not Severity.PAGE, each.since))
        return self.current
