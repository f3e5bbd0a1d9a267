"""The OpenAPI 3.1 document, assembled from the modules' routes and from the same schemas that validate requests."""

from __future__ import annotations

__all__ = ["document"]

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from app.web.requests.ndjson import NDJSON
from app.web.spec.components import COMPONENTS, Description, body, operation, page_of, query_parameter, ref, response
from modules.filters import Filter
from modules.module import Module
from modules.routes import (
    CommandRoute,
    ExportRoute,
    GetRoute,
    ImportRoute,
    ListRoute,
    ListStreamRoute,
    Route,
    StreamRoute,
)

Json = dict[str, Any]

_DESCRIPTION = (
    "Orders, inventory and payments. Every response that is neither 2xx nor 3xx is a problem (RFC 9457) with a stable "
    "`code`. Every response has the header `X-Correlation-ID`. Times are RFC 3339 in UTC, money is an integer of minor "
    "units."
)


def document(modules: Sequence[Module], version: str, descriptions: Sequence[Description] = ()) -> Json:
    """
    Return the OpenAPI document of an application that runs *modules*; needs no running application.

    *descriptions* are those of the route groups that it serves beside the modules and the operational endpoints.
    """
    schemas: Json = {**COMPONENTS["schemas"]}
    paths: Json = {}
    for description in (*descriptions, _OPERATIONAL):
        schemas.update(description.schemas)
    names = _component_names(modules, schemas)
    for module in modules:
        for local_name, schema in module.http_schemas.items():
            name = names[module.name, local_name]
            schemas[name] = _component(schema, name)
        for route in module.routes:
            if isinstance(route, ListRoute):
                name = names[module.name, route.response_schema]
                schemas[_page_name(name)] = page_of(ref("schemas", name))
            method, described = _describe(route, module.name, partial(_component_name, names, module.name))
            paths.setdefault(route.path, {})[method] = described
    for description in (*descriptions, _OPERATIONAL):
        for path, item in description.paths.items():
            paths.setdefault(path, {}).update(item)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Fulfilment", "version": version, "description": _DESCRIPTION},
        "servers": [{"url": "/"}],
        "security": [{}, {"ApiKey": []}],
        "tags": [{"name": name} for name in _tags(paths)],
        "paths": paths,
        "components": {**COMPONENTS, "schemas": {name: {**schema, "title": name} for name, schema in schemas.items()}},
    }


def _component_names(modules: Sequence[Module], reserved: Mapping[str, Any]) -> dict[tuple[str, str], str]:
    """Return the component name of each module's schemas: their own, prefixed with the module's where two differ."""
    first: dict[str, Mapping[str, Any]] = dict(reserved)
    names = {}
    for module in modules:
        for local_name, schema in module.http_schemas.items():
            is_free = first.setdefault(local_name, schema) == schema
            names[module.name, local_name] = local_name if is_free else f"{module.name.capitalize()}{local_name}"
    return names


def _component_name(names: Mapping[tuple[str, str], str], module: str, local_name: str) -> str:
    return names[module, local_name]


def _page_name(component: str) -> str:
    return f"{component}Page"


