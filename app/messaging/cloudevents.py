"""
Event headers: CloudEvents 1.0 attributes in binary mode, W3C trace context and the versions of the event.

Names and percent-encoding follow the CloudEvents NATS protocol binding, section 3.1.3. A message from another system may
lack any of these headers, or carry invalid ones; the readers below then derive a value from the message id.
"""

from __future__ import annotations

__all__ = ["causation_id", "event_id_and_trace", "occurred_at", "to_message", "versions_of"]

import re
from hashlib import blake2b
from urllib.parse import quote, unquote

from app.storage.tables import OutboxMessage
from app.telemetry.trace import TraceContext
from bus.contracts.versions import VERSIONS
from bus.ids import derived_id
from bus.port import Message
from bus.subjects import original_subject, without_lane

TRACEPARENT_LENGTH = 55
CORRELATION_ID_MAX = 128
ID_MAX = 255

_PLAIN = re.compile(r"[!#$&-~]*").fullmatch
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
# A zero character cannot be stored in every database; a lone surrogate cannot be encoded in UTF-8.
_NOT_STORABLE = re.compile("[\x00\ud800-\udfff]").search
_SAFE = "!#$&'()*+,-./:;<=>?@[\\]^_`{|}~"


def to_message(row: OutboxMessage) -> Message:
    """Return the bus message for an outbox row, with all its headers."""
    subject = original_subject(row.subject)
    headers = {
        "ce-specversion": "1.0",
        "ce-id": _encoded(row.event_id),
        "ce-source": f"/fulfilment/{subject.partition('.')[0]}",
        "ce-type": without_lane(subject),
        "ce-time": row.occurred_at,
        "ce-datacontenttype": "application/json",
        "ce-correlationid": _encoded(row.correlation_id),
        "ce-causationid": _encoded(row.causation_id),
        "traceparent": row.traceparent,
        "content-type": "application/json",
    }
    if row.versions is not None:
        headers[VERSIONS] = row.versions
    return Message(row.subject, row.id, row.body, row.key, headers)


def event_id_and_trace(message: Message) -> tuple[str, TraceContext]:
    """Return the event's own id and its trace context; a missing or invalid header is replaced by a value derived from the id."""
    headers = message.headers
    id = _decoded(headers.get("ce-id") or message.id)
    if len(id) > ID_MAX or not _is_storable(id):
        id = derived_id(id.encode("utf-8", "replace").decode(), "id")
    correlation_id = _decoded(headers.get("ce-correlationid") or id)[:CORRELATION_ID_MAX]
    if not _is_storable(correlation_id):
        correlation_id = id[:CORRELATION_ID_MAX]
    traceparent = headers.get("traceparent") or ""
    if len(traceparent) != TRACEPARENT_LENGTH or not _is_storable(traceparent):
        digest = blake2b(id.encode("utf-8", "replace"), digest_size=24).hexdigest()
        traceparent = f"00-{digest[:32]}-{digest[32:]}-01"
    return id, TraceContext(correlation_id, traceparent)


def causation_id(message: Message) -> str:
    """Return the id of the event that caused this one, or "" if no header has a valid one."""
    id = _decoded(message.headers.get("ce-causationid") or "")
    return id if len(id) <= ID_MAX and _is_storable(id) else ""


def occurred_at(message: Message) -> str | None:
    """Return the text of ``ce-time``, or None."""
    return message.headers.get("ce-time")


def versions_of(message: Message) -> str | None:
    """Return the header that lists all versions in which the event is published, or None for a single version."""
    return message.headers.get(VERSIONS)


def _is_storable(text: str) -> bool:
    # Nearly every text is printable, which is known without a search.
    return text.isprintable() or not _NOT_STORABLE(text)


def _encoded(text: str) -> str:
    return text if _PLAIN(text) else quote(text, safe=_SAFE)


def _decoded(text: str) -> str:
    # The HTTP binding (section 3.1.3.2) allows quoted values; this service does not send them, other producers may.
    if len(text) > 1 and text[0] == text[-1] == '"':
        text = _ESCAPED.sub(r"\1", text[1:-1])
    return unquote(text) if "%" in text else text
