"""How the payment provider answers during a run: what fails, for which calls, how often and for how long."""

from __future__ import annotations

__all__ = ["Answer", "Call", "Spell", "Weather"]

import random
from enum import StrEnum

from attrs import define, field, frozen

from app.gateways.port import (
    GatewayMisconfigured,
    GatewayNotReached,
    GatewayThrottled,
    GatewayTimeout,
    ResponseMismatch,
)


class Call(StrEnum):
    """The calls to the provider, as its breakers are named."""

    CHARGE = "charge"
    LOOK_UP = "look-up"
    REFUND = "refund"


class Answer(StrEnum):
    """How one call ends."""

    NORMAL = "normal"
    NOT_REACHED = "not reached"
    THROTTLED = "throttled"
    PAUSE = "asks for a pause"
    WRONG_KEY = "wrong API key"
    WRONG_PARAMETER = "wrong parameter"
    TIMEOUT_BEFORE = "no answer, no effect"
    FAILED_BEFORE = "error, no effect"
    TIMEOUT_AFTER = "no answer, with effect"
    FAILED_AFTER = "error, with effect"
    GARBLED = "garbled answer, with effect"
    HANG = "no end, no effect"
    LATE = "no end, effect later"
    SLOW = "slow"
    NO_BALANCE = "no balance for refunds"

    def error_before(self, rng: random.Random) -> Exception | None:
        """Return the error of a call that has no effect; None if this is none."""
        match self:
            case Answer.NOT_REACHED:
                return GatewayNotReached("the connection was refused")
            case Answer.THROTTLED:
                return GatewayThrottled("too many calls", rng.choice([None, 2.0]))
            case Answer.PAUSE:
                return GatewayNotReached("down for maintenance", rng.uniform(1.0, 8.0))
            case Answer.WRONG_KEY:
                return GatewayMisconfigured("no such API key", "api_key_expired")
            case Answer.WRONG_PARAMETER:
                return GatewayMisconfigured("no such parameter", "parameter_unknown", "shipping")
            case Answer.TIMEOUT_BEFORE:
                return GatewayTimeout("no answer")
            case Answer.FAILED_BEFORE:
                return GatewayTimeout("an internal error", has_ended=True)
        return None

    def error_after(self, rng: random.Random) -> Exception | None:
        """Return the error of a call that has its effect; None if this is none."""
        match self:
            case Answer.TIMEOUT_AFTER:
                return GatewayTimeout("no answer")
            case Answer.FAILED_AFTER:
                return GatewayTimeout("an internal error", has_ended=True)
            case Answer.GARBLED:
                return ResponseMismatch("nonsense", "the answer is cut off")
        return None


@frozen
class Spell:
    """A time during which a *share* of some *calls* is answered by *answer*."""

    answer: Answer
    calls: tuple[Call, ...]
    share: float


@define
class Weather:
    """The spells that last now."""

    spells: list[Spell] = field(factory=list)

    def draw(self, call: Call, rng: random.Random) -> tuple[Answer, float]:
        """Return how a call is answered, and how many seconds it takes more than usual."""
        for spell in self.spells:
            if call in spell.calls and spell.answer is not Answer.NO_BALANCE and rng.random() < spell.share:
                if spell.answer is Answer.SLOW:
                    return Answer.NORMAL, rng.uniform(1.0, 18.0)
                return spell.answer, 0.0
        return Answer.NORMAL, 0.0

    @property
    def lacks_balance(self) -> bool:
        """True while the shop has no balance that could be refunded."""
        return any(spell.answer is Answer.NO_BALANCE for spell in self.spells)
