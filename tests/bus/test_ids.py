"""Derived ids are reproducible, distinct, and ordered by the time of their cause."""

from __future__ import annotations

from uuid import RFC_4122, UUID

from hypothesis import given
from hypothesis import strategies as st

from bus.ids import derived_id

CAUSES = st.uuids().map(str) | st.text()
ORDINALS = st.integers(0, 10_000) | st.text(max_size=20)


@given(CAUSES, ORDINALS)
def test_equal_arguments_give_equal_ids(cause: str, ordinal: int | str) -> None:
    """The id is a UUID of version 8 in the format of RFC 9562."""
    id = derived_id(cause, ordinal)
    assert id == derived_id(cause, ordinal)
    assert str(UUID(id)) == id
    assert (UUID(id).version, UUID(id).variant) == (8, RFC_4122)


def test_a_derived_id_never_changes_between_releases() -> None:
    """Ids are stored in databases and remembered by brokers, so the algorithm must not change."""
    assert derived_id("0190c0de-0000-7000-8000-000000000001", 0) == "0190c0de-0000-88b4-bd65-3d78f16dbb7c"
    assert derived_id("no uuid", "inventory") == "671750b5-a998-846f-85fd-09cc6988ea12"


@given(st.lists(st.tuples(CAUSES, ORDINALS.map(str)), unique=True, min_size=2, max_size=20))
def test_different_arguments_give_different_ids(pairs: list[tuple[str, str]]) -> None:
    """Another cause or another ordinal gives another id."""
    unambiguous = [(cause, ordinal) for cause, ordinal in pairs if "/" not in cause + ordinal]
    assert len({derived_id(*pair) for pair in unambiguous}) == len(unambiguous)


@given(st.uuids(), ORDINALS)
def test_a_derived_id_begins_like_its_cause(cause: UUID, ordinal: int | str) -> None:
    """The first 48 bits, which are the time in a UUIDv7, are those of the cause."""
    assert derived_id(str(cause), ordinal)[:13] == str(cause)[:13]


def test_a_chain_of_derived_ids_keeps_the_time_of_the_first() -> None:
    """The tenth id that follows from an order begins with the order's time, and all ten differ."""
    chain = ["0190c0de-1234-7000-8000-000000000001"]
    for _ in range(10):
        chain.append(derived_id(chain[-1], 0))
    assert {id[:13] for id in chain} == {"0190c0de-1234"}
    assert len(set(chain)) == len(chain)
