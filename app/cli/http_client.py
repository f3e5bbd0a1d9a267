"""One question to a running server, for commands."""

from __future__ import annotations

__all__ = ["RequestFailed", "base_url", "credentials", "get_json"]

import json
from collections.abc import Mapping
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from config.settings import Settings

REQUEST_SECONDS = 10


class RequestFailed(Exception):
    """Nobody answers, or not with what was asked for; its message is one line, *code* that of a problem in the answer."""

    def __init__(self, line: str, code: str | None = None) -> None:
        self.code = code
        super().__init__(line)


def base_url(settings: Settings) -> str:
    """Return where *settings* have a server listen, as one that is asked from the same machine."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.http_host, settings.http_host)  # noqa: S104
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.http_port}"


def credentials(key: str | None) -> Mapping[str, str]:
    """Return the headers that bring the API key *key*, if there is one."""
    return {} if key is None else {"Authorization": f"Bearer {key}"}


def get_json(path: str, settings: Settings, url: str | None = None, key: str | None = None) -> Any:
    """
    Return the JSON that the server at *url*, or where *settings* say, answers for *path* to who has *key*.

    Raises:
        NotAnswered: It does not, or not with 200.
    """
    url = base_url(settings) if url is None else url.rstrip("/")
    if not url.startswith(("http://", "https://")):
        raise RequestFailed(f"{url} is no address: it must begin with http:// or https://")
    request = Request(f"{url}{path}", headers=dict(credentials(key)))  # noqa: S310
    try:
        with urlopen(request, timeout=REQUEST_SECONDS) as answer:  # noqa: S310
            return json.load(answer)
    except HTTPError as error:
        raise RequestFailed(f"{url}{path} was answered with {error.code}", _code_in(error)) from None
    except (URLError, OSError, ValueError) as error:
        raise RequestFailed(f"nobody answers at {url}: {getattr(error, 'reason', error)}") from None


def _code_in(answer: HTTPError) -> str | None:
    try:
        code = json.load(answer)["code"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return code if isinstance(code, str) else None
