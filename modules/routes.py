"""
What a client may ask of a module, said without a web server.

Four kinds of route cover it: `CommandRoute` something that happened, `GetRoute` one state, `ListRoute` many, `StreamRoute` one as it
changes. The web layer knows what HTTP is; a module only says what a request means and what its answer is.
"""

from __future__ import annotations

__all__ = ["CommandRoute", "GetRoute", "ListRoute", "Rejection", "Request", "Response", "Route", "StreamRoute"]

from collections.abc import Callable, Mapping
from typing import Any

from attrs import field, frozen

Json = Any


@frozen
class Request:
    """A request whose body has passed its schema."""

    path: Mapping[str, str]
    body: Json
    new_id: str
    """A new UUIDv7, for a route that creates something."""


@frozen
class Response:
    """A success: status 2xx and a JSON body."""

    status: int
    body: Json
    headers: Mapping[str, str] = field(factory=dict)


@frozen
class Rejection:
    """A business "no": status 4xx, a stable *code* and a sentence for a person."""

    status: int
    code: str
    detail: str


@frozen
class CommandRoute:
    """Tell the module that something happened, and answer with what became of it."""

    name: str
    """Operation id in the OpenAPI document, unique in the process: ``placeOrder``."""
    method: str
    path: str
    summary: str
    event: Callable[[Request], Any]
    respond: Callable[[Any], Response | Rejection]
    """From the `Outcome`; pure, called inside the transaction, and kept for as long as the idempotency key is."""
    response_schema: str
    """Name of the answer's schema among the module's resources."""
    status: int = 200
    request_schema: str | None = None
    """Name of the body's schema; None where there is no body."""
    needs_body: bool = True
    """False where the body may be left out."""
    idempotent: bool = False
    """True where an Idempotency-Key is honoured."""
    express: Callable[[Request], bool] = lambda request: False
    """Whether what follows goes by the express lane."""
    sheds_load: bool = False
    """True where the route starts new work, and is refused first when there is too much of it."""
    rejections: tuple[int, ...] = ()
    """Statuses of the refusals that `answer` can give, for the documentation."""


@frozen
class GetRoute:
    """Show one state by its key, the path's only parameter."""

    name: str
    path: str
    summary: str
    state: type
    show: Callable[[Any], Json | None]
    """None: there is nothing to see, 404."""
    response_schema: str


@frozen
class ListRoute:
    """List states by keyset paging over their key: ``limit`` 1 to 200, ``cursor`` opaque."""

    name: str
    path: str
    summary: str
    state: type
    show: Callable[[Any], Json]
    response_schema: str
    newest_first: bool = False
    filters: Mapping[str, Mapping[str, Any]] = field(factory=dict)
    """Query parameters that must equal the column of their name, with the JSON Schema of each."""


@frozen
class StreamRoute:
    """Send one state after each change, as server-sent events, until *is_over*."""

    name: str
    path: str
    summary: str
    state: type
    show: Callable[[Any], Json | None]
    event_name: str
    """Name of every event of the stream."""
    is_finished: Callable[[Any], bool]
    response_schema: str


Route = CommandRoute | GetRoute | ListRoute | StreamRoute
