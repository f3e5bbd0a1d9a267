"""
Stop publishing retired versions (RETIRED_VERSIONS), but not while a consumer depends on one.

The consumers at the bus decide, those of other systems included: a version is published for as long as one of them reads it
and no newer version, as `contracts status` reports it. Messages that wait do not matter: they stay readable. Each process
decides for itself, so during an update one process may publish a version and another not; an event names its versions in
its messages, and a consumer relies on nothing else.
"""

from __future__ import annotations

__all__ = ["CHECK_SECONDS", "Retirement"]

from collections.abc import Iterable

from loguru import logger

from app.messaging.versions.usage import dependents
from bus.consumers import ConsumerDirectory
from bus.contracts.registry import ContractRegistry
from bus.contracts.versions import subject_at, version_of
from bus.port import Bus, Clock

CHECK_SECONDS = 5.0
"""The interval at which the consumers are looked at: for so long a consumer that is new may miss a retired version."""


class Retirement:
    """
    Lets *contracts* publish the retired versions of the events of *modules* until nothing depends on them.

    They are published until the consumers are known. `problem` is what keeps one of them published then; it is logged when
    it changes.
    """

    def __init__(
        self, modules: Iterable[str], contracts: ContractRegistry, bus: Bus, consumers: ConsumerDirectory, clock: Clock
    ) -> None:
        self._contracts = contracts
        self._bus = bus
        self._consumers = consumers
        self._clock = clock
        names = set(modules)
        self._newer: dict[str, list[str]] = {}
        """By retired version, the newer ones of its event."""
        for dual in contracts.dual_publishes:
            if (subject := subject_at(dual.event, dual.from_version)) in contracts.retired and subject.partition(".")[0] in names:
                versions = (version_of(contract.subject) for contract in contracts)
                self._newer[subject] = [subject_at(*each) for each in versions if each[0] == dual.event and each[1] > dual.from_version]
        self._kept = frozenset(self._newer)
        contracts.keep_publishing(self._kept)
        self.problem = ""
        """Why a retired version is still published; empty if none is, and before the consumers are known."""

    async def step(self) -> None:
        """Look at the consumers once. While they are unknown, what is published does not change."""
        if not self._newer or not self._bus.is_connected:
            return
        try:
            consumers = await self._consumers.consumers()
        except Exception as error:  # whatever the cause: a version is never dropped because of an answer that is missing
            reasons = {subject: [f"the consumers are unknown ({error!r})"] for subject in self._kept}
        else:
            reasons = {subject: dependents(subject, newer, consumers) for subject, newer in self._newer.items()}
            self._keep({subject for subject, found in reasons.items() if found})
        clauses = (f"{subject} is retired and still published: {', '.join(found)}" for subject, found in reasons.items() if found)
        problem = "; ".join(sorted(clauses))
        if problem and problem != self.problem:
            logger.error("a retired version is still published", detail=problem)
        self.problem = problem

    async def run(self) -> None:
        """Look regularly until cancelled; once if nothing is retired."""
        while self._newer:
            await self.step()
            await self._clock.sleep(CHECK_SECONDS)

    def _keep(self, subjects: set[str]) -> None:
        if ended := sorted(self._kept - subjects):
            logger.info("retired versions are no longer published", subjects=", ".join(ended))
        if subjects != self._kept:
            self._kept = frozenset(subjects)
            self._contracts.keep_publishing(self._kept)
