"""The documents about events agree with the program."""

from __future__ import annotations

import json
from typing import Any

import pytest
from attrs import evolve
from click.testing import CliRunner
from jsonschema import Draft7Validator

from app.cli.main import main
from app.messaging.consumers import subscriptions
from app.messaging.event_catalogue import page
from app.messaging.event_registry import all_modules, build_registry
from app.web.spec import asyncapi
from bus.subjects import EXPRESS
from tests.architecture.tree import ROOT

OFFICIAL = json.loads((ROOT / "tests" / "contracts" / "asyncapi" / "3.0.0.json").read_text(encoding="utf-8"))
MODULES = all_modules()
CONTRACTS = build_registry(MODULES)


def parts(value: Any) -> list[dict[str, Any]]:
    """Return every object within *value*."""
    if isinstance(value, dict):
        return [value, *(found for part in value.values() for found in parts(part))]
    return [found for part in value for found in parts(part)] if isinstance(value, list) else []


def resolved(document: Any, reference: str) -> Any:
    for step in reference.removeprefix("#/").split("/"):
        document = document[step]
    return document


@pytest.mark.parametrize("names", [("orders", "inventory", "payments"), ("inventory",), ("payments",), ()])
def test_the_asyncapi_document_is_valid(names: tuple[str, ...]) -> None:
    """The official schema of AsyncAPI 3 accepts it, whichever modules run, and every reference resolves."""
    document = asyncapi.document([module for module in MODULES if module.name in names], CONTRACTS, "1.2.3")
    assert [error.message for error in Draft7Validator(OFFICIAL).iter_errors(document)] == []
    assert (document["asyncapi"], document["info"]["version"]) == ("3.0.0", "1.2.3")
    for part in parts(document):
        if "$ref" in part:
            assert resolved(document, part["$ref"]), part


def test_the_official_schema_rejects_an_invalid_document() -> None:
    """The check above can fail."""
    document = asyncapi.document(MODULES, CONTRACTS, "1")
    document["channels"]["orders.created.v1"]["adress"] = "typo"
    assert list(Draft7Validator(OFFICIAL).iter_errors(document)) != []


def test_every_subject_is_a_channel_in_both_lanes() -> None:
    """With the schema that validates its messages, its examples and its binding."""
    document = asyncapi.document(MODULES, CONTRACTS, "1")
    assert set(document["channels"]) == {c.subject + lane for c in CONTRACTS for lane in ("", EXPRESS)}
    for contract in CONTRACTS:
        channel = document["channels"][contract.subject]
        assert channel["address"] == contract.subject
        message = resolved(document, channel["messages"]["event"]["$ref"])
        assert message["payload"] == {k: v for k, v in contract.schema.items() if k not in ("$id", "$schema")}
        assert [each["payload"] for each in message["examples"]] == contract.schema["examples"]


def test_every_producer_and_consumer_has_an_operation() -> None:
    """One operation for each, exactly as the consumers are subscribed."""
    document = asyncapi.document(MODULES, CONTRACTS, "1")
    operations = document["operations"]
    received = {
        (operation["bindings"]["nats"]["queue"], operation["channel"]["$ref"].removeprefix("#/channels/"))
        for operation in operations.values()
        if operation["action"] == "receive"
    }
    planned = subscriptions(MODULES, CONTRACTS)
    assert received == {(name, s) for name, subjects in planned.items() for s in subjects if ".replay." not in s}
    assert ("inventory", "orders.created.v1") in received
    published = {name.removesuffix(".send") for name, operation in operations.items() if operation["action"] == "send"}
    assert published == set(document["channels"])


def test_a_version_that_is_no_longer_published_has_no_send_operation() -> None:
    """After the dual publishing has ended, the version is still readable."""
    from bus.contracts.versions import Upcast

    modules = [
        evolve(
            module,
            dual_publishes=(),
            upcasts=tuple(Upcast(m.event, m.from_version, m.to_version, m.up) for m in module.dual_publishes),
        )
        for module in MODULES
    ]
    contracts = build_registry(modules)
    document = asyncapi.document(modules, contracts, "1")
    assert "orders.created.v1.send" not in document["operations"]
    assert "orders.created.v1.receive.inventory" in document["operations"]
    assert "no longer published; still accepted" in page(modules, contracts)


def test_payloads_mean_the_same_in_draft_07() -> None:
    """AsyncAPI's own dialect is draft-07: the schemas use no keyword that it lacks or defines differently."""
    known = set(Draft7Validator.META_SCHEMA["properties"])
    for contract in CONTRACTS:
        names = {name for part in parts(contract.schema) for name in part.get("properties", ())}
        assert contract.schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
        for part in parts({k: v for k, v in contract.schema.items() if k != "examples"}):
            assert set(part) - names <= known - {"definitions", "dependencies", "$ref"}, contract.subject


def test_the_command_prints_the_asyncapi_document() -> None:
    """Without a running server."""
    result = CliRunner().invoke(main, ["asyncapi"])
    assert result.exit_code == 0
    assert json.loads(result.output)["channels"].keys() == asyncapi.document(MODULES, CONTRACTS, "1")["channels"].keys()


def test_the_catalogue_in_the_docs_is_what_the_command_prints() -> None:
    """``python -m app contracts catalogue > docs/reference/catalogue.rst`` updates it."""
    result = CliRunner().invoke(main, ["contracts", "catalogue"])
    assert result.exit_code == 0
    assert (ROOT / "docs" / "reference" / "catalogue.rst").read_text(encoding="utf-8") == result.output


def test_the_catalogue_lists_every_version_with_its_producer_and_consumers() -> None:
    """It also has an example of each version, and every member at any depth."""
    lines = page(MODULES, CONTRACTS).splitlines()
    for contract in CONTRACTS:
        start = lines.index(contract.subject)
        entry = lines[start : next((n for n in range(start + 2, len(lines)) if set(lines[n]) == {"~"}), len(lines))]
        assert any(line.startswith(f"- producer: {contract.subject.partition('.')[0]}") for line in entry)
        assert any(line.startswith("- consumers: ") for line in entry)
        for member in contract.schema["properties"]:
            assert f"   * - ``{member}``" in entry
    text = "\n".join(lines)
    assert "- producer: orders (beside v2, since 0.2.0)\n- consumers: inventory\n" in text
    assert "``shipping_address.postal_code``" in text
    assert "- consumers: payments-gateway\n" in text
