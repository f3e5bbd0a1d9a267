"""The description says what the application does, and OpenAPI's own validator agrees."""

from __future__ import annotations

from typing import Any

from attrs import evolve
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from app.web.spec import openapi
from tests.web.conftest import Start, Web
from tests.web.example import PARCELS


def references(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        return own + [found for part in value.values() for found in references(part)]
    return [found for part in value for found in references(part)] if isinstance(value, list) else []


def resolved(document: Any, reference: str) -> Any:
    for part in reference.removeprefix("#/").split("/"):
        document = document[part]
    return document


def test_the_document_is_valid_openapi_31() -> None:
    """With modules and without."""
    for modules in ([PARCELS], []):
        document = openapi.document(modules, "1.2.3")
        OpenAPIV31SpecValidator(document).validate()
        assert document["openapi"].startswith("3.1.")
        assert document["info"]["version"] == "1.2.3"


def test_every_reference_leads_somewhere() -> None:
    """Also those that were inside a module's own schema."""
    document = openapi.document([PARCELS], "1")
    found = references(document)
    assert "#/components/schemas/new_parcel/$defs/text" in found
    assert "$schema" not in document["components"]["schemas"]["new_parcel"]
    for reference in found:
        resolved(document, reference)


def test_every_route_has_its_parameters_and_problems() -> None:
    """Whatever can come back is written down."""
    paths = openapi.document([PARCELS], "1")["paths"]
    post = paths["/v1/parcels"]["post"]
    assert post["responses"].keys() == {"202", "400", "401", "408", "413", "415", "422", "500", "503", "default"}
    assert {"$ref": "#/components/parameters/idempotency"} in post["parameters"]
    assert "Location" in post["responses"]["202"]["headers"]
    browse = paths["/v1/parcels"]["get"]
    assert [p.get("name") for p in browse["parameters"][:1]] == ["owner"]
    assert "text/event-stream" in paths["/v1/parcels/{id}/stream"]["get"]["responses"]["200"]["content"]
    assert paths["/v1/parcels/{id}/move"]["post"]["requestBody"]["required"] is False
    assert paths["/v1/parcels/{id}/move"]["post"]["responses"]["404"]
    assert {"/livez", "/readyz", "/health", "/metrics", "/openapi.json", "/docs"} <= paths.keys()
    assert "/v1/dead-letters/{id}/replay" in paths


def test_the_example_of_a_problem_is_one() -> None:
    """Whoever tries the API out in a browser sees what such an answer looks like."""
    components = openapi.document([PARCELS], "1")["components"]
    is_problem = Draft202012Validator(components["schemas"]["problem"]).is_valid
    shown = {
        name: response["content"]["application/problem+json"]["example"]
        for name, response in components["responses"].items()
        if name != "problem"
    }
    assert {f"problem_{example['status']}" for example in shown.values()} == set(shown)
    assert all(map(is_problem, shown.values()))
    assert len({example["code"] for example in shown.values()}) == len(shown)


def test_operations_have_names_of_their_own() -> None:
    """A generated client has one method for each."""
    paths = openapi.document([PARCELS], "1")["paths"]
    names = [operation["operationId"] for item in paths.values() for operation in item.values()]
    assert len(names) == len(set(names))


def test_two_modules_may_use_one_name_for_two_things() -> None:
    """The second one's carries its module; the same thing twice is said once."""
    other = evolve(PARCELS, name="letters", routes=(), http_schemas={**PARCELS.http_schemas, "taken": {"type": "string"}})
    schemas = openapi.document([PARCELS, other], "1")["components"]["schemas"]
    assert schemas["taken"]["type"] == "object"
    assert schemas["letters.taken"] == {"type": "string"}
    assert "letters.parcel" not in schemas


async def test_the_application_shows_its_own_document(web: Web, start: Start) -> None:
    """And only of what it runs: no dead letters where there is no desk."""
    document = (await web.ask("GET", "/openapi.json")).json
    OpenAPIV31SpecValidator(document).validate()
    assert document["info"]["version"] == "1.2.3"
    assert not any("dead-letters" in path for path in document["paths"])


async def test_the_document_and_the_router_know_the_same_paths(web: Web) -> None:
    """What is described answers, and what answers is described, the page's own files and HEAD apart."""
    document = openapi.document([PARCELS], "1", ())
    described = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
    answered = {
        (route.method, route.resource.canonical)
        for route in web.server.app.router.routes()
        if route.resource is not None and route.method not in ("HEAD", "*")
    }
    assert described == {pair for pair in answered if not pair[1].startswith("/docs/")}
