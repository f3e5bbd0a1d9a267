"""Reading of events for one consumer: to which subjects it subscribes, and how each becomes a class that it knows."""

from __future__ import annotations

__all__ = ["EventReader"]

from collections.abc import Callable, Iterable
from functools import lru_cache

from bus.contracts.registry import ContractRegistry
from bus.contracts.versions import has_readable_newer, has_readable_sibling
from bus.errors import ContractError, Rejected
from bus.subjects import EXPRESS, Event, without_lane


class EventReader:
    """
    Reads the messages of one consumer: the classes that it consumes, and every older version of them by upcasting.

    `bus.contracts.versions` explains what a consumer does with a message whose event has other versions.
    """

    def __init__(self, consumer: str, contracts: ContractRegistry, classes: Iterable[type]) -> None:
        """
        Prepare the upcasts of every subject that *consumer* reads as one of *classes*.

        Raises:
            ContractError: Two of *classes* are versions of one event, so an older version could be read as either.
        """
        self.consumer = consumer
        self._contracts = contracts
        self._upcasts: dict[str, tuple[Callable[[Event], Event], ...]] = {}
        """By subject with its lane; an empty tuple for a version that is itself one of the classes."""
        for cls in classes:
            for subject, upcasts in contracts.readable_subjects(cls).items():
                if subject in self._upcasts:
                    raise ContractError(f"{consumer} would read {subject} as two classes")
                self._upcasts[subject] = self._upcasts[subject + EXPRESS] = upcasts
        # Called for each message, with the same few arguments.
        self._has_newer = lru_cache(256)(lambda subject, versions: has_readable_newer(subject, versions, self._upcasts))

    @property
    def subjects(self) -> tuple[str, ...]:
        """The subjects to subscribe to, in the normal lane."""
        return tuple(subject for subject in self._upcasts if subject == without_lane(subject))

    def reads(self, subject: str) -> bool:
        """Return whether the consumer knows *subject*, with or without its lane: whether its body can be readable at all."""
        return subject in self._upcasts

    def read(self, subject: str, body: bytes) -> Event:
        """
        Return the event in *body*, a message on *subject*, as the newest class that the consumer knows.

        Raises:
            UnknownSubject: The subject, or this version of it, has no contract.
            Unreadable: The body is not JSON in UTF-8, is nested too deeply, or has a duplicate name in an object.
            Invalid: The body violates the schema; the error lists where and why.
            Rejected: The consumer does not consume this subject.
        """
        event = self._contracts.decode(subject, body)
        if subject not in self._upcasts:
            raise Rejected(f"{self.consumer} does not consume {subject}")
        for upcast in self._upcasts[subject]:
            event = upcast(event)
        return event

    def upcasts(self, subject: str) -> tuple[Callable[[Event], Event], ...]:
        """Return the steps that turn an event on the consumed *subject* into the newest class that the consumer knows."""
        return self._upcasts[subject]

    def has_newer(self, subject: str, versions: str) -> bool:
        """Return whether *versions*, the header of a message on *subject*, names a newer readable version."""
        return self._has_newer(subject, versions)

    def has_readable_sibling(self, subject: str, versions: str) -> bool:
        """Return whether *versions*, the header of a message on *subject*, names any other readable version."""
        return has_readable_sibling(subject, versions, self._upcasts)
