"""Publish again what a stream had stored and has lost, as soon as the bus notices that."""

from __future__ import annotations

__all__ = ["LossRepair", "Losses", "NoLosses"]

from collections.abc import Mapping
from datetime import datetime
from typing import Protocol

from loguru import logger

from app.messaging.republish import PublishStalled, republish
from app.storage.errors import StorageUnavailable
from app.storage.module_store import ModuleStore
from bus.port import Bus, Clock

LOOK_SECONDS = 1.0
"""The interval at which losses are looked for in memory; the bus asks the server less often."""


class Losses(Protocol):
    """What streams have lost although they had stored it."""

    @property
    def lost_since(self) -> Mapping[str, datetime]:
        """By stream, which is named like its module in capitals: since when messages are lost."""

    def forget(self, stream: str, since: datetime) -> None:
        """Note that what *stream* has lost *since* then is published again."""


class NoLosses:
    """Implements `Losses` for a bus without streams."""

    lost_since: Mapping[str, datetime] = {}

    def forget(self, stream: str, since: datetime) -> None:
        """Do nothing."""


class LossRepair:
    """Publishes the outboxes in *stores*, by module, again to *bus*: what was sent since the streams have *losses*."""

    def __init__(self, stores: Mapping[str, ModuleStore], bus: Bus, losses: Losses, clock: Clock) -> None:
        self._stores = {name.upper(): store for name, store in stores.items()}
        self._bus = bus
        self._losses = losses
        self._clock = clock

    async def run(self) -> None:
        """Step until cancelled."""
        while True:
            await self._clock.sleep(LOOK_SECONDS)
            await self.step()

    async def step(self) -> None:
        """Publish again what is lost; what cannot be published now stays for the next step."""
        for stream, since in dict(self._losses.lost_since).items():
            try:
                count = await republish(self._stores[stream], self._bus, self._clock, since, on_sent=lambda _: None)
            except (PublishStalled, StorageUnavailable) as error:
                logger.warning("what a stream has lost cannot be published again now", stream=stream, error=str(error))
            else:
                self._losses.forget(stream, since)
                logger.warning("what a stream may have lost is published again", stream=stream, events=count, since=since.isoformat())
