"""One event in several versions: how it is encoded, and how each version is read."""

from __future__ import annotations

import pytest

from app.runtime.engine import LocalRoutes
from app.runtime.receiving import EventReader
from bus.contracts.registry import ContractRegistry
from bus.contracts.versions import DualPublish, Upcast, subject_at, version_of, versions_in
from bus.errors import Invalid, Rejected, UnknownSubject, Unreadable
from bus.subjects import EXPRESS, Event
from tests.contracts.example import SCHEMAS, SentV1, SentV2, SentV3, down_1, down_2, up_2, up_3

EVERY = (SentV1, SentV2, SentV3)
TO_2 = DualPublish("parcels.sent", 1, 2, down_1, up_2, "1.1")
TO_3 = DualPublish("parcels.sent", 2, 3, down_2, up_3, "1.2")
SENT = SentV3(parcel_id="p", kilograms=0.25, carrier="dhl")
V1, V2, V3 = (f"parcels.sent.v{n}" for n in (1, 2, 3))


@pytest.fixture
def contracts() -> ContractRegistry:
    return ContractRegistry(EVERY, SCHEMAS, [TO_2, TO_3])


def test_without_dual_publishing_an_event_is_encoded_once() -> None:
    """In its own version, with its own id and without a versions header."""
    contracts = ContractRegistry(EVERY, SCHEMAS, (), [Upcast("parcels.sent", 1, 2, up_2), Upcast("parcels.sent", 2, 3, up_3)])
    [encoded] = contracts.encode_versions(SENT)
    assert (encoded.subject, encoded.id_suffix, encoded.versions) == (V3, None, None)


def test_with_dual_publishing_an_event_is_encoded_in_every_version(contracts: ContractRegistry) -> None:
    """The newest first; the oldest keeps the event's id, so nothing changes for its consumers."""
    encoded = contracts.encode_versions(SENT)
    assert [(each.subject, each.id_suffix) for each in encoded] == [(V3, "v3"), (V2, "v2"), (V1, None)]
    assert {each.versions for each in encoded} == {"v1,v2,v3"}
    assert [each.body for each in encoded] == [
        b'{"parcel_id":"p","kilograms":0.25,"carrier":"dhl"}',
        b'{"parcel_id":"p","grams":250,"carrier":"dhl"}',
        b'{"parcel_id":"p","grams":250}',
    ]


def test_dual_publishing_of_one_version_may_end_before_that_of_another() -> None:
    """A version that is no longer published is still readable."""
    contracts = ContractRegistry(EVERY, SCHEMAS, [TO_3], [Upcast("parcels.sent", 1, 2, up_2)])
    assert [(each.subject, each.versions) for each in contracts.encode_versions(SENT)] == [(V3, "v2,v3"), (V2, "v2,v3")]
    assert EventReader("depot", contracts, [SentV3]).subjects == (V3, V2, V1)


@pytest.mark.parametrize(
    ("retired", "published"),
    [
        ([V1], [(V3, "v3"), (V2, None)]),
        ([V1, V2], [(V3, None)]),
        ([V2], [(V3, "v3"), (V2, "v2"), (V1, None)]),
    ],
)
def test_a_retired_version_is_read_but_not_encoded(retired: list[str], published: list[tuple[str, str | None]]) -> None:
    """As if only its upcast were declared; but a version from which a published one is made is published."""
    contracts = ContractRegistry(EVERY, SCHEMAS, [TO_2, TO_3], retired=retired)
    encoded = contracts.encode_versions(SENT)
    assert [(each.subject, each.id_suffix) for each in encoded] == published
    versions = ",".join(sorted(subject.rpartition(".")[2] for subject, _ in published)) if len(published) > 1 else None
    assert {each.versions for each in encoded} == {versions}
    assert {subject for subject in (V1, V2, V3) if contracts.is_published(subject)} == {subject for subject, _ in published}
    reader = EventReader("depot", contracts, [SentV3])
    assert reader.subjects == (V3, V2, V1)
    assert reader.read(V1, b'{"parcel_id":"p","grams":250}') == SentV3(parcel_id="p", kilograms=0.25, carrier="post")


def test_a_retired_version_can_be_published_for_a_while() -> None:
    """Only retired versions can; the next call replaces the one before."""
    contracts = ContractRegistry(EVERY, SCHEMAS, [TO_2, TO_3], retired=[V1])
    contracts.keep_publishing([V1])
    assert contracts.encode_versions(SENT) == ContractRegistry(EVERY, SCHEMAS, [TO_2, TO_3]).encode_versions(SENT)
    contracts.keep_publishing([V2])
    assert [each.subject for each in contracts.encode_versions(SENT)] == [V3, V2]
    assert contracts.retired == {V1}


def test_an_event_of_an_older_class_is_encoded_only_in_that_version(contracts: ContractRegistry) -> None:
    """A producer that still creates the old class publishes nothing newer."""
    [encoded] = contracts.encode_versions(SentV1(parcel_id="p", grams=1))
    assert (encoded.subject, encoded.versions) == (V1, None)


def test_an_event_that_violates_an_older_schema_is_not_encoded_at_all(contracts: ContractRegistry) -> None:
    """All versions are published, or none: 0.1 g is not a whole gram."""
    with pytest.raises(Invalid, match=r"parcels\.sent\.v2: /grams: must be at least 1; it is 0"):
        contracts.encode_versions(SentV3(parcel_id="p", kilograms=0.0001, carrier="dhl"))


