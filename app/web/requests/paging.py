"""Keyset paging: the parameters ``limit`` and ``cursor`` of a query, and the page that they select."""

from __future__ import annotations

__all__ = ["PAGE_DEFAULT", "PAGE_MAX", "read_page"]

import binascii
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from app.web.problems import invalid_input
from app.web.requests.parsing import is_readable
from bus.errors import SchemaViolation

PAGE_DEFAULT = 50
PAGE_MAX = 200

_PAGE_SIZE = re.compile(r"[1-9][0-9]{0,2}", re.ASCII)
_CURSOR_CHARACTERS_MAX = 128


async def read_page(
    query: Mapping[str, str],
    fetch: Callable[[str | None, int], Awaitable[Sequence[Any]]],
    key_of: Callable[[Any], str],
    show: Callable[[Any], Any],
) -> dict[str, Any]:
    """
    Return the page that *query* selects: ``items``, and ``next_cursor`` or None for the last page.

    ``fetch(after, limit)`` returns the items beyond the key *after*. It is called with one more than the page's size:
    that item shows whether there is a next page.

    Raises:
        ProblemError: 400, ``limit`` is not an integer from 1 to `PAGE_MAX`, or ``cursor`` is invalid.
    """
    limit = _page_size(query)
    after = _decode_cursor(query["cursor"]) if "cursor" in query else None
    found = list(await fetch(after, limit + 1))
    items = found[:limit]
    return {
        "items": [show(item) for item in items],
        "next_cursor": _encode_cursor(key_of(items[-1])) if len(found) > limit else None,
    }


def _page_size(query: Mapping[str, str]) -> int:
    text = query.get("limit")
    if text is None:
        return PAGE_DEFAULT
    if not _PAGE_SIZE.fullmatch(text) or int(text) > PAGE_MAX:
        violation = SchemaViolation("/limit", f"must be an integer from 1 to {PAGE_MAX}")
        raise invalid_input("invalid_query", "The page size is out of range.", [violation])
    return int(text)


def _encode_cursor(key: str) -> str:
    return urlsafe_b64encode(key.encode()).rstrip(b"=").decode("ascii")


def _decode_cursor(cursor: str) -> str:
    try:
        key = urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4)).decode()
    except (UnicodeError, binascii.Error):
        key = ""
    # b64decode is lenient; a cursor that does not encode to itself was not issued by this API.
    if len(key) > _CURSOR_CHARACTERS_MAX or not is_readable(key) or _encode_cursor(key) != cursor:
        violation = SchemaViolation("/cursor", "is not a cursor of this API")
        raise invalid_input("invalid_query", "The cursor is invalid.", [violation])
    return key
