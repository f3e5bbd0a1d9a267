"""
Linearizability of a history, by search.

A history is linearizable if each operation can be given one moment between its call and its answer, such that the
operations in the order of these moments are what the model allows. The search is that of Wing and Gong, "Testing and
Verifying Concurrent Objects" (1993), with the memory of visited configurations that Lowe adds in "Testing for
linearizability" (2017); Porcupine and Knossos do the same. A history is linearizable if it is so for each object
(Herlihy and Wing 1990, locality), so each key is searched alone.
"""

from __future__ import annotations

__all__ = ["NEVER", "Operation", "SearchTooLarge", "Step", "is_linearizable"]

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from attrs import frozen

NEVER = math.inf
"""The end of an operation whose outcome is unknown."""

CONFIGURATIONS_MAX = 500_000


class SearchTooLarge(Exception):
    """The search has visited too many configurations; the history is neither accepted nor refused."""


@frozen(kw_only=True)
class Operation:
    """
    One call of a client: *name* with *value*, called at *start* and answered at *end*, both in seconds of one clock.

    *reply* is None and *end* is `NEVER` if the outcome is unknown: the operation takes effect at any moment after *start*,
    or never.
    """

    name: str
    value: Any = None
    reply: Any = None
    start: float
    end: float = NEVER

    @property
    def is_known(self) -> bool:
        return self.end != NEVER


Step = Callable[[Any, Operation], Sequence[Hashable]]
"""Returns the states that may follow from a state by an operation; none if the reply contradicts the state."""


def is_linearizable(step: Step, initial: Hashable, operations: Sequence[Operation]) -> bool:
    """
    Return whether *operations* on one object, *initial* at the beginning, are linearizable in the model *step*.

    Raises:
        SearchTooLarge: There is no answer within the limit of configurations.
    """
    todo = sorted(operations, key=lambda each: each.start)
    known = sum(1 << number for number, each in enumerate(todo) if each.is_known)
    stack: list[tuple[int, Hashable]] = [(0, initial)]
    seen = set(stack)
    while stack:
        done, state = stack.pop()
        if done & known == known:
            return True
        for number in _next(todo, done):
            for following in step(state, todo[number]):
                configuration = (done | 1 << number, following)
                if configuration not in seen:
                    seen.add(configuration)
                    stack.append(configuration)
        if len(seen) > CONFIGURATIONS_MAX:
            raise SearchTooLarge(f"{len(seen)} configurations of {len(todo)} operations")
    return False


def _next(todo: Sequence[Operation], done: int) -> list[int]:
    """Return the operations that may come next: those called before the first answer that is still missing."""
    found: list[int] = []
    first_end = NEVER
    number = (~done & (done + 1)).bit_length() - 1  # the first one that is not done
    while number < len(todo) and todo[number].start <= first_end:
        if not done >> number & 1:
            found.append(number)
            first_end = min(first_end, todo[number].end)
        number += 1
    # The last one is tried first: in the order of the answers, most histories need no way back.
    return sorted((each for each in found if todo[each].start <= first_end), key=lambda each: -todo[each].end)
