"""
Ask the API of any module: in this process where it runs the module, over HTTP where another one does.

In a split deployment each process answers for its own modules. `ModuleApi.request` takes any route. One that this process
serves is answered by the endpoint itself, without a socket. One of another module goes to the address that ``MODULE_URLS``
gives for it, with the key of ``MODULE_KEY_FILE``.

The person who asks is the *principal*. This process checks the principal's role before anything is sent. With a key of the
role ``module`` the header ``X-Fulfilment-Caller`` names the principal (``name:role``): the other process checks that role
again, and its audit names the person. With a key of any other role the other process ignores the header, and its audit
names the key.
"""

from __future__ import annotations

__all__ = ["ApiAnswer", "ModuleApi", "ModuleUnreachable", "ProcessAnswer"]

import asyncio
from collections.abc import Awaitable, Collection, Hashable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

import orjson
from aiohttp import hdrs, web
from attrs import define, frozen
from loguru import logger
from uuid_utils import uuid7
from yarl import URL

from app.telemetry.trace import correlation_id
from app.web.access.gate import require_role
from app.web.access.ownership import is_scoped
from app.web.application import ENDPOINTS
from app.web.handler import Endpoint, RequestContext, problem_for
from app.web.operations.answers import ApiAnswer, ModuleUnreachable, ProcessAnswer
from app.web.operations.local_request import local_request
from app.web.operations.remote_modules import RemoteModules
from app.web.responses.problems import CONTENT_TYPE, X_CORRELATION_ID, ProblemError, problem_response
from app.web.responses.success import JSON
from config.api_keys import OPERATOR, ApiKey
from modules.module import Module
from modules.routes import CommandRoute, ImportRoute, Route

Key = TypeVar("Key", bound=Hashable)

_NO_MEMBERS: Mapping[str, Any] = MappingProxyType({})


@define
class _Serving:
    """The application of this process, once it is built."""

    app: web.Application
    endpoints: dict[tuple[str, str], Endpoint]


@frozen
class _Known:
    """A route of a module that may run in another process."""

    method: str
    segments: tuple[str, ...]
    module: str
    roles: frozenset[str]
    is_scoped: bool

    def matches(self, method: str, segments: Sequence[str]) -> bool:
        """Return whether a request with *method* and the path *segments* is one to this route."""
        return (
            method == self.method
            and len(segments) == len(self.segments)
            and all(own.startswith("{") or own == given for own, given in zip(self.segments, segments, strict=True))
        )

    @property
    def rank(self) -> int:
        """Of two routes that match, the one with the fewer parameters is meant, which has the lower rank."""
        return sum(segment.startswith("{") for segment in self.segments)


