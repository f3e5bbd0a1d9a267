"""What one consumer understands: which subjects it subscribes to, and how each is read as the one class it knows."""

from __future__ import annotations

__all__ = ["EventReader"]

from collections.abc import Callable, Iterable
from functools import lru_cache

from bus.contracts.registry import ContractRegistry
from bus.contracts.versions import has_readable_sibling, subject_at, version_of, versions_in
from bus.errors import ContractError, Rejected
from bus.subjects import EXPRESS, Event, without_lane


class EventReader:
    """The ears of *consumer*, who understands *classes* and whatever can be upcast to one of them."""

    def __init__(self, consumer: str, contracts: ContractRegistry, classes: Iterable[type]) -> None:
        """
        Prepare for every subject.

        Raises:
            ContractError: Two of *classes* are versions of one event: which is the older to be read as?
        """
        self.consumer = consumer
        self._contracts = contracts
        self._ups: dict[str, tuple[Callable[[Event], Event], ...]] = {}
        self._looked_up = lru_cache(256)(self._is_superseded)  # asked for each message, with the same few words
        for cls in classes:
            for subject, ups in contracts.readable_subjects(cls).items():
                if subject in self._ups:
                    raise ContractError(f"{consumer} hears {subject} in two ways")
                self._ups[subject] = self._ups[subject + EXPRESS] = ups

    @property
    def subjects(self) -> tuple[str, ...]:
        """What to subscribe to, in the normal lane."""
        return tuple(subject for subject in self._ups if subject == without_lane(subject))

    def read(self, subject: str, body: bytes) -> Event:
        """
        Return the event that *body* says under *subject*, as the newest class that the consumer understands.

        Raises:
            UnknownSubject: Nobody knows the subject, or this version of it.
            Unreadable: The body is not JSON in UTF-8.
            Invalid: The body breaks the schema; says where and why.
            PutAside: The consumer does not hear it.
        """
        event = self._contracts.decode(subject, body)
        if subject not in self._ups:
            raise Rejected(f"{self.consumer} does not hear {subject}")
        return self.upcast(subject, event)

    def upcast(self, subject: str, event: Event) -> Event:
        """Return *event*, which came under the heard *subject* in that version, as the newest class that is understood."""
        for up in self._ups[subject]:
            event = up(event)
        return event

    def has_newer(self, subject: str, versions: str) -> bool:
        """Tell whether the header *versions* of a message on *subject* names a higher one that is understood, too."""
        return self._looked_up(subject, versions)

    def _is_superseded(self, subject: str, versions: str) -> bool:
        event, version = version_of(without_lane(subject))
        return any(other > version and subject_at(event, other) in self._ups for other in versions_in(versions))

    def has_readable_sibling(self, subject: str, versions: str) -> bool:
        """Tell whether a message on *subject*, which is not understood, says what another of *versions* says as well."""
        return has_readable_sibling(subject, versions, self._ups)
