"""
What all pages of the console share: the session, the role, the CSRF token, the layout, and the messages for errors.

A page is a function of a `Visit`. Reading never needs a script; a form is a plain POST, answered with a redirect.
"""

from __future__ import annotations

__all__ = ["LOGIN", "Frame", "Page", "Screen", "Visit", "body_of", "problem_in", "read_form"]

from collections.abc import Awaitable, Callable, Mapping, Sequence
from hmac import compare_digest
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

from aiohttp import hdrs, web
from attrs import define, field, frozen

from app.web.access.gate import Gate
from app.web.console.rendering import Rendering
from app.web.console.session import COOKIE, Session, Sessions
from app.web.console.static_files import POLICY
from app.web.handler import Endpoint, EndpointHandler, RequestContext
from app.web.operations.module_api import ApiAnswer, ModuleApi, ModuleUnreachable
from app.web.requests.command import read_bytes
from app.web.responses.problems import X_CORRELATION_ID, ProblemError, phrase
from app.web.responses.success import UNCACHED
from config.api_keys import OPERATOR, ApiKey

LOGIN = "/console/login"

_HEADERS = {
    **UNCACHED,
    hdrs.CONTENT_TYPE: "text/html; charset=utf-8",
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_FORM = "application/x-www-form-urlencoded"
_CSRF = "csrf"
_STANDARD_MEMBERS = frozenset({"type", "title", "status", "detail", "instance", "code", "correlation_id"})
"""Members of a problem document that the page shows in its own way."""
_VISIT: web.RequestKey[Session] = web.RequestKey("session", Session)


@frozen
class Screen:
    """An entry of the navigation."""

    name: str
    title: str
    path: str
    roles: tuple[str, ...] = ("viewer",)
    """Which roles see it beside the operator."""


@define
class Visit:
    """One request for a page: who asks, for what, and how to answer."""

    frame: Frame
    request: web.Request
    session: Session
    correlation_id: str
    screen: Screen | None = None
    form: Mapping[str, str] = field(factory=dict)
    """The fields of a POST."""
    record_now: Callable[[int], None] = field(default=lambda status: None)
    """`RequestContext.record_now`, for a response that stays open."""

    @property
    def key(self) -> ApiKey:
        """Who asks: the principal of every call of the API."""
        return self.session.key

    @property
    def path(self) -> Mapping[str, str]:
        """The parameters of the path."""
        return self.request.match_info

    @property
    def query(self) -> Mapping[str, str]:
        """The parameters of the query; of one that is given twice, the first."""
        return self.request.query

    def is_valid(self) -> bool:
        """Return whether the session is still valid, and its key has the same rights, for a response that stays open."""
        found = self.frame.sessions.read(self.session.value)
        return found is not None and found.key == self.key

    def may(self, *roles: str) -> bool:
        """Return whether the caller is the operator or has one of *roles*."""
        return self.key.role == OPERATOR or self.key.role in roles

    async def answer(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        module: str | None = None,
    ) -> ApiAnswer:
        """
        Return what the API answers to the caller, a refusal included, whichever process serves the module.

        `ModuleApi.request` has the rules. The request has the correlation id of the page.

        Raises:
            ProblemError: 503, the process of the module gives no answer.
        """
        sent = {X_CORRELATION_ID: self.correlation_id, **(headers or {})}
        try:
            return await self.frame.api.request(
                method, path, query=query, body=body, headers=sent, principal=self.key, module=module
            )
        except ModuleUnreachable as error:
            detail = f"The process of {error.module} is out of reach: {error.reason}."
            if method != hdrs.METH_GET:
                detail += " The request may have taken effect; look before you send it again."
            raise ProblemError(503, "module_unreachable", detail, headers={hdrs.RETRY_AFTER: "5"}) from error

    async def ask(self, method: str, path: str, **request: Any) -> Any:
        """
        Return the body of what the API answers to the caller; *request* is as for `answer`.

        Raises:
            ProblemError: The API refuses, or the module is out of reach. If the page does not catch it, its message is shown.
        """
        return body_of(await self.answer(method, path, **request))

    def page(self, template: str, status: int = 200, /, **context: Any) -> web.Response:
        """Return *template* as the response, with *context*."""
        return self.frame.response(self, template, status, **context)

    def redirect(self, path: str, **query: str) -> web.Response:
        """Return the redirect after a POST to *path*; a GET follows (RFC 9110, 303)."""
        return _redirect(path, **query)


PageHandler = Callable[[Visit], Awaitable[web.StreamResponse]]


@frozen
class Page:
    """One method on one path of the console, and the function that answers."""

    method: str
    path: str
    handle: PageHandler
    screen: Screen
    roles: tuple[str, ...] | None = None
    """Who may ask for it beside the operator; None: who sees the screen."""
    is_scoped: bool = False
    """It observes the customer to whom the caller's key is restricted, because each call of the API does."""


class Frame:
    """Turns pages into endpoints; *screens* make the navigation."""

    def __init__(
        self, gate: Gate, sessions: Sessions, api: ModuleApi, rendering: Rendering, screens: Sequence[Screen]
    ) -> None:
        self.gate = gate
        self.sessions = sessions
        self.api = api
        self.rendering = rendering
        self.screens = tuple(screens)

    def endpoint(self, page: Page) -> Endpoint:
        """Return the endpoint of *page*. It is public for the handler: the frame itself reads the session."""
        roles = frozenset((OPERATOR, *(page.screen.roles if page.roles is None else page.roles)))

        async def handle(request: web.Request, context: RequestContext) -> web.StreamResponse:
            session = self.sessions.read(request.cookies.get(COOKIE))
            if session is None:
                return self._without_session(request)
            request[_VISIT] = session
            context.caller, context.customer = session.key.name, session.key.customer
            self.gate.permit(session.key, roles, page.is_scoped)
            visit = Visit(self, request, session, context.correlation_id, page.screen, record_now=context.record_now)
            if request.method == hdrs.METH_POST:
                visit.form = await read_form(request, session)
            return await page.handle(visit)

        return self.public(page.method, page.path, handle)

    def public(self, method: str, path: str, handle: EndpointHandler) -> Endpoint:
        """Return an endpoint of the console that *handle* answers without a session; a problem is shown as a page."""
        return Endpoint(method, path, handle, is_public=True, is_503_expected=True, show_problem=self.show_problem)

    def response(self, visit: Visit | None, template: str, status: int = 200, /, **context: Any) -> web.Response:
        """Return *template* as a page with the layout; without *visit* it has no navigation."""
        body = self.rendering.render(
            template,
            visit=visit,
            screens=[] if visit is None else [screen for screen in self.screens if visit.may(*screen.roles)],
            is_open=self.sessions.is_open,
            **context,
        )
        return web.Response(text=body, status=status, headers=_HEADERS)

    def show_problem(self, problem: ProblemError, request: web.Request, correlation_id: str) -> web.Response:
        """Return *problem* as a page: what has happened, and where to go from here."""
        session = request.get(_VISIT)
        visit = None if session is None else Visit(self, request, session, correlation_id)
        response = self.response(
            visit,
            "problem.html",
            problem.status,
            title=phrase(problem.status),
            status=problem.status,
            detail=problem.detail,
            code=problem.code,
            errors=problem.members.get("errors", ()),
            correlation_id=correlation_id,
        )
        response.headers.update(problem.headers)
        response.headers[X_CORRELATION_ID] = correlation_id
        if problem.closes:
            response.force_close()
        return response

    def home(self, key: ApiKey) -> str:
        """Return the path of the first screen that *key* may see."""
        found = (screen.path for screen in self.screens if key.role == OPERATOR or key.role in screen.roles)
        return next(found, "/")

    def _without_session(self, request: web.Request) -> web.Response:
        """Return the way to log in; a link from another site gets the page once more, now with its cookie."""
        is_read = request.method in (hdrs.METH_GET, hdrs.METH_HEAD)
        if is_read and request.headers.get("Sec-Fetch-Site") == "cross-site" and COOKIE not in request.cookies:
            # SameSite=Strict: a browser that follows a link of another site sends no cookie. The page makes the browser
            # load it again, and this second request is the site's own.
            return self.response(None, "again.html", address=request.rel_url.raw_path_qs)
        target = request.rel_url.raw_path_qs if is_read else "/console"
        query = {"next": target} if target != "/console" else {}
        if COOKIE in request.cookies or not is_read:
            query["ended"] = "1"
        login = f"{LOGIN}?{urlencode(query)}" if query else LOGIN
        if request.headers.get("HX-Request") == "true":
            return web.Response(status=204, headers={"HX-Redirect": login, **UNCACHED})
        if request.headers.get(hdrs.ACCEPT) == "text/event-stream":  # 204 ends the reconnects of an EventSource
            return web.Response(status=204, headers=UNCACHED)
        return web.Response(status=303, headers={hdrs.LOCATION: login, **UNCACHED})


def body_of(answer: ApiAnswer) -> Any:
    """
    Return the body of *answer*.

    Raises:
        ProblemError: The answer is a refusal.
    """
    if not answer.is_success:
        raise problem_in(answer)
    return answer.body


def problem_in(answer: ApiAnswer) -> ProblemError:
    """Return the problem document in *answer* as the error that shows it."""
    body = answer.body if isinstance(answer.body, Mapping) else {}
    status, code = max(400, answer.status), str(body.get("code", "unexpected_answer"))
    detail = str(body.get("detail") or f"The API has answered with status {answer.status}.")
    members = {name: value for name, value in body.items() if name not in _STANDARD_MEMBERS}
    return ProblemError(status, code, detail, members)


async def read_form(request: web.Request, session: Session | None) -> Mapping[str, str]:
    """
    Return the fields of a form, without spaces around them; with *session* the form must carry its CSRF token.

    Raises:
        ProblemError: 400, 408, 413 or 415, it is no form; 403, it comes from no page of this session.
    """
    if request.content_type != _FORM or hdrs.CONTENT_ENCODING in request.headers:
        raise ProblemError(415, "unsupported_media_type", f"A form must be sent as {_FORM}.", closes=True)
    try:
        text = (await read_bytes(request)).decode("ascii")
        form = {name: value.strip() for name, value in parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=300)}
    except ValueError:
        raise ProblemError(400, "invalid_form", "The form cannot be read.") from None
    if session is not None and not compare_digest(form.pop(_CSRF, "").encode(), session.csrf.encode()):
        raise ProblemError(403, "csrf", "The form belongs to no page of this session; nothing was done. Open the page again.")
    return form


def _redirect(path: str, **query: str) -> web.Response:
    location = quote(path, safe="/%:@!$&'()*+,;=~?") + (f"?{urlencode(query)}" if query else "")
    return web.Response(status=303, headers={hdrs.LOCATION: location, **UNCACHED})
