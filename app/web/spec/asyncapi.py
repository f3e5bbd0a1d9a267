"""
The events' description: AsyncAPI 3.0.0, from the very registry that checks every message.

A channel is a subject, and each lane is one of its own. The payloads are schemas of JSON Schema 2020-12 that use nothing
which draft-07 does not have, so that every tool for AsyncAPI reads them as they are meant.
"""

from __future__ import annotations

__all__ = ["document"]

from collections.abc import Mapping, Sequence
from typing import Any

from app.messaging.consumers import EXPRESS_LANE, subscriptions
from bus.contracts.registry import Contract, ContractRegistry
from bus.contracts.versions import VERSIONS, subject_at, version_of, versions_header
from bus.replay_subjects import original_subject
from bus.subjects import EXPRESS, is_express, without_lane
from modules.module import Module

Json = dict[str, Any]

_BINDING_VERSION = "0.1.0"
_DESCRIPTION = (
    "What the modules say to each other and to whoever else listens, over NATS JetStream. CloudEvents 1.0 in binary mode; "
    "at least once, in no promised order. Orders with `priority` express travel under the same subjects with a trailing "
    "`.express`. A reader ignores members that it does not know."
)
_TEXT = {"type": "string", "pattern": "^[!-~]+$"}
_HEADERS: Json = {
    "type": "object",
    "required": ["ce-specversion", "ce-id", "ce-source", "ce-type", "ce-time", "traceparent"],
    "properties": {
        "ce-specversion": {"type": "string", "const": "1.0"},
        "ce-id": {**_TEXT, "description": "The event's own id. The same in every version, and in every copy."},
        "ce-source": {"type": "string", "format": "uri-reference"},
        "ce-type": {**_TEXT, "description": "The subject, without the lane."},
        "ce-time": {"type": "string", "format": "date-time"},
        "ce-datacontenttype": {"type": "string", "const": "application/json"},
        "ce-correlationid": {**_TEXT, "description": "Whatever one request has caused shares it; percent-encoded."},
        "ce-causationid": {**_TEXT, "description": "The id of the event that caused this one; percent-encoded."},
        VERSIONS: {
            "type": "string",
            "pattern": "^v[1-9][0-9]*(,v[1-9][0-9]*)*$",
            "description": "There when the event is said in several versions: all of them. Act on one.",
        },
        "traceparent": {"type": "string", "description": "W3C Trace Context."},
        "Nats-Msg-Id": {
            **_TEXT,
            "description": "The message's id: ce-id, other than for the newer versions of what is said in several.",
        },
    },
}


def document(modules: Sequence[Module], contracts: ContractRegistry, version: str) -> Json:
    """Return the AsyncAPI document for an application that runs *modules*; needs no running application."""
    own = {module.name for module in modules}
    heard = {
        consumer: [subject for subject in subjects if original_subject(subject) == subject]
        for consumer, subjects in subscriptions(modules, contracts).items()
    }
    everybody_hears = {without_lane(subject) for subjects in heard.values() for subject in subjects}
    found = {c.subject: c for c in contracts if c.subject.partition(".")[0] in own or c.subject in everybody_hears}
    said = {subject for subject in found if subject.partition(".")[0] in own and _versions(contracts, subject)[0]}
    lanes = [lane for subject in found for lane in (subject, subject + EXPRESS)]
    return {
        "asyncapi": "3.0.0",
        "info": {"title": "Fulfilment events", "version": version, "description": _DESCRIPTION},
        "defaultContentType": "application/json",
        "servers": {
            "nats": {
                "host": "127.0.0.1:4222",
                "protocol": "nats",
                "description": "NATS_URL says where it is. With the bus in memory, events do not leave the process.",
            }
        },
        "channels": {lane: _channel(found[without_lane(lane)], lane) for lane in lanes},
        "operations": {
            **{f"{lane}.say": _operation("send", lane, {}) for lane in lanes if without_lane(lane) in said},
            **{
                f"{subject}.hear.{consumer}": _operation("receive", subject, {"queue": consumer})
                for consumer, subjects in heard.items()
                for subject in subjects
            },
        },
        "components": {
            "messages": {subject: _message(contract, contracts) for subject, contract in found.items()},
            "messageTraits": {
                "envelope": {
                    "headers": _HEADERS,
                    "correlationId": {"location": "$message.header#/ce-correlationid"},
                    "contentType": "application/json",
                }
            },
        },
    }


def _versions(contracts: ContractRegistry, subject: str) -> tuple[bool, list[int]]:
    """Return whether *subject* is said, and all the versions that its event is said in."""
    event, version = version_of(subject)
    newest = max(other for name, other in (version_of(c.subject) for c in contracts) if name == event)
    older = [version_of(contract.subject)[1] for contract, _ in contracts[subject_at(event, newest)].older]
    return version == newest or version in older, [newest, *older]


def _channel(contract: Contract, lane: str) -> Json:
    what = "orders with priority express" if is_express(lane) else "all other orders"
    return {
        "address": lane,
        "title": contract.schema.get("title", contract.subject),
        "description": f"Of {what}. One JetStream stream per module holds the subjects that begin with its name.",
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
        "tags": [{"name": subject.partition(".")[0]}, {"name": lane}],
        "bindings": {"nats": {**binding, "bindingVersion": _BINDING_VERSION}} if binding else {"nats": {}},
    }


def _message(contract: Contract, contracts: ContractRegistry) -> Json:
    is_said, versions = _versions(contracts, contract.subject)
    found: Json = {
        "name": contract.subject,
        "title": contract.schema.get("title", contract.subject),
        "summary": (contract.cls.__doc__ or "").strip(),
        "payload": _payload(contract.schema),
        "traits": [{"$ref": "#/components/messageTraits/envelope"}],
        "bindings": {"nats": {}},
        "examples": [{"payload": example} for example in contract.schema.get("examples", ())],
    }
    if len(versions) > 1 and is_said:
        found["description"] = f"Said in several versions at once: {VERSIONS}: {versions_header(versions)}."
    if not is_said:
        found["description"] = "Said no more; still understood."
    return found


def _payload(schema: Mapping[str, Any]) -> Json:
    """Return *schema* as part of a document: without an id and a dialect of its own."""
    return {name: part for name, part in schema.items() if name not in ("$id", "$schema")}
