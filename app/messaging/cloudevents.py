"""
What an event says on its envelope: CloudEvents 1.0 attributes in binary mode, and the trace.

Names and percent-encoding follow the CloudEvents NATS protocol binding, section 3.1.3. A message from outside may lack
any of them.
"""

from __future__ import annotations

__all__ = ["Envelope", "message_of", "origin", "said_at", "said_in", "seconds_since"]

import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from hashlib import blake2b
from urllib.parse import quote, unquote

from app.runtime.service import Context
from app.storage.outbox import Parcel
from bus.contracts.versions import VERSIONS
from bus.ids import caused_id
from bus.port import Message
from bus.replay_subjects import original
from bus.subjects import plain

TRACEPARENT_LENGTH = 55
CORRELATION_ID_MAX = 128
ID_MAX = 255

_PLAIN = re.compile(r"[!#$&-~]*").fullmatch
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
# What not every database can keep, and what cannot be said in UTF-8.
_UNWRITABLE = re.compile("[\x00\ud800-\udfff]").search
_SAFE = "!#$&'()*+,-./:;<=>?@[\\]^_`{|}~"


class Envelope(Mapping[str, str]):
    """
    A parcel's headers, written out when somebody reads them.

    Whoever gets the message in this very process asks `origin` and `said_at`, and those ask the parcel.
    """

    __slots__ = ("_written", "parcel")

    def __init__(self, parcel: Parcel) -> None:
        self.parcel = parcel
        self._written: dict[str, str] | None = None

    def __getitem__(self, name: str) -> str:
        return self._headers()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._headers())

    def __len__(self) -> int:
        return len(self._headers())

    def _headers(self) -> dict[str, str]:
        if self._written is None:
            parcel = self.parcel
            subject = original(parcel.subject)
            self._written = {
                "ce-specversion": "1.0",
                "ce-id": _encoded(parcel.event_id),
                "ce-source": f"/fulfilment/{subject.partition('.')[0]}",
                "ce-type": plain(subject),
                "ce-time": parcel.occurred_at,
                "ce-datacontenttype": "application/json",
                "ce-correlationid": _encoded(parcel.correlation_id),
                "ce-causationid": _encoded(parcel.causation_id),
                "traceparent": parcel.traceparent,
                "content-type": "application/json",
            }
            if parcel.versions is not None:
                self._written[VERSIONS] = parcel.versions
        return self._written


def message_of(parcel: Parcel) -> Message:
    """Return *parcel* as it travels."""
    return Message(parcel.subject, parcel.id, parcel.body, parcel.key, Envelope(parcel))


def origin(message: Message) -> tuple[str, Context]:
    """Return the event's own id, and who caused it; what is missing or makes no sense is made up from the id."""
    headers = message.headers
    if type(headers) is Envelope:
        parcel = headers.parcel
        return parcel.event_id, Context(parcel.correlation_id, parcel.traceparent)
    id = _decoded(headers.get("ce-id") or message.id)
    if len(id) > ID_MAX or _UNWRITABLE(id):  # no id that a database could keep; one that stands for it
        id = caused_id(id.encode("utf-8", "replace").decode(), "id")
    correlation_id = _decoded(headers.get("ce-correlationid") or id)[:CORRELATION_ID_MAX]
    if _UNWRITABLE(correlation_id):
        correlation_id = id[:CORRELATION_ID_MAX]
    traceparent = headers.get("traceparent") or ""
    if len(traceparent) != TRACEPARENT_LENGTH or _UNWRITABLE(traceparent):
        digest = blake2b(id.encode("utf-8", "replace"), digest_size=24).hexdigest()
        traceparent = f"00-{digest[:32]}-{digest[32:]}-01"
    return id, Context(correlation_id, traceparent)


def said_at(message: Message) -> str | None:
    """Return when the event was said, as its envelope has it, or None."""
    headers = message.headers
    return headers.parcel.occurred_at if type(headers) is Envelope else headers.get("ce-time")


def seconds_since(said_at: str, now: datetime) -> float:
    """Return for how long an event has been said; 0 where its envelope makes no sense."""
    try:
        return max(0.0, (now - datetime.fromisoformat(said_at)).total_seconds())
    except (ValueError, TypeError):
        return 0.0


def said_in(message: Message) -> str | None:
    """Return the versions in which the event is said, as its envelope has them, or None."""
    headers = message.headers
    return headers.parcel.versions if type(headers) is Envelope else headers.get(VERSIONS)


def _encoded(text: str) -> str:
    return text if _PLAIN(text) else quote(text, safe=_SAFE)


def _decoded(text: str) -> str:
    if len(text) > 1 and text[0] == text[-1] == '"':  # we never quote, others may (HTTP binding, section 3.1.3.2)
        text = _ESCAPED.sub(r"\1", text[1:-1])
    return unquote(text) if "%" in text else text
