"""What can go wrong on the wire, sorted by what the caller does next: retry, put aside, stop."""

from __future__ import annotations

__all__ = [
    "BrokerUnreachable",
    "BusClosed",
    "BusError",
    "ContractError",
    "Invalid",
    "PublishRetryable",
    "Rejected",
    "SchemaViolation",
    "UnknownSubject",
    "Unreadable",
]

from attrs import frozen


class BusError(Exception):
    """Something went wrong between a message and its reader."""

    code = "bus_error"


class PublishRetryable(BusError):
    """The bus cannot take this now; the same call may succeed later."""

    code = "bus_unavailable"


class BusClosed(BusError):
    """The bus has been closed; nothing goes in or out any more."""

    code = "bus_closed"


class BrokerUnreachable(BusError):
    """No server of the bus has answered in all the time that there was for the first connection."""

    code = "bus_unreachable"


class ContractError(Exception):
    """A schema, a class and a subject contradict each other; the program must not start."""


class Rejected(BusError):
    """No further try can help this message; a person has to look at it."""

    code = "put_aside"


class Unreadable(Rejected):
    """The body is not JSON in UTF-8."""

    code = "unreadable"


class UnknownSubject(Rejected):
    """Nobody here has a contract for this subject, or for this version of it."""

    code = "unknown_subject"


@frozen
class SchemaViolation:
    """One reason for a rejection: *pointer* is an RFC 6901 JSON Pointer into the value, "" for the whole of it."""

    pointer: str
    detail: str


class Invalid(Rejected):
    """The body breaks the schema of its subject."""

    code = "invalid"

    def __init__(self, subject: str, problems: tuple[SchemaViolation, ...]) -> None:
        self.subject = subject
        self.problems = problems
        reasons = "; ".join(f"{problem.pointer or '/'}: {problem.detail}" for problem in problems)
        super().__init__(f"{subject}: {reasons or 'does not fit its schema'}")
