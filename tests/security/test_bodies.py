"""No request sets a member that its schema does not name (mass assignment), or names an address to call (SSRF)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from tests.security.conftest import Program

OPEN = {"post /v1/payments/webhooks/stripe"}
"""Bodies of other systems, whose members are theirs; their signature is checked."""


def objects(document: dict[str, Any], schema: dict[str, Any], where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each object schema within *schema*, and where it is."""
    while "$ref" in schema:
        found = document
        for step in schema["$ref"].split("/")[1:]:
            found = found[step]
        schema = found
    if schema.get("type") == "object" or "properties" in schema:
        yield where, schema
    children = list(schema.get("properties", {}).items())
    children += [("items", schema["items"])] if isinstance(schema.get("items"), dict) else []
    for keyword in ("allOf", "anyOf", "oneOf"):
        children += [(f"{keyword}/{index}", each) for index, each in enumerate(schema.get(keyword, ()))]
    for name, each in children:
        yield from objects(document, each, f"{where}/{name}")


async def test_every_body_is_closed_to_members_that_it_does_not_name(program: Program) -> None:
    """In the description of each route, in objects at any depth; and each route refuses one."""
    document = json.loads((await program.send("", "GET", "/openapi.json")).text)
    bodies = {
        f"{method} {path}": content["schema"]
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        if isinstance(operation, dict) and "requestBody" in operation
        for kind, content in operation["requestBody"]["content"].items()
        if kind == "application/json"
    }
    assert len(bodies.keys() - OPEN) >= 9
    for route, schema in bodies.items():
        if route in OPEN:
            continue
        for where, each in objects(document, schema, route):
            assert each.get("additionalProperties") is False, where
            addresses = [name for name, value in each["properties"].items() if re.search("ur[il]|host|callback", f"{name} {value}")]
            assert addresses == [], "a request must not name an address that the server calls (SSRF)"
        method, _, path = route.partition(" ")
        target = path.replace("{order_id}", "o-1").replace("{product_id}", "p-1").replace("{id}", "d-1")
        reply = await program.send("operator", method.upper(), target, {"role": "operator", "customer": "c-2"})
        assert reply.status == 400, (route, reply.status)
