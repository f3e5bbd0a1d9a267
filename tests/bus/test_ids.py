"""What is caused can be named again by whoever knows the cause."""

from __future__ import annotations

from uuid import RFC_4122, UUID

from hypothesis import given
from hypothesis import strategies as st

from bus.ids import derived_id

CAUSES = st.uuids().map(str) | st.text()
ORDINALS = st.integers(0, 10_000) | st.text(max_size=20)


@given(CAUSES, ORDINALS)
def test_the_same_cause_has_the_same_effect(cause: str, ordinal: int | str) -> None:
    """Deciding again gives the same id, and it is a UUID of version 8 as RFC 9562 writes them."""
    id = derived_id(cause, ordinal)
    assert id == derived_id(cause, ordinal)
    assert str(UUID(id)) == id
    assert (UUID(id).version, UUID(id).variant) == (8, RFC_4122)


def test_an_id_is_what_it_was_in_an_earlier_release() -> None:
    """Ids are in databases and in brokers' windows: the recipe must never change."""
    assert derived_id("0190c0de-0000-7000-8000-000000000001", 0) == "0190c0de-0000-88b4-bd65-3d78f16dbb7c"
    assert derived_id("no uuid", "inventory") == "671750b5-a998-846f-85fd-09cc6988ea12"


@given(st.lists(st.tuples(CAUSES, ORDINALS.map(str)), unique=True, min_size=2, max_size=20))
def test_different_effects_have_different_ids(pairs: list[tuple[str, str]]) -> None:
    """Another cause or another ordinal gives another id."""
    unambiguous = [(cause, ordinal) for cause, ordinal in pairs if "/" not in cause + ordinal]
    assert len({derived_id(*pair) for pair in unambiguous}) == len(unambiguous)


@given(st.uuids(), ORDINALS)
def test_an_effect_lies_beside_its_cause(cause: UUID, ordinal: int | str) -> None:
    """The first 48 bits, which in a UUIDv7 are the time, are those of the cause."""
    assert derived_id(str(cause), ordinal)[:13] == str(cause)[:13]


def test_a_chain_of_effects_keeps_the_time_of_its_beginning() -> None:
    """Also the tenth id that follows from an order begins with the order's moment, and all ten differ."""
    chain = ["0190c0de-1234-7000-8000-000000000001"]
    for _ in range(10):
        chain.append(derived_id(chain[-1], 0))
    assert {id[:13] for id in chain} == {"0190c0de-1234"}
    assert len(set(chain)) == len(chain)
