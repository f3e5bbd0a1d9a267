"""A server that looks like Stripe to its SDK, keeps a ledger, and misbehaves to order."""

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
    """What happens to one call that moves money; the first word says whether it does."""

    FINE = "charges and says so"
    CHARGE_HANG = "charges and never says so"
    CHARGE_CUT = "charges and hangs up"
    CHARGE_500 = "charges and answers 500"
    CHARGE_HTML = "charges and answers with a page"
    CHARGE_TRUNCATED = "charges and breaks off in the middle of the answer"
    CHARGE_DRIP = "charges and answers with one byte a second"
    CHARGE_WRONG = "charges and tells another amount; its list is right"
    WRONG_CHARGE = "charges another amount, and its list says so"
    OTHER_CURRENCY = "charges, and tells another currency; its list is right"
    HANG = "never does anything"
    ERROR_500 = "answers 500"
    ERROR_503_LATER = "answers 503, asks for 7 seconds"
    RATE_LIMITED = "answers 429, asks for 7 seconds"
    REDIRECT = "answers with another address"
    HTML = "answers with a page"
    KEY_REUSED = "answers that the key was used for another request"


_ASKED_SECONDS = "7"


@define
class FaultyStripe:
    """
    Run with `start`; *weather* says how each further call goes that moves money, *reading* how each look goes.

    It knows no idempotency keys, as localstripe does not: whoever charges twice under one has charged twice.
    """

    weather: Callable[[], Fault] = lambda: Fault.FINE
    reading: Callable[[], Fault] = lambda: Fault.FINE
    latency_seconds: float = 0.0
    can_filter: bool = True
    is_oldest_first: bool = False
    intents: dict[str, dict[str, Any]] = field(factory=dict)
    refunds: dict[str, dict[str, Any]] = field(factory=dict)
    calls: list[tuple[str, str]] = field(factory=list)
    keys: list[str] = field(factory=list)
    elsewhere: int = 0
    """Calls that followed a redirect."""
    url: str = ""
    _ordinals: Any = field(factory=itertools.count, init=False)
    _runner: web.AppRunner | None = field(default=None, init=False)
    _closing: asyncio.Event = field(factory=asyncio.Event, init=False)

    async def start(self) -> FaultyStripe:
        app = web.Application()
        app.router.add_post("/v1/payment_intents", self._charge)
        app.router.add_get("/v1/payment_intents", self._list)
        app.router.add_get("/v1/payment_intents/{id}", self._show)
        app.router.add_post("/v1/payment_intents/{id}/cancel", self._cancel)
        app.router.add_post("/v1/refunds", self._refund)
        app.router.add_get("/v1/refunds", self._list_refunds)
        app.router.add_route("*", "/elsewhere", self._elsewhere)
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

    def taken(self) -> dict[str, list[int]]:
        """Return, for each order, the amounts that were taken for it."""
        found: dict[str, list[int]] = {}
        for intent in self.intents.values():
            if intent["status"] == "succeeded":
                found.setdefault(intent["metadata"]["order_id"], []).append(intent["amount"])
        return found

    def given_back(self) -> dict[str, list[int]]:
        """Return, for each order, the amounts that went back."""
        found: dict[str, list[int]] = {}
        for refund in self.refunds.values():
            order_id = self.intents[refund["payment_intent"]]["metadata"]["order_id"]
            found.setdefault(order_id, []).append(refund["amount"])
        return found

    # Routes

    async def _charge(self, request: web.Request) -> web.StreamResponse:
        form = await request.post()
        # It knows no keys, so a call that it has not looked at when its caller gives up must not charge later: the caller
        # may have looked by then. A provider that does has to know keys, as Stripe does.
        if request.transport is None or request.transport.is_closing():
            raise ConnectionResetError("the caller has hung up")
        self.calls.append(("charge", str(form["metadata[order_id]"])))
        self.keys.append(request.headers["Idempotency-Key"])
        fault = self.weather()

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
                "client_secret": f"{id}_secret_never_to_be_seen",
            }
            return intent

        def answer(intent: dict[str, Any]) -> tuple[int, Any]:
            if intent["status"] == "requires_payment_method":
                error = {"type": "card_error", "message": "Your card has no funds.", **intent["last_payment_error"]}
                return 402, {"error": error | {"payment_intent": intent}}
            if fault is Fault.CHARGE_WRONG:
                intent = intent | {"amount": intent["amount"] * 2, "amount_received": intent["amount"] * 2}
            if fault is Fault.OTHER_CURRENCY:
                intent = intent | {"currency": "xts"}
            return 200, intent

        return await self._go(request, fault, make, answer)

    async def _refund(self, request: web.Request) -> web.StreamResponse:
        form = await request.post()
        reference = str(form["payment_intent"])
        self.calls.append(("refund", reference))
        self.keys.append(request.headers["Idempotency-Key"])
        fault = self.weather()

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
            }
            return refund

        return await self._go(request, fault, make, lambda refund: (200, refund))

    async def _list(self, request: web.Request) -> web.StreamResponse:
        self.calls.append(("list", ""))
        if not self.can_filter and any(name.startswith("created") for name in request.query):
            return web.json_response({"error": {"type": "invalid_request_error", "message": "Unexpected"}}, status=400)
        since = int(request.query.get("created[gte]", 0))
        rows = list(self.intents.values())
        rows = rows[bisect_left(rows, since, key=itemgetter("created")) :]
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
        # There are thousands, in the order of their numbers or the other way round: whoever counts them anew for each page
        # is what a test waits for.
        way = -1 if rows and _number(rows[0]["id"]) > _number(rows[-1]["id"]) else 1
        start = 0 if after is None else bisect_right(rows, way * _number(after), key=lambda row: way * _number(row["id"]))
        page = {"object": "list", "data": rows[start : start + limit], "has_more": len(rows) > start + limit}
        return await self._go(request, self.reading(), lambda: page, lambda page: (200, page))

    async def _show(self, request: web.Request) -> web.StreamResponse:
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

    async def _elsewhere(self, request: web.Request) -> web.StreamResponse:
        self.elsewhere += 1
        return web.json_response({})

    # Misbehaving

    async def _go(
        self,
        request: web.Request,
        fault: Fault,
        make: Callable[[], dict[str, Any]],
        answer: Callable[[dict[str, Any]], tuple[int, Any]],
    ) -> web.StreamResponse:
        if self.latency_seconds:
            await asyncio.sleep(self.latency_seconds)
        match fault:
            case Fault.HANG:
                await self._closing.wait()
            case Fault.ERROR_500:
                return web.json_response({"error": {"type": "api_error"}}, status=500)
            case Fault.ERROR_503_LATER:
                return web.Response(text="<h1>later</h1>", status=503, headers={"Retry-After": _ASKED_SECONDS})
            case Fault.RATE_LIMITED:
                return web.json_response({"error": {}}, status=429, headers={"Retry-After": _ASKED_SECONDS})
            case Fault.REDIRECT:
                return web.Response(status=307, headers={"Location": f"{self.url}/elsewhere"})
            case Fault.KEY_REUSED:
                return web.json_response({"error": {"type": "idempotency_error"}}, status=400)
            case Fault.HTML:
                return web.Response(text="<h1>Welcome to your router</h1>", content_type="text/html")
        status, said = answer(make())
        body = orjson.dumps(said)
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


if __name__ == "__main__":  # python -m tests.gateways.fault 0.2: a provider that takes 200 ms, to measure against
    asyncio.run(_serve(float(sys.argv[1])))
