"""
What each role may do: a table of every route with the roles that may call it beside the operator.

A route that is not in the table is the operator's alone. `tests/security` fails for a route without a decision here.
"""

from __future__ import annotations

__all__ = ["PERMISSIONS", "roles_of"]

import re
from collections.abc import Mapping

from config.api_keys import OPERATOR

_SHOP, _STOCK, _VIEWER = "shop", "stock", "viewer"

PERMISSIONS: Mapping[str, tuple[str, ...]] = {
    # orders
    "POST /v1/orders": (_SHOP,),
    "GET /v1/orders": (_SHOP, _VIEWER),
    "GET /v1/orders/{}": (_SHOP, _VIEWER),
    "GET /v1/orders/{}/stream": (_SHOP, _VIEWER),
    "POST /v1/orders/{}/cancel": (_SHOP,),
    "GET /v1/orders/stream": (_VIEWER,),
    "GET /v1/orders/export": (_VIEWER,),
    "GET /v1/orders/{}/explain": (_VIEWER,),
    "GET /v1/orders/{}/export": (_VIEWER,),
    "POST /v1/orders/{}/refund": (),  # money leaves the account
    "POST /v1/stream-tokens": (_SHOP, _VIEWER),
    # inventory
    "PUT /v1/inventory/{}": (_STOCK,),
    "PATCH /v1/inventory/{}": (_STOCK,),
    "PUT /v1/inventory": (_STOCK,),
    "POST /v1/inventory/import": (_STOCK,),
    "POST /v1/inventory/{}/restock": (_STOCK,),
    "POST /v1/inventory/{}/adjust": (_STOCK,),
    "GET /v1/inventory": (_STOCK, _VIEWER),
    "GET /v1/inventory/{}": (_STOCK, _VIEWER),
    # payments
    "GET /v1/payments": (_VIEWER,),
    "GET /v1/payments/{}": (_VIEWER,),
    "POST /v1/payments/{}/settle": (),
    # operation; dead letters hold customers' addresses, so only reading is for viewers
    "GET /v1/dead-letters": (_VIEWER,),
    "GET /v1/dead-letters/groups": (_VIEWER,),
    "GET /v1/dead-letters/{}": (_VIEWER,),
    "POST /v1/dead-letters/{}/replay": (),
    "POST /v1/dead-letters/replay": (),
    "POST /v1/dead-letters/discard": (),
    "DELETE /v1/dead-letters/{}": (),
    "GET /v1/contracts": (_VIEWER,),
    "GET /v1/history": (_VIEWER,),
    "GET /v1/overview": (_VIEWER,),
    "GET /v1/overview/stream": (_VIEWER,),
    "GET /v1/audit": (_VIEWER,),
}
"""The roles beside the operator's, by method and path; ``{}`` stands for a parameter. HEAD is decided as GET is."""

_PARAMETER = re.compile(r"\{\w+\}")


def roles_of(method: str, path: str) -> frozenset[str]:
    """Return the roles that may call *method* on the path template *path*."""
    method = "GET" if method == "HEAD" else method
    return frozenset((OPERATOR, *PERMISSIONS.get(f"{method} {_PARAMETER.sub('{}', path)}", ())))
