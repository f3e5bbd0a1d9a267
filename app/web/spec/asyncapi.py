"""
The AsyncAPI 3.0.0 document of the events, generated from the contract registry that validates every message.

Each subject is a channel, and so is its express lane. The payloads are schemas of JSON Schema 2020-12 that use only
what draft-07 has, too, so that every AsyncAPI tool reads them correctly.
"""

from __future__ import annotations

__all__ = ["document"]

from collections.abc import Mapping, Sequence
from inspect import cleandoc
from typing import Any

from app.messaging.consumers import EXPRESS_LANE, subscriptions
from bus.contracts.contract import Contract
from bus.contracts.registry import ContractRegistry
from bus.contracts.versions import VERSIONS, subject_at, version_of, versions_header
from bus.subjects import EXPRESS, is_express, original_subject, without_lane
from modules.module import Module

Json = dict[str, Any]

_BINDING_VERSION = "0.1.0"
_DESCRIPTION = (
    "The events that the modules publish and consume over NATS JetStream. CloudEvents 1.0 in binary mode; delivered at "
    "least once, in no guaranteed order. Orders with `priority` express use the same subjects with a trailing `.express`. "
    "Consumers must ignore members that they do not know."
)
_TEXT = {"type": "string", "pattern": "^[!-~]+$"}
_HEADERS: Json = {
    "type": "object",
    "required": ["ce-specversion", "ce-id", "ce-source", "ce-type", "ce-time", "traceparent"],
    "properties": {
        "ce-specversion": {"type": "string", "const": "1.0"},
        "ce-id": {**_TEXT, "description": "The event's id. Every version and every duplicate has the same."},
        "ce-source": {"type": "string", "format": "uri-reference"},
        "ce-type": {**_TEXT, "description": "The subject, without the lane."},
        "ce-time": {"type": "string", "format": "date-time"},
        "ce-datacontenttype": {"type": "string", "const": "application/json"},
        "ce-correlationid": {**_TEXT, "description": "Shared by all events that one request causes; percent-encoded."},
        "ce-causationid": {**_TEXT, "description": "The id of the event that caused this one; percent-encoded."},
        VERSIONS: {
            "type": "string",
            "pattern": "^v[1-9][0-9]*(,v[1-9][0-9]*)*$",
            "description": "Present if the event is published in several versions: all of them. Process only one.",
        },
        "traceparent": {"type": "string", "description": "W3C Trace Context."},
        "Nats-Msg-Id": {
            **_TEXT,
            "description": "The message's id. It equals ce-id, except for the newer versions of an event that is published"
            " in several.",
        },
    },
}


def document(modules: Sequence[Module], contracts: ContractRegistry, version: str) -> Json:
    """Return the AsyncAPI document of an application that runs *modules*; needs no running application."""
    running = {module.name for module in modules}
    consumed = {
        consumer: [subject for subject in subjects if original_subject(subject) == subject]
        for consumer, subjects in subscriptions(modules, contracts).items()
    }
    consumed_subjects = {without_lane(subject) for subjects in consumed.values() for subject in subjects}
    described = {
        contract.subject: contract
        for contract in contracts
        if _producer(contract.subject) in running or contract.subject in consumed_subjects
    }
    published = {
        subject
        for subject in described
        if _producer(subject) in running and _published_versions(contracts, subject)[0]
    }
    lanes = [lane for subject in described for lane in (subject, subject + EXPRESS)]
    return {
        "asyncapi": "3.0.0",
        "info": {"title": "Fulfilment events", "version": version, "description": _DESCRIPTION},
        "defaultContentType": "application/json",
        "servers": {
            "nats": {
                "host": "127.0.0.1:4222",
                "protocol": "nats",
                "description": "NATS_URL sets the address. With the in-memory bus, events do not leave the process.",
            }
        },
        "channels": {lane: _channel(described[without_lane(lane)], lane) for lane in lanes},
        "operations": {
            **{f"{lane}.send": _operation("send", lane, {}) for lane in lanes if without_lane(lane) in published},
            **{
                f"{subject}.receive.{consumer}": _operation("receive", subject, {"queue": consumer})
                for consumer, subjects in consumed.items()
                for subject in subjects
            },
        },
        "components": {
            "messages": {subject: _message(contract, contracts) for subject, contract in described.items()},
            "messageTraits": {
                "cloudEvent": {
                    "headers": _HEADERS,
                    "correlationId": {"location": "$message.header#/ce-correlationid"},
                    "contentType": "application/json",
                }
            },
        },
    }


def _producer(subject: str) -> str:
    return subject.partition(".")[0]


def _published_versions(contracts: ContractRegistry, subject: str) -> tuple[bool, list[int]]:
    """Return whether *subject* is published, and all versions in which its event is published; a retired one is meant to be none."""
    event, version = version_of(subject)
    newest = max(other for name, other in (version_of(contract.subject) for contract in contracts) if name == event)
    beside = (contract.subject for contract, _ in contracts[subject_at(event, newest)].older)
    older = [version_of(other)[1] for other in beside if other not in contracts.retired]
    return version == newest or version in older, [newest, *older]


def _channel(contract: Contract, lane: str) -> Json:
    priority = "express" if is_express(lane) else "normal"
    return {
        "address": lane,
        "title": contract.schema.get("title", contract.subject),
        "description": (
            f"For orders with {priority} priority."
            " One JetStream stream per module stores the subjects that begin with its name."
        ),
        "servers": [{"$ref": "#/servers/nats"}],
        "messages": {"event": {"$ref": f"#/components/messages/{contract.subject}"}},
        "bindings": {"nats": {}},
    }


def _operation(action: str, subject: str, binding: Json) -> Json:
    lane = EXPRESS_LANE.removeprefix("-") if is_express(subject) else "normal"
    return {
        "action": action,
        "channel": {"$ref": f"#/channels/{subject}"},
        "messages": [{"$ref": f"#/channels/{subject}/messages/event"}],
        "tags": [{"name": _producer(subject)}, {"name": lane}],
        "bindings": {"nats": {**binding, "bindingVersion": _BINDING_VERSION}} if binding else {"nats": {}},
    }


def _message(contract: Contract, contracts: ContractRegistry) -> Json:
    is_published, versions = _published_versions(contracts, contract.subject)
    summary, _, details = cleandoc(contract.cls.__doc__ or "").partition("\n\n")
    paragraphs = [" ".join(details.split())] if details else []
    if not is_published:
        paragraphs.append("No longer published, but still accepted.")
    elif len(versions) > 1:
        paragraphs.append(f"Published in several versions at once: {VERSIONS}: {versions_header(versions)}.")
    found: Json = {
        "name": contract.subject,
        "title": contract.schema.get("title", contract.subject),
        "summary": " ".join(summary.split()),
        "payload": _payload(contract.schema),
        "traits": [{"$ref": "#/components/messageTraits/cloudEvent"}],
        "bindings": {"nats": {}},
        "examples": [{"payload": example} for example in contract.schema.get("examples", ())],
    }
    if paragraphs:
        found["description"] = "\n\n".join(paragraphs)
    return found


def _payload(schema: Mapping[str, Any]) -> Json:
    """Return *schema* as part of a document: without an id and a dialect of its own."""
    return {name: part for name, part in schema.items() if name not in ("$id", "$schema")}
