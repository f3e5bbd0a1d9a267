"""Read the file of API keys: one ``name:key`` per line; blank lines and lines that begin with ``#`` are skipped."""

from __future__ import annotations

__all__ = ["read_api_keys"]

import re
from collections.abc import Mapping
from hashlib import sha256
from types import MappingProxyType

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_KEY = re.compile(r"[!-~]{16,}")


def read_api_keys(content: bytes) -> Mapping[str, str]:
    """
    Return the clients' names, each with the SHA-256 of its key in hexadecimal digits.

    Raises:
        ValueError: A line is wrong, or the file has no key. The sentence gives the line's number and no part of its text.
    """
    found: dict[str, str] = {}
    for number, raw in enumerate(content.split(b"\n"), start=1):
        # Latin-1 decodes any byte; a character that is not visible ASCII fails the checks below, with its line number.
        line = raw.decode("latin-1").strip(" \t\r")
        if not line or line.startswith("#"):
            continue
        name, colon, key = line.partition(":")
        if not colon:
            raise ValueError(f"line {number}: must be name:key")
        if not _NAME.fullmatch(name):
            raise ValueError(f"line {number}: the name must be 1 to 64 characters of A-Z a-z 0-9 . _ -")
        if not _KEY.fullmatch(key):
            raise ValueError(f"line {number}: the key must be at least 16 visible ASCII characters")
        if name in found:
            raise ValueError(f"line {number}: the name is given a second time")
        digest = sha256(key.encode("ascii")).hexdigest()
        if digest in found.values():
            raise ValueError(f"line {number}: the key is given a second time")
        found[name] = digest
    if not found:
        raise ValueError("holds no key")
    return MappingProxyType(found)
