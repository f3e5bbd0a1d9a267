"""One event in several versions: how it is said, and how it is heard."""

from __future__ import annotations

import pytest

from bus.contracts.event_reader import EventReader
from bus.contracts.registry import ContractRegistry
from bus.contracts.versions import DualPublish, Upcast, subject_at, version_of, versions_in
from bus.errors import Invalid, Rejected, UnknownSubject, Unreadable
from tests.contracts.example import SCHEMAS, SentV1, SentV2, SentV3, down_1, down_2, up_2, up_3

EVERY = (SentV1, SentV2, SentV3)
TO_2 = DualPublish("parcels.sent", 1, 2, down_1, up_2, "1.1")
TO_3 = DualPublish("parcels.sent", 2, 3, down_2, up_3, "1.2")
SENT = SentV3(parcel_id="p", kilograms=0.25, carrier="dhl")
V1, V2, V3 = (f"parcels.sent.v{n}" for n in (1, 2, 3))


@pytest.fixture
def contracts() -> ContractRegistry:
    return ContractRegistry(EVERY, SCHEMAS, [TO_2, TO_3])


def test_without_a_migration_an_event_is_said_once() -> None:
    """In its own version, under its own id, and with no word about versions."""
    contracts = ContractRegistry(EVERY, SCHEMAS, (), [Upcast("parcels.sent", 1, 2, up_2), Upcast("parcels.sent", 2, 3, up_3)])
    [said] = contracts.encode_versions(SENT)
    assert (said.subject, said.id_suffix, said.versions) == (V3, None, None)


def test_with_migrations_an_event_is_said_in_every_version(contracts: ContractRegistry) -> None:
    """The newest first; the oldest keeps the event's id, for nothing is to change for those who hear it."""
    said = contracts.encode_versions(SENT)
    assert [(each.subject, each.id_suffix) for each in said] == [(V3, "v3"), (V2, "v2"), (V1, None)]
    assert {each.versions for each in said} == {"v1,v2,v3"}
    assert [each.body for each in said] == [
        b'{"parcel_id":"p","kilograms":0.25,"carrier":"dhl"}',
        b'{"parcel_id":"p","grams":250,"carrier":"dhl"}',
        b'{"parcel_id":"p","grams":250}',
    ]


def test_one_migration_ends_before_the_other() -> None:
    """What is no longer said is still understood."""
    contracts = ContractRegistry(EVERY, SCHEMAS, [TO_3], [Upcast("parcels.sent", 1, 2, up_2)])
    assert [(each.subject, each.versions) for each in contracts.encode_versions(SENT)] == [(V3, "v2,v3"), (V2, "v2,v3")]
    assert EventReader("depot", contracts, [SentV3]).subjects == (V3, V2, V1)


def test_an_older_version_is_never_said_by_itself(contracts: ContractRegistry) -> None:
    """Whoever says an old class says that and nothing else."""
    [said] = contracts.encode_versions(SentV1(parcel_id="p", grams=1))
    assert (said.subject, said.versions) == (V1, None)


def test_what_breaks_an_older_schema_is_not_said(contracts: ContractRegistry) -> None:
    """All versions go out, or none: 0.1 g is no whole gram."""
    with pytest.raises(Invalid, match=r"parcels\.sent\.v2: /grams: 0 is less than"):
        contracts.encode_versions(SentV3(parcel_id="p", kilograms=0.0001, carrier="dhl"))


@pytest.mark.parametrize(("subject", "carrier"), [(V1, "post"), (V2, "dhl"), (V3, "dhl")])
@pytest.mark.parametrize("is_own", [True, False])
def test_every_version_is_heard_as_the_newest(
    contracts: ContractRegistry, subject: str, carrier: str, is_own: bool
) -> None:
    """By the chain of upcasts, in either lane, whether the words are our own or somebody else's."""
    producer = contracts if is_own else ContractRegistry(EVERY, SCHEMAS, [TO_2, TO_3])
    hearing = EventReader("depot", contracts, [SentV3])
    [body] = [said.body for said in producer.encode_versions(SENT) if said.subject == subject]
    expected = SentV3(parcel_id="p", kilograms=0.25, carrier=carrier)
    assert hearing.read(subject, body) == hearing.read(f"{subject}.express", body) == expected


