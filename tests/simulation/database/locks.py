"""The locks of rows of a simulated database server, and the waits for them on virtual time."""

from __future__ import annotations

__all__ = ["LOCK_SECONDS", "RowLocks"]

import asyncio
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from attrs import define, field
from sqlalchemy.util import await_only

from tests.simulation.database.errors import Deadlock, Disconnected, LockTimeout, Row

if TYPE_CHECKING:
    from tests.simulation.database.session import Session

LOCK_SECONDS = 2.0
"""As `app.storage.sql.postgres` sets it."""


@define(eq=False)
class RowLocks:
    """Which transactions have locked which rows, until they end."""

    _saw: Callable[[str], None]
    _holders: dict[Row, Session] = field(factory=dict)

    def is_free(self, row: Row, session: Session) -> bool:
        """Return whether no other session than *session* has locked *row*."""
        return self._holders.get(row, session) is session

    def take(self, rows: Iterable[Row], session: Session) -> Session | None:
        """Lock *rows* for *session*, in this order; return who has the first one that is not free, and lock no further one."""
        for row in rows:
            holder = self._holders.setdefault(row, session)
            if holder is not session:
                return holder
        return None

    def release(self, session: Session) -> None:
        """Release what *session* has locked."""
        self._holders = {row: holder for row, holder in self._holders.items() if holder is not session}

    def wait_for(self, holder: Session, session: Session) -> None:
        """
        Let *session* wait until the transaction of *holder* has ended.

        Raises:
            Deadlock: *holder* waits for *session*, perhaps by way of others.
            LockTimeout: It takes too long.
            Disconnected: *session* has ended meanwhile.
        """
        session.waits_for, each = holder, holder
        try:
            while each.waits_for is not None:
                each = each.waits_for
                if each is session:
                    self._saw("deadlock")
                    raise Deadlock("deadlock detected")
            self._saw("waits for a row")
            await_only(asyncio.wait_for(holder.transaction.ended.wait(), LOCK_SECONDS))
        except TimeoutError:
            self._saw("lock timeout")
            raise LockTimeout("a row is locked") from None
        finally:
            session.waits_for = None
        if session.has_ended:
            raise Disconnected("the server has closed the connection")
