"""
Routes of a module, described independently of any web framework.

There are seven kinds: `CommandRoute` submits an event, `ImportRoute` submits many, `GetRoute` returns one state, `ListRoute`
returns many by the page and `ExportRoute` all at once, `StreamRoute` sends one state after each change, and `ListStreamRoute`
all of them. The web layer implements them over HTTP; a module describes only which event a request stands for and what the response contains.
"""

from __future__ import annotations

__all__ = [
    "OWNER",
    "CommandRoute",
    "ExportRoute",
    "GetRoute",
    "ImportRoute",
    "ListRoute",
    "ListStreamRoute",
    "Rejection",
    "Request",
    "Response",
    "Role",
    "Route",
    "StreamRoute",
]

from collections.abc import Callable, Mapping
from typing import Any, Literal

from attrs import field, frozen

from modules.filters import Filter
from modules.values import UNCONDITIONAL, Precondition

Json = Any

Role = Literal["shop", "stock", "viewer"]
"""Who may call a route beside the operator; docs/reference/configuration.rst describes the roles."""

OWNER = "customer_id"
"""
The attribute of a state that names the customer to whom it belongs.

A caller may be restricted to one customer. It reaches a route only if the route declares where the customer is found: in an
attribute of its state with this name, or as `CommandRoute.customer` and `CommandRoute.owned` declare.
"""


@frozen
class Request:
    """A request whose body is valid under its schema."""

    path: Mapping[str, str]
    """Path parameters, by name."""
    body: Json
    new_id: str
    """A new UUIDv7, for a route that creates a resource."""
    correlation_id: str = ""
    """The correlation id of the request, given by the client or new."""
    precondition: Precondition = UNCONDITIONAL
    """``If-Match`` and ``If-None-Match``, for a route that takes them."""


@frozen
class Response:
    """A successful response: a 2xx status and a JSON body."""

    status: int
    body: Json
    headers: Mapping[str, str] = field(factory=dict)


@frozen
class Rejection:
    """
    A business rejection: a 4xx status, a stable *code* for programs and a sentence for the reader.

    *pointer* is the JSON pointer (RFC 6901) of the member of the request body that it is about, if it is about one.
    """

    status: int
    code: str
    detail: str
    pointer: str | None = None


@frozen
class CommandRoute:
    """Submit an event to the module and respond with the outcome."""

    name: str
    """Operation id in the OpenAPI document, unique in the process: ``placeOrder``."""
    method: str
    path: str
    summary: str
    event: Callable[[Request], Any]
    """Returns the event to submit."""
    respond: Callable[[Any], Response | Rejection]
    """Builds the response from the `DecisionOutcome`. Pure: called inside the transaction, and its result is stored for
    as long as the idempotency key is."""
    response_schema: str
    """Name of the response body's schema in the module's ``http_schemas``."""
    status: int = 200
    request_schema: str | None = None
    """Name of the request body's schema; None if the route takes no body."""
    needs_body: bool = True
    """False if the body is optional."""
    takes_precondition: bool = False
    """True if the route honours ``If-Match`` and ``If-None-Match``; the module compares them with the state."""
    requires_precondition: bool = False
    """True if the route answers 428 to a request without one of them."""
    idempotent: bool = False
    """True if the route accepts an Idempotency-Key."""
    express: Callable[[Request], bool] = lambda request: False
    """Returns whether the published events travel in the express lane."""
    sheds_load: bool = False
    """True if the route starts new work; under overload such routes are rejected first."""
    rejections: tuple[int, ...] = ()
    """Statuses of the rejections that `respond` can return, for the API description."""
    customer: str | None = None
    """The member of the request body that names the customer; see `OWNER`."""
    is_audited: bool = True
    """Whether the audit records who used it. False for what customers do all day, and for what the state itself records."""
    owned: type | None = None
    """The state, under the key that is the path's only parameter, whose attribute `OWNER` names the customer."""
    roles: tuple[Role, ...] = ()
    """Who may call it; the operator always may."""


@frozen
class GetRoute:
    """Return one state by its key, which is the path's only parameter."""

    name: str
    path: str
    summary: str
    state: type
    show: Callable[[Any], Json | None]
    """Returns the JSON body; None means 404."""
    response_schema: str
    etag: Callable[[Any], str] | None = None
    """Returns the strong entity tag of the state's representation, with its quotes."""
    roles: tuple[Role, ...] = ()
    """Who may call it; the operator always may."""


@frozen
class _StatesRoute:
    """The states that meet the filters, in the order of their keys."""

    name: str
    path: str
    summary: str
    state: type
    show: Callable[[Any], Json | None]
    """Returns the JSON of one state; None leaves it out."""
    response_schema: str
    """Name of the schema of one state in the module's ``http_schemas``."""
    newest_first: bool = False
    filters: tuple[Filter, ...] = ()
    """The query parameters that select the states."""
    roles: tuple[Role, ...] = ()
    """Who may call it; the operator always may."""


@frozen
class ListRoute(_StatesRoute):
    """
    List states with keyset pagination over their key: ``limit`` 1 to 200, ``cursor`` opaque.

    A page may be shorter than its limit, or empty, although it has a next cursor; see `app.storage.search.list_query`.
    """


@frozen
class ExportRoute(_StatesRoute):
    """Send all states that meet the filters, one JSON object a line (NDJSON), in the order of a `ListRoute`."""


@frozen
class StreamRoute:
    """Send one state after each change as server-sent events, until *is_finished* returns true."""

    name: str
    path: str
    summary: str
    state: type
    show: Callable[[Any], Json | None]
    event_name: str
    """Name of every event of the stream."""
    is_finished: Callable[[Any], bool]
    response_schema: str
    roles: tuple[Role, ...] = ()
    """Who may call it; the operator always may."""


@frozen
class ListStreamRoute:
    """
    Send each state that meets the filters after each change as server-sent events, until the client goes.

    The state has an attribute ``updated_at``, the time of its latest change.
    """

    name: str
    path: str
    summary: str
    state: type
    show: Callable[[Any], Json | None]
    """Returns the JSON of one state; None leaves it out."""
    event_name: str
    """Name of every event of the stream."""
    response_schema: str
    filters: tuple[Filter, ...] = ()
    """The query parameters that restrict the stream."""
    roles: tuple[Role, ...] = ()
    """Who may call it; the operator always may."""


@frozen
class ImportRoute:
    """
    Submit one event for each line of the body (NDJSON), and respond with the outcome of each.

    A line fails alone. With an Idempotency-Key each line is executed once, however often the body is sent again.
    """

    name: str
    method: str
    path: str
    summary: str
    event: Callable[[Request], Any]
    """Returns the event to submit for one line, which is the request's body."""
    respond: Callable[[Any], Response | Rejection]
    line_schema: str
    """Name of the schema of a line in the module's ``http_schemas``."""
    response_schema: str
    """Name of the schema of the body that a successful line is answered with."""
    roles: tuple[Role, ...] = ()
    """Who may call it; the operator always may."""


Route = CommandRoute | ExportRoute | GetRoute | ImportRoute | ListRoute | ListStreamRoute | StreamRoute
