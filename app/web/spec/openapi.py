"""The API's description: OpenAPI 3.1, assembled from the modules' routes and the very schemas that check requests."""

from __future__ import annotations

__all__ = ["document"]

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from app.web.endpoints import dead_letters
from app.web.spec.components import COMPONENTS, Description, body, operation, parameter, ref, response
from modules.module import Module
from modules.routes import CommandRoute, GetRoute, ListRoute, Route, StreamRoute

Json = dict[str, Any]

_DESCRIPTION = (
    "Orders, stock and payments. Every answer that is neither 2xx nor 3xx is a problem (RFC 9457) with a stable `code`; "
    "every answer carries `X-Correlation-ID`. Times are RFC 3339 in UTC, money is integers of minor units."
)


def document(modules: Sequence[Module], version: str, extra: Sequence[Description] = (dead_letters.DESCRIBED,)) -> Json:
    """
    Return the OpenAPI document for an application that runs *modules*; needs no running application.

    *extra* describes what it answers beside the modules and the operations.
    """
    names = _names(modules)
    schemas: Json = {**COMPONENTS["schemas"]}
    paths: Json = {}
    for module in modules:
        for resource, schema in module.http_schemas.items():
            name = names[module.name, resource]
            schemas[name] = _embedded(schema, name)
        for route in module.routes:
            method, described = _described(route, module.name, partial(_schema, names, module.name))
            paths.setdefault(route.path, {})[method] = described
    for more in (*extra, _OPERATIONS):
        schemas.update(more.schemas)
        for path, item in more.paths.items():
            paths.setdefault(path, {}).update(item)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Fulfilment", "version": version, "description": _DESCRIPTION},
        "servers": [{"url": "/"}],
        "security": [{}, {"key": []}],
        "tags": [{"name": name} for name in _tags(paths)],
        "paths": paths,
        "components": {**COMPONENTS, "schemas": schemas},
    }


def _names(modules: Sequence[Module]) -> dict[tuple[str, str], str]:
    """Return each resource's name in the document: its own, or with its module's where two modules differ."""
    first: dict[str, Mapping[str, Any]] = {"problem": {}, "page": {}}
    names = {}
    for module in modules:
        for resource, schema in module.http_schemas.items():
            is_own = first.setdefault(resource, schema) == schema
            names[module.name, resource] = resource if is_own else f"{module.name}.{resource}"
    return names


def _schema(names: Mapping[tuple[str, str], str], module: str, resource: str) -> Json:
    return ref("schemas", names[module, resource])


def _embedded(schema: Mapping[str, Any], name: str) -> Json:
    """Return *schema* as a component: no id of its own, and references that find their way from the document's root."""

    def moved(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {
                key: f"#/components/schemas/{name}{part[1:]}"
                if key == "$ref" and isinstance(part, str) and part.startswith("#")
                else moved(part)
                for key, part in value.items()
            }
        return [moved(part) for part in value] if isinstance(value, list | tuple) else value

    found: Json = moved({key: part for key, part in schema.items() if key not in ("$schema", "$id")})
    return found


def _described(route: Route, tag: str, schema: Callable[[str], Json]) -> tuple[str, Json]:
    has_id = "{" in route.path
    match route:
        case CommandRoute():
            return route.method.lower(), _tell(route, tag, schema)
        case GetRoute():
            return "get", operation(
                "get", route.path, route.summary, tag, {200: response("The state.", schema(route.response_schema))}, (404, 503)
            )
        case ListRoute():
            parameters = [parameter(name, filter) for name, filter in route.filters.items()]
            page = {
                "type": "object",
                "required": ["items", "next_cursor"],
                "properties": {
                    "items": {"type": "array", "items": schema(route.response_schema)},
                    "next_cursor": {"type": ["string", "null"]},
                },
            }
            return "get", operation(
                "get",
                route.path,
                route.summary,
                tag,
                {200: response("One page.", page)},
                (400, 503, *((404,) if has_id else ())),
                parameters=[*parameters, ref("parameters", "limit"), ref("parameters", "cursor")],
            )
        case StreamRoute():
            text = {"type": "string", "x-events": {route.response_schema: schema(route.response_schema)}}
            said = f"Events named `{route.response_schema}`, whose data is the state; ends when the state is terminal."
            return "get", operation(
                "get", route.path, route.summary, tag, {200: response(said, text, "text/event-stream")}, (404, 503)
            )


def _tell(route: CommandRoute, tag: str, schema: Callable[[str], Json]) -> Json:
    problems = {503, *route.rejections}
    parameters = [ref("parameters", "traceparent")]
    if route.request_schema is not None:
        problems |= {400, 408, 413, 415}
    if "{" in route.path:
        problems.add(400 if route.method == "PUT" else 404)
    if route.idempotent:
        problems |= {400, 422}
        parameters.append(ref("parameters", "idempotency"))
    headers = [
        *(["Location"] if route.status in (201, 202) else []),
        *(["Idempotency-Replayed"] if route.idempotent else []),
    ]
    return operation(
        route.method,
        route.path,
        route.summary,
        tag,
        {route.status: response("Done, and on disk.", schema(route.response_schema), headers=headers)},
        problems,
        parameters=parameters,
        request_body=None if route.request_schema is None else body(schema(route.request_schema), is_needed=route.needs_body),
    )


def _tags(paths: Mapping[str, Json]) -> list[str]:
    return list(
        dict.fromkeys(tag for item in paths.values() for described in item.values() for tag in described["tags"])
    )


_CHECKS: Json = {
    "type": "object",
    "required": ["status", "checks"],
    "properties": {
        "status": {"enum": ["ready", "degraded"]},
        "checks": {"type": "object", "additionalProperties": {"type": "string"}},
    },
}
_ALIVE: Json = {"type": "object", "required": ["status"], "properties": {"status": {"const": "ok"}}}


def _operation(path: str, summary: str, said: Json, *problems: int, is_open: bool = False) -> tuple[str, Json]:
    return path, {"get": operation("get", path, summary, "operations", {200: said}, problems, is_open=is_open)}


_OPERATIONS = Description(
    dict(
        (
            _operation("/livez", "Whether the process lives", response("It does.", _ALIVE), is_open=True),
            _operation("/readyz", "Whether it can work", response("It can.", _CHECKS), 503, is_open=True),
            _operation("/health", "Whether all answers", response("Bus and database do.", _CHECKS), 503, is_open=True),
            _operation(
                "/metrics",
                "The numbers",
                response("Prometheus' text format.", {"type": "string"}, "text/plain"),
                is_open=True,
            ),
            _operation("/openapi.json", "This document", response("OpenAPI 3.1.", {"type": "object"}), is_open=True),
            _operation("/docs", "A page to try it", response("HTML.", {"type": "string"}, "text/html"), is_open=True),
        )
    )
)
