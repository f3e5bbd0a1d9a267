"""
Errors of the storage, sorted by what the caller does next.

`TemporarilyUnavailable` and its subclasses: try again later. `DatabaseConfigError`: correct the configuration.
"""

from __future__ import annotations

__all__ = ["CommitOutcomeUnknown", "DatabaseConfigError", "StorageRefused", "StorageUnavailable", "TemporarilyUnavailable"]


class TemporarilyUnavailable(Exception):
    """Nothing was stored; try again after *retry_after_seconds*."""

    code = "unavailable"

    def __init__(self, detail: str, retry_after_seconds: int = 1) -> None:
        self.detail = detail
        self.retry_after_seconds = retry_after_seconds
        super().__init__(detail)


class StorageUnavailable(TemporarilyUnavailable):
    """The database cannot be reached."""

    code = "database_unavailable"


class StorageRefused(StorageUnavailable):
    """
    The database answers and refuses the work for a reason that is not in the data: a permission, a table, a damaged page.

    Nothing is wrong with the event or the request; it succeeds once an operator has corrected the database.
    """


class CommitOutcomeUnknown(StorageUnavailable):
    """The connection broke during the commit; it is unknown whether the transaction was stored."""

    code = "outcome_unknown"


class DatabaseConfigError(Exception):
    """The database cannot be used as configured; the message is one line for the operator."""
