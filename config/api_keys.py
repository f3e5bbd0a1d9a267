"""
Read the file of API keys: one ``name:role:key[:customer]`` per line.

``name:key`` means the role operator, as it did before there were roles. Blank lines and lines that begin with ``#``
are skipped.
"""

from __future__ import annotations

__all__ = ["MODULE", "OPERATOR", "ROLES", "ApiKey", "read_api_keys"]

import re
from collections.abc import Mapping
from hashlib import sha256
from types import MappingProxyType

from attrs import field, frozen

OPERATOR = "operator"
MODULE = "module"
ROLES = ("shop", "stock", OPERATOR, "viewer", "metrics", MODULE)
"""
shop: orders; stock: inventory; operator: everything; viewer: everything that only reads; metrics: the metrics.

module: another process of this system, which asks for a person and may do what that person may.
"""

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_KEY_CHARACTERS_MIN = 16
_KEY = re.compile(rf"[!-~]{{{_KEY_CHARACTERS_MIN},}}")
_CUSTOMER = re.compile(r"[ -~]{1,64}")


@frozen
class ApiKey:
    """Who calls with a key, and what the caller may do."""

    name: str
    role: str = OPERATOR
    digest: str = field(default="", repr=False)
    """SHA-256 of the key, in hexadecimal digits."""
    customer: str | None = None
    """The caller sees and places orders of this customer only; None: of all."""
    is_role_given: bool = field(default=True, eq=False)


def read_api_keys(content: bytes) -> Mapping[str, ApiKey]:
    """
    Return the keys by the clients' names.

    Raises:
        ValueError: A line is wrong, or the file has no key. The sentence gives the line's number and no part of its text.
    """
    found: dict[str, ApiKey] = {}
    digests: set[str] = set()
    for number, raw in enumerate(content.split(b"\n"), start=1):
        # Latin-1 decodes any byte; a character that is not visible ASCII fails the checks below, with its line number.
        line = raw.decode("latin-1").strip(" \t\r")
        if not line or line.startswith("#"):
            continue
        try:
            key = _read(line)
            if key.name in found:
                raise ValueError("the name is given a second time")
            if key.digest in digests:
                raise ValueError("the key is given a second time")
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
        found[key.name] = key
        digests.add(key.digest)
    if not found:
        raise ValueError("holds no key")
    return MappingProxyType(found)


def _read(line: str) -> ApiKey:
    name, *rest = line.split(":", 3)
    if not rest:
        raise ValueError("must be name:role:key or name:role:key:customer")
    if not _NAME.fullmatch(name):
        raise ValueError("the name must be 1 to 64 characters of A-Z a-z 0-9 . _ -")
    if rest[0] in ROLES and len(rest) > 1:
        role, key, customer, is_role_given = rest[0], rest[1], rest[2] if len(rest) > 2 else None, True
    else:
        if len(rest) > 1 and len(rest[0]) < _KEY_CHARACTERS_MIN:  # a misspelt role must not become part of an operator's key
            raise ValueError(f"the second part must be a role: {', '.join(ROLES)}")
        role, key, customer, is_role_given = OPERATOR, ":".join(rest), None, False
    if not _KEY.fullmatch(key):
        raise ValueError("the key must be at least 16 visible ASCII characters")
    if customer is not None:
        if role != "shop":
            raise ValueError("only the role shop takes a customer")
        if not _CUSTOMER.fullmatch(customer):
            raise ValueError("the customer must be 1 to 64 ASCII characters")
    return ApiKey(name, role, sha256(key.encode("ascii")).hexdigest(), customer, is_role_given)
