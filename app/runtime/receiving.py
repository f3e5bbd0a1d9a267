"""What every consumer does with a message that it cannot read."""

from __future__ import annotations

__all__ = ["reject_unreadable"]

from loguru import logger

from app.messaging.cloudevents import event_id_and_trace, versions_of
from app.telemetry.message_metrics import MessageMetrics
from bus.contracts.event_reader import EventReader
from bus.errors import Rejected
from bus.port import Delivery
from bus.replay_subjects import original_subject


async def reject_unreadable(delivery: Delivery, error: Rejected, hears: EventReader, handling: MessageMetrics) -> None:
    """
    Be done with what *hears* could not read, because of *error*.

    An unknown version of an event that is also said in a known one is let go; everything else is put aside.
    """
    message = delivery.message
    subject, versions = original_subject(message.subject), versions_of(message)
    if versions is not None and hears.has_readable_sibling(subject, versions):
        handling.count(subject, "ignored")
        await delivery.ack()
        return
    logger.warning(
        "message put aside", consumer=hears.consumer, subject=subject, message_id=message.id,
        error=error.code, detail=str(error), correlation_id=event_id_and_trace(message)[1].correlation_id,
    )  # fmt: skip
    handling.count(subject, "put_aside")
    await delivery.term(error.code, str(error))
