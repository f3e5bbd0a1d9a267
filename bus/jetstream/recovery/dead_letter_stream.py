"""Dead letters on the stream ``DEAD_LETTERS``, for other programs to subscribe to. The table is authoritative."""

from __future__ import annotations

__all__ = ["DeadLetterPublisher", "dead_letter_subject"]

import re
from collections.abc import Callable
from contextlib import suppress
from urllib.parse import quote

from bus.errors import PublishRefused
from bus.port import WAITS, Bus, DeadLetter, DeadLetters, Message
from bus.subjects import original_subject

BYTES_MAX = 1_000_000
"""What fits into one message of a NATS server with default settings (1 MiB), less a reserve."""

_DETAIL_CHARACTERS_MAX = 1_000
_NAME = re.compile(r"[!-9;-~]+").fullmatch
_PLAIN = " !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~"


class DeadLetterPublisher:
    """Stores each dead letter in *store*, then publishes it on ``dead.<consumer>.<original subject>``."""

    def __init__(self, store: DeadLetters, bus: Callable[[], Bus]) -> None:
        """Publish on what *bus* returns; it is called for each dead letter, because the bus is created later than this."""
        self._store = store
        self._bus = bus

    async def add(self, dead_letter: DeadLetter) -> None:
        """
        Store *dead_letter*, then publish it and wait until the stream has it; see `bus.port.DeadLetters`.

        Both recognise a dead letter by its id, so a repetition after an attempt that got only half way does no harm.
        """
        await self._store.add(dead_letter)
        if dead_letter.error == WAITS:  # the one that it waits for is published
            return
        message = _to_message(dead_letter)
        try:
            await self._bus().publish(message)
        except PublishRefused:  # the server allows less than `BYTES_MAX`
            with suppress(PublishRefused):
                await self._bus().publish(_without_body(dead_letter))


def dead_letter_subject(consumer: str, subject: str) -> str:
    """Return the subject on which the dead letters of *consumer* about *subject* are published."""
    return f"dead.{consumer}.{original_subject(subject)}"


def _to_message(dead_letter: DeadLetter) -> Message:
    message, about = dead_letter.message, _about(dead_letter)
    headers = {name: value for name, value in message.headers.items() if _is_publishable(name, value)}
    size = len(message.body) + sum(len(name) + len(value.encode()) for name, value in headers.items())
    subject = dead_letter_subject(dead_letter.consumer, message.subject)
    if size > BYTES_MAX:
        return _without_body(dead_letter)
    return Message(subject, dead_letter.id, message.body, message.key, {**headers, **about})


def _without_body(dead_letter: DeadLetter) -> Message:
    subject = dead_letter_subject(dead_letter.consumer, dead_letter.message.subject)
    return Message(subject, dead_letter.id, b"", "", {**_about(dead_letter), "dead-letter-body": "too large, see the table"})


def _about(dead_letter: DeadLetter) -> dict[str, str]:
    return {
        "dead-letter-error": _line(dead_letter.error),
        "dead-letter-detail": _line(dead_letter.detail[:_DETAIL_CHARACTERS_MAX]),
        "dead-letter-attempts": str(dead_letter.attempts),
        "dead-letter-consumer": dead_letter.consumer,
        "dead-letter-message-id": _line(dead_letter.message.id),
    }


def _is_publishable(name: str, value: str) -> bool:
    """
    Return whether a header of the message may be published with its dead letter.

    A header that instructs the stream of the message (``Nats-...``) does not apply to this stream. Like a malformed
    header, it could prevent the publish permanently.
    """
    return bool(_NAME(name)) and not name.lower().startswith("nats-") and value.isprintable()


def _line(text: str) -> str:
    """Return *text* as a header can carry it: one line of ASCII, everything else percent-encoded."""
    return quote(text.strip(), safe=_PLAIN)
