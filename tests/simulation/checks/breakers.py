"""What the circuit breakers of a process permit: nothing while one is open, one probe when it half-opens, and that one closes it."""

from __future__ import annotations

__all__ = ["BreakerWatch"]

from collections.abc import Callable

from attrs import define, field

from app.gateways.breakers.circuit_breaker import BreakerState
from app.gateways.breakers.operations import OperationKind
from tests.simulation.provider.weather import Call
from tests.simulation.world.scope import Scope

_KINDS = {Call.CHARGE: OperationKind.CHARGE, Call.LOOK_UP: OperationKind.LOOK_UP, Call.REFUND: OperationKind.REFUND}


@define
class _Seen:
    """A breaker since its last change."""

    state: BreakerState = BreakerState.CLOSED
    probes: int = 0
    answered: int = 0
    """How many of the probes the provider has answered, be it with an error."""


@define(eq=False)
class BreakerWatch:
    """Compares the calls of each process with the changes of its breakers."""

    fail: Callable[[str], None]
    openings: int = 0
    """How often a breaker has opened."""
    _seen: dict[tuple[Scope, OperationKind], _Seen] = field(factory=dict)

    def on_change(self, scope: Scope, kind: OperationKind, state: BreakerState) -> None:
        """Note a change, and check that a probe has come before the end of a time without calls."""
        seen = self._of(scope, kind)
        if state is BreakerState.CLOSED and not seen.answered:
            self.fail(f"the breaker of {kind.value} is closed, and no probe has been answered")
        self.openings += state is BreakerState.OPEN
        self._seen[scope, kind] = _Seen(state)

    def before_call(self, scope: Scope, call: Call) -> BreakerState:
        """Check that a call is permitted now; return the state in which it begins."""
        seen = self._of(scope, _KINDS[call])
        seen.probes += 1
        if seen.state is BreakerState.OPEN:
            self.fail(f"a call of {call.value} although its breaker is open")
        if seen.state is BreakerState.HALF_OPEN and seen.probes > 1:
            self.fail(f"{seen.probes} probes of {call.value} at once")
        return seen.state

    def after_call(self, scope: Scope, call: Call, began_in: BreakerState) -> None:
        """Note that the provider has answered a call."""
        seen = self._of(scope, _KINDS[call])
        seen.answered += began_in is BreakerState.HALF_OPEN is seen.state

    def _of(self, scope: Scope, kind: OperationKind) -> _Seen:
        return self._seen.setdefault((scope, kind), _Seen())
