"""Ask the processes of other modules over HTTP."""

from __future__ import annotations

__all__ = ["CONNECT_SECONDS", "TOTAL_SECONDS", "RemoteModules"]

import os
from collections.abc import Mapping

import orjson
from aiohttp import ClientError, ClientResponse, ClientSession, ClientTimeout, DummyCookieJar, TCPConnector, hdrs
from yarl import URL

from app.web.access.gate import CALLER
from app.web.access.limits import LimitLog
from app.web.operations.answers import ApiAnswer, ModuleUnreachable
from app.web.responses.problems import CONTENT_TYPE, ProblemError
from app.web.responses.success import JSON
from config.api_keys import ApiKey

CONNECT_SECONDS = 1.0

TOTAL_SECONDS = 2.0
"""A process that has not answered after this is out of reach."""

CONNECTIONS_MAX = 32
"""Connections to all other processes; further requests wait, within their `TOTAL_SECONDS`."""


class RemoteModules:
    """The modules at *urls*, by name, which are asked with *key*. `close` it at the end."""

    def __init__(self, urls: Mapping[str, str], key: str | None) -> None:
        self.urls = urls
        self.key = key
        self._session: ClientSession | None = None
        self._log = LimitLog()

    async def close(self) -> None:
        """Close the connections. Idempotent."""
        if self._session is not None:
            await self._session.close()

    async def ask(
        self, module: str, method: str, url: URL, content: bytes, headers: Mapping[str, str], principal: ApiKey
    ) -> ApiAnswer:
        """
        Return the answer of the process that runs *module*.

        Raises:
            ModuleUnreachable: There is none.
            ProblemError: 403, *principal* is restricted to a customer: only this process knows what belongs to that one.
        """
        base = self.urls.get(module)
        if base is None:
            raise ModuleUnreachable(module, "MODULE_URLS does not name it")
        if principal.customer is not None:
            raise ProblemError(403, "forbidden", "A key that is restricted to one customer reaches this process only.")
        sent = {**headers, CALLER: f"{principal.name}:{principal.role}", hdrs.ACCEPT: f"{JSON}, {CONTENT_TYPE}"}
        if self.key is not None:
            sent[hdrs.AUTHORIZATION] = f"Bearer {self.key}"
        target = URL(f"{base}{url.raw_path_qs}", encoded=True)
        try:
            async with self._open_session().request(
                method, target, data=content or None, headers=sent, allow_redirects=False
            ) as response:
                return await self._read(module, response)
        except TimeoutError:
            raise ModuleUnreachable(module, f"no answer within {TOTAL_SECONDS:g} s") from None
        except (ClientError, OSError) as error:
            # The text of the error names an address, which no answer may show.
            raise ModuleUnreachable(module, _reason(error)) from error

    async def _read(self, module: str, response: ClientResponse) -> ApiAnswer:
        content = await response.read()
        is_json = response.content_type in (JSON, CONTENT_TYPE)
        try:
            body = orjson.loads(content) if content and is_json else None
        except orjson.JSONDecodeError:
            raise ModuleUnreachable(module, "its answer is not JSON") from None
        if response.status in (502, 504) or (response.status == 503 and body is None):
            raise ModuleUnreachable(module, f"a proxy answers {response.status}")
        if response.status == 401:
            self._log.report(f"the key of MODULE_KEY_FILE is refused by {module}", 1, do="compare it with API_KEYS_FILE")
            raise ModuleUnreachable(module, "it refuses the key of MODULE_KEY_FILE")
        return ApiAnswer(response.status, dict(response.headers), body)

    def _open_session(self) -> ClientSession:
        if self._session is None:
            self._session = ClientSession(
                connector=TCPConnector(limit=CONNECTIONS_MAX),
                timeout=ClientTimeout(total=TOTAL_SECONDS, sock_connect=CONNECT_SECONDS),
                cookie_jar=DummyCookieJar(),
            )
        return self._session


def _reason(error: BaseException) -> str:
    cause = getattr(error, "os_error", error)
    if isinstance(cause, OSError) and cause.errno is not None and cause.errno > 0:  # the loop's own text has the address
        return f"no connection ({os.strerror(cause.errno).lower()})"
    return "no connection" if isinstance(cause, OSError) else "the connection broke"
