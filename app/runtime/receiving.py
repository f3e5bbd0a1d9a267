"""What every consumer does with a message that it cannot read."""

from __future__ import annotations

__all__ = ["turn_away"]

from loguru import logger

from app.messaging.cloudevents import origin, said_in
from app.telemetry.message_metrics import Handling
from bus.contracts.event_reader import Hearing
from bus.errors import PutAside
from bus.port import Delivery
from bus.replay_subjects import original


async def turn_away(delivery: Delivery, error: PutAside, hears: Hearing, handling: Handling) -> None:
    """
    Be done with what *hears* could not read, because of *error*.

    An unknown version of an event that is also said in a known one is let go; everything else is put aside.
    """
    message = delivery.message
    subject, versions = original(message.subject), said_in(message)
    if versions is not None and hears.is_said_otherwise(subject, versions):
        handling.ended(subject, "ignored")
        await delivery.ack()
        return
    logger.warning(
        "message put aside", consumer=hears.consumer, subject=subject, message_id=message.id,
        error=error.code, detail=str(error), correlation_id=origin(message)[1].correlation_id,
    )  # fmt: skip
    handling.ended(subject, "put_aside")
    await delivery.term(error.code, str(error))
