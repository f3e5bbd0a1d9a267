"""The OpenAPI description of the endpoints for dead letters."""

from __future__ import annotations

__all__ = [
    "DESCRIPTION",
    "DISCARD_PATH",
    "DISCARD_REQUEST",
    "EDIT",
    "FILTERS",
    "GROUPS_PATH",
    "GROUP_NAMES",
    "ITEM_PATH",
    "LIST_PATH",
    "REPLAY_ITEM_PATH",
    "REPLAY_PATH",
    "REPLAY_REQUEST",
]

from typing import Any

from app.web.spec.components import Description, body, operation, page_of, query_parameter, ref, response

_TEXT = {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[^\\u0000-\\u001f\\u007f-\\u009f]*$"}
_COUNT = {"type": "integer", "minimum": 0}
_MOMENT = {"type": "string", "format": "date-time"}


def _request_for_many(does_nothing: str) -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": ["dry_run"],
        "properties": {
            "consumer": _TEXT,
            "subject": _TEXT,
            "error": _TEXT,
            "dry_run": {"type": "boolean", "description": f"Count the matching dead letters, and {does_nothing}."},
        },
    }


def _counts(done: str) -> dict[str, Any]:
    return {"type": "object", "required": ["matched", done], "properties": {"matched": _COUNT, done: _COUNT}}


REPLAY_REQUEST = _request_for_many("replay none")
DISCARD_REQUEST = _request_for_many("discard none") | {
    "minProperties": 2,
    "description": "At least one of consumer, subject and error: a discard cannot be undone.",
}
EDIT = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "body": {
            "description": "The body of the new message in place of the stored one. It must match the schema of the subject."
        }
    },
}
GROUP_NAMES = ("consumer", "subject", "error", "pattern", "example")
_GROUPS = {
    "type": "object",
    "required": ["items"],
    "properties": {
        "items": {
            "type": "array",
            "items": {
                "type": "object",
                "required": [*GROUP_NAMES, "count", "first_seen", "last_seen"],
                "properties": {
                    **{name: {"type": "string"} for name in GROUP_NAMES},
                    "count": _COUNT,
                    "first_seen": _MOMENT,
                    "last_seen": _MOMENT,
                },
            },
        }
    },
}
_REPLAY_ACCEPTED = {
    "type": "object",
    "required": ["id", "status"],
    "properties": {"id": {"type": "string"}, "status": {"const": "replaying"}},
}
_DEAD_LETTER = {
    "type": "object",
    "required": [
        *("id", "consumer", "subject", "error", "detail", "attempts", "first_seen", "last_seen", "replays", "message"),
        "edited_body",
    ],
    "properties": {
        **{name: {"type": "string"} for name in ("id", "consumer", "subject", "error", "detail")},
        "attempts": _COUNT,
        "first_seen": _MOMENT,
        "last_seen": _MOMENT,
        "replays": _COUNT,
        "edited_body": {"description": "The JSON value of the body that the latest edited replay had; null if there was none."},
        "message": {
            "type": "object",
            "required": ["id", "key", "headers", "body"],
            "properties": {
                "id": {"type": "string"},
                "key": {"type": "string"},
                "headers": {"type": "object", "additionalProperties": {"type": "string"}},
                "body": {"description": 'The JSON value of the body, or {"base64": "..."} if it is not JSON.'},
            },
        },
    },
}
LIST_PATH = "/v1/dead-letters"
ITEM_PATH = "/v1/dead-letters/{id}"
REPLAY_ITEM_PATH = "/v1/dead-letters/{id}/replay"
REPLAY_PATH = "/v1/dead-letters/replay"
DISCARD_PATH = "/v1/dead-letters/discard"
GROUPS_PATH = "/v1/dead-letters/groups"
FILTERS = ("consumer", "subject", "error")


def _describe(name: str, path: str, summary: str, responses: dict[int, Any], *problems: int, **more: Any) -> Any:
    return operation(name, path, summary, "dead letters", responses, (*problems, 503), **more)


DESCRIPTION = Description(
    {
        LIST_PATH: {
            "get": _describe(
                "listDeadLetters",
                LIST_PATH,
                "List dead letters",
                {200: response("One page.", ref("schemas", "DeadLetterPage"))},
                400,
                parameters=[
                    *(query_parameter(name, {"type": "string"}) for name in FILTERS),
                    ref("parameters", "Limit"),
                    ref("parameters", "Cursor"),
                ],
            )
        },
        REPLAY_PATH: {
            "post": _describe(
                "replayDeadLetters",
                REPLAY_PATH,
                "Replay all dead letters that match a filter",
                {200: response("How many match, and how many were replayed.", ref("schemas", "ReplayResult"))},
                *(400, 408, 413, 415),
                request_body=body(ref("schemas", "ReplayRequest")),
            )
        },
        DISCARD_PATH: {
            "post": _describe(
                "discardDeadLetters",
                DISCARD_PATH,
                "Discard all dead letters that match a filter",
                {200: response("How many match, and how many were discarded.", ref("schemas", "DiscardResult"))},
                *(400, 408, 413, 415),
                request_body=body(ref("schemas", "DiscardRequest")),
            )
        },
        GROUPS_PATH: {
            "get": _describe(
                "listDeadLetterGroups",
                GROUPS_PATH,
                "Count dead letters by their cause",
                {200: response("All groups, the largest first.", ref("schemas", "DeadLetterGroups"))},
                400,
                parameters=[query_parameter(name, {"type": "string"}) for name in FILTERS],
            )
        },
        ITEM_PATH: {
            "get": _describe(
                "getDeadLetter",
                ITEM_PATH,
                "Show a dead letter",
                {200: response("The dead letter.", ref("schemas", "DeadLetter"))},
                404,
            ),
            "delete": _describe(
                "discardDeadLetter", ITEM_PATH, "Discard a dead letter", {204: response("It is deleted.")}, 404
            ),
        },
        REPLAY_ITEM_PATH: {
            "post": _describe(
                "replayDeadLetter",
                REPLAY_ITEM_PATH,
                "Replay a dead letter, as it is or edited",
                {202: response("The event is stored in the outbox.", ref("schemas", "ReplayAccepted"))},
                *(400, 404, 408, 409, 413, 415),
                request_body=body(ref("schemas", "DeadLetterEdit"), is_required=False),
            )
        },
    },
    {
        "DeadLetter": _DEAD_LETTER,
        "DeadLetterPage": page_of(ref("schemas", "DeadLetter")),
        "ReplayRequest": REPLAY_REQUEST,
        "ReplayResult": _counts("replayed"),
        "DiscardRequest": DISCARD_REQUEST,
        "DiscardResult": _counts("discarded"),
        "DeadLetterEdit": EDIT,
        "DeadLetterGroups": _GROUPS,
        "ReplayAccepted": _REPLAY_ACCEPTED,
    },
)
"""The OpenAPI description of these endpoints."""
