"""
The handler around every endpoint: authentication, problem responses, metrics and logs.

aiohttp's middlewares would cost every request several microseconds. Instead, each route has one `Handler`, which binds
everything that is known beforehand when it is constructed.
"""

from __future__ import annotations

__all__ = [
    "PROBES",
    "SERVER",
    "UNTRACED",
    "CounterFamily",
    "Endpoint",
    "EndpointHandler",
    "Handler",
    "HandlerDeps",
    "HistogramFamily",
    "HttpHandler",
    "Pages",
    "RequestContext",
    "RouteGroup",
    "ShowProblem",
    "Telemetry",
    "build_handler",
    "problem_for",
]

from collections.abc import Awaitable, Callable, Mapping, Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

from aiohttp import hdrs, web
from attrs import define, field, frozen
from loguru import logger
from uuid_utils import uuid7

from app.runtime.service import IdempotencyKeyReused
from app.storage.errors import CommitOutcomeUnknown, TemporarilyUnavailable
from app.telemetry.logs import enabled
from app.telemetry.trace import TRACEPARENT, correlation_id
from app.web.access.authentication import ANONYMOUS
from app.web.access.cors import Cors
from app.web.access.gate import Gate
from app.web.responses.problems import X_CORRELATION_ID, ProblemError, problem_response
from app.web.spec.components import Description
from config.api_keys import OPERATOR

if TYPE_CHECKING:
    from app.telemetry.otel.tracer import ServerSpan, Tracer

PROBES = frozenset({"/livez", "/readyz", "/health"})
"""Paths that are answered under any host name, and on a connection beyond the limit."""

UNTRACED = PROBES | {"/metrics"}
"""Paths without a span: they are requested often, and change nothing."""

SERVER = "fulfilment"
"""Value of the ``Server`` header. It has no version: that would help only an attacker."""


class CounterFamily(Protocol):
    """A metric of counters, one for each combination of labels."""

    def labels(self, method: str, route: str, status: str, /) -> Any:
        """Return the counter; it has ``inc()``."""


class HistogramFamily(Protocol):
    """A metric of histograms, one for each route."""

    def labels(self, route: str, /) -> Any:
        """Return the histogram; it has ``observe(seconds)``."""


class Telemetry(Protocol):
    """The metrics that the web layer records and serves."""

    @property
    def tracer(self) -> Tracer | None:
        """What makes spans; None without a collector."""

    @property
    def http_requests(self) -> CounterFamily:
        """Requests by method, route template and status."""

    @property
    def http_request_seconds(self) -> HistogramFamily:
        """Durations by route template."""

    def render(self) -> bytes:
        """Return all metrics in Prometheus' text format."""


@define
class RequestContext:
    """What the handler knows about one request, for its endpoint."""

    correlation_id: str
    caller: str
    """The name of the API key; "anonymous" without one."""
    _record: Callable[[int], None] = field(alias="record")
    is_recorded: bool = field(default=False, init=False)
    traceparent: str | None = field(default=None, init=False)
    """Of the trace that the request belongs to, if its span is made here."""
    customer: str | None = field(default=None, init=False)
    """The caller may see and place orders of this customer only; None: of all."""

    def record_now(self, status: int) -> None:
        """
        Count and time the request now, with *status*.

        For an endpoint whose response stays open for a long time; every other request is recorded when its endpoint returns.
        """
        self._record(status)
        self.is_recorded = True


HttpHandler = Callable[[web.Request], Awaitable[web.StreamResponse]]
EndpointHandler = Callable[[web.Request, RequestContext], Awaitable[web.StreamResponse]]
ShowProblem = Callable[[ProblemError, web.Request, str], web.Response]
"""Returns the response for a problem, from the request and its correlation id."""


