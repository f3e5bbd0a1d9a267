"""Mutual exclusion by order, for the calls of the payment worker."""

from __future__ import annotations

__all__ = ["OrderLocks"]

import asyncio


class OrderLocks:
    """Mutual exclusion by order: what concerns one order takes turns, in order of arrival."""

    def __init__(self) -> None:
        self._last_turns: dict[str, _Turn] = {}

    def turn(self, order_id: str) -> _Turn:
        """Return a context manager: it is entered once all earlier turns for *order_id* have ended, and yields whether there were none."""
        previous = self._last_turns.get(order_id)
        turn = self._last_turns[order_id] = _Turn(self._last_turns, order_id, previous)
        return turn


class _Turn:
    """One turn. A class costs a third of a generator-based context manager; every request takes one."""

    __slots__ = ("_order_id", "_previous", "_turns", "ended")

    def __init__(self, turns: dict[str, _Turn], order_id: str, previous: _Turn | None) -> None:
        self._turns = turns
        self._order_id = order_id
        self._previous = previous
        self.ended: asyncio.Future[None] | None = None
        """Is done once the turn has ended. Only the next turn for the order needs it, and makes it."""
        if previous is not None:
            previous.ended = asyncio.get_running_loop().create_future()

    async def __aenter__(self) -> bool:
        previous = self._previous
        if previous is None:
            return True
        self._previous = None  # a long chain of turns must not keep all of them alive
        ended = previous.ended
        assert ended is not None
        try:
            await asyncio.wait((ended,))
        except BaseException:
            # It was never entered. The turns after it wait for those before it nevertheless.
            ended.add_done_callback(lambda _: self._end())
            raise
        return False

    async def __aexit__(self, *error: object) -> None:
        self._end()

    def _end(self) -> None:
        if self.ended is not None:
            self.ended.set_result(None)
        if self._turns[self._order_id] is self:
            del self._turns[self._order_id]
