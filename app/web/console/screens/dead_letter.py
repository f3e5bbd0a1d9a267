"""The page of one dead letter: its message and error, the members that its schema requires, and the form that repairs it."""

from __future__ import annotations

__all__ = ["pages"]

from typing import Any
from urllib.parse import quote

import orjson
from aiohttp import hdrs, web

from app.web.console.frame import Page, Screen, Visit, problem_in
from app.web.console.screens.schema_help import members_of, path_of
from app.web.requests.command import NotAnInteger, NotStrict, loads

_LINES_SHOWN_MAX = 40


def pages(screen: Screen) -> tuple[Page, ...]:
    """Return the pages of a dead letter, which belong to *screen*."""
    path = f"{screen.path}/{{module}}/{{id}}"
    letter = _DeadLetter(screen)
    return (
        Page(hdrs.METH_GET, path, letter.show, screen),
        Page(hdrs.METH_POST, f"{path}/replay", letter.replay, screen, roles=()),
        Page(hdrs.METH_POST, f"{path}/edit", letter.edit, screen, roles=()),
        Page(hdrs.METH_POST, f"{path}/discard", letter.discard, screen, roles=()),
    )


class _DeadLetter:
    def __init__(self, screen: Screen) -> None:
        self._screen = screen

    async def show(self, visit: Visit) -> web.StreamResponse:
        """Show a dead letter."""
        letter = await self._read(visit)
        return await self._page(visit, letter, orjson.dumps(_body(letter), option=orjson.OPT_INDENT_2).decode(), [])

    async def _page(
        self, visit: Visit, letter: Any, text: str, errors: list[dict[str, str]], status: int = 200
    ) -> web.StreamResponse:
        schema = await self._schema(visit, letter["subject"])
        members = [] if schema is None else members_of(schema)
        known = {member.path for member in members}
        found = [{"path": path_of(each["pointer"].removeprefix("/body")), **each} for each in errors]
        return visit.page(
            "operations/dead_letters/letter.html",
            status,
            letter=letter,
            module=visit.path["module"],
            address=self._address(visit),
            body=text,
            lines=min(max(text.count("\n") + 2, 8), _LINES_SHOWN_MAX),
            members=members,
            errors=found,
            by_path={path: [each["detail"] for each in found if each["path"] == path] for path in known},
            done=visit.query.get("done") == "replay",
        )

    async def replay(self, visit: Visit) -> web.StreamResponse:
        """Replay the dead letter as it is."""
        await self._request(visit, "POST", "/replay")
        return visit.redirect(self._screen.path, done="replay", count="1")

    async def edit(self, visit: Visit) -> web.StreamResponse:
        """Replay the dead letter with another body; show what is wrong with the body if it is refused."""
        text = visit.form.get("body", "")
        try:
            body = loads(text.encode())
        except NotStrict as error:
            return await self._page(visit, await self._read(visit), text, [{"pointer": "", "detail": error.detail}], 400)
        except NotAnInteger as error:
            wrong = [{"pointer": each.pointer, "detail": each.detail} for each in error.violations]
            return await self._page(visit, await self._read(visit), text, wrong, 400)
        answer = await visit.answer("POST", f"{self._path(visit)}/replay", body={"body": body}, module=visit.path["module"])
        if answer.is_success:
            return visit.redirect(self._screen.path, done="edit", count="1")
        problem = problem_in(answer)
        if answer.status != 400:
            raise problem
        errors = [{"pointer": each["pointer"], "detail": each["detail"]} for each in problem.members.get("errors", ())]
        shown = errors or [{"pointer": "", "detail": problem.detail}]
        return await self._page(visit, await self._read(visit), text, shown, 400)

    async def discard(self, visit: Visit) -> web.StreamResponse:
        """Delete the dead letter, once that is confirmed."""
        if "confirmed" not in visit.form:
            letter = await self._read(visit)
            return visit.page(
                "operations/dead_letters/confirm.html", action="discard", wanted=letter, count=1, ids=[],
                address=f"{self._address(visit)}/discard", back=self._address(visit),
            )  # fmt: skip
        await self._request(visit, "DELETE", "")
        return visit.redirect(self._screen.path, done="discard", count="1")

    async def _read(self, visit: Visit) -> Any:
        return await self._request(visit, "GET", "")

    async def _request(self, visit: Visit, method: str, rest: str) -> Any:
        return await visit.ask(method, f"{self._path(visit)}{rest}", module=visit.path["module"])

    async def _schema(self, visit: Visit, subject: str) -> Any:
        """Return the schema of *subject* from the document about the events, or None if it has none."""
        document = await visit.ask("GET", "/asyncapi.json", module=visit.path["module"])
        message = document["components"]["messages"].get(subject.removesuffix(".express"))
        return None if message is None else message.get("payload")

    def _address(self, visit: Visit) -> str:
        return f"{self._screen.path}/{quote(visit.path['module'], safe='')}/{quote(visit.path['id'], safe='')}"

    @staticmethod
    def _path(visit: Visit) -> str:
        return f"/v1/dead-letters/{quote(visit.path['id'], safe='')}"


def _body(letter: Any) -> Any:
    """Return the body that a person edits: the one of the latest edit, otherwise the stored one."""
    return letter["message"]["body"] if letter["edited_body"] is None else letter["edited_body"]