def test_who_stays_with_an_older_version_hears_nothing_newer(contracts: ContractRegistry) -> None:
    """A consumer is upgraded when it is ready to be."""
    hearing = EventReader("depot", contracts, [SentV2])
    assert hearing.subjects == (V2, V1)
    with pytest.raises(Rejected, match=r"depot does not consume parcels\.sent\.v3"):
        hearing.read(V3, contracts.encode(SENT))


def test_consumers_read_tolerantly_and_publishers_to_the_letter(contracts: ContractRegistry) -> None:
    """A newer publisher may add an optional member before its readers know it; we may not say what we did not promise."""
    hearing = EventReader("depot", contracts, [SentV3])
    body = b'{"parcel_id":"p","kilograms":1.5,"carrier":"dhl","colour":"red"}'
    assert hearing.read(V3, body) == SentV3(parcel_id="p", kilograms=1.5, carrier="dhl")
    assert not contracts[V3].is_valid_outgoing({"parcel_id": "p", "kilograms": 1.5, "carrier": "dhl", "colour": "red"})


@pytest.mark.parametrize(
    ("subject", "body", "error", "says"),
    [
        ("parcels.sent.v99", b"{}", UnknownSubject, "no contract for parcels.sent.v99"),
        (V1, b"{", Unreadable, "parcels.sent.v1: "),
        (V1, b"\xff\xfe", Unreadable, "parcels.sent.v1: "),
        (V1, b'{"parcel_id":"p"}', Invalid, "parcels.sent.v1: /: 'grams' is a required property"),
        (V1, b'{"parcel_id":"p","grams":"1"}', Invalid, "parcels.sent.v1: /grams: '1' is not of type 'integer'"),
        (V1, b"[]", Invalid, "parcels.sent.v1: /: [] is not of type 'object'"),
    ],
)
def test_what_cannot_be_read_says_where_and_why(
    contracts: ContractRegistry, subject: str, body: bytes, error: type[Rejected], says: str
) -> None:
    """A pointer and a reason, for whoever finds it among the dead letters."""
    with pytest.raises(error) as refused:
        EventReader("depot", contracts, [SentV3]).read(subject, body)
    assert str(refused.value).startswith(says)


@pytest.mark.parametrize(
    ("subject", "versions", "is_superseded"),
    [
        (V3, "v1,v2,v3", False),
        (V2, "v1,v2,v3", True),
        (V1, "v1,v3", True),
        (V1, "v1", False),
        (V1, "v1,v99", False),
        (f"{V1}.express", "v1,v2", True),
        (V1, "nonsense", False),
    ],
)
def test_a_lower_version_gives_way_to_a_higher_one_that_is_understood(
    contracts: ContractRegistry, subject: str, versions: str, is_superseded: bool
) -> None:
    """And to no other: what we do not understand cannot replace what we do."""
    assert EventReader("depot", contracts, [SentV3]).has_newer(subject, versions) is is_superseded


@pytest.mark.parametrize(
    ("subject", "versions", "is_said_otherwise"),
    [
        ("parcels.sent.v99", "v3,v99", True),
        ("parcels.sent.v99.express", "v3,v99", True),
        ("parcels.sent.v99", "v99", False),
        ("parcels.sent.v99", "v98,v99", False),
        ("parcels.lost.v1", "v1,v3", False),
        (V3, "v3", False),
    ],
)
def test_what_is_not_understood_may_be_said_in_words_that_are(
    contracts: ContractRegistry, subject: str, versions: str, is_said_otherwise: bool
) -> None:
    """Only then may it go by without a word."""
    assert EventReader("depot", contracts, [SentV3]).has_readable_sibling(subject, versions) is is_said_otherwise


def test_subjects_and_headers_name_versions() -> None:
    """And what is no version in a header is no version."""
    assert version_of("orders.created.v12") == ("orders.created", 12)
    assert subject_at("orders.created", 12) == "orders.created.v12"
    assert versions_in("v1, v12,3,vx,v,v²,") == {1, 12}
