"""Trouble: the dead letters in groups of one cause, and the payments that wait for a person."""

from __future__ import annotations

__all__ = ["SCREEN", "build"]

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any
from urllib.parse import quote

from aiohttp import hdrs, web

from app.messaging.dead_letters.groups import pattern_of
from app.web.console.frame import Page, Screen, Visit, problem_in
from app.web.console.screens import dead_letter
from app.web.console.screens.parts import ScreenParts, Sources
from app.web.operations.module_api import ProcessAnswer
from app.web.responses.problems import ProblemError
from bus.subjects import module_of
from config.api_keys import ApiKey

SCREEN = Screen("trouble", "Trouble", "/console/trouble")

LETTERS_SHOWN = 50

LETTERS_READ_MAX = 1000
"""Dead letters of a group that one page looks through for those of a pattern."""

_FILTERS = ("consumer", "subject", "error")
_GROUPS = "/v1/dead-letters/groups"
_GROUP_PAGE = f"{SCREEN.path}/group"
_MANY = f"{SCREEN.path}/many"
_SELECTED = f"{SCREEN.path}/selected"
_VERBS = {"replay": "replayed", "discard": "discarded"}
_CHOSEN = "letter."


def build(sources: Sources) -> ScreenParts:
    """Return the screen."""
    screen = _DeadLetters(sources)
    of_letter = dead_letter.pages(SCREEN)
    return ScreenParts(
        SCREEN,
        (
            Page(hdrs.METH_GET, SCREEN.path, screen.show, SCREEN),
            Page(hdrs.METH_GET, f"{SCREEN.path}/live", screen.follow, SCREEN),
            Page(hdrs.METH_GET, _GROUP_PAGE, screen.show_group, SCREEN),
            Page(hdrs.METH_GET, _MANY, screen.confirm_many, SCREEN, roles=()),
            Page(hdrs.METH_POST, _MANY, screen.change_many, SCREEN, roles=()),
            Page(hdrs.METH_POST, _SELECTED, screen.change_selected, SCREEN, roles=()),
            Page(hdrs.METH_POST, f"{SCREEN.path}/settle", screen.settle, SCREEN, roles=()),
            *of_letter,
        ),
    )


