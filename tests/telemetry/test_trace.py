"""One order is one trace, from the client's header to the last event, and deciding again gives the same headers."""

from __future__ import annotations

import re
from collections.abc import Callable
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.telemetry.trace import child, correlation_id, trace_id, traceparent
from bus.ids import derived_id

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"
WELL_FORMED = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


def rng(byte: int) -> Callable[[int], bytes]:
    return lambda count: bytes([byte]) * count


@pytest.mark.parametrize("header", ["a", "A-z.0_9:", "x" * 128])
def test_a_valid_correlation_id_is_kept(header: str) -> None:
    """The client may choose 1 to 128 of A-Z a-z 0-9 . _ : -."""
    assert correlation_id(header, lambda: "new") == header


@pytest.mark.parametrize("header", [None, "", "x" * 129, "a b", "a\n", "\u00e4", "\u0661", "a/b", 'a"b', "a,b"])
def test_any_other_correlation_id_is_replaced(header: str | None) -> None:
    """No text that could break a log line or a header is accepted."""
    assert correlation_id(header, lambda: "new") == "new"


@pytest.mark.parametrize("flags", ["00", "01", "02", "03"])
def test_a_valid_trace_is_continued(flags: str) -> None:
    """Trace id and flags stay; the parent id is a new one."""
    assert traceparent(f"00-{TRACE}-{PARENT}-{flags}", rng(0xAB)) == f"00-{TRACE}-abababababababab-{flags}"


def test_reserved_flags_are_sent_as_zero() -> None:
    """The specification defines "sampled" and "random trace id" only."""
    assert traceparent(f"00-{TRACE}-{PARENT}-ff", rng(1)) == f"00-{TRACE}-0101010101010101-03"


@pytest.mark.parametrize(
    "header", [f"01-{TRACE}-{PARENT}-01", f"cc-{TRACE}-{PARENT}-01-and.more", f"fe-{TRACE}-{PARENT}-01-"]
)
def test_a_future_version_is_continued_as_version_00(header: str) -> None:
    """A later version may add fields after a dash; the known fields are continued."""
    assert traceparent(header, rng(1)) == f"00-{TRACE}-0101010101010101-01"


INVALID = [
    None,
    "",
    TRACE,
    f"ff-{TRACE}-{PARENT}-01",
    f"00-{TRACE}-{PARENT}-01-more",
    f"00-{TRACE}-{PARENT}-01-",
    f"01-{TRACE}-{PARENT}-01more",
    f"00-{'0' * 32}-{PARENT}-01",
    f"00-{TRACE}-{'0' * 16}-01",
    f"00-{TRACE.upper()}-{PARENT}-01",
    f"00-{TRACE}-{PARENT}-0x",
    f"00-{TRACE}-{PARENT}",
    f"00-{TRACE[1:]}-{PARENT}-01",
    f"0-{TRACE}-{PARENT}-01",
    f" 00-{TRACE}-{PARENT}-01",
    f"00-{TRACE}-{PARENT}-01\n",
    f"00-{TRACE[:-1]}\u0661-{PARENT}-01",
    f"00_{TRACE}_{PARENT}_01",
]


@pytest.mark.parametrize("header", INVALID)
def test_an_invalid_header_begins_a_new_sampled_trace(header: str | None) -> None:
    """Nothing of it is kept, as if there were none."""
    assert traceparent(header, rng(0xCD)) == f"00-{'cd' * 16}-{'cd' * 8}-01"


@given(st.text() | st.from_regex(WELL_FORMED))
def test_the_result_is_a_valid_header_for_any_input(header: str) -> None:
    """The result is accepted as an input and keeps its trace id."""
    found = traceparent(header, rng(7))
    assert WELL_FORMED.fullmatch(found)
    assert trace_id(traceparent(found, rng(8))) == trace_id(found)


def test_random_bytes_that_are_all_zero_give_a_valid_id() -> None:
    """The specification forbids an id of zeros."""
    assert WELL_FORMED.fullmatch(traceparent(None, rng(0)))
    assert WELL_FORMED.fullmatch(traceparent(f"00-{TRACE}-{PARENT}-01", rng(0)))


def test_a_child_takes_its_parent_id_from_the_event() -> None:
    """The same event always gives the same header, in the same trace."""
    parent = f"00-{TRACE}-{PARENT}-00"
    expected = f"00-{TRACE}-8abc0123456789ab-00"
    assert child(parent, "0195a1b2-c3d4-8e5f-8abc-0123456789ab") == expected


@given(st.uuids().map(str) | st.text())
def test_every_event_id_gives_a_valid_child(cause: str) -> None:
    """This holds for every id of a cause."""
    event_id = derived_id(cause, 0)
    found = child(f"00-{TRACE}-{PARENT}-01", event_id)
    assert WELL_FORMED.fullmatch(found)
    assert trace_id(found) == TRACE
    assert found.split("-")[2] == UUID(event_id).hex[16:]
