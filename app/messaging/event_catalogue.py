"""Render the catalogue of events for the documentation: producer, consumers, members and an example of each version."""

from __future__ import annotations

__all__ = ["page"]

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from app.messaging.consumers import EXPRESS_LANE, subscriptions
from bus.contracts.contract import Contract
from bus.contracts.registry import ContractRegistry
from bus.contracts.versions import version_of
from modules.module import Module

_HEAD = """\
Catalogue of events
===================

Every event in every version. ``python -m app contracts catalogue`` prints this page from the schemas of the program, and a
test compares the two. Events of orders with express priority have the same subject with the suffix ``.express``. The
headers are those of :doc:`contracts`.
"""


def page(modules: Sequence[Module], contracts: ContractRegistry) -> str:
    """Return the page in reStructuredText."""
    consumers: dict[str, list[str]] = {}
    for consumer, subjects in subscriptions(modules, contracts).items():
        for subject in subjects:
            if not consumer.endswith(EXPRESS_LANE):
                consumers.setdefault(subject, []).append(consumer)
    parts = [_HEAD]
    for module in modules:
        parts.append(f"{module.name}\n{'-' * len(module.name)}\n")
        own = (contract for contract in contracts if contract.subject.startswith(f"{module.name}."))
        for contract in sorted(own, key=lambda contract: version_of(contract.subject)):
            parts += _entry(contract, module, contracts, consumers.get(contract.subject, []))
    return "\n".join(parts)


def _entry(contract: Contract, module: Module, contracts: ContractRegistry, consumers: Sequence[str]) -> Iterator[str]:
    subject = contract.subject
    event, version = version_of(subject)
    yield f"{subject}\n{'~' * len(subject)}\n"
    title = contract.schema.get("title", "")
    summary = " ".join((contract.cls.__doc__ or title).split())
    yield f"{summary}\n"
    newest = max(other for name, other in (version_of(c.subject) for c in contracts) if name == event)
    dual_publish = next((m for m in contracts.dual_publishes if (m.event, m.from_version) == (event, version)), None)
    state = "" if version == newest else " (no longer published; still accepted)"
    if dual_publish is not None:
        state = f" (beside v{dual_publish.to_version}, since {dual_publish.since})"
    yield f"- producer: {module.name}{state}"
    yield f"- consumers: {', '.join(sorted(consumers)) or 'none in this program'}\n"
    yield ".. list-table::\n   :header-rows: 1\n   :widths: 30 15 55\n"
    yield "   * - member\n     - required\n     - type and meaning"
    for member, required, description in _members(contract.schema, ""):
        yield f"   * - ``{member}``\n     - {required}\n     - {description}"
    yield ""
    for example in contract.schema.get("examples", ())[:1]:
        text = json.dumps(example, indent=2, ensure_ascii=False)
        yield ".. code-block:: json\n\n" + "\n".join(f"   {line}" for line in text.splitlines()) + "\n"


def _members(schema: Mapping[str, Any], at: str) -> Iterator[tuple[str, str, str]]:
    """Yield every member below *schema*: its path, "yes" if it is required, else "no", and its description."""
    for name, member in schema.get("properties", {}).items():
        path = f"{at}{name}"
        yield path, "yes" if name in schema.get("required", ()) else "no", _description(member)
        yield from _nested_members(member, path)


def _nested_members(schema: Mapping[str, Any], path: str) -> Iterator[tuple[str, str, str]]:
    for option in schema.get("anyOf", ()):
        yield from _nested_members(option, path)
    if schema.get("type") == "array":
        yield from _members(schema.get("items", {}), f"{path}[].")
        yield from _nested_members(schema.get("items", {}), f"{path}[]") if "items" in schema.get("items", {}) else ()
    elif schema.get("type") == "object":
        yield from _members(schema, f"{path}.")


_LIMITS = {
    "minimum": "at least {}",
    "maximum": "at most {}",
    "minLength": "{} or more characters",
    "maxLength": "at most {} characters",
    "minItems": "{} or more items",
    "maxItems": "at most {} items",
    "format": "{}",
}


def _description(schema: Mapping[str, Any]) -> str:
    kinds = [_kind(option) for option in schema.get("anyOf", [schema])]
    limits = [text.format(schema[keyword]) for keyword, text in _LIMITS.items() if keyword in schema]
    description = schema.get("description", "")
    text = ", ".join([" or ".join(kinds), *limits])
    return f"{text}. {description}" if description else f"{text}."


def _kind(schema: Mapping[str, Any]) -> str:
    if "const" in schema:
        return f"always ``{json.dumps(schema['const'])}``"
    if "enum" in schema:
        return "one of " + ", ".join(f"``{json.dumps(value)}``" for value in schema["enum"])
    found = schema.get("type", "anything")
    return " or ".join(found) if isinstance(found, list) else str(found)