@frozen
class Endpoint:
    """One method on one path template, with the function that handles it."""

    method: str
    path: str
    handle: EndpointHandler
    roles: tuple[str, ...] = ()
    """Who may call it beside the operator."""
    is_public: bool = False
    """No API key is required."""
    is_503_expected: bool = False
    """A 503 is a regular answer, as of a probe, and is not logged as an error."""
    takes_token: bool = False
    """A token of `app.web.access.stream_tokens` is accepted in place of a key."""
    is_scoped: bool = False
    """It observes `RequestContext.customer`; a caller that is restricted to one customer reaches no other endpoint."""
    show_problem: ShowProblem | None = None
    """How a problem is shown; None: as a problem document."""


@frozen
class RouteGroup:
    """Endpoints that no module declares, with their OpenAPI description."""

    endpoints: tuple[Endpoint, ...]
    description: Description


class Pages(Protocol):
    """Pages for persons, which an application serves beside the API."""

    def endpoints(self) -> Sequence[Endpoint]:
        """Return an endpoint for each page, those of more general paths last."""

    def setup(self, app: web.Application) -> None:
        """Prepare what the pages need of *app*, before it starts."""


@frozen
class HandlerDeps:
    """What every handler needs."""

    telemetry: Telemetry
    gate: Gate
    cors: Cors | None = None
    """None where no page of another origin may read anything."""


class Handler:
    """
    Handles all requests to one endpoint.

    It answers every request: an exception that the endpoint raises becomes a problem document. Only a cancellation is
    passed on.
    """

    __slots__ = (
        *("_cors", "_counters", "_deps", "_endpoint", "_gate", "_handle", "_histogram", "_hosts", "_is_public", "_roles", "_tracer"),
    )

    def __init__(self, endpoint: Endpoint, deps: HandlerDeps) -> None:
        self._endpoint = endpoint
        self._deps = deps
        self._handle = endpoint.handle
        self._gate = deps.gate
        self._cors = deps.cors
        self._is_public = endpoint.is_public
        self._tracer = None if endpoint.path in UNTRACED else deps.telemetry.tracer
        self._hosts = None if endpoint.path in PROBES else deps.gate.hosts
        # A request that matches no route gets its 404 from every known caller.
        self._roles = None if endpoint.method == hdrs.METH_ANY else frozenset((OPERATOR, *endpoint.roles))
        self._counters: dict[int, Any] = {}
        self._histogram: Any = None

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        """Authenticate and answer *request*, and record what was answered."""
        started = perf_counter()
        correlation = correlation_id(request.headers.get(X_CORRELATION_ID), _new_correlation_id)
        context = RequestContext(correlation, ANONYMOUS.name, lambda status: self._record(status, started, request.method))
        span: ServerSpan | None = None
        if self._tracer is not None:
            span = self._tracer.begin_request(request.headers.get(TRACEPARENT))
            context.traceparent = span.traceparent
        response: web.StreamResponse
        try:
            if self._hosts is not None:
                self._hosts(request)
            if not self._is_public:
                key = self._gate.admit(request, self._roles, self._endpoint.is_scoped, self._endpoint.takes_token)
                context.caller, context.customer = key.name, key.customer
            response = await self._handle(request, context)
        except Exception as error:
            response = self._reject(error, request, context)
            if span is not None:
                span.error = error
        if not response.prepared:
            response.headers[X_CORRELATION_ID] = correlation
            response.headers[hdrs.SERVER] = SERVER
            if self._cors is not None:
                self._cors.add(request, response)
        if not context.is_recorded:
            self._record(response.status, started, request.method)
        if span is not None and self._tracer is not None:
            method, path = request.method, request.rel_url.raw_path
            self._tracer.end_request(span, method, self._endpoint.path, request.scheme, path, response.status)
        if enabled("DEBUG"):
            logger.debug(
                "request answered",
                method=request.method,
                route=self._endpoint.path,
                status=response.status,
                seconds=round(perf_counter() - started, 6),
                correlation_id=correlation,
                caller=context.caller,
            )
        return response

    def _reject(self, error: Exception, request: web.Request, context: RequestContext) -> web.Response:
        """Return the problem document for *error*; log it if no other component does."""
        problem = problem_for(error)
        correlation = context.correlation_id
        fields = {"method": request.method, "route": self._endpoint.path, "correlation_id": correlation}
        if problem.status < 500:
            self._gate.log.refused(request, problem, context.caller, correlation)
        elif problem.status == 500:
            logger.opt(exception=error).error("request failed", **fields)
        elif problem.status > 500 and not self._endpoint.is_503_expected and not _is_logged_at_its_cause(error):
            logger.error("request rejected", status=problem.status, **fields)
        if self._endpoint.show_problem is not None:
            return self._endpoint.show_problem(problem, request, correlation)
        return problem_response(problem, request.rel_url.raw_path, correlation)

    def _record(self, status: int, started: float, method: str) -> None:
        """Count one request that was answered with *status*, and observe the time since *started*."""
        endpoint, telemetry = self._endpoint, self._deps.telemetry
        if endpoint.method == hdrs.METH_ANY:  # any method reaches the catch-all; the metric itself limits their number
            telemetry.http_requests.labels(method, endpoint.path, str(status)).inc()
        else:
            counter = self._counters.get(status)
            if counter is None:
                counter = telemetry.http_requests.labels(endpoint.method, endpoint.path, str(status))
                self._counters[status] = counter
            counter.inc()
        if self._histogram is None:
            self._histogram = telemetry.http_request_seconds.labels(endpoint.path)
        self._histogram.observe(perf_counter() - started)


