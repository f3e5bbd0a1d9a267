"""
The operations towards a provider. Each has its own breaker, pace and state: a failing one stops no other.

A fault of the configuration (`GatewayMisconfigured`) is logged once, at ERROR, and shown by readiness until a call of the
operation succeeds.
"""

from __future__ import annotations

__all__ = ["Operation", "OperationKind", "Operations"]

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from enum import StrEnum
from typing import TypeVar

from attrs import define, field
from loguru import logger

from app.gateways.breakers.call_pace import CallPace
from app.gateways.breakers.circuit_breaker import BreakerState, CircuitBreaker
from app.gateways.port import (
    GatewayError,
    GatewayMisconfigured,
    GatewayThrottled,
    GatewayTimeout,
    ResponseMismatch,
)
from app.telemetry.collectors import Gauges
from bus.port import Clock

T = TypeVar("T")

REPORT_SECONDS = 3_600.0
"""The same fault is logged again only after this time, if calls succeed meanwhile."""


class OperationKind(StrEnum):
    CHARGE = "charge"
    REFUND = "refund"
    LOOK_UP = "look_up"


@define(eq=False)
class Operation:
    """One operation of the gateway *gateway_name*, and the outcome of its latest calls."""

    kind: OperationKind
    gateway_name: str
    breaker: CircuitBreaker
    clock: Clock
    pace: CallPace = field(init=False)
    fault: GatewayMisconfigured | None = field(default=None, init=False)
    """What the provider does not accept in our configuration; None once a call has succeeded."""
    _reported: dict[tuple[str, ...], float] = field(factory=dict)
    """When each fault was logged; all operations of a gateway share it, because a wrong key is a fault of all of them."""

    def __attrs_post_init__(self) -> None:
        self.pace = CallPace(self.clock.monotonic)

    async def call(self, call: Callable[[], Awaitable[T]], seconds_max: float, *, has_waited: bool = False) -> T:
        """
        Make one call with a permit of the breaker, and report its outcome to the breaker.

        It waits for the pace, unless the caller *has_waited* for that.

        Raises:
            BreakerOpen: The circuit breaker permits no call now.
            GatewayError, ResponseMismatch: As the gateway raises them; `GatewayTimeout` after *seconds_max*.
        """
        if not has_waited and (wait_seconds := self.pace.reserve()) > 0:
            await self.clock.sleep(wait_seconds)
        permit = self.breaker.acquire()
        try:
            async with asyncio.timeout(seconds_max):
                response = await call()
        except GatewayThrottled as error:
            self.pace.throttled()
            self.breaker.failed(permit, error.retry_after_seconds, opens_at_once=False)
            raise
        except GatewayMisconfigured as error:
            self._report(error)
            if error.param is None:
                self.breaker.failed(permit)
            else:  # it is a parameter of this one call; others are not affected
                self.breaker.succeeded(permit)
            raise
        except GatewayError as error:
            self.breaker.failed(permit, error.retry_after_seconds)
            raise
        except ResponseMismatch:  # it is a response: the provider can be reached
            self.breaker.succeeded(permit)
            raise
        except TimeoutError:
            self.breaker.failed(permit)
            raise GatewayTimeout(f"no response within {seconds_max:g} s") from None
        except BaseException:  # cancelled, or a bug in our code: neither is evidence about the provider
            self.breaker.cancelled(permit)
            raise
        self.breaker.succeeded(permit)
        self.pace.succeeded()
        if self.fault is not None:
            self._recover()
        return response

    @property
    def problem(self) -> str | None:
        """What keeps its calls from succeeding, for readiness; None if nothing does."""
        if self.fault is not None:
            param = "" if self.fault.param is None else f" ({self.fault.param})"
            return f"misconfigured: {self.fault.code}{param}"
        return None if self.breaker.state is BreakerState.CLOSED else "unavailable"

    def misconfigured(self) -> float:
        """Return 1 while the provider does not accept our configuration, for metrics."""
        return float(self.fault is not None)

    def _report(self, error: GatewayMisconfigured) -> None:
        self.fault = error
        now, name = self.clock.monotonic(), (error.code, error.param or "", "" if "api_key" in error.code else self.kind)
        if (reported_at := self._reported.get(name)) is not None and now < reported_at + REPORT_SECONDS:
            return
        self._reported[name] = now
        logger.error(
            "the payment provider does not accept our configuration; calls are repeated until it is corrected there or here",
            gateway=self.gateway_name, operation=self.kind.value, code=error.code, param=error.param,
            request_id=error.request_id, detail=str(error),
        )  # fmt: skip

    def _recover(self) -> None:
        self.fault = None
        logger.info("the payment provider accepts our calls again", gateway=self.gateway_name, operation=self.kind.value)


@define(eq=False)
class Operations:
    """All operations of one gateway."""

    charge: Operation
    refund: Operation
    look_up: Operation

    @classmethod
    def of(
        cls,
        gateway_name: str,
        clock: Clock,
        make_breaker: Callable[[OperationKind], CircuitBreaker],
        misconfigured: Gauges | None = None,
    ) -> Operations:
        """Return the operations of a gateway, each with a breaker that *make_breaker* returns; *misconfigured* shows faults."""
        reported: dict[tuple[str, ...], float] = {}
        kinds = {kind.value: Operation(kind, gateway_name, make_breaker(kind), clock, reported) for kind in OperationKind}
        if misconfigured is not None:
            for kind, operation in kinds.items():
                misconfigured.labels(gateway_name, kind).set_function(operation.misconfigured)
        return cls(**kinds)

    def checks(self) -> Mapping[str, str]:
        """Return the operations that do not work, and why, for readiness; nothing if all work."""
        operations = (self.charge, self.refund, self.look_up)
        return {f"gateway:{each.kind.value}": each.problem for each in operations if each.problem is not None}