class ModuleApi:
    """
    The routes of all *modules*, whichever process answers them.

    *running* are the modules of this process, *urls* the addresses of the others by module, *key* the key for requests to them.
    `serve_from` gives it the application of this process. Use one from one event loop, and `close` it at the end.
    """

    def __init__(
        self, modules: Sequence[Module], running: Collection[str], urls: Mapping[str, str] = _NO_MEMBERS, key: str | None = None
    ) -> None:
        self.running = tuple(running)
        self.modules = tuple(module.name for module in modules)
        """The names of all modules, those of this process among them."""
        self._urls = {name: url for name, url in urls.items() if name not in self.running}
        self._remote = RemoteModules(self._urls, key)
        self._known = sorted((_known(module.name, route) for module in modules for route in module.routes), key=lambda known: known.rank)
        self._serving: _Serving | None = None

    @property
    def reachable(self) -> tuple[str, ...]:
        """The modules that can be asked: those of this process, and those that MODULE_URLS names."""
        return tuple(name for name in self.modules if name in self.running or name in self._urls)

    def serve_from(self, app: web.Application) -> None:
        """Answer what this process serves by the endpoints of *app*."""
        self._serving = _Serving(app, app[ENDPOINTS])

    def replace_key(self, key: str | None) -> None:
        """Ask with *key* from now on."""
        self._remote.key = key

    async def close(self) -> None:
        """Close the connections. Idempotent."""
        await self._remote.close()

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        principal: ApiKey,
        module: str | None = None,
    ) -> ApiAnswer:
        """
        Return the answer to a request for *path*, which is percent-encoded and has no query; *body* is sent as JSON.

        The routes of a module go to that module. Routes that every process has (``/v1/audit``, ``/v1/history``,
        ``/v1/dead-letters``, ``/v1/contracts``) go to the process of *module*, by default the one that the query names as
        ``module``, otherwise to this one. What is refused is an answer, too: 403 if the role of *principal* is not enough,
        404 if there is no such route. Streams of events cannot be asked for.

        Raises:
            ModuleUnreachable: Another process runs the module, and gives no answer within `app.web.operations.remote_modules.TOTAL_SECONDS`.
        """
        url = URL(path, encoded=True).with_query({name: str(value) for name, value in (query or {}).items()})
        correlation = correlation_id((headers or {}).get(X_CORRELATION_ID), lambda: str(uuid7()))
        content = b"" if body is None else orjson.dumps(body)
        all_headers: dict[str, str] = {**(headers or {}), X_CORRELATION_ID: correlation}
        if content:
            all_headers[hdrs.CONTENT_TYPE] = JSON
        asked = module or (query or {}).get("module")
        try:
            known = None if asked is not None and asked in self.running else self._route(method, url.raw_path)
            if known is not None and known.module not in self.running:
                require_role(principal, frozenset((OPERATOR, *known.roles)), known.is_scoped)
                return await self._remote.ask(known.module, method, url, content, all_headers, principal)
            request = local_request(method, url, all_headers, content)
            endpoint = await self._endpoint(request)
            if not endpoint.is_public:
                require_role(principal, frozenset((OPERATOR, *endpoint.roles)), endpoint.is_scoped)
            if known is None and asked in self.modules and asked not in self.running:
                return await self._remote.ask(asked, method, url, content, all_headers, principal)
            context = RequestContext(correlation, principal.name, lambda status: None)
            context.customer = principal.customer
            return _answer(await endpoint.handle(request, context))
        except ModuleUnreachable:
            raise
        except Exception as error:
            problem = problem_for(error)
            if problem.status == 500:
                logger.opt(exception=error).error("request failed", method=method, route=url.raw_path, correlation_id=correlation)
            return _answer(problem_response(problem, url.raw_path, correlation))

    async def ask_all(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
        principal: ApiKey,
        names_module: bool = False,
    ) -> list[ProcessAnswer]:
        """
        Ask each process for a route that every process has, all at once; return their answers, this process first.

        A process that runs several modules is asked once. A module that no process is known for is unreachable. With
        *names_module* each module of another process is asked for itself, with ``module`` in the query.
        """
        groups: dict[str | None, list[str]] = {None: list(self.running)} if self.running else {}
        for name in self.modules:
            if name not in self.running:
                groups.setdefault(name if names_module else self._urls.get(name, name), []).append(name)

        async def ask(modules: list[str]) -> ProcessAnswer:
            names = tuple(modules)
            named = {"module": names[0]} if names_module and names[0] not in self.running else {}
            try:
                answer = await self.request(
                    method, path, query={**(query or {}), **named}, body=body, principal=principal, module=names[0]
                )
            except ModuleUnreachable as error:
                return ProcessAnswer(names, None, error)
            return ProcessAnswer(names, answer)

        return list(await asyncio.gather(*(ask(modules) for modules in groups.values())))

    @staticmethod
    async def gather(
        requests: Mapping[Key, Awaitable[ApiAnswer]],
    ) -> tuple[dict[Key, ApiAnswer], dict[Key, ModuleUnreachable]]:
        """Await all *requests* at once; return the answers, and for the others what is out of reach, under the same names."""
        results = await asyncio.gather(*requests.values(), return_exceptions=True)
        answers: dict[Key, ApiAnswer] = {}
        unreachable: dict[Key, ModuleUnreachable] = {}
        for name, result in zip(requests, results, strict=True):
            if isinstance(result, ModuleUnreachable):
                unreachable[name] = result
            elif isinstance(result, BaseException):
                raise result
            else:
                answers[name] = result
        return answers, unreachable

    def _route(self, method: str, path: str) -> _Known | None:
        segments = path.split("/")
        return next((known for known in self._known if known.matches(method, segments)), None)

    async def _endpoint(self, request: web.Request) -> Endpoint:
        """
        Return the endpoint of this process for *request*, which gets its path parameters.

        Raises:
            ProblemError: 404, there is none.
        """
        if self._serving is None:
            raise RuntimeError("no application serves yet")
        match = await self._serving.app.router.resolve(request)
        resource = match.route.resource
        endpoint = None if resource is None else self._serving.endpoints.get((request.method, resource.canonical))
        if endpoint is None:
            raise ProblemError(404, "not_found", "There is no such path.")
        match.add_app(self._serving.app)
        match.freeze()
        request._match_info = match
        return endpoint


def _known(module: str, route: Route) -> _Known:
    method = route.method if isinstance(route, CommandRoute | ImportRoute) else hdrs.METH_GET
    return _Known(method, tuple(route.path.split("/")), module, frozenset(route.roles), is_scoped(route))


def _answer(response: web.StreamResponse) -> ApiAnswer:
    content = response.body if isinstance(response, web.Response) else None
    is_json = response.content_type in (JSON, CONTENT_TYPE)
    body = orjson.loads(content) if isinstance(content, bytes) and content and is_json else None
    return ApiAnswer(response.status, dict(response.headers), body)
