"""The OpenAPI document describes what the application serves, and is valid for OpenAPI's own validator."""

from __future__ import annotations

import re
from typing import Any

from attrs import evolve
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from app.messaging.event_registry import all_modules
from app.web.endpoints import contracts, dead_letters, stream_tokens, stripe_webhook
from app.web.spec import openapi
from tests.web.conftest import Start, Web
from tests.web.example import SHIPMENTS

DESCRIPTIONS = (dead_letters.DESCRIPTION, contracts.DESCRIPTION, stripe_webhook.DESCRIPTION, stream_tokens.DESCRIPTION)
EVERYTHING = openapi.document([*all_modules(), SHIPMENTS], "1", DESCRIPTIONS)
"""Every module and every route group in one document."""


def references(value: Any) -> list[str]:
    """Return every reference within *value*."""
    if isinstance(value, dict):
        own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        return own + [found for part in value.values() for found in references(part)]
    return [found for part in value for found in references(part)] if isinstance(value, list) else []


def resolve(document: Any, reference: str) -> Any:
    """Return the part of *document* that *reference* points to."""
    for part in reference.removeprefix("#/").split("/"):
        document = document[part]
    return document


def operations(document: Any) -> list[dict[str, Any]]:
    """Return every operation of *document*."""
    return [operation for item in document["paths"].values() for operation in item.values()]


def test_the_document_is_valid_openapi_31() -> None:
    """With and without modules, and with everything at once."""
    for document in (openapi.document([SHIPMENTS], "1.2.3"), openapi.document([], "1.2.3"), EVERYTHING):
        OpenAPIV31SpecValidator(document).validate()
        assert document["openapi"].startswith("3.1.")
    assert openapi.document([], "1.2.3")["info"]["version"] == "1.2.3"


def test_every_reference_has_a_target() -> None:
    """Also a reference that was relative to a module's own schema."""
    found = references(EVERYTHING)
    assert "#/components/schemas/ShipmentRequest/$defs/text" in found
    assert "$schema" not in EVERYTHING["components"]["schemas"]["ShipmentRequest"]
    for reference in found:
        resolve(EVERYTHING, reference)


def test_every_route_has_its_parameters_and_problems() -> None:
    """Every possible status of a response is described."""
    paths = openapi.document([SHIPMENTS], "1", [dead_letters.DESCRIPTION])["paths"]
    post = paths["/v1/shipments"]["post"]
    assert post["responses"].keys() == {"202", "400", "401", "403", "408", "413", "415", "422", "500", "503", "default"}
    assert {"$ref": "#/components/parameters/IdempotencyKey"} in post["parameters"]
    assert "Location" in post["responses"]["202"]["headers"]
    listing = paths["/v1/shipments"]["get"]
    assert [p.get("name") for p in listing["parameters"][:1]] == ["owner"]
    assert "text/event-stream" in paths["/v1/shipments/{id}/stream"]["get"]["responses"]["200"]["content"]
    assert paths["/v1/shipments/{id}/move"]["post"]["requestBody"]["required"] is False
    assert paths["/v1/shipments/{id}/move"]["post"]["responses"]["404"]
    assert {"/livez", "/readyz", "/health", "/metrics", "/openapi.json", "/docs"} <= paths.keys()
    assert "/v1/dead-letters/{id}/replay" in paths


def test_the_examples_of_problems_are_valid_problems() -> None:
    """Swagger UI shows them; each status has its own code."""
    components = openapi.document([SHIPMENTS], "1")["components"]
    is_problem = Draft202012Validator(
        {"$ref": "#/components/schemas/Problem", "components": {"schemas": components["schemas"]}}
    ).is_valid
    examples = {
        name: response["content"]["application/problem+json"]["example"]
        for name, response in components["responses"].items()
        if name != "Problem"
    }
    assert {example["title"].replace(" ", "") for example in examples.values()} == set(examples)
    assert all(map(is_problem, examples.values()))
    assert not is_problem({**examples["BadRequest"], "errors": [{}]})
    assert len({example["code"] for example in examples.values()}) == len(examples)