class _DeadLetters:
    def __init__(self, sources: Sources) -> None:
        self._api = sources.api
        self._live = sources.live
        self._rendering = sources.rendering

    async def show(self, visit: Visit) -> web.StreamResponse:
        """Show all groups, and the payments that wait for a person."""
        payments, problem = await self._open_cases(visit)
        return visit.page(
            "operations/dead_letters/index.html",
            **await self._read_groups(visit.key),
            payments=payments,
            payments_problem=problem,
            done=_done(visit),
        )

    async def follow(self, visit: Visit) -> web.StreamResponse:
        """Send the groups after each change."""
        reader = ApiKey("console", visit.key.role)

        def show(found: Mapping[str, Any]) -> Mapping[str, str]:
            return {"groups": self._rendering.render("operations/dead_letters/groups.html", **found)}

        return await self._live.stream(visit, ("dead letters", reader.role), partial(self._read_groups, reader), show)

    async def _read_groups(self, reader: ApiKey) -> Mapping[str, Any]:
        answers = await self._api.ask_all("GET", _GROUPS, principal=reader)
        unreachable = [each.unreachable for each in answers if each.unreachable is not None]
        return {
            "groups": [{**group, "address": group_address(group)} for group in _items(answers)],
            "unreachable": [{"module": each.module, "reason": each.reason} for each in unreachable],
        }

    async def _open_cases(self, visit: Visit) -> tuple[list[Any], str | None]:
        query = {"needs_settling": "true", "limit": 50}
        try:
            return (await visit.ask("GET", "/v1/payments", query=query))["items"], None
        except ProblemError as problem:
            return [], problem.detail

    async def show_group(self, visit: Visit) -> web.StreamResponse:
        """Show the dead letters of one group, the oldest ids first."""
        wanted = _wanted(visit.query)
        pattern, cursor = visit.query.get("pattern"), visit.query.get("cursor")
        letters, following = await self._letters(visit, wanted, pattern, cursor)
        return visit.page(
            "operations/dead_letters/group.html",
            wanted=wanted,
            pattern=pattern,
            letters=letters,
            following=None if following is None else group_address({**wanted, "pattern": pattern, "cursor": following}),
            module=module_of(wanted["consumer"]),
            many=_MANY,
            done=_done(visit),
        )

    async def _letters(
        self, visit: Visit, wanted: dict[str, str], pattern: str | None, cursor: str | None
    ) -> tuple[list[Any], str | None]:
        """Return the next dead letters of *wanted* with *pattern*, and the cursor of those that follow."""
        found: list[Any] = []
        for _ in range(LETTERS_READ_MAX // LETTERS_SHOWN):
            query = {**wanted, "limit": LETTERS_SHOWN, **({} if cursor is None else {"cursor": cursor})}
            page = await visit.ask("GET", "/v1/dead-letters", query=query, module=module_of(wanted["consumer"]))
            found += [each for each in page["items"] if pattern is None or pattern_of(each["detail"]) == pattern]
            cursor = page["next_cursor"]
            if cursor is None or found:
                break
        return found, cursor

    async def confirm_many(self, visit: Visit) -> web.StreamResponse:
        """Count what a replay or a discard of a whole group would change, and show the button that does it."""
        action, wanted = _action(visit.query), _wanted(visit.query)
        result = await self._change_group(visit, action, wanted, is_dry=True)
        return visit.page(
            "operations/dead_letters/confirm.html", action=action, wanted=wanted, count=result["matched"], ids=[], address=_MANY, back=group_address(wanted)
        )

    async def change_many(self, visit: Visit) -> web.StreamResponse:
        """Replay or discard a whole group."""
        action, wanted = _action(visit.form), _wanted(visit.form)
        result = await self._change_group(visit, action, wanted, is_dry=False)
        return visit.redirect(SCREEN.path, done=action, count=str(result[_VERBS[action]]))

    async def _change_group(self, visit: Visit, action: str, wanted: dict[str, str], is_dry: bool) -> Any:
        return await visit.ask(
            "POST", f"/v1/dead-letters/{action}", body={**wanted, "dry_run": is_dry}, module=module_of(wanted["consumer"]),
            query={"consumer": wanted["consumer"]} if action == "discard" else None,
        )  # fmt: skip

    async def change_selected(self, visit: Visit) -> web.StreamResponse:
        """Replay the dead letters that are selected, or discard them once that is confirmed."""
        action, wanted = _action(visit.form), _wanted(visit.form)
        ids = [name.removeprefix(_CHOSEN) for name in visit.form if name.startswith(_CHOSEN)]
        back = group_address(wanted)
        if not ids:
            raise ProblemError(400, "nothing_selected", "No dead letter is selected; nothing was done.")
        if action == "discard" and "confirmed" not in visit.form:
            return visit.page(
                "operations/dead_letters/confirm.html", action=action, wanted=wanted, count=len(ids), ids=ids, address=_SELECTED, back=back
            )
        refused = []
        for id in ids:
            path = f"/v1/dead-letters/{quote(id, safe='')}"
            method, address = ("POST", f"{path}/replay") if action == "replay" else ("DELETE", path)
            answer = await visit.answer(method, address, module=module_of(wanted["consumer"]))
            if not answer.is_success:
                refused.append({"id": id, "detail": problem_in(answer).detail})
        if refused:
            changed = len(ids) - len(refused)
            return visit.page("operations/dead_letters/refused.html", 409, verb=_VERBS[action], changed=changed, refused=refused, back=back)
        return visit.redirect(_GROUP_PAGE, **wanted, done=action, count=str(len(ids)))

    async def settle(self, visit: Visit) -> web.StreamResponse:
        """Close the case of a payment as the person has decided."""
        if "confirmed" not in visit.form:
            raise ProblemError(400, "not_confirmed", "Look at the payment provider first, and confirm it; nothing was done.")
        order_id = visit.form.get("order_id", "")
        body = {"outcome": visit.form.get("outcome", ""), "reason": visit.form.get("reason", "")}
        path = f"/v1/payments/{quote(order_id, safe='')}/settle"
        await visit.ask("POST", path, body=body)
        return visit.redirect(SCREEN.path, done="settle", count="1")


def group_address(group: dict[str, Any]) -> str:
    """Return the address of the page of *group*: its consumer, subject and error, and its pattern if it has one."""
    names = (*_FILTERS, "pattern", "cursor")
    query = "&".join(f"{name}={quote(str(group[name]), safe='')}" for name in names if group.get(name))
    return f"{_GROUP_PAGE}?{query}"


def _wanted(fields: Any) -> dict[str, str]:
    """
    Return the group that *fields* name.

    Raises:
        ProblemError: 400, one of its parts is missing.
    """
    found = {name: fields[name] for name in _FILTERS if fields.get(name)}
    if len(found) != len(_FILTERS):
        raise ProblemError(400, "invalid_group", "A group of dead letters has a consumer, a subject and an error.")
    return found


def _action(fields: Any) -> str:
    action = str(fields.get("action", ""))
    if action not in _VERBS:
        raise ProblemError(400, "invalid_action", "Dead letters can be replayed or discarded.")
    return action


def _items(answers: Sequence[ProcessAnswer]) -> list[Any]:
    found = [item for each in answers if each.answer is not None and each.answer.is_success for item in each.answer.body["items"]]
    return sorted(found, key=lambda group: -group["count"])


def _done(visit: Visit) -> dict[str, Any] | None:
    """Return what the request before this one has done: its redirect has that in the query."""
    action, count = visit.query.get("done"), visit.query.get("count", "")
    verbs = {**_VERBS, "settle": "settled", "edit": "replayed with the edited body"}
    if action not in verbs or not (count.isascii() and count.isdecimal()):
        return None
    return {"verb": verbs[action], "count": int(count[:9]), "what": "payment" if action == "settle" else "dead letter"}
