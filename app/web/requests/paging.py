"""Keyset paging: the parameters ``limit`` and ``cursor`` of a query, and the page that they select."""

from __future__ import annotations

__all__ = ["PAGE_DEFAULT", "PAGE_MAX", "read_page"]

import binascii
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Awaitable, Callable, Mapping, Sequence
from hashlib import sha256
from typing import Any

import orjson

from app.web.requests.parameters import is_readable
from app.web.responses.problems import ProblemError, invalid_input
from bus.errors import SchemaViolation

PAGE_DEFAULT = 50
PAGE_MAX = 200

_PAGE_SIZE = re.compile(r"[1-9][0-9]{0,2}", re.ASCII)
_CURSOR_CHARACTERS_MAX = 128
_LIST_ID_BYTES = 6


async def read_page(
    query: Mapping[str, str],
    route: str,
    fetch: Callable[[str | None, int], Awaitable[tuple[Sequence[Any], str | None]]],
    key_of: Callable[[Any], str],
    show: Callable[[Any], Any],
) -> dict[str, Any]:
    """
    Return the page that *query* selects: ``items``, and ``next_cursor`` or None for the last page.

    ``fetch(after, limit)`` returns the items beyond the key *after*, and the key at which it stopped if it did not reach
    the end. It is called with one more than the page's size: that item shows whether there is a next page. A cursor is
    valid for the *route* and the filters with which it was issued.

    An item of which *show* returns None is left out.

    Raises:
        ProblemError: 400, ``limit`` is not an integer from 1 to `PAGE_MAX`, or ``cursor`` is invalid.
    """
    limit = _page_size(query)
    list_id = _list_id(route, query)
    after = _decode_cursor(query["cursor"], list_id) if "cursor" in query else None
    found, stopped_at = await fetch(after, limit + 1)
    items = found[:limit]
    following = key_of(items[-1]) if len(found) > limit else stopped_at
    return {
        "items": [shown for item in items if (shown := show(item)) is not None],
        "next_cursor": None if following is None else _encode_cursor(following, list_id),
    }


def _page_size(query: Mapping[str, str]) -> int:
    text = query.get("limit")
    if text is None:
        return PAGE_DEFAULT
    if not _PAGE_SIZE.fullmatch(text) or int(text) > PAGE_MAX:
        violation = SchemaViolation("/limit", f"must be an integer from 1 to {PAGE_MAX}; it is {text[:20]}")
        raise invalid_input("invalid_query", "The page size is out of range.", [violation])
    return int(text)


def _list_id(route: str, query: Mapping[str, str]) -> bytes:
    """Return a short hash of *route* and the filters of *query*; each page of one list has the same."""
    filters = sorted((name, value) for name, value in query.items() if name not in ("limit", "cursor"))
    return sha256(orjson.dumps([route, filters])).digest()[:_LIST_ID_BYTES]


def _encode_cursor(key: str, list_id: bytes) -> str:
    return urlsafe_b64encode(list_id + key.encode()).rstrip(b"=").decode("ascii")


def _decode_cursor(cursor: str, list_id: bytes) -> str:
    try:
        decoded = urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4))
        key = decoded[_LIST_ID_BYTES:].decode()
    except (UnicodeError, binascii.Error):
        decoded, key = b"", ""
    # b64decode is lenient; a cursor that does not encode to itself was not issued by this API.
    if len(key) > _CURSOR_CHARACTERS_MAX or not is_readable(key) or _encode_cursor(key, decoded[:_LIST_ID_BYTES]) != cursor:
        raise _invalid_cursor("is not a cursor of this API")
    if not decoded.startswith(list_id):
        raise _invalid_cursor("belongs to another list; send it to the route and with the filters of the page that has it")
    return key


def _invalid_cursor(detail: str) -> ProblemError:
    return invalid_input("invalid_cursor", "The cursor is invalid.", [SchemaViolation("/cursor", detail)])
