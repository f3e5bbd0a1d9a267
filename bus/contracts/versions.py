"""
Versions of an event, and which of them a consumer processes.

The version is part of the subject: ``orders.created.v1`` and ``orders.created.v2`` are two contracts of one event. An
`Upcast` converts an older version to a newer one, so that a consumer of the newer one can read both. A `DualPublish`
declares that a producer is changing from one version to the next: until it is removed, the producer publishes every
such event in both versions.

All messages of such an event carry the event's id, and a header (`VERSIONS`) that lists its versions. A consumer may
receive several of them, in any order, and must process the event exactly once. These rules decide which message it
uses:

1. Any readable version will do. The inbox records the event's id, so every further message is a duplicate.
2. A newer version is better, because a conversion may lose data (the upcast from ``orders.created.v1`` knows no
   shipping address). So a message is deferred for a moment if its event also has a newer version that the consumer can
   read (`has_readable_newer`), and the newer message can arrive first.
3. An older version is deferred, but never dropped because of the header alone. During a rolling upgrade the other
   message may have gone to a process of an older release that could not read it and relied on this one.
4. A message in a version that the consumer does not know is acknowledged and ignored if it knows another version of
   the event (`has_readable_sibling`); otherwise it becomes a dead letter.
5. A message in a known version whose body cannot be read becomes a dead letter, whatever other versions there are: their
   bodies may be unreadable, too, and none of them may rely on another. The dead letters of one event are stored as one.
"""

from __future__ import annotations

__all__ = [
    "VERSIONS",
    "DualPublish",
    "Upcast",
    "has_readable_newer",
    "has_readable_sibling",
    "subject_at",
    "version_of",
    "versions_header",
    "versions_in",
]

import re
from collections.abc import Callable, Container, Iterable
from typing import Any

from attrs import frozen

from bus.subjects import without_lane

VERSIONS = "ce-versions"
"""The header that lists every version in which an event is published, such as ``v1,v2``."""

# Six digits are enough for a version, and int() refuses a number of unlimited length.
_VERSION = re.compile(r"v[0-9]{1,6}").fullmatch


@frozen
class Upcast:
    """The conversion of *event* to a newer version: *up* is a pure function from one class to the other."""

    event: str
    from_version: int
    to_version: int
    up: Callable[[Any], Any]


@frozen
class DualPublish:
    """
    *event* is published in *from_version* beside the newer *to_version*, since release *since*.

    *down* makes the older version for consumers that still need it; *up* converts it back for consumers that no longer
    do. Both are pure functions from one class to the other.
    """

    event: str
    from_version: int
    to_version: int
    down: Callable[[Any], Any]
    up: Callable[[Any], Any]
    since: str


def version_of(subject: str) -> tuple[str, int]:
    """Return the event and the version in *subject*, which has no lane: ``("orders.created", 1)``."""
    event, _, version = subject.rpartition(".v")
    return event, int(version)


def subject_at(event: str, version: int) -> str:
    """Return the subject of *event* in *version*."""
    return f"{event}.v{version}"


def versions_in(header: str) -> frozenset[int]:
    """Return the versions in *header*, the value of a `VERSIONS` header; malformed parts are ignored."""
    return frozenset(int(part.strip()[1:]) for part in header.split(",") if _VERSION(part.strip()))


def versions_header(versions: Iterable[int]) -> str:
    """Return the value of the `VERSIONS` header for *versions*."""
    return ",".join(f"v{version}" for version in sorted(versions))


def has_readable_newer(subject: str, header: str, readable: Container[str]) -> bool:
    """
    Return whether the event of a message on *subject* is also published in a newer version that is *readable*.

    *header* is the message's `VERSIONS` header; *readable* are subjects.
    """
    event, version = version_of(without_lane(subject))
    return any(other > version and subject_at(event, other) in readable for other in versions_in(header))


def has_readable_sibling(subject: str, header: str, readable: Container[str]) -> bool:
    """
    Return whether the event of a message on *subject* is also published in any other version that is *readable*.

    *header* is the message's `VERSIONS` header; *readable* are subjects with their lanes.
    """
    event, _, rest = subject.rpartition(".v")
    version, dot, lane = rest.partition(".")
    return any(f"{event}.v{other}{dot}{lane}" in readable for other in versions_in(header) if str(other) != version)