def build_handler(endpoint: Endpoint, deps: HandlerDeps) -> HttpHandler:
    """Return the aiohttp handler for *endpoint*."""
    # aiohttp takes coroutine functions only: a bound method is one, an instance with an async __call__ is not.
    return Handler(endpoint, deps).__call__


def problem_for(error: Exception) -> ProblemError:
    """Return the problem that answers *error*, by the closest of its classes that `_PROBLEMS` has."""
    convert = next(_PROBLEMS[cls] for cls in type(error).__mro__ if cls in _PROBLEMS)
    return convert(error)


def _key_reused(error: IdempotencyKeyReused) -> ProblemError:
    return ProblemError(422, error.code, "This Idempotency-Key was used before, with another body.")


def _unavailable(error: TemporarilyUnavailable) -> ProblemError:
    return ProblemError(
        503,
        error.code,
        _UNAVAILABLE_DETAILS.get(error.code, "Not possible now; nothing was stored. Try again later."),
        headers={hdrs.RETRY_AFTER: str(max(1, int(error.retry_after_seconds)))},
    )


def _internal_error(error: Exception) -> ProblemError:
    detail = "An internal error occurred. The correlation id identifies it in the server's log."
    return ProblemError(500, "internal_error", detail)


_PROBLEMS: Mapping[type, Callable[[Any], ProblemError]] = {
    ProblemError: lambda problem: problem,
    IdempotencyKeyReused: _key_reused,
    TemporarilyUnavailable: _unavailable,
    Exception: _internal_error,
}

# The exception's own text is not used: it may name a host or a path.
_UNAVAILABLE_DETAILS = {
    "overloaded": "Too many requests are waiting already; nothing was stored. Try again later.",
    "outcome_unknown": (
        "The connection to the database broke during the commit; it is unknown whether the request was stored."
        " Send it again with the same Idempotency-Key, or check the state before you send it again."
    ),
    "database_unavailable": "The database is unavailable; nothing was stored. Try again later.",
}


def _is_logged_at_its_cause(error: Exception) -> bool:
    """
    Return whether the component that raised *error* has logged its cause.

    An overload or an outage is logged once; a line for each rejected request would add load at the worst moment. An
    unknown outcome concerns one request only, so it is logged for each.
    """
    return isinstance(error, TemporarilyUnavailable) and not isinstance(error, CommitOutcomeUnknown)


def _new_correlation_id() -> str:
    return str(uuid7())
