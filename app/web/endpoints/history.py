"""The endpoint of the history: every event that the modules of this process have published, in order."""

from __future__ import annotations

__all__ = ["DESCRIPTION", "route_group", "subjects_of", "to_json"]

from datetime import UTC, datetime
from typing import Any

from aiohttp import hdrs, web
from loguru import logger

from app.storage.archive.history_content import HistoryEvent, HistoryIncomplete
from app.storage.archive.history_reader import HistoryReader, SeveralDatabases
from app.storage.archive.history_table import HistoryDamaged
from app.storage.archive.parquet_manifest import ArchiveUnusable
from app.web.handler import Endpoint, RequestContext, RouteGroup
from app.web.requests.filters import FilterReader
from app.web.requests.one_module import MODULE, require_module
from app.web.requests.paging import PAGE_DEFAULT, PAGE_MAX
from app.web.requests.parameters import read_query
from app.web.responses.problems import ProblemError, invalid_input
from app.web.responses.success import json_response
from app.web.spec.components import Description, operation, query_parameter, ref, response
from bus.contracts.registry import ContractRegistry
from bus.errors import SchemaViolation
from bus.subjects import EXPRESS, without_lane
from modules.filters import Filter

_PATH = "/v1/history"
_SEQ = {"type": "integer", "minimum": 0, "maximum": 2**53 - 1}
_FILTERS = (
    Filter("after", _SEQ, "Events that follow the one with this `seq`; by default from the first one on."),
    MODULE,
    Filter(
        "subject", {"type": "string", "minLength": 1, "maxLength": 255},
        "Events under this subject: in both lanes, or in one if the subject names it.",
    ),
    Filter("limit", {"type": "integer", "minimum": 1, "maximum": PAGE_MAX}, f"Most events of a page; {PAGE_DEFAULT} by default."),
)  # fmt: skip
_EVENT = {
    "type": "object",
    "description": "A published event.",
    "required": ["seq", "event_id", "cause_id", "correlation_id", "subject", "at", "data"],
    "properties": {
        "seq": {**_SEQ, "description": "Grows from event to event, with gaps."},
        **{name: {"type": "string"} for name in ("event_id", "correlation_id", "subject")},
        "cause_id": {"type": "string", "description": "The id of the event or request that it follows from."},
        "at": {"type": "string", "format": "date-time"},
        "data": {"type": "object", "description": "The event, as its schema in `/asyncapi.json` describes it."},
    },
}
_PAGE = {
    "type": "object",
    "required": ["items", "next_after"],
    "properties": {
        "items": {"type": "array", "items": ref("schemas", "HistoryEvent")},
        "next_after": {"type": ["integer", "null"], "description": "What to give as `after` for the next page; null at the end."},
    },
}


def route_group(history: HistoryReader, contracts: ContractRegistry) -> RouteGroup:
    """Return the endpoint that lists the events in *history*, whose subjects *contracts* has."""
    subjects = subjects_of(contracts)
    filters = FilterReader(_FILTERS)
    reported: set[str] = set()

    def report(problem: str) -> None:
        if problem not in reported:  # each request would find it again
            reported.add(problem)
            logger.error("the history cannot be read", problem=problem)

    async def list_history(request: web.Request, context: RequestContext) -> web.Response:
        query = read_query(request, filters.names)
        wanted: dict[str, Any] = {condition.filter.name: condition.values[0] for condition in filters.read(query)}
        subject = wanted.get("subject")
        if subject is not None and without_lane(subject) not in subjects:
            detail = f"must be one of {', '.join(subjects)}, or one of them with {EXPRESS}"
            raise invalid_input("invalid_query", "There is no such subject; errors lists those there are.", [SchemaViolation("/subject", detail)])
        require_module(wanted.get(MODULE.name), history.modules)
        try:
            page = await history.page(**{"limit": PAGE_DEFAULT, **wanted})
        except SeveralDatabases as error:
            raise ProblemError(400, "module_needed", f"{str(error).capitalize()}.") from None
        except HistoryIncomplete as error:
            raise ProblemError(409, "history_incomplete", f"{str(error).capitalize()}.") from None
        except HistoryDamaged as error:
            report(str(error))
            raise ProblemError(409, "history_damaged", f"{str(error).capitalize()}.") from None
        except ArchiveUnusable as error:
            report(str(error))
            detail = "The archive of the history cannot be read; the log of the server has the file, and what to do."
            raise ProblemError(503, "history_archive_unusable", detail, headers={hdrs.RETRY_AFTER: "60"}) from None
        return json_response({"items": [to_json(event) for event in page.events], "next_after": page.next_after})

    return RouteGroup((Endpoint(hdrs.METH_GET, _PATH, list_history, roles=("viewer",)),), DESCRIPTION)


def subjects_of(contracts: ContractRegistry) -> list[str]:
    """Return the subjects that a history can have, older versions included, without lanes."""
    return sorted({*contracts.subjects_for(contract.cls for contract in contracts)})


def to_json(event: HistoryEvent) -> dict[str, Any]:
    """Return *event* as the API shows it."""
    at = datetime.fromisoformat(event.at).astimezone(UTC)
    return {
        "seq": event.seq,
        "event_id": event.event_id,
        "cause_id": event.cause_id,
        "correlation_id": event.correlation_id,
        "subject": event.subject,
        "at": at.isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "data": event.data,
    }


DESCRIPTION = Description(
    {
        _PATH: {
            "get": operation(
                "listHistory",
                _PATH,
                "List every event that was published, in order",
                "operations",
                {200: response("One page.", ref("schemas", "HistoryPage"))},
                (400, 404, 409, 503),
                parameters=[
                    {**query_parameter(each.name, dict(each.schema)), "description": each.description} for each in _FILTERS
                ],
            )
        }
    },
    {"HistoryEvent": _EVENT, "HistoryPage": _PAGE},
)
"""The OpenAPI description of this endpoint."""
