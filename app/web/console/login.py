"""Log in with an API key, and log out."""

from __future__ import annotations

__all__ = ["endpoints"]

from collections.abc import Mapping

from aiohttp import hdrs, web
from loguru import logger

from app.web.console.frame import LOGIN, Frame, Page, Screen, Visit, read_form
from app.web.console.session import COOKIE, SESSION_SECONDS, Session
from app.web.handler import Endpoint, RequestContext
from app.web.responses.problems import ProblemError
from app.web.responses.success import UNCACHED

_PATH = "/console"
_FORWARDED = "X-Forwarded-Proto"
_SCREEN = Screen("session", "Session", _PATH, ("viewer", "shop", "stock", "metrics"))


def endpoints(frame: Frame) -> tuple[Endpoint, ...]:
    """Return the form, what it is sent to, and the end of a session."""

    async def show(request: web.Request, context: RequestContext) -> web.StreamResponse:
        if frame.sessions.read(request.cookies.get(COOKIE)) is not None:
            return _see(_target(request.query.get("next", "")) or _PATH)
        return _form(request.query.get("next", ""), "ended" in request.query)

    def _form(target: str, is_ended: bool, problem: ProblemError | None = None) -> web.Response:
        status = 200 if problem is None else problem.status
        response = frame.response(
            None, "login.html", status, target=_target(target), is_ended=is_ended, problem=None if problem is None else problem.detail
        )
        if problem is not None and problem.closes:
            response.force_close()
        return response

    async def log_in(request: web.Request, context: RequestContext) -> web.StreamResponse:
        form = await _read(request)
        target = form.get("next", "")
        try:
            key = frame.gate.log_in(request, form.get("key", ""))
        except ProblemError as problem:
            frame.gate.log.refused(request, problem, context.caller, context.correlation_id)
            return _form(target, False, problem)
        context.caller = key.name
        logger.info("console: log-in", caller=key.name, role=key.role, address=request.remote)
        response = _see(_target(target) or frame.home(key))
        _set_cookie(request, response, frame.sessions.begin(key))
        return response

    async def _read(request: web.Request) -> Mapping[str, str]:
        """Return the form; one that a foreign page sends would make a person act with a key of that page's owner."""
        if request.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
            raise ProblemError(403, "cross_site", "The form to log in must come from this server.")
        return await read_form(request, None)

    async def log_out(visit: Visit) -> web.StreamResponse:
        frame.sessions.end(visit.session)
        logger.info("console: log-out", caller=visit.key.name)
        response = _see(LOGIN)
        response.del_cookie(COOKIE, path=_PATH)
        return response

    return (
        frame.public(hdrs.METH_GET, LOGIN, show),
        frame.public(hdrs.METH_POST, LOGIN, log_in),
        frame.endpoint(Page(hdrs.METH_POST, "/console/logout", log_out, _SCREEN, is_scoped=True)),
    )


def _see(path: str) -> web.Response:
    return web.Response(status=303, headers={hdrs.LOCATION: path, **UNCACHED})


def _target(text: str) -> str:
    """Return *text* if it is an address of the console, and an empty string otherwise: no form leads elsewhere."""
    is_own = text == _PATH or text.startswith((f"{_PATH}/", f"{_PATH}?"))
    return text if is_own and text.isascii() and text.isprintable() and "\\" not in text and not text.startswith(LOGIN) else ""


def _set_cookie(request: web.Request, response: web.Response, session: Session) -> None:
    response.set_cookie(
        COOKIE,
        session.value,
        path=_PATH,
        max_age=SESSION_SECONDS,
        httponly=True,
        samesite="Strict",
        secure=request.secure or request.headers.get(_FORWARDED, "").lower() == "https",
    )