def _component(schema: Mapping[str, Any], name: str) -> Json:
    """Return *schema* as the component *name*: without its own id, its references relative to the document's root."""

    def rebase(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {
                key: f"#/components/schemas/{name}{part[1:]}"
                if key == "$ref" and isinstance(part, str) and part.startswith("#")
                else rebase(part)
                for key, part in value.items()
            }
        return [rebase(part) for part in value] if isinstance(value, list | tuple) else value

    found: Json = rebase({key: part for key, part in schema.items() if key not in ("$schema", "$id")})
    return found


def _describe(route: Route, tag: str, name_of: Callable[[str], str]) -> tuple[str, Json]:
    """Return the method of *route* and its operation; *name_of* gives the component name of a module's schema."""
    component = name_of(route.response_schema)
    schema = ref("schemas", component)
    match route:
        case CommandRoute():
            return route.method.lower(), _describe_command(route, tag, name_of)
        case GetRoute():
            return "get", _describe_get(route, tag, schema)
        case ImportRoute():
            return route.method.lower(), _describe_import(route, tag, name_of)
        case ListRoute():
            parameters = [_filter_parameter(filter) for filter in route.filters]
            return "get", operation(
                route.name,
                route.path,
                route.summary,
                tag,
                {200: response("One page.", ref("schemas", _page_name(component)))},
                (400, 503, *((404,) if "{" in route.path else ())),
                parameters=[*parameters, ref("parameters", "Limit"), ref("parameters", "Cursor")],
            )
        case ExportRoute():
            parameters = [_filter_parameter(filter) for filter in route.filters]
            lines = response("One JSON object a line; an export that breaks off has lost its connection.", schema, NDJSON)
            return "get", operation(route.name, route.path, route.summary, tag, {200: lines}, (400, 503), parameters=parameters)
        case ListStreamRoute():
            events = {"type": "string", "x-events": {route.event_name: schema}}
            description = (
                f"Events named `{route.event_name}`, whose data is the latest state after one or more changes. An id without"
                " an event is the present position. The stream has no end."
            )
            return "get", operation(
                *(route.name, route.path, route.summary, tag),
                {200: response(description, events, "text/event-stream")},
                (400, 503),
                parameters=[
                    *(_filter_parameter(filter) for filter in route.filters),
                    ref("parameters", "LastEventId"),
                    ref("parameters", "StreamToken"),
                ],
            )
        case StreamRoute():
            events = {"type": "string", "x-events": {route.event_name: schema}}
            description = (
                f"Events named `{route.event_name}`, whose data is the state. The stream ends after a final state."
            )
            return "get", operation(
                route.name,
                route.path,
                route.summary,
                tag,
                {
                    200: response(description, events, "text/event-stream"),
                    204: response("`Last-Event-ID` is the id of the final state: nothing can follow."),
                },
                (404, 503),
                parameters=[ref("parameters", "LastEventId"), ref("parameters", "StreamToken")],
            )


def _describe_get(route: GetRoute, tag: str, schema: Json) -> Json:
    if route.etag is None:
        answers = {200: response("The present state.", schema)}
        return operation(route.name, route.path, route.summary, tag, answers, (404, 503))
    return operation(
        *(route.name, route.path, route.summary, tag),
        {
            200: response("The present state.", schema, headers=["ETag"]),
            304: response("The representation that If-None-Match names is the present one.", headers=["ETag"]),
        },
        (400, 404, 412, 503),
        parameters=[ref("parameters", "IfMatch"), ref("parameters", "IfNoneMatch")],
    )


def _describe_import(route: ImportRoute, tag: str, name_of: Callable[[str], str]) -> Json:
    line = ref("schemas", name_of(route.line_schema))
    answer = {"type": "string", "x-lines": ref("schemas", name_of(route.response_schema))}
    description = (
        "One JSON object for each line of the body, in its order: `line`, `status`, and `result` or `code`, `detail` and"
        " `errors`. With an Idempotency-Key, a line that was executed before gets its first answer again."
    )
    return operation(
        *(route.name, route.path, route.summary, tag),
        {200: response(description, answer, NDJSON)},
        (400, 408, 413, 415),
        parameters=[ref("parameters", "Traceparent"), ref("parameters", "IdempotencyKey")],
        request_body={"required": True, "content": {NDJSON: {"schema": {"type": "string", "x-lines": line}}}},
    )


def _filter_parameter(filter: Filter) -> Json:
    schema = {"type": "array", "items": filter.schema} if filter.takes_list else filter.schema
    parameter = query_parameter(filter.name, schema)
    if filter.takes_list:
        parameter |= {"style": "form", "explode": False}
    return {**parameter, "description": filter.description} if filter.description else parameter


def _describe_command(route: CommandRoute, tag: str, name_of: Callable[[str], str]) -> Json:
    problems = {503, *route.rejections}
    parameters = [ref("parameters", "Traceparent")]
    request_body = None
    if route.request_schema is not None:
        problems |= {400, 408, 413, 415}
        request_body = body(ref("schemas", name_of(route.request_schema)), is_required=route.needs_body)
    if "{" in route.path:
        problems.add(400 if route.method == "PUT" else 404)
    if route.takes_precondition:
        problems |= {400, 412}
        parameters += [ref("parameters", "IfMatch"), ref("parameters", "IfNoneMatch")]
    if route.requires_precondition:
        problems.add(428)
    if route.idempotent:
        problems |= {400, 422}
        parameters.append(ref("parameters", "IdempotencyKey"))
    headers = [
        *(["Location"] if route.status in (201, 202) else []),
        *(["ETag"] if route.takes_precondition else []),
        *(["Idempotency-Replayed"] if route.idempotent else []),
    ]
    schema = ref("schemas", name_of(route.response_schema))
    return operation(
        route.name,
        route.path,
        route.summary,
        tag,
        {route.status: response("The command was processed and its result is stored.", schema, headers=headers)},
        problems,
        parameters=parameters,
        request_body=request_body,
    )


def _tags(paths: Mapping[str, Json]) -> list[str]:
    return list(
        dict.fromkeys(tag for item in paths.values() for described in item.values() for tag in described["tags"])
    )


_HEALTH: Json = {
    "type": "object",
    "required": ["status", "checks"],
    "properties": {
        "status": {"enum": ["ready", "degraded"]},
        "checks": {"type": "object", "additionalProperties": {"type": "string"}},
    },
}
_LIVENESS: Json = {"type": "object", "required": ["status"], "properties": {"status": {"const": "ok"}}}


def _operational(name: str, path: str, summary: str, answer: Json, *problems: int) -> tuple[str, Json]:
    return path, {"get": operation(name, path, summary, "operations", {200: answer}, problems, is_public=True)}


_OPERATIONAL = Description(
    dict(
        (
            _operational(
                "getLiveness",
                "/livez",
                "Liveness probe: whether the process runs",
                response("The process runs.", ref("schemas", "Liveness")),
            ),
            _operational(
                "getReadiness",
                "/readyz",
                "Readiness probe: whether the process accepts requests",
                response("The process accepts requests.", ref("schemas", "Health")),
                503,
            ),
            _operational(
                "getHealth",
                "/health",
                "Health check: whether the bus and the databases are available",
                response("The bus and the databases are available.", ref("schemas", "Health")),
                503,
            ),
            _operational(
                "getMetrics",
                "/metrics",
                "Prometheus metrics",
                response("Metrics in Prometheus' text format.", {"type": "string"}, "text/plain"),
            ),
            _operational(
                "getOpenApi", "/openapi.json", "This document", response("OpenAPI 3.1.", {"type": "object"})
            ),
            _operational(
                "getDocs", "/docs", "Page to try the API", response("HTML.", {"type": "string"}, "text/html")
            ),
        )
    ),
    {"Liveness": _LIVENESS, "Health": _HEALTH},
)
