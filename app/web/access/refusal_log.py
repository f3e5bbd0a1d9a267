"""
Log requests that are refused with a 4xx: one line each, and above a rate only their number.

A wrong key is logged at WARNING, once a minute for each address, with what to check; everything else is at INFO. A flood of
bad requests must not become a flood of lines, so a second has `LINES_MAX` at most; what it leaves out is counted in a
line of its own at its end.
"""

from __future__ import annotations

__all__ = ["LINES_MAX", "RefusalLog"]

import asyncio
from collections import Counter
from time import monotonic
from typing import Any

from aiohttp import hdrs, web
from loguru import logger

from app.web.responses.problems import ProblemError

LINES_MAX = 20
"""Lines within one second."""

_SECOND = 1.0
_WARN_AGAIN_SECONDS = 60.0
_ADDRESSES_MAX = 1000
_CHARACTERS_MAX = 200


class RefusalLog:
    """The log of one application's refused requests."""

    def __init__(self) -> None:
        self._lines = 0
        self._left_out: Counter[str] = Counter()
        self._is_open = False
        self._warned: dict[str, float] = {}

    def refused(self, request: web.BaseRequest, problem: ProblemError, caller: str, correlation_id: str) -> None:
        """Log that *request* of *caller* is answered with *problem*."""
        if not self._has_room(f"{problem.status} {problem.code}"):
            return
        errors = problem.members.get("errors")
        first = f"{errors[0]['pointer']} {errors[0]['detail']}".strip() if errors else problem.detail
        fields: dict[str, Any] = {
            "method": request.method[:_CHARACTERS_MAX],
            "path": request.rel_url.raw_path[:_CHARACTERS_MAX],  # never the query: it may hold a token
            "status": problem.status,
            "code": problem.code,
            "error": first[:_CHARACTERS_MAX],
            "caller": caller,
            "address": request.remote,
            "correlation_id": correlation_id,
        }
        if problem.status == 401 and self._is_new(request.remote or ""):
            if hdrs.AUTHORIZATION in request.headers:
                fields["do"] = "compare the caller's key with API_KEYS_FILE; SIGHUP reads that file again"
            else:
                fields["do"] = "give the caller a key of API_KEYS_FILE"
            logger.warning("request refused", **fields)
        else:
            logger.info("request refused", **fields)

    def _has_room(self, kind: str) -> bool:
        if not self._is_open:
            self._is_open = True
            asyncio.get_running_loop().call_later(_SECOND, self._end_second)
        if self._lines >= LINES_MAX:
            self._left_out[kind] += 1
            return False
        self._lines += 1
        return True

    def _end_second(self) -> None:
        if self._left_out:
            logger.info(
                "requests refused, lines left out", count=self._left_out.total(), kinds=dict(self._left_out.most_common(10))
            )
        self._lines, self._left_out, self._is_open = 0, Counter(), False

    def _is_new(self, address: str) -> bool:
        now = monotonic()
        if now - self._warned.get(address, -_WARN_AGAIN_SECONDS) < _WARN_AGAIN_SECONDS:
            return False
        if len(self._warned) >= _ADDRESSES_MAX:
            self._warned.clear()
        self._warned[address] = now
        return True
