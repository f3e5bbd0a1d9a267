"""
How an event changes while everything runs.

A version is part of the subject: ``orders.created.v1`` and ``orders.created.v2`` are two promises about one event. An
`Upcast` lets a reader who understands the newer one see the older as if it had been said so. A `DualPublish` is an upcast
that the speaker has declared to be under way: for as long as it stands, every such event is said in both versions,
under one event id.

The messages of one event name all its versions in a header, so that a reader knows what else is on its way. It acts on
one of them, whichever way they come: the inbox knows the event by its id. A lower version only gives way for a moment
to the higher one that should be there too; it is never dropped on the mere promise of it, because during a rolling
upgrade the other message may have gone to a colleague who did not understand it and relied on this one.
"""

from __future__ import annotations

__all__ = ["VERSIONS", "DualPublish", "Upcast", "has_readable_sibling", "subject_at", "version_of", "versions_header", "versions_in"]

import re
from collections.abc import Callable, Container, Iterable
from typing import Any

from attrs import frozen

VERSIONS = "ce-versions"
"""The header that names every version in which an event is said, such as ``v1,v2``."""

# No event will ever have a million versions, and a number without end is more than Python will read.
_VERSION = re.compile(r"v[0-9]{1,6}").fullmatch


@frozen
class Upcast:
    """How version *frm* of *event* becomes version *to*: *up* is a pure function from one class to the other."""

    event: str
    from_version: int
    to_version: int
    up: Callable[[Any], Any]


@frozen
class DualPublish:
    """
    *event* is said in version *frm* beside its newest, *to*, since release *since*.

    *down* makes the older from the newer for those who still hear that, *up* the newer from the older for those who no
    longer do; both are pure functions from one class to the other.
    """

    event: str
    from_version: int
    to_version: int
    down: Callable[[Any], Any]
    up: Callable[[Any], Any]
    since: str


def version_of(subject: str) -> tuple[str, int]:
    """Return the event that *subject* (without its lane) names, and the version: ``("orders.created", 1)``."""
    event, _, version = subject.rpartition(".v")
    return event, int(version)


def subject_at(event: str, version: int) -> str:
    """Return the subject of *event* in *version*."""
    return f"{event}.v{version}"


def versions_in(header: str) -> frozenset[int]:
    """Return the versions that a `VERSIONS` header names; what is no version there is left out."""
    return frozenset(int(part.strip()[1:]) for part in header.split(",") if _VERSION(part.strip()))


def has_readable_sibling(subject: str, header: str, understood: Container[str]) -> bool:
    """
    Tell whether what a message on *subject* says is said in another version that is *understood*, too.

    *header* is its `VERSIONS`, *understood* are subjects with their lanes. Whoever does not understand *subject* itself
    may then let it go without a word.
    """
    event, _, rest = subject.rpartition(".v")
    version, dot, lane = rest.partition(".")
    return any(f"{event}.v{other}{dot}{lane}" in understood for other in versions_in(header) if str(other) != version)


def versions_header(versions: Iterable[int]) -> str:
    """Return the `VERSIONS` header that names *versions*."""
    return ",".join(f"v{version}" for version in sorted(versions))
