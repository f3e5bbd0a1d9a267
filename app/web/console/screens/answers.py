"""Answers of the API, as the screens use them."""

from __future__ import annotations

__all__ = ["ask", "body_of", "problem_of", "read"]

from collections.abc import Awaitable
from typing import Any

from aiohttp import hdrs

from app.web.operations.module_api import ApiAnswer, ModuleUnreachable
from app.web.responses.problems import ProblemError

_OWN = frozenset({"type", "title", "status", "detail", "instance", "code", "correlation_id"})


async def ask(request: Awaitable[ApiAnswer]) -> ApiAnswer:
    """
    Return the answer to *request*, a refusal included.

    Raises:
        ProblemError: 503, the process that would answer is out of reach.
    """
    try:
        return await request
    except ModuleUnreachable as error:
        detail = f"The process of {error.module} is out of reach: {error.reason}. What was sent may have taken effect; look before you send it again."
        raise ProblemError(503, "module_unreachable", detail, headers={hdrs.RETRY_AFTER: "5"}) from error


async def read(request: Awaitable[ApiAnswer]) -> Any:
    """
    Return the body of the answer to *request*.

    Raises:
        ProblemError: The answer is a problem, or the process that would answer is out of reach.
    """
    return body_of(await ask(request))


def body_of(answer: ApiAnswer) -> Any:
    """
    Return the body of *answer*.

    Raises:
        ProblemError: The answer is a problem.
    """
    if not answer.is_success:
        raise problem_of(answer)
    return answer.body


def problem_of(answer: ApiAnswer) -> ProblemError:
    """Return the problem that *answer* is."""
    body = answer.body if isinstance(answer.body, dict) else {}
    members = {name: value for name, value in body.items() if name not in _OWN}
    return ProblemError(answer.status, str(body.get("code", "refused")), str(body.get("detail", "The request was refused.")), members)
