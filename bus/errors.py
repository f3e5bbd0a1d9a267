"""Errors of the bus, sorted by what the caller does next: retry, dead-letter the message, or stop."""

from __future__ import annotations

__all__ = [
    "BrokerUnreachable",
    "BusClosed",
    "BusError",
    "ContractError",
    "Invalid",
    "PublishRefused",
    "PublishRetryable",
    "Rejected",
    "SchemaViolation",
    "UnknownSubject",
    "Unreadable",
]

from attrs import frozen


class BusError(Exception):
    """Base class of the errors that occur while a message is published, transported or read."""

    code = "bus_error"


class PublishRetryable(BusError):
    """The bus cannot accept the message now; the same call may succeed later."""

    code = "bus_unavailable"


class PublishRefused(BusError):
    """The bus never accepts this message, because it is too large or malformed. It accepts other messages."""

    code = "not_publishable"


class BusClosed(BusError):
    """The bus is closed; it neither accepts nor delivers messages."""

    code = "bus_closed"


class BrokerUnreachable(BusError):
    """No server of the bus answered within the time allowed for the first connection."""

    code = "bus_unreachable"


class ContractError(Exception):
    """A schema, a class and a subject contradict each other; the process must not start."""


class Rejected(BusError):
    """Redelivery cannot help this message; it becomes a dead letter."""

    code = "put_aside"


class Unreadable(Rejected):
    """The body is not JSON in UTF-8."""

    code = "unreadable"


class UnknownSubject(Rejected):
    """The registry has no contract for this subject, or not for this version of it."""

    code = "unknown_subject"


@frozen
class SchemaViolation:
    """One violation of a schema; *pointer* is an RFC 6901 JSON Pointer into the value, "" for the whole value."""

    pointer: str
    detail: str


class Invalid(Rejected):
    """The body violates the schema of its subject."""

    code = "invalid"

    def __init__(self, subject: str, problems: tuple[SchemaViolation, ...]) -> None:
        self.subject = subject
        self.problems = problems
        reasons = "; ".join(f"{problem.pointer or '/'}: {problem.detail}" for problem in problems)
        super().__init__(f"{subject}: {reasons or 'does not match its schema'}")
