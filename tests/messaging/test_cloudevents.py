"""Event headers: CloudEvents attributes, trace context and versions."""

from __future__ import annotations

from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.messaging.cloudevents import event_id_and_trace, occurred_at, to_message, versions_of
from app.storage.tables import OutboxMessage
from bus.port import Message

AT = "2026-01-01T12:00:00.000000+00:00"
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def outbox_message(correlation_id: str = "c", event_id: str = "e", subject: str = "orders.created.v1") -> OutboxMessage:
    return OutboxMessage("m", event_id, subject, "k", b"{}", None, correlation_id, "cause", TRACE, AT, AT)


@pytest.mark.parametrize(
    ("value", "header"),
    [
        ("Euro € 😀", "Euro%20%E2%82%AC%20%F0%9F%98%80"),
        ('a "quoted" 100%', "a%20%22quoted%22%20100%25"),
        ("plain-ascii_~!*'()", "plain-ascii_~!*'()"),
        ("\t\x7f", "%09%7F"),
    ],
)
def test_values_are_percent_encoded_as_in_the_binding(value: str, header: str) -> None:
    """Space, quote, percent and every character that is not printable ASCII (CloudEvents NATS binding, 3.1.3.2)."""
    assert to_message(outbox_message(value)).headers["ce-correlationid"] == header


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("Euro%20%E2%82%AC%20%F0%9F%98%80", "Euro € 😀"),
        ("Euro%20%e2%82%ac%20%f0%9f%98%80", "Euro € 😀"),
        ("%2541", "%41"),
        ("plain", "plain"),
        ('"quoted \\"value\\" of %E2%82%AC"', 'quoted "value" of €'),
        ('"', '"'),
        ("100%", "100%"),
    ],
)
def test_values_of_other_producers_are_decoded(header: str, value: str) -> None:
    """Upper and lower case, one round only, and double quotes, which this service never sends (HTTP binding, 3.1.3.2)."""
    assert event_id_and_trace(Message("orders.created.v1", "m", b"{}", "k", {"ce-id": header}))[0] == value


def test_each_version_of_an_event_is_a_cloud_event_of_its_own_type() -> None:
    """One id, two types, and a header that lists both versions."""
    older = to_message(in_versions(outbox_message(), "orders.created.v1"))
    newer = to_message(in_versions(outbox_message(), "orders.created.v2.express"))
    assert (older.headers["ce-type"], newer.headers["ce-type"]) == ("orders.created.v1", "orders.created.v2")
    assert older.headers["ce-id"] == newer.headers["ce-id"] == "e"
    assert older.headers["ce-versions"] == newer.headers["ce-versions"] == "v1,v2"
    assert versions_of(older) == "v1,v2"
    assert versions_of(to_message(outbox_message())) is None


def in_versions(before: OutboxMessage, subject: str) -> OutboxMessage:
    return before._replace(subject=subject, versions="v1,v2")


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1, max_size=20))
def test_an_encoded_value_is_decoded_to_itself(text: str) -> None:
    """Any text survives the headers, which are printable ASCII."""
    message = to_message(outbox_message(text, text))
    header = message.headers["ce-id"]
    assert header.isascii()
    assert header.isprintable()
    assert " " not in header
    assert unquote(header) == text
    id, trace = event_id_and_trace(message)
    assert (id, trace.correlation_id, trace.traceparent) == (text, text, TRACE)
    assert occurred_at(message) == AT


def test_the_headers_are_those_of_a_cloud_event() -> None:
    """Every required attribute, and the type without the lane."""
    message = to_message(outbox_message(subject="orders.created.v1.express"))
    assert message.subject == "orders.created.v1.express"
    assert dict(message.headers) == {
        "ce-specversion": "1.0",
        "ce-id": "e",
        "ce-source": "/fulfilment/orders",
        "ce-type": "orders.created.v1",
        "ce-time": AT,
        "ce-datacontenttype": "application/json",
        "ce-correlationid": "c",
        "ce-causationid": "cause",
        "traceparent": TRACE,
        "content-type": "application/json",
    }
    assert (message.id, message.key, message.body) == ("m", "k", b"{}")


def test_a_replay_has_the_headers_of_its_event() -> None:
    """The subject of the replay does not change them."""
    subject = "inventory.replay.inventory-express.orders.created.v1.express"
    message = to_message(outbox_message(subject=subject))
    assert message.subject == subject
    assert dict(message.headers) == dict(to_message(outbox_message(subject="orders.created.v1.express")).headers)


def test_a_replayed_event_keeps_its_id() -> None:
    """A replay is a new message that carries an old event."""
    message = Message("orders.created.v1", "fresh", b"{}", "k", to_message(outbox_message(event_id="old")).headers)
    assert event_id_and_trace(message)[0] == "old"


def test_a_message_without_headers_gets_values_derived_from_its_id() -> None:
    """The same values each time it is delivered, so that it is recognised."""
    bare = Message("orders.created.v1", "m-1", b"{}")
    id, context = event_id_and_trace(bare)
    assert id == context.correlation_id == "m-1"
    assert len(context.traceparent) == 55
    assert event_id_and_trace(bare) == (id, context)
    assert event_id_and_trace(Message("orders.created.v1", "m-2", b"{}"))[1].traceparent != context.traceparent
