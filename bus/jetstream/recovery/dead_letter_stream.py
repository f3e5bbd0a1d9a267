"""Dead letters on the stream ``DEAD_LETTERS``, for whoever watches them there; the table stays the truth."""

from __future__ import annotations

__all__ = ["DeadLetterPublisher", "dead_letter_subject"]

import re
from collections.abc import Callable
from urllib.parse import quote

from bus.port import Bus, DeadLetter, DeadLetters, Message
from bus.replay_subjects import original_subject

BYTES_MAX = 1_000_000
"""What fits into one message of a NATS server that nobody has configured otherwise (1 MiB), with something to spare."""

_DETAIL_CHARACTERS_MAX = 1_000
_NAME = re.compile(r"[!-9;-~]+").fullmatch
_PLAIN = " !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~"


class DeadLetterPublisher:
    """Keep each letter where *kept* does, then publish it under ``dead.<consumer>.<original subject>``."""

    def __init__(self, kept: DeadLetters, bus: Callable[[], Bus]) -> None:
        """Publish on what *bus* returns; it is asked for each letter, because a bus is made after its dead letters."""
        self._kept = kept
        self._bus = bus

    async def add(self, dead_letter: DeadLetter) -> None:
        """
        Keep *letter*, then see the stream take it; see `bus.port.DeadLetters`.

        Both know a letter by its id, so that asking again after an attempt that got only half way does no harm.
        """
        await self._kept.add(dead_letter)
        await self._bus().publish(_published(dead_letter))


def dead_letter_subject(consumer: str, subject: str) -> str:
    """Return where the dead letters of *consumer* about *subject* are published."""
    return f"dead.{consumer}.{original_subject(subject)}"


def _published(dead_letter: DeadLetter) -> Message:
    message = dead_letter.message
    about = {
        "dead-letter-error": _line(dead_letter.error),
        "dead-letter-detail": _line(dead_letter.detail[:_DETAIL_CHARACTERS_MAX]),
        "dead-letter-attempts": str(dead_letter.attempts),
        "dead-letter-consumer": dead_letter.consumer,
        "dead-letter-message-id": _line(message.id),
    }
    headers = {name: value for name, value in message.headers.items() if _may_go_on(name, value)}
    size = len(message.body) + sum(len(name) + len(value.encode()) for name, value in headers.items())
    subject = dead_letter_subject(dead_letter.consumer, message.subject)
    if size > BYTES_MAX:
        return Message(subject, dead_letter.id, b"", "", {**about, "dead-letter-body": "too large, see the table"})
    return Message(subject, dead_letter.id, message.body, message.key, {**headers, **about})


def _may_go_on(name: str, value: str) -> bool:
    """
    Tell whether a header of the message goes on its letter, too.

    What was addressed to the stream that it came from is not meant for this one, and, like what is no proper header,
    could keep the letter out for ever.
    """
    return bool(_NAME(name)) and not name.lower().startswith("nats-") and value.isprintable()


def _line(text: str) -> str:
    """Return *text* as a header can carry it: one line of ASCII, everything else percent-encoded."""
    return quote(text.strip(), safe=_PLAIN)