@pytest.mark.parametrize(("subject", "carrier"), [(V1, "post"), (V2, "dhl"), (V3, "dhl")])
@pytest.mark.parametrize("is_same_process", [True, False])
def test_every_version_is_read_as_the_newest_class(
    contracts: ContractRegistry, subject: str, carrier: str, is_same_process: bool
) -> None:
    """Through the chain of upcasts, in either lane, from the same process or from another one."""
    producer = contracts if is_same_process else ContractRegistry(EVERY, SCHEMAS, [TO_2, TO_3])
    reader = EventReader("depot", contracts, [SentV3])
    [body] = [each.body for each in producer.encode_versions(SENT) if each.subject == subject]
    expected = SentV3(parcel_id="p", kilograms=0.25, carrier=carrier)
    assert reader.read(subject, body) == reader.read(f"{subject}.express", body) == expected


@pytest.mark.parametrize("remote", [None, V1, V2, V3])
@pytest.mark.parametrize("cls", EVERY, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("emitted", [SentV1(parcel_id="p", grams=250), SentV2(parcel_id="p", grams=250, carrier="dhl"), SENT], ids=repr)
def test_an_event_is_delivered_locally_as_the_bus_would_deliver_it(
    contracts: ContractRegistry, emitted: Event, cls: type, remote: str | None
) -> None:
    """Whichever version is emitted, and whichever the module reads: converted alike, and skipped where a newer one comes, too."""
    reader = EventReader("depot", contracts, [cls])
    routes = LocalRoutes({"depot": reader}, [] if remote is None else [remote], contracts)
    for lane in "", EXPRESS:
        route = routes[type(emitted), bool(lane)]
        encoded = {each.subject + lane: each for each in contracts.encode_versions(emitted)}
        read, superseded = {}, set()
        for subject, each in encoded.items():
            if each.subject == remote or each.subject not in reader.subjects:
                continue
            if each.versions is not None and reader.has_newer(subject, each.versions):
                superseded.add(("depot", subject))
            else:
                read[subject] = reader.read(subject, each.body)
        assert {subject: convert(emitted) for _, subject, convert in route.subscribers} == read
        assert set(route.superseded) == superseded
        assert route.subjects == encoded.keys()
        assert route.remote_subjects == encoded.keys() & {f"{remote}{lane}"}


def test_a_consumer_of_an_older_version_does_not_read_a_newer_one(contracts: ContractRegistry) -> None:
    """It is upgraded separately."""
    reader = EventReader("depot", contracts, [SentV2])
    assert reader.subjects == (V2, V1)
    with pytest.raises(Rejected, match=r"depot does not consume parcels\.sent\.v3"):
        reader.read(V3, contracts.encode(SENT))


def test_consumers_validate_tolerantly_and_publishers_strictly(contracts: ContractRegistry) -> None:
    """A newer publisher may add an optional member before its consumers know it, but no undeclared one."""
    reader = EventReader("depot", contracts, [SentV3])
    body = b'{"parcel_id":"p","kilograms":1.5,"carrier":"dhl","colour":"red"}'
    assert reader.read(V3, body) == SentV3(parcel_id="p", kilograms=1.5, carrier="dhl")
    assert not contracts[V3].is_valid_outgoing({"parcel_id": "p", "kilograms": 1.5, "carrier": "dhl", "colour": "red"})


@pytest.mark.parametrize(
    ("subject", "body", "error", "text"),
    [
        ("parcels.sent.v99", b"{}", UnknownSubject, "no contract for parcels.sent.v99"),
        (V1, b"{", Unreadable, "parcels.sent.v1: "),
        (V1, b"\xff\xfe", Unreadable, "parcels.sent.v1: "),
        (V1, b'{"parcel_id":"p"}', Invalid, "parcels.sent.v1: /: the member \"grams\" is missing"),
        (V1, b'{"parcel_id":"p","grams":"1"}', Invalid, "parcels.sent.v1: /grams: must be an integer; it is the string \"1\""),
        (V1, b"[]", Invalid, "parcels.sent.v1: /: must be an object; it is an array"),
    ],
)
def test_an_unreadable_message_is_rejected_with_the_place_and_the_reason(
    contracts: ContractRegistry, subject: str, body: bytes, error: type[Rejected], text: str
) -> None:
    """The dead letter then has a pointer and a reason."""
    with pytest.raises(error) as rejected:
        EventReader("depot", contracts, [SentV3]).read(subject, body)
    assert str(rejected.value).startswith(text)


@pytest.mark.parametrize(
    ("subject", "versions", "has_newer"),
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
def test_a_message_has_a_newer_version_only_if_the_consumer_can_read_it(
    contracts: ContractRegistry, subject: str, versions: str, has_newer: bool
) -> None:
    """A version that the consumer cannot read cannot replace one that it can."""
    assert EventReader("depot", contracts, [SentV3]).has_newer(subject, versions) is has_newer


@pytest.mark.parametrize(
    ("subject", "versions", "has_sibling"),
    [
        ("parcels.sent.v99", "v3,v99", True),
        ("parcels.sent.v99.express", "v3,v99", True),
        ("parcels.sent.v99", "v99", False),
        ("parcels.sent.v99", "v98,v99", False),
        ("parcels.lost.v1", "v1,v3", False),
        (V3, "v3", False),
    ],
)
def test_an_unreadable_version_may_have_a_readable_sibling(
    contracts: ContractRegistry, subject: str, versions: str, has_sibling: bool
) -> None:
    """Only then may the consumer ignore the message."""
    assert EventReader("depot", contracts, [SentV3]).has_readable_sibling(subject, versions) is has_sibling


def test_subjects_and_headers_name_versions() -> None:
    """Malformed parts of a header are ignored."""
    assert version_of("orders.created.v12") == ("orders.created", 12)
    assert subject_at("orders.created", 12) == "orders.created.v12"
    assert versions_in("v1, v12,3,vx,v,v²,") == {1, 12}
