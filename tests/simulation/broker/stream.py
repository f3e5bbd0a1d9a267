"""A simulated stream: what it stores, which ids it recognises, and what it can lose."""

from __future__ import annotations

__all__ = ["Refused", "Stored", "Stream"]

import json
from base64 import b64encode
from datetime import UTC, datetime
from typing import Any

from attrs import define, field, frozen

from tests.simulation.broker.wire import NatsMessage, headers_of, is_match, matches_any

_NANOSECONDS = 1_000_000_000
_DEFAULTS = {"max_consumers": -1, "max_msgs": -1, "max_bytes": -1, "max_msgs_per_subject": -1, "max_msg_size": -1, "max_age": 0}


class Refused(Exception):
    """The server refuses a request; the arguments are HTTP's code, the server's own code, and a sentence."""

    def answer(self) -> dict[str, Any]:
        """Return the error as JSON has it."""
        code, err_code, description = self.args
        return {"error": {"code": code, "err_code": err_code, "description": description}}


@frozen
class Stored:
    """A stored message; *at* is a Unix time in nanoseconds."""

    sequence: int
    subject: str
    head: bytes
    body: bytes
    at: int

    @property
    def size(self) -> int:
        return len(self.subject) + len(self.head) + len(self.body)

    def as_json(self) -> dict[str, Any]:
        found = {"subject": self.subject, "seq": self.sequence, "data": b64encode(self.body).decode(), "time": _rfc3339(self.at)}
        return found | ({"hdrs": b64encode(self.head).decode()} if self.head else {})


@define
class Stream:
    """One stream of the configuration *config*; it is *created* at a Unix time in nanoseconds."""

    config: dict[str, Any]
    created: int
    messages: dict[int, Stored] = field(factory=dict)
    last_sequence: int = 0
    _ids: dict[str, tuple[int, int]] = field(factory=dict)
    """By message id: when it was stored, and its sequence; the oldest first."""

    def __attrs_post_init__(self) -> None:
        self.config = _DEFAULTS | self.config

    @property
    def name(self) -> str:
        return str(self.config["name"])

    @property
    def first_sequence(self) -> int:
        return next(iter(self.messages), self.last_sequence + 1)

    def takes(self, subject: str) -> bool:
        """Return whether messages on *subject* are stored here."""
        return any(is_match(pattern, subject) for pattern in self.config["subjects"])

    def store(self, message: NatsMessage, now: int) -> tuple[Stored, bool]:
        """
        Return *message* as it is stored, and whether it is a duplicate.

        Raises:
            Refused: The stream is full, or the message is too large for it.
        """
        self._forget(now)
        id = headers_of(message.head).get("Nats-Msg-Id", "")
        if id in self._ids:
            at, sequence = self._ids[id]
            return self.messages.get(sequence) or Stored(sequence, message.subject, b"", b"", at), True
        stored = Stored(self.last_sequence + 1, message.subject, message.head, message.body, now)
        self._check_limits(stored)
        self.last_sequence = stored.sequence
        self.messages[stored.sequence] = stored
        if id:
            self._ids[id] = now, stored.sequence
        return stored, False

    def lose_tail(self, count: int) -> None:
        """Lose the last *count* messages, as if they had never been stored: their sequences are used again."""
        for sequence in list(self.messages)[max(0, len(self.messages) - count) :]:
            self.last_sequence = min(self.last_sequence, sequence - 1)
            del self.messages[sequence]
        self._ids = {id: each for id, each in self._ids.items() if each[1] <= self.last_sequence}

    def purge(self) -> int:
        """Delete all messages, and return their number; the ids stay known."""
        count = len(self.messages)
        self.messages.clear()
        return count

    def delete(self, sequence: int) -> None:
        """
        Delete one message.

        Raises:
            Refused: It is not there.
        """
        if self.messages.pop(sequence, None) is None:
            raise Refused(404, 10037, "no message found")

    def next_after(self, sequence: int, subjects: tuple[str, ...]) -> Stored | None:
        """Return the first message after *sequence* on one of *subjects*."""
        if sequence >= self.last_sequence:
            return None
        for number in range(max(sequence + 1, self.first_sequence), self.last_sequence + 1):
            found = self.messages.get(number)
            if found is not None and matches_any(subjects, found.subject):
                return found
        return None

    def count_after(self, sequence: int, subjects: tuple[str, ...]) -> int:
        """Return how many messages after *sequence* are on one of *subjects*."""
        count = 0
        while (found := self.next_after(sequence, subjects)) is not None:
            count, sequence = count + 1, found.sequence
        return count

    def get(self, request: dict[str, Any]) -> Stored:
        """
        Return the message that *request* asks for.

        Raises:
            Refused: It is not there.
        """
        found: Stored | None
        if "next_by_subj" in request:
            found = self.next_after(request.get("seq", 1) - 1, (request["next_by_subj"],))
        elif "last_by_subj" in request:
            found = next((each for each in reversed(self.messages.values()) if is_match(request["last_by_subj"], each.subject)), None)
        else:
            found = self.messages.get(request["seq"])
        if found is None:
            raise Refused(404, 10037, "no message found")
        return found

    def info(self, request: dict[str, Any], now: int) -> dict[str, Any]:
        """Return what the server reports about the stream."""
        self._forget(now)
        first, last = self.messages.get(self.first_sequence), self.messages.get(self.last_sequence)
        state: dict[str, Any] = {
            "messages": len(self.messages),
            "bytes": sum(each.size for each in self.messages.values()),
            "first_seq": self.first_sequence,
            "first_ts": _rfc3339(first.at) if first else "0001-01-01T00:00:00Z",
            "last_seq": self.last_sequence,
            "last_ts": _rfc3339(last.at) if last else "0001-01-01T00:00:00Z",
            "num_deleted": self.last_sequence + 1 - self.first_sequence - len(self.messages),
            "consumer_count": 0,
        }
        if wanted := request.get("subjects_filter"):
            found: dict[str, int] = {}
            for each in self.messages.values():
                if is_match(wanted, each.subject):
                    found[each.subject] = found.get(each.subject, 0) + 1
            state["subjects"] = found
        return {"config": json.loads(json.dumps(self.config)), "created": _rfc3339(self.created), "state": state, "ts": _rfc3339(now)}

    def _check_limits(self, stored: Stored) -> None:
        config = self.config
        if 0 <= config["max_msg_size"] < stored.size:
            raise Refused(400, 10054, "message size exceeds maximum allowed")
        if 0 < config["max_msgs"] <= len(self.messages):
            raise Refused(503, 10077, "maximum messages exceeded")
        if 0 < config["max_bytes"] < stored.size + sum(each.size for each in self.messages.values()):
            raise Refused(503, 10077, "maximum bytes exceeded")

    def _forget(self, now: int) -> None:
        """Forget the ids and the messages that are too old."""
        ids_since = now - int(self.config.get("duplicate_window") or 120 * _NANOSECONDS)
        while self._ids and self._ids[id := next(iter(self._ids))][0] <= ids_since:
            del self._ids[id]
        if self.config["max_age"]:
            since = now - self.config["max_age"]
            while self.messages and self.messages[self.first_sequence].at <= since:
                del self.messages[self.first_sequence]


def _rfc3339(nanoseconds: int) -> str:
    seconds, rest = divmod(nanoseconds, _NANOSECONDS)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"