def test_operation_ids_are_unique_method_names() -> None:
    """A generated client has one method for each operation, named in camelCase."""
    ids = [operation["operationId"] for operation in operations(EVERYTHING)]
    assert len(ids) == len(set(ids))
    assert [id for id in ids if not re.fullmatch(r"[a-z]+(?:[A-Z][a-z]+)*", id)] == []


def test_operations_have_the_names_of_their_routes() -> None:
    """The name is declared at the route; clients depend on it."""
    ids = {operation["operationId"] for operation in operations(EVERYTHING)}
    released = [module for module in all_modules() if module.name in ("orders", "inventory", "payments")]
    assert {route.name for module in released for route in module.routes} == {
        *("placeOrder", "getOrder", "listOrders", "cancelOrder", "streamOrder", "streamOrders", "exportOrders"),
        *("setProduct", "restockProduct", "getProduct", "listProducts", "refundOrder"),
        *("changeProduct", "adjustProduct", "importProducts", "setProducts"),
        *("getPayment", "listPayments", "settlePayment"),
    }
    assert ids == {
        *(route.name for module in (*all_modules(), SHIPMENTS) for route in module.routes),
        *("listDeadLetters", "getDeadLetter", "discardDeadLetter", "replayDeadLetter", "replayDeadLetters"),
        *("listDeadLetterGroups", "discardDeadLetters"),
        *("receiveStripeWebhook", "listContracts", "getAsyncApi", "createStreamToken"),
        *("getLiveness", "getReadiness", "getHealth", "getMetrics", "getOpenApi", "getDocs"),
    }


def test_component_names_are_class_names() -> None:
    """A generated client has one class for each schema, named in PascalCase."""
    components = EVERYTHING["components"]
    for kind in ("schemas", "responses", "parameters"):
        assert [name for name in components[kind] if not re.fullmatch(r"(?:[A-Z][a-z]+)+", name)] == []
    schemas = components["schemas"]
    assert {"Order", "OrderRequest", "OrderPage", "RestockRequest", "Problem", "DeadLetter"} <= schemas.keys()
    assert all(schema["title"] == name for name, schema in schemas.items())


def test_two_modules_may_use_one_name_for_different_schemas() -> None:
    """The second one is prefixed with its module; equal schemas share one component."""
    other = evolve(
        SHIPMENTS,
        name="returns",
        routes=(),
        http_schemas={**SHIPMENTS.http_schemas, "ShipmentAccepted": {"type": "string"}, "Problem": {"type": "null"}},
    )
    schemas = openapi.document([SHIPMENTS, other], "1")["components"]["schemas"]
    assert schemas["ShipmentAccepted"]["type"] == "object"
    assert schemas["ReturnsShipmentAccepted"] == {"type": "string", "title": "ReturnsShipmentAccepted"}
    assert "ReturnsShipment" not in schemas
    assert schemas["Problem"]["type"] == "object"
    assert schemas["ReturnsProblem"]["type"] == "null"


async def test_the_application_serves_its_own_document(web: Web, start: Start) -> None:
    """The document describes only what the application runs: here, no dead letters."""
    document = (await web.request("GET", "/openapi.json")).json
    OpenAPIV31SpecValidator(document).validate()
    assert document["info"]["version"] == "1.2.3"
    assert not any("dead-letters" in path for path in document["paths"])


async def test_the_document_and_the_router_have_the_same_paths(web: Web) -> None:
    """Every described operation is served, and every served one is described, except for the page's files, the way to it and HEAD."""
    document = openapi.document([SHIPMENTS], "1", [stream_tokens.DESCRIPTION])
    described = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
    served = {
        (route.method, route.resource.canonical)
        for route in web.server.app.router.routes()
        if route.resource is not None and route.method not in ("HEAD", "*")
    }
    assert described == {pair for pair in served if pair[1] != "/" and not pair[1].startswith("/docs/")}
