"""Send one request to a running server, for commands."""

from __future__ import annotations

__all__ = ["RequestFailed", "base_url", "credentials", "get_json", "post_json"]

import json
from collections.abc import Mapping
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


def _request(path: str, settings: Settings, url: str | None, key: str | None, body: bytes | None) -> Any:
    url = base_url(settings) if url is None else url.rstrip("/")
    if not url.startswith(("http://", "https://")):
        raise RequestFailed(f"{url} is not an address: it must begin with http:// or https://")
    headers = {**credentials(key), **({} if body is None else {"Content-Type": "application/json"})}
    request = Request(f"{url}{path}", body, headers)  # noqa: S310
    try:
        with urlopen(request, timeout=TIMEOUT_SECONDS) as response:  # noqa: S310
            return json.load(response)
    except HTTPError as error:
        problem = _problem(error)
        line = f"{url}{path} was answered with {error.code}"
        raise RequestFailed(line, error.code, problem.get("code"), problem.get("detail")) from None
    except (URLError, OSError, ValueError) as error:
        raise RequestFailed(
            f"no server answers at {url} ({getattr(error, 'reason', error)}): start it or correct --url"
        ) from None


def _problem(response: HTTPError) -> Mapping[str, str]:
    """Return the members of the problem document that are texts."""
    try:
        found = json.load(response)
    except (OSError, ValueError):
        return {}
    return {name: text for name, text in found.items() if isinstance(text, str)} if isinstance(found, dict) else {}
