"""A server that imitates Stripe for its SDK, keeps a ledger, and fails in the way that a test tells it to."""

from __future__ import annotations

__all__ = ["Fault", "FaultyStripe"]

import asyncio
import itertools
import sys
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from enum import Enum
from operator import itemgetter
from typing import Any

import orjson
from aiohttp import web
from attrs import define, field


class Fault(Enum):
    """What happens to one call that moves money. Where the value begins with "charges", the money is taken or refunded."""

    NONE = "charges and returns the result"
    CHARGE_HANG = "charges and never responds"
    CHARGE_CUT = "charges and closes the connection"
    CHARGE_500 = "charges and responds with 500"
    CHARGE_HTML = "charges and responds with an HTML page"
    CHARGE_TRUNCATED = "charges and breaks off in the middle of the response"
    CHARGE_DRIP = "charges and responds with one byte a second"
    CHARGE_WRONG = "charges and responds with another amount; its list is right"
    WRONG_CHARGE = "charges another amount, which its list shows, too"
    OTHER_CURRENCY = "charges and responds with another currency; its list is right"
    HANG = "does nothing and never responds"
    ERROR_500 = "responds with 500"
    ERROR_503_LATER = "responds with 503, and Retry-After: 7"
    RATE_LIMITED = "responds with 429, and Retry-After: 7"
    REDIRECT = "redirects to another address"
    HTML = "responds with an HTML page"
    KEY_REUSED = "responds that the key belongs to another request"


_RETRY_AFTER = "7"


