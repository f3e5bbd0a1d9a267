"""The catalogue of events for the documents: who says, who hears, the schema and an example of each, from the registry."""

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

Every event in every version, as the program itself knows it: this page is printed by ``python -m app contracts catalogue``,
and a test compares the two. All of them also travel with a trailing ``.express``, for orders with that priority. The
headers are those of :doc:`contracts`.
"""


def page(modules: Sequence[Module], contracts: ContractRegistry) -> str:
    """Return the page, as reStructuredText."""
    hearers: dict[str, list[str]] = {}
    for consumer, subjects in subscriptions(modules, contracts).items():
        for subject in subjects:
            if not consumer.endswith(EXPRESS_LANE):
                hearers.setdefault(subject, []).append(consumer)
    parts = [_HEAD]
    for module in modules:
        parts.append(f"{module.name}\n{'-' * len(module.name)}\n")
        own = (contract for contract in contracts if contract.subject.startswith(f"{module.name}."))
        for contract in sorted(own, key=lambda contract: version_of(contract.subject)):
            parts += _entry(contract, module, contracts, hearers.get(contract.subject, []))
    return "\n".join(parts)


def _entry(contract: Contract, module: Module, contracts: ContractRegistry, hearers: Sequence[str]) -> Iterator[str]:
    subject = contract.subject
    event, version = version_of(subject)
    yield f"{subject}\n{'~' * len(subject)}\n"
    title = contract.schema.get("title", "")
    said = " ".join((contract.cls.__doc__ or title).split())
    yield f"{said}\n"
    newest = max(other for name, other in (version_of(c.subject) for c in contracts) if name == event)
    migration = next((m for m in contracts.dual_publishes if (m.event, m.from_version) == (event, version)), None)
    how = "" if version == newest else " (no more; still understood)"
    if migration is not None:
        how = f" (beside v{migration.to_version}, since {migration.since})"
    yield f"- said by: {module.name}{how}"
    yield f"- heard by: {', '.join(sorted(hearers)) or 'nobody in this house'}\n"
    yield ".. list-table::\n   :header-rows: 1\n   :widths: 30 15 55\n"
    yield "   * - member\n     - must\n     - what"
    for member, must, what in _members(contract.schema, ""):
        yield f"   * - ``{member}``\n     - {must}\n     - {what}"
    yield ""
    for example in contract.schema.get("examples", ())[:1]:
        text = json.dumps(example, indent=2, ensure_ascii=False)
        yield ".. code-block:: json\n\n" + "\n".join(f"   {line}" for line in text.splitlines()) + "\n"


def _members(schema: Mapping[str, Any], at: str) -> Iterator[tuple[str, str, str]]:
    """Yield every member below *schema*: its path, whether it must be there, and what it is."""
    for name, member in schema.get("properties", {}).items():
        path = f"{at}{name}"
        yield path, "yes" if name in schema.get("required", ()) else "no", _what(member)
        yield from _inside(member, path)


def _inside(schema: Mapping[str, Any], path: str) -> Iterator[tuple[str, str, str]]:
    for option in schema.get("anyOf", ()):
        yield from _inside(option, path)
    if schema.get("type") == "array":
        yield from _members(schema.get("items", {}), f"{path}[].")
        yield from _inside(schema.get("items", {}), f"{path}[]") if "items" in schema.get("items", {}) else ()
    elif schema.get("type") == "object":
        yield from _members(schema, f"{path}.")


_WORDS = {
    "minimum": "at least {}",
    "maximum": "at most {}",
    "minLength": "{} or more characters",
    "maxLength": "at most {} characters",
    "minItems": "{} or more items",
    "maxItems": "at most {} items",
    "format": "{}",
}


def _what(schema: Mapping[str, Any]) -> str:
    kinds = [_kind(option) for option in schema.get("anyOf", [schema])]
    limits = [words.format(schema[keyword]) for keyword, words in _WORDS.items() if keyword in schema]
    described = schema.get("description", "")
    text = ", ".join([" or ".join(kinds), *limits])
    return f"{text}. {described}" if described else f"{text}."


def _kind(schema: Mapping[str, Any]) -> str:
    if "const" in schema:
        return f"always ``{json.dumps(schema['const'])}``"
    if "enum" in schema:
        return "one of " + ", ".join(f"``{json.dumps(value)}``" for value in schema["enum"])
    found = schema.get("type", "anything")
    return " or ".join(found) if isinstance(found, list) else str(found)
