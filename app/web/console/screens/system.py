"""System: the processes, the bus with its consumers, the versions of the events, timers, configuration, and the audit."""

from __future__ import annotations

__all__ = ["SCREEN", "build"]

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import Any
from urllib.parse import urlencode

from aiohttp import hdrs, web

from app.web.console.frame import Page, Screen, Visit, problem_in
from app.web.console.screens.parts import ScreenParts, Sources
from app.web.operations.module_api import ProcessAnswer
from config.api_keys import ApiKey

SCREEN = Screen("system", "System", "/console/system")

AUDIT_SHOWN = 50

_AUDIT_PAGE = f"{SCREEN.path}/audit"
_AUDIT_FILTERS = ("module", "actor", "action", "target", "after", "before")


def build(sources: Sources) -> ScreenParts:
    """Return the screen."""
    screen = _System(sources)
    return ScreenParts(
        SCREEN,
        (
            Page(hdrs.METH_GET, SCREEN.path, screen.show, SCREEN),
            Page(hdrs.METH_GET, f"{SCREEN.path}/live", screen.follow, SCREEN),
            Page(hdrs.METH_GET, _AUDIT_PAGE, screen.show_audit, SCREEN),
        ),
    )


class _System:
    def __init__(self, sources: Sources) -> None:
        self._api = sources.api
        self._live = sources.live
        self._rendering = sources.rendering

    async def show(self, visit: Visit) -> web.StreamResponse:
        """Show how the system is set up, and what each process reports about itself."""
        contracts = await self._api.ask_all("GET", "/v1/contracts", principal=visit.key)
        return visit.page("operations/system.html", **await self._read(visit.key), contracts=_contracts(_bodies(contracts)))

    async def follow(self, visit: Visit) -> web.StreamResponse:
        """Send what changes by itself: processes, streams, consumers and timers."""
        reader = ApiKey("console", visit.key.role)

        def show(found: Mapping[str, Any]) -> Mapping[str, str]:
            return {"system": self._rendering.render("operations/system_live.html", **found)}

        return await self._live.stream(visit, ("system", reader.role), partial(self._read, reader), show)

    async def _read(self, reader: ApiKey) -> Mapping[str, Any]:
        answers = await self._api.ask_all("GET", "/v1/system", principal=reader)
        reports = list(_bodies(answers))
        return {
            "answers": answers,
            "reports": reports,
            "streams": _distinct(reports, "streams", ("name",)),
            "consumers": [_without_replays(each) for each in _distinct(reports, "consumers", ("stream", "consumer"))],
            "timers": [timers for report in reports for timers in report["timers"]],
        }

    async def show_audit(self, visit: Visit) -> web.StreamResponse:
        """Show who changed what, newest first, in a page of all processes or in the pages of one."""
        wanted = {name: visit.query[name] for name in _AUDIT_FILTERS if visit.query.get(name)}
        query = {**wanted, "limit": AUDIT_SHOWN, **({"cursor": visit.query["cursor"]} if visit.query.get("cursor") else {})}
        answers = await self._ask_audit(visit, query)
        refused = next((each.answer for each in answers if each.answer is not None and not each.answer.is_success), None)
        pages = list(_bodies(answers))
        records = sorted((item for page in pages for item in page["items"]), key=lambda item: item["at"], reverse=True)
        following = pages[0]["next_cursor"] if len(pages) == 1 else None
        problem = None if refused is None else problem_in(refused)
        return visit.page(
            "operations/audit.html",
            200 if problem is None else problem.status,
            problem=problem,
            wanted={name: visit.query.get(name, "") for name in _AUDIT_FILTERS},
            modules=self._api.modules,
            records=records[:AUDIT_SHOWN],
            following=None if following is None else f"{_AUDIT_PAGE}?{urlencode({**wanted, 'cursor': following})}",
            is_cut=len(pages) > 1 and any(page["next_cursor"] is not None for page in pages),
            unreachable=[each.unreachable for each in answers if each.unreachable is not None],
        )

    async def _ask_audit(self, visit: Visit, query: dict[str, Any]) -> Sequence[ProcessAnswer]:
        answers = await self._api.ask_all("GET", "/v1/audit", query=query, principal=visit.key)
        if "module" not in query:
            return answers
        # A process answers 404 for a module that it does not run.
        return [each for each in answers if query["module"] in each.modules or query["module"] not in self._api.modules]


def _bodies(answers: Iterable[ProcessAnswer]) -> Iterable[Any]:
    return (each.answer.body for each in answers if each.answer is not None and each.answer.is_success)


def _distinct(reports: Iterable[Any], kind: str, key: tuple[str, ...]) -> list[Any]:
    """Return the streams or the consumers of all *reports*; processes that share a broker report the same ones."""
    found = {tuple(each[name] for name in key): each for report in reports for each in report["bus"][kind] or ()}
    return [found[each] for each in sorted(found)]


def _without_replays(consumer: Any) -> Any:
    """Return *consumer* without the subjects of its own replayed dead letters, of which there is one beside each subject."""
    return {**consumer, "subjects": [subject for subject in consumer["subjects"] if ".replay." not in subject]}


def _contracts(pages: Iterable[Any]) -> list[Any]:
    """Return the versions of all events, each once, with what all processes together have published and handled."""
    items = sorted((item for page in pages for item in page["items"]), key=lambda item: item["subject"])
    merged: list[Any] = []
    for _, group in groupby(items, key=lambda item: item["subject"]):
        versions = list(group)
        listeners = {each["consumer"]: each for version in versions for each in version["listeners"]}
        merged.append({
            **versions[0],
            "listeners": [listeners[name] for name in sorted(listeners)],
            "published": sum(version["published"] for version in versions),
            "reasons": list(dict.fromkeys(reason for version in versions for reason in version["reasons"])),
            "safe_to_drop": all(version["safe_to_drop"] for version in versions),
        })
    return merged
