"""Send one request to a running server, for commands."""

from __future__ import annotations

__all__ = ["RequestFailed", "base_url", "credentials", "get_json", "open_response", "post_json"]

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from config.settings import Settings

TIMEOUT_SECONDS = 10


class RequestFailed(Exception):
    """
    The server did not answer, or not with 2xx. The message is one line.

    *status* is the status of the answer, or None without one. *code* and *detail* are the members of these names in the
    problem document that the server returned, if any.
    """

    def __init__(self, line: str, status: int | None = None, code: str | None = None, detail: str | None = None) -> None:
        self.status = status
        self.code = code
        self.detail = detail
        super().__init__(line)


def base_url(settings: Settings) -> str:
    """Return the address of the server that runs with *settings* on this machine."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.http_host, settings.http_host)  # noqa: S104
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.http_port}"


def credentials(key: str | None) -> Mapping[str, str]:
    """Return the request headers that carry the API key *key*; none without a key."""
    return {} if key is None else {"Authorization": f"Bearer {key}"}


def get_json(path: str, settings: Settings, url: str | None = None, key: str | None = None) -> Any:
    """
    Return the JSON that the server answers to a GET of *path* with the API key *key*.

    The server is the one at *url*, by default the one that runs with *settings* on this machine.

    Raises:
        RequestFailed: The server did not answer, or not with 2xx.
    """
    return _request(path, settings, url, key, None)


def post_json(path: str, body: Any, settings: Settings, url: str | None = None, key: str | None = None) -> Any:
    """
    Return the JSON that the server answers to a POST of *body* to *path*; the rest as for `get_json`.

    Raises:
        RequestFailed: The server did not answer, or not with 2xx.
    """
    return _request(path, settings, url, key, json.dumps(body).encode())


def open_response(path: str, settings: Settings, url: str | None = None, key: str | None = None) -> AbstractContextManager[Any]:
    """
    Return the response to a GET of *path*, whose body is not read yet; the rest as for `get_json`.

    Raises:
        RequestFailed: The server did not answer, or not with 2xx.
    """
    response: AbstractContextManager[Any] = _open(path, settings, url, key, None)
    return response


def _request(path: str, settings: Settings, url: str | None, key: str | None, body: bytes | None) -> Any:
    with _open(path, settings, url, key, body) as response:
        try:
            return json.load(response)
        except (OSError, ValueError) as error:
            raise _no_answer(url or base_url(settings), error) from None


def _open(path: str, settings: Settings, url: str | None, key: str | None, body: bytes | None) -> Any:
    url = base_url(settings) if url is None else url.rstrip("/")
    if not url.startswith(("http://", "https://")):
        raise RequestFailed(f"{url} is not an address: it must begin with http:// or https://")
    headers = {**credentials(key), **({} if body is None else {"Content-Type": "application/json"})}
    request = Request(f"{url}{path}", body, headers)  # noqa: S310
    try:
        return urlopen(request, timeout=TIMEOUT_SECONDS)  # noqa: S310
    except HTTPError as error:
        problem = _problem(error)
        line = f"{url}{path} was answered with {error.code}"
        raise RequestFailed(line, error.code, problem.get("code"), problem.get("detail")) from None
    except (URLError, OSError, ValueError) as error:
        raise _no_answer(url, error) from None


def _no_answer(url: str, error: Exception) -> RequestFailed:
    return RequestFailed(f"no server answers at {url} ({getattr(error, 'reason', error)}): start it or correct --url")


def _problem(response: HTTPError) -> Mapping[str, str]:
    """Return the members of the problem document that are texts."""
    try:
        found = json.load(response)
    except (OSError, ValueError):
        return {}
    return {name: text for name, text in found.items() if isinstance(text, str)} if isinstance(found, dict) else {}
