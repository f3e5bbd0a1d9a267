"""The checks that every request passes before its endpoint, and the log of those that fail."""

from __future__ import annotations

__all__ = ["Gate"]

from collections.abc import Set

from aiohttp import hdrs, web

from app.web.access.authentication import ANONYMOUS, Authenticator
from app.web.access.refusal_log import RefusalLog
from app.web.access.stream_tokens import TOKEN, StreamTokens
from app.web.problems import ProblemError
from config.api_keys import OPERATOR, ApiKey


class Gate:
    """Admits requests to endpoints. One gate serves one application, and its keys may be replaced while it runs."""

    def __init__(self, authenticator: Authenticator) -> None:
        self.authenticator = authenticator
        self.tokens = StreamTokens(authenticator)
        self.log = RefusalLog()

    def admit(self, request: web.BaseRequest, roles: Set[str] | None, is_scoped: bool, takes_token: bool = False) -> ApiKey:
        """
        Return the caller of *request*, who has one of *roles*; None admits every known caller.

        A caller that is restricted to one customer is admitted only where the endpoint *is_scoped*.

        Raises:
            ProblemError: 401, the key is missing or unknown; 403, its role may not do this.
        """
        if self.authenticator.is_off:
            return ANONYMOUS
        if takes_token and hdrs.AUTHORIZATION not in request.headers and TOKEN in request.query:
            key = self.tokens.caller(request.query[TOKEN])
        else:
            key = self.authenticator(request.headers.get(hdrs.AUTHORIZATION))
        if roles is not None and key.role != OPERATOR and key.role not in roles:
            detail = f"The role {key.role} may not do this; it takes {' or '.join(sorted(roles))}."
            raise ProblemError(403, "forbidden", detail)
        if roles is not None and key.customer is not None and not is_scoped:
            raise ProblemError(403, "forbidden", "A key that is restricted to one customer may not do this.")
        return key