@define
class FaultyStripe:
    """
    Run with `start`. *write_fault* returns the fault of each call that moves money, *read_fault* that of each list request.

    It ignores idempotency keys, as localstripe does: a second charge under the same key takes the money again.
    """

    write_fault: Callable[[], Fault] = lambda: Fault.NONE
    read_fault: Callable[[], Fault] = lambda: Fault.NONE
    latency_seconds: float = 0.0
    can_filter: bool = True
    is_oldest_first: bool = False
    intents: dict[str, dict[str, Any]] = field(factory=dict)
    refunds: dict[str, dict[str, Any]] = field(factory=dict)
    calls: list[tuple[str, str]] = field(factory=list)
    keys: list[str] = field(factory=list)
    redirects_followed: int = 0
    """How many calls followed a redirect."""
    url: str = ""
    _ordinals: Any = field(factory=itertools.count, init=False)
    _runner: web.AppRunner | None = field(default=None, init=False)
    _closing: asyncio.Event = field(factory=asyncio.Event, init=False)

    async def start(self) -> FaultyStripe:
        app = web.Application()
        app.router.add_post("/v1/payment_intents", self._charge)
        app.router.add_get("/v1/payment_intents", self._list)
        app.router.add_get("/v1/payment_intents/{id}", self._retrieve)
        app.router.add_post("/v1/payment_intents/{id}/cancel", self._cancel)
        app.router.add_post("/v1/refunds", self._refund)
        app.router.add_get("/v1/refunds", self._list_refunds)
        app.router.add_route("*", "/redirected", self._redirect_target)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, backlog=1024)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def stop(self) -> None:
        self._closing.set()
        if self._runner is not None:
            await self._runner.cleanup()

    def captured(self) -> dict[str, list[int]]:
        """Return the captured amounts by order."""
        found: dict[str, list[int]] = {}
        for intent in self.intents.values():
            if intent["status"] == "succeeded":
                found.setdefault(intent["metadata"]["order_id"], []).append(intent["amount"])
        return found

    def refunded(self) -> dict[str, list[int]]:
        """Return the refunded amounts by order."""
        found: dict[str, list[int]] = {}
        for refund in self.refunds.values():
            order_id = self.intents[refund["payment_intent"]]["metadata"]["order_id"]
            found.setdefault(order_id, []).append(refund["amount"])
        return found

    # Routes

    async def _charge(self, request: web.Request) -> web.StreamResponse:
        form = await request.post()
        # A call that is still queued here when its client gives up must not charge later: the client may have looked it up
        # by then. Only a provider that recognises idempotency keys, as Stripe does, can process such a call.
        if request.transport is None or request.transport.is_closing():
            raise ConnectionResetError("the client has closed the connection")
        self.calls.append(("charge", str(form["metadata[order_id]"])))
        self.keys.append(request.headers["Idempotency-Key"])
        fault = self.write_fault()

        def make() -> dict[str, Any]:
            amount = int(str(form["amount"])) + (fault is Fault.WRONG_CHARGE)
            method = str(form["payment_method"])
            status = {"pm_declined": "requires_payment_method", "pm_3ds": "requires_action", "pm_slow": "processing"}
            error = {"code": "card_declined", "decline_code": "no_funds"} if method == "pm_declined" else None
            id = f"pi_{next(self._ordinals)}"
            self.intents[id] = intent = {
                "object": "payment_intent",
                "id": id,
                "amount": amount,
                "amount_received": amount,
                "currency": str(form["currency"]),
                "status": status.get(method, "succeeded"),
                "metadata": {"order_id": str(form["metadata[order_id]"])},
                "last_payment_error": error,
                "created": int(time.time()),
                "latest_charge": {"object": "charge", "id": f"ch_{id}", "amount_refunded": 0},
                "client_secret": f"{id}_secret_never_to_be_logged",
            }
            return intent

        def to_response(intent: dict[str, Any]) -> tuple[int, Any]:
            if intent["status"] == "requires_payment_method":
                error = {"type": "card_error", "message": "Your card has no funds.", **intent["last_payment_error"]}
                return 402, {"error": error | {"payment_intent": intent}}
            if fault is Fault.CHARGE_WRONG:
                intent = intent | {"amount": intent["amount"] * 2, "amount_received": intent["amount"] * 2}
            if fault is Fault.OTHER_CURRENCY:
                intent = intent | {"currency": "xts"}
            return 200, intent

        return await self._respond(request, fault, make, to_response)

    async def _refund(self, request: web.Request) -> web.StreamResponse:
        form = await request.post()
        reference = str(form["payment_intent"])
        self.calls.append(("refund", reference))
        self.keys.append(request.headers["Idempotency-Key"])
        fault = self.write_fault()

        def make() -> dict[str, Any]:
            id = f"re_{next(self._ordinals)}"
            amount = int(str(form["amount"]))
            self.intents[reference]["latest_charge"]["amount_refunded"] += amount
            self.refunds[id] = refund = {
                "object": "refund",
                "id": id,
                "payment_intent": reference,
                "amount": amount,
                "currency": self.intents[reference]["currency"],
                "status": "succeeded",
                "metadata": {name[9:-1]: str(value) for name, value in form.items() if name.startswith("metadata[")},
            }
            return refund

        return await self._respond(request, fault, make, lambda refund: (200, refund))

    async def _list(self, request: web.Request) -> web.StreamResponse:
        self.calls.append(("list", ""))
        if not self.can_filter and any(name.startswith("created") for name in request.query):
            return web.json_response({"error": {"type": "invalid_request_error", "message": "Unexpected"}}, status=400)
        since = int(request.query.get("created[gte]", 0))
        rows = list(self.intents.values())
        rows = rows[bisect_left(rows, since, key=itemgetter("created")) :]
        if (before := request.query.get("created[lt]")) is not None:
            rows = rows[: bisect_left(rows, int(before), key=itemgetter("created"))]
        if not self.is_oldest_first:
            rows.reverse()
        return await self._page(request, rows)

    async def _list_refunds(self, request: web.Request) -> web.StreamResponse:
        self.calls.append(("list refunds", request.query["payment_intent"]))
        return await self._page(
            request, [r for r in self.refunds.values() if r["payment_intent"] == request.query["payment_intent"]]
        )

    async def _page(self, request: web.Request, rows: list[dict[str, Any]]) -> web.StreamResponse:
        limit = int(request.query["limit"])
        after = request.query.get("starting_after")
        # There are thousands of rows, sorted by number in either direction. A linear search for each page would dominate
        # the time of the tests.
        direction = -1 if rows and _number(rows[0]["id"]) > _number(rows[-1]["id"]) else 1
        start = 0
        if after is not None:
            start = bisect_right(rows, direction * _number(after), key=lambda row: direction * _number(row["id"]))
        page = {"object": "list", "data": rows[start : start + limit], "has_more": len(rows) > start + limit}
        return await self._respond(request, self.read_fault(), lambda: page, lambda page: (200, page))

    async def _retrieve(self, request: web.Request) -> web.StreamResponse:
        self.calls.append(("show", request.match_info["id"]))
        intent = self.intents.get(request.match_info["id"])
        if intent is None:
            return web.json_response({"error": {"type": "invalid_request_error", "code": "resource_missing"}}, status=404)
        return web.json_response(intent)

    async def _cancel(self, request: web.Request) -> web.StreamResponse:
        intent = self.intents[request.match_info["id"]]
        self.calls.append(("cancel", intent["id"]))
        if intent["status"] not in ("requires_action", "requires_confirmation"):
            return web.json_response({"error": {"type": "invalid_request_error", "code": "unexpected_state"}}, status=400)
        intent["status"] = "canceled"
        return web.json_response(intent)

    async def _redirect_target(self, request: web.Request) -> web.StreamResponse:
        self.redirects_followed += 1
        return web.json_response({})

    # Faults

    async def _respond(
        self,
        request: web.Request,
        fault: Fault,
        make: Callable[[], dict[str, Any]],
        to_response: Callable[[dict[str, Any]], tuple[int, Any]],
    ) -> web.StreamResponse:
        if self.latency_seconds:
            await asyncio.sleep(self.latency_seconds)
        match fault:
            case Fault.HANG:
                await self._closing.wait()
            case Fault.ERROR_500:
                return web.json_response({"error": {"type": "api_error"}}, status=500)
            case Fault.ERROR_503_LATER:
                return web.Response(text="<h1>later</h1>", status=503, headers={"Retry-After": _RETRY_AFTER})
            case Fault.RATE_LIMITED:
                return web.json_response({"error": {}}, status=429, headers={"Retry-After": _RETRY_AFTER})
            case Fault.REDIRECT:
                return web.Response(status=307, headers={"Location": f"{self.url}/redirected"})
            case Fault.KEY_REUSED:
                return web.json_response({"error": {"type": "idempotency_error"}}, status=400)
            case Fault.HTML:
                return web.Response(text="<h1>Welcome to your router</h1>", content_type="text/html")
        status, response = to_response(make())
        body = orjson.dumps(response)
        match fault:
            case Fault.CHARGE_HANG:
                await self._closing.wait()
            case Fault.CHARGE_CUT:
                assert request.transport is not None
                request.transport.close()
            case Fault.CHARGE_500:
                return web.json_response({"error": {"type": "api_error"}}, status=500)
            case Fault.CHARGE_HTML:
                return web.Response(text="<h1>Welcome to your router</h1>", content_type="text/html")
            case Fault.CHARGE_TRUNCATED:
                return web.Response(body=body[: len(body) // 2], content_type="application/json")
            case Fault.CHARGE_DRIP:
                return await self._drip(request, body)
        return web.Response(body=body, status=status, content_type="application/json")

    async def _drip(self, request: web.Request, body: bytes) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(len(body))})
        await response.prepare(request)
        for byte in body:
            try:
                await response.write(bytes([byte]))
                async with asyncio.timeout(1):
                    await self._closing.wait()
                break
            except TimeoutError:
                continue
            except ConnectionError:
                break
        return response


def _number(id: str) -> int:
    return int(id.partition("_")[2])


async def _serve(latency_seconds: float) -> None:
    server = await FaultyStripe(latency_seconds=latency_seconds).start()
    print(server.url, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":  # python -m tests.gateways.fault 0.2: a provider with a latency of 200 ms, for measurements
    asyncio.run(_serve(float(sys.argv[1])))
