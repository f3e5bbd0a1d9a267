"""
What is known of each rule, and the messages that are not delivered yet, in one JSON file.

A change of a rule and the message about it are written together, before the message is sent; what was delivered is removed
afterwards. So a restart sends nothing twice, except what was sent right before a kill: that has the same id again.
"""

from __future__ import annotations

__all__ = ["MESSAGES_MAX", "Alerts", "StateUnusable"]

import fcntl
import json
import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from attrs import define, field
from loguru import logger

from app.analytics.errors import AnalyticsError
from app.analytics.watch.rules import Finding, Rule
from bus.ids import derived_id

MESSAGES_MAX = 1_000
"""Undelivered messages that are kept; then the oldest are dropped, and the log has a line for each."""

FORMAT = 1


class StateUnusable(AnalyticsError):
    """The file with what is known of the rules is damaged, of a newer release, or another process has it."""


@define
class Known:
    """What is known of a rule."""

    holds_since: str | None = None
    is_reported: bool = False


@define
class Alerts:
    """The state of all rules, kept in the file at *path*."""

    path: Path
    messages: list[dict[str, Any]] = field(factory=list)
    """Undelivered, the oldest first; each with the member ``url``, which is not sent."""
    _known: dict[str, Known] = field(factory=dict)
    _lock: IO[bytes] | None = None

    @classmethod
    def open(cls, path: Path) -> Alerts:
        """
        Read the file, or begin anew if there is none; no other process may have it open.

        Raises:
            StateUnusable: It cannot be used; the message names what to do.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = path.with_name(f"{path.name}.lock").open("wb")
        except OSError as error:
            raise StateUnusable(f"{path}: {error.strerror}") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            raise StateUnusable(f"{path}: another `analytics watch` uses it: end that, or name another --state") from None
        alerts = cls(path, lock=lock)
        try:
            alerts._read()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            alerts.close()
            raise StateUnusable(f"{path}: is damaged ({error}): delete it, then what holds now is reported again") from None
        except StateUnusable:
            alerts.close()
            raise
        return alerts

    def close(self) -> None:
        """Let other processes use the file."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def note(self, rule: Rule, finding: Finding, now: datetime, url: str) -> bool:
        """
        Take over what was found for *rule* at *now*, and return whether there is a new message about it, to *url*.

        `save` makes it last.
        """
        known = self._known.setdefault(rule.name, Known())
        at = now.isoformat(timespec="seconds")
        if finding.holds:
            known.holds_since = known.holds_since or at
            held = (now - datetime.fromisoformat(known.holds_since)).total_seconds()
            if known.is_reported or held < rule.for_seconds:
                return False
            known.is_reported = True
            self._add(rule, "firing", known.holds_since, at, finding, url)
            return True
        since, was_reported = known.holds_since, known.is_reported
        known.holds_since, known.is_reported = None, False
        if was_reported and since is not None:
            self._add(rule, "resolved", since, at, finding, url)
        return was_reported

    def delivered(self, id: str) -> None:
        """Remove the message *id*."""
        self.messages = [message for message in self.messages if message["id"] != id]

    def save(self) -> None:
        """
        Write the file, as a whole or not at all.

        Raises:
            StateUnusable: It cannot be written.
        """
        known = {name: {"holds_since": each.holds_since, "is_reported": each.is_reported} for name, each in self._known.items()}
        text = json.dumps({"format": FORMAT, "rules": known, "messages": self.messages}, indent=1)
        new = self.path.with_name(f"{self.path.name}.new")
        try:
            with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            new.replace(self.path)
        except OSError as error:
            raise StateUnusable(f"{self.path}: {error.strerror}") from None

    def _add(self, rule: Rule, status: str, since: str, at: str, finding: Finding, url: str) -> None:
        message = {
            "id": derived_id(f"{rule.name}|{since}", status), "rule": rule.name, "status": status, "condition": rule.condition,
            "for_seconds": rule.for_seconds, "since": since, "at": at, "value": finding.value,
            "rows": [dict(row) for row in finding.rows], "url": url,
        }  # fmt: skip
        self.messages.append(message)
        for dropped in self.messages[:-MESSAGES_MAX]:
            logger.error("an alert could not be delivered for too long and is dropped", rule=dropped["rule"], id=dropped["id"])
        self.messages = self.messages[-MESSAGES_MAX:]

    def _read(self) -> None:
        try:
            content: Mapping[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return
        except OSError as error:
            raise StateUnusable(f"{self.path}: {error.strerror}") from None
        if content["format"] > FORMAT:
            raise StateUnusable(f"{self.path}: was written by a newer release: use that release, or name another --state")
        self._known = {name: Known(each["holds_since"], each["is_reported"]) for name, each in content["rules"].items()}
        self.messages = [{**message, "url": message["url"]} for message in content["messages"]]
