"""One order is one trace, from the caller's header to the last event; and deciding twice gives the same headers."""

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
CALLER = "00f067aa0ba902b7"
WELL_FORMED = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


def rng(byte: int) -> Callable[[int], bytes]:
    return lambda count: bytes([byte]) * count


@pytest.mark.parametrize("header", ["a", "A-z.0_9:", "x" * 128])
def test_a_good_correlation_id_is_kept(header: str) -> None:
    """1 to 128 of A-Z a-z 0-9 . _ : - is the caller's to choose."""
    assert correlation_id(header, lambda: "fresh") == header


@pytest.mark.parametrize("header", [None, "", "x" * 129, "a b", "a\n", "\u00e4", "\u0661", "a/b", 'a"b', "a,b"])
def test_any_other_correlation_id_is_replaced(header: str | None) -> None:
    """What could break a log line or a header never gets in."""
    assert correlation_id(header, lambda: "fresh") == "fresh"


@pytest.mark.parametrize("flags", ["00", "01", "02", "03"])
def test_a_valid_trace_is_continued(flags: str) -> None:
    """Trace id and flags stay; the parent id is our own."""
    assert traceparent(f"00-{TRACE}-{CALLER}-{flags}", rng(0xAB)) == f"00-{TRACE}-abababababababab-{flags}"


def test_flags_without_a_meaning_are_sent_as_zero() -> None:
    """The specification keeps them for later; only sampled and random-trace-id are known."""
    assert traceparent(f"00-{TRACE}-{CALLER}-ff", rng(1)) == f"00-{TRACE}-0101010101010101-03"


@pytest.mark.parametrize(
    "header", [f"01-{TRACE}-{CALLER}-01", f"cc-{TRACE}-{CALLER}-01-and.more", f"fe-{TRACE}-{CALLER}-01-"]
)
def test_a_version_to_come_is_continued_as_ours(header: str) -> None:
    """A later version may say more after a dash; what we know of it goes on as version 00."""
    assert traceparent(header, rng(1)) == f"00-{TRACE}-0101010101010101-01"


BAD = [
    None,
    "",
    TRACE,
    f"ff-{TRACE}-{CALLER}-01",
    f"00-{TRACE}-{CALLER}-01-more",
    f"00-{TRACE}-{CALLER}-01-",
    f"01-{TRACE}-{CALLER}-01more",
    f"00-{'0' * 32}-{CALLER}-01",
    f"00-{TRACE}-{'0' * 16}-01",
    f"00-{TRACE.upper()}-{CALLER}-01",
    f"00-{TRACE}-{CALLER}-0x",
    f"00-{TRACE}-{CALLER}",
    f"00-{TRACE[1:]}-{CALLER}-01",
    f"0-{TRACE}-{CALLER}-01",
    f" 00-{TRACE}-{CALLER}-01",
    f"00-{TRACE}-{CALLER}-01\n",
    f"00-{TRACE[:-1]}\u0661-{CALLER}-01",
    f"00_{TRACE}_{CALLER}_01",
]


@pytest.mark.parametrize("header", BAD)
def test_anything_else_begins_a_new_sampled_trace(header: str | None) -> None:
    """An invalid header is as good as none; nothing of it is kept."""
    assert traceparent(header, rng(0xCD)) == f"00-{'cd' * 16}-{'cd' * 8}-01"


@given(st.text() | st.from_regex(WELL_FORMED))
def test_whatever_comes_in_a_valid_header_goes_out(header: str) -> None:
    """And what went out is valid when it comes back."""
    found = traceparent(header, rng(7))
    assert WELL_FORMED.fullmatch(found)
    assert trace_id(traceparent(found, rng(8))) == trace_id(found)


def test_unlucky_dice_still_give_an_id() -> None:
    """All zeros is no id to the specification, and so it never goes out."""
    assert WELL_FORMED.fullmatch(traceparent(None, rng(0)))
    assert WELL_FORMED.fullmatch(traceparent(f"00-{TRACE}-{CALLER}-01", rng(0)))


def test_a_child_takes_its_parent_id_from_the_event() -> None:
    """The same event gives the same header, however often it is decided; the trace goes on."""
    parent = f"00-{TRACE}-{CALLER}-00"
    expected = f"00-{TRACE}-8abc0123456789ab-00"
    assert child(parent, "0195a1b2-c3d4-8e5f-8abc-0123456789ab") == expected


@given(st.uuids().map(str) | st.text())
def test_every_event_id_gives_a_valid_child(cause: str) -> None:
    """Whatever it was caused by."""
    event_id = derived_id(cause, 0)
    found = child(f"00-{TRACE}-{CALLER}-01", event_id)
    assert WELL_FORMED.fullmatch(found)
    assert trace_id(found) == TRACE
    assert found.split("-")[2] == UUID(event_id).hex[16:]
