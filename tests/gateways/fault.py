"""
A provider that behaves like Stripe as far as its documentation goes, keeps a ledger, and fails as a test configures it.

It is never kinder than Stripe: it knows keys and permissions (`stripe_rules`), remembers idempotency keys (`stripe_keys`),
refuses parameters that it does not have, and sends its objects whole (`stripe_payloads`).
"""

from __future__ import annotations

__all__ = ["Fault", "FaultyStripe"]

import argparse
import asyncio
import base64
import binascii
from bisect import bisect_left, bisect_right
from collections.abc import Awaitable, Callable
from enum import Enum
from operator import itemgetter
from typing import Any

import orjson
from aiohttp import web
from attrs import define, field

from tests.gateways.stripe_keys import Answer, KeyMemory
from tests.gateways.stripe_ledger import StripeLedger, group
from tests.gateways.stripe_payloads import error_object
from tests.gateways.stripe_rules import (
    INTENT_GROUPS,
    INTENT_PARAMETERS,
    KEY_LENGTH_MAX,
    REFUND_GROUPS,
    REFUND_PARAMETERS,
    Refusal,
    check_amount,
    check_parameters,
    check_refund,
    is_dispute_final,
)


class Fault(Enum):
    """What happens to one call that moves money. Where the value begins with "charges", the money is taken or refunded."""

    NONE = "charges and returns the result"
    CHARGE_HANG = "charges and never responds"
    CHARGE_CUT = "charges and closes the connection"
    CHARGE_500 = "charges and responds with 500, also when it is repeated"
    CHARGE_HTML = "charges and responds with an HTML page"
    CHARGE_TRUNCATED = "charges and breaks off in the middle of the response"
    CHARGE_DRIP = "charges and responds with one byte a second"
    CHARGE_WRONG = "charges and responds with another amount; its list is right"
    WRONG_CHARGE = "charges another amount, which its list shows, too"
    OTHER_CURRENCY = "charges and responds with another currency; its list is right"
    HANG = "does nothing and never responds"
    ERROR_500 = "does nothing and responds with 500, also when it is repeated"
    ERROR_503_LATER = "does nothing and responds with 503, and Retry-After: 7"
    RATE_LIMITED = "responds with 429, and Retry-After: 7"
    RATE_LIMITED_BARE = "responds with 429, as Stripe does, without a Retry-After"
    LOCKED = "responds with 429 lock_timeout, because another call works on the object"
    REDIRECT = "redirects to another address"
    HTML = "responds with an HTML page"
    KEY_REUSED = "responds that the key belongs to another request"


_RETRY_AFTER = "7"
_UNREACHED = (Fault.HTML, Fault.REDIRECT, Fault.ERROR_503_LATER, Fault.RATE_LIMITED, Fault.RATE_LIMITED_BARE)
"""What an edge server answers before the call reaches the API; it leaves no trace under the key."""

_CANCELLABLE = ("requires_payment_method", "requires_capture", "requires_confirmation", "requires_action", "processing")



@define
class FaultyStripe(StripeLedger):
    """
    Run with `start`. *write_fault* returns the fault of each call that moves money, *read_fault* that of each list request.

    *remembers_keys* false imitates a provider that ignores idempotency keys, such as localstripe: a second charge under
    the same key takes the money again. *refund_status* returns the status of each new refund.
    """

    write_fault: Callable[[], Fault] = lambda: Fault.NONE
    read_fault: Callable[[], Fault] = lambda: Fault.NONE
    refund_status: Callable[[], str] = lambda: "succeeded"
    latency_seconds: float = 0.0
    can_filter: bool = True
    is_oldest_first: bool = False
    remembers_keys: bool = True
    calls: list[tuple[str, str]] = field(factory=list)
    keys: list[str] = field(factory=list)
    redirects_followed: int = 0
    """How many calls followed a redirect."""
    replayed: int = 0
    """How many calls got a saved answer."""
    url: str = ""
    memory: KeyMemory = field(init=False)
    _runner: web.AppRunner | None = field(default=None, init=False)
    _closing: asyncio.Event = field(factory=asyncio.Event, init=False)

    def __attrs_post_init__(self) -> None:
        self.memory = KeyMemory(lambda: self.wall_seconds())

    async def start(self) -> FaultyStripe:
        app = web.Application()
        app.router.add_post("/v1/payment_intents", self._charge)
        app.router.add_get("/v1/payment_intents", self._list)
        app.router.add_get("/v1/payment_intents/{id}", self._retrieve)
        app.router.add_post("/v1/payment_intents/{id}/cancel", self._cancel)
        app.router.add_get("/v1/charges/{id}", self._retrieve_charge)
        app.router.add_post("/v1/refunds", self._refund)
        app.router.add_get("/v1/refunds", self._list_refunds)
        app.router.add_get("/v1/refunds/{id}", self._retrieve_refund)
        app.router.add_route("*", "/redirected", self._redirect_target)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, backlog=1024)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def stop(self) -> None:
        self._closing.set()
        for task in self.deliveries:
            task.cancel()
        if self._runner is not None:
            await self._runner.cleanup()

    # Routes

    async def _charge(self, request: web.Request) -> web.StreamResponse:
        form = await self._form(request)
        order_id = form.get("metadata[order_id]", "")
        self.calls.append(("charge", order_id))
        self.keys.append(request.headers.get("Idempotency-Key", ""))
        fault = self.write_fault()

        def make() -> tuple[int, dict[str, Any]]:
            check_parameters(form, INTENT_PARAMETERS, INTENT_GROUPS)
            amount = check_amount(form.get("amount"), form.get("currency")) + (fault is Fault.WRONG_CHARGE)
            method = form.get("payment_method", "")
            is_live = "_live_" in _api_key(request)
            self.account.check_method(method, form.get("customer"), is_live=is_live)
            self.account.use_once(method)
            self.account.check_charge(form)
            return self.make_charge(form, amount, method, is_live=is_live)

        def distort(intent: dict[str, Any]) -> dict[str, Any]:
            if fault is Fault.CHARGE_WRONG:
                return intent | {"amount": intent["amount"] * 2, "amount_received": intent["amount"] * 2}
            return intent | {"currency": "xts"} if fault is Fault.OTHER_CURRENCY else intent

        return await self._write(request, "payment_intent_write", form, fault, make, distort)

    async def _refund(self, request: web.Request) -> web.StreamResponse:
        form = await self._form(request)
        self.calls.append(("refund", form.get("payment_intent", "")))
        self.keys.append(request.headers.get("Idempotency-Key", ""))

        def make() -> tuple[int, dict[str, Any]]:
            check_parameters(form, REFUND_PARAMETERS, REFUND_GROUPS)
            check_refund(form)
            reference = form.get("payment_intent", "")
            intent = self.intents.get(reference)
            if intent is None:
                message = f"No such payment_intent: '{reference}'"
                raise Refusal(404, message, code="resource_missing", param="payment_intent")
            if intent["latest_charge"] is None or intent["status"] != "succeeded":
                raise Refusal(400, "This PaymentIntent does not have a successful charge to refund.", is_saved=True)
            charge = self.charges[intent["latest_charge"]]
            left = charge["amount"] - charge["amount_refunded"]
            if any(each["charge"] == charge["id"] and is_dispute_final(each) for each in self.disputes.values()):
                message = "This charge has been charged back; a refund cannot be issued."
                raise Refusal(400, message, code="charge_disputed", is_saved=True)
            if not left:
                message = f"Charge {charge['id']} has already been refunded."
                raise Refusal(400, message, code="charge_already_refunded", is_saved=True)
            amount = int(form["amount"])
            if amount > left:
                message = f"Refund amount ({amount}) is greater than unrefunded amount on charge ({left})"
                raise Refusal(400, message, param="amount", is_saved=True)
            if self.account.balance is not None and amount > self.account.balance:
                message = "Insufficient funds in your Stripe balance to refund this amount."
                raise Refusal(400, message, code=self.account.lack_of_balance_code, is_saved=True)
            return 200, self.make_refund(intent, amount, group(form, "metadata"), self.refund_status())

        return await self._write(request, "refund_write", form, self.write_fault(), make)

    async def _list(self, request: web.Request) -> web.StreamResponse:
        self.calls.append(("list", ""))
        if not self.can_filter and any(name.startswith("created") for name in request.query):
            return self._error(Refusal(400, "Received unknown parameter: created", code="parameter_unknown", param="created"))
        since = int(request.query.get("created[gte]", 0))
        rows = list(self.intents.values())
        rows = rows[bisect_left(rows, since, key=itemgetter("created")) :]
        if (before := request.query.get("created[lt]")) is not None:
            rows = rows[: bisect_left(rows, int(before), key=itemgetter("created"))]
        if not self.is_oldest_first:
            rows.reverse()
        expands = "data.latest_charge" in (*request.query.getall("expand[]", []), *request.query.getall("expand[0]", []))
        return await self._page(request, "payment_intent_read", rows, self._expanded if expands else None)

    def _expanded(self, intent: dict[str, Any]) -> dict[str, Any]:
        return intent | {"latest_charge": self.charges.get(intent["latest_charge"] or "")}

    async def _list_refunds(self, request: web.Request) -> web.StreamResponse:
        reference = request.query["payment_intent"]
        self.calls.append(("list refunds", reference))
        rows = [refund for refund in self.refunds.values() if refund["payment_intent"] == reference]
        return await self._page(request, "refund_read", rows[::-1])

    async def _page(
        self,
        request: web.Request,
        permission: str,
        rows: list[dict[str, Any]],
        shown: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    ) -> web.StreamResponse:
        limit = int(request.query.get("limit", 10))
        if not 1 <= limit <= 100:
            return self._error(Refusal(400, "Invalid limit", code="parameter_invalid_integer", param="limit"))
        after = request.query.get("starting_after")
        # There are thousands of rows, sorted by number in either direction. A linear search for each page would dominate
        # the time of the tests.
        direction = -1 if rows and _number(rows[0]["id"]) > _number(rows[-1]["id"]) else 1
        start = 0
        if after is not None:
            start = bisect_right(rows, direction * _number(after), key=lambda row: direction * _number(row["id"]))
        found = rows[start : start + limit]
        data = found if shown is None else [shown(row) for row in found]
        page = {"object": "list", "data": data, "has_more": len(rows) > start + limit, "url": request.path}
        return await self._read(request, permission, page)

    async def _retrieve(self, request: web.Request) -> web.StreamResponse:
        expands = any("latest_charge" in value for value in request.query.values())
        shown = self._expanded if expands else None
        return await self._show(request, "payment_intent", "intent", self.intents, shown)

    async def _retrieve_charge(self, request: web.Request) -> web.StreamResponse:
        return await self._show(request, "charge", "id", self.charges)

    async def _retrieve_refund(self, request: web.Request) -> web.StreamResponse:
        return await self._show(request, "refund", "id", self.refunds)

    async def _show(
        self,
        request: web.Request,
        kind: str,
        param: str,
        rows: dict[str, dict[str, Any]],
        shown: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    ) -> web.StreamResponse:
        id = request.match_info["id"]
        self.calls.append(("show", id))
        found = rows.get(id)
        if found is None:
            missing = Refusal(404, f"No such {kind}: '{id}'", code="resource_missing", param=param)
            return await self._read(request, f"{kind}_read", missing)
        return await self._read(request, f"{kind}_read", found if shown is None else shown(found))

    async def _cancel(self, request: web.Request) -> web.StreamResponse:
        form = await self._form(request)
        id = request.match_info["id"]
        self.calls.append(("cancel", id))

        def make() -> tuple[int, dict[str, Any]]:
            intent = self.intents.get(id)
            if intent is None:
                raise Refusal(404, f"No such payment_intent: '{id}'", code="resource_missing", param="intent")
            if intent["status"] not in _CANCELLABLE:
                message = f"You cannot cancel this PaymentIntent because it has a status of {intent['status']}."
                raise Refusal(400, message, code="payment_intent_unexpected_state", is_saved=True)
            intent |= {"status": "canceled", "canceled_at": int(self.wall_seconds()), "next_action": None}
            self.emit("payment_intent.canceled", intent)
            return 200, intent

        return await self._write(request, "payment_intent_write", form, Fault.NONE, make)

    async def _redirect_target(self, request: web.Request) -> web.StreamResponse:
        self.redirects_followed += 1
        return web.json_response({})

    # One call

    async def _form(self, request: web.Request) -> dict[str, str]:
        form = {name: str(value) for name, value in (await request.post()).items()}
        # A call that is still queued here when its client gives up must not charge later if keys are ignored: the client
        # may have looked it up by then.
        if not self.remembers_keys and _has_left(request):
            raise ConnectionResetError("the client has closed the connection")
        return form

    async def _write(
        self,
        request: web.Request,
        permission: str,
        form: dict[str, str],
        fault: Fault,
        make: Callable[[], tuple[int, dict[str, Any]]],
        distort: Callable[[dict[str, Any]], dict[str, Any]] = lambda value: value,
    ) -> web.StreamResponse:
        """Answer a POST: from the edge server, from the memory of keys, or by making it."""
        if fault in _UNREACHED:
            return self._edge(fault)
        try:
            self.account.authorize(_api_key(request), permission)
        except Refusal as refusal:
            return self._error(refusal)
        key = request.headers.get("Idempotency-Key") if self.remembers_keys else None
        if key is not None and len(key) > KEY_LENGTH_MAX:
            return self._error(Refusal(400, f"The idempotency key is longer than {KEY_LENGTH_MAX} characters.", "idempotency_error"))
        if fault is Fault.LOCKED:
            return self._error(_locked())
        if fault is Fault.KEY_REUSED:
            return self._error(_other_request(key))
        if key is None:
            return await self._make(request, None, fault, make, distort)
        match self.memory.begin(key, request.path, form):
            case Answer() as saved:
                self.replayed += 1
                headers = {"Idempotent-Replayed": "true", "Idempotency-Key": key, "Original-Request": saved.request_id}
                return self._answer(saved, headers)
            case "in_use":
                message = "There is currently another in-progress request using this Idempotent Key."
                return self._error(Refusal(409, message, "idempotency_error", "idempotency_key_in_use"))
            case "other_request":
                return self._error(_other_request(key))
        try:
            return await self._make(request, key, fault, make, distort)
        finally:
            self.memory.drop(key)

    async def _make(
        self,
        request: web.Request,
        key: str | None,
        fault: Fault,
        make: Callable[[], tuple[int, dict[str, Any]]],
        distort: Callable[[dict[str, Any]], dict[str, Any]],
    ) -> web.StreamResponse:
        await self._wait(self.latency_seconds)
        if fault is Fault.HANG:
            await self._until_client_leaves(request)
            raise ConnectionResetError("the call was lost")
        request_id = f"req_{next(self.request_ids)}"
        is_saved = True
        if fault is Fault.ERROR_500:
            status, body = 500, _internal_error(request_id)
        else:
            try:
                status, value = make()
            except Refusal as refusal:
                status, body, is_saved = refusal.status, _refusal_body(refusal, request_id), refusal.is_saved
            else:
                body = orjson.dumps(value)
            if fault is Fault.CHARGE_500:
                status, body = 500, _internal_error(request_id)
        answer = Answer(status, body, request_id)
        if key is not None and is_saved:
            self.memory.save(key, answer)
        if status == 200:
            answer = Answer(status, orjson.dumps(distort(orjson.loads(body))), request_id)  # distorted on the way
        headers = {} if key is None else {"Idempotency-Key": key, "Original-Request": request_id}
        match fault:
            case Fault.CHARGE_HANG:
                await self._until_client_leaves(request)
            case Fault.CHARGE_CUT:
                assert request.transport is not None
                request.transport.close()
            case Fault.CHARGE_HTML:
                return self._edge(Fault.HTML)
            case Fault.CHARGE_TRUNCATED:
                return web.Response(body=body[: len(body) // 2], content_type="application/json")
            case Fault.CHARGE_DRIP:
                return await self._drip(request, body)
        return self._answer(answer, headers)

    async def _read(self, request: web.Request, permission: str, value: dict[str, Any] | Refusal) -> web.StreamResponse:
        fault = self.read_fault()
        if fault in _UNREACHED:
            return self._edge(fault)
        try:
            self.account.authorize(_api_key(request), permission)
        except Refusal as refusal:
            return self._error(refusal)

        def make() -> tuple[int, dict[str, Any]]:
            if fault is Fault.LOCKED:
                raise _locked()
            if isinstance(value, Refusal):
                raise value
            return 200, value

        return await self._make(request, None, fault, make, lambda value: value)

    def _answer(self, answer: Answer, headers: dict[str, str]) -> web.Response:
        common = {"Request-Id": answer.request_id, "Stripe-Version": "2026-10-28.endive"}
        return web.Response(
            body=answer.body, status=answer.status, content_type="application/json", headers=common | headers
        )

    def _error(self, refusal: Refusal) -> web.Response:
        request_id = f"req_{next(self.request_ids)}"
        return self._answer(Answer(refusal.status, _refusal_body(refusal, request_id), request_id), {})

    def _edge(self, fault: Fault) -> web.Response:
        """Answer as the servers before the API do."""
        match fault:
            case Fault.ERROR_503_LATER:
                return web.Response(text="<h1>later</h1>", status=503, headers={"Retry-After": _RETRY_AFTER})
            case Fault.RATE_LIMITED | Fault.RATE_LIMITED_BARE:
                message = "Request rate limit exceeded. Learn more about rate limits here https://stripe.com/docs/rate-limits."
                response = self._error(Refusal(429, message, code="rate_limit"))
                response.headers["Stripe-Rate-Limited-Reason"] = "global-rate"
                if fault is Fault.RATE_LIMITED:
                    response.headers["Retry-After"] = _RETRY_AFTER
                return response
            case Fault.REDIRECT:
                return web.Response(status=307, headers={"Location": f"{self.url}/redirected"})
        return web.Response(text="<h1>Welcome to your router</h1>", content_type="text/html")

    async def _wait(self, seconds: float) -> None:
        if seconds:
            await asyncio.sleep(seconds)

    async def _until_client_leaves(self, request: web.Request) -> None:
        """Return once the client has closed the connection, or the server stops."""
        while not (_has_left(request) or self._closing.is_set()):
            await _first(self._closing.wait(), 0.05)

    async def _drip(self, request: web.Request, body: bytes) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(len(body))})
        await response.prepare(request)
        for byte in body:
            try:
                await response.write(bytes([byte]))
            except ConnectionError:
                break
            if await _first(self._closing.wait(), 1):
                break
        return response


async def _first(event: Awaitable[Any], seconds: float) -> bool:
    """Return whether *event* came within *seconds*."""
    try:
        async with asyncio.timeout(seconds):
            await event
    except TimeoutError:
        return False
    return True


def _has_left(request: web.Request) -> bool:
    return request.transport is None or request.transport.is_closing()


def _locked() -> Refusal:
    message = (
        "This object cannot be accessed right now because another API request or Stripe process is currently accessing it."
        " If you see this error intermittently, retry the request."
    )
    return Refusal(429, message, code="lock_timeout")


def _api_key(request: web.Request) -> str:
    scheme, _, value = request.headers.get("Authorization", "").partition(" ")
    if scheme != "Basic":
        return value
    try:
        return base64.b64decode(value).decode().partition(":")[0]
    except (binascii.Error, ValueError):
        return ""


def _other_request(key: str | None) -> Refusal:
    message = (
        "Keys for idempotent requests can only be used with the same parameters they were first used with. Try using a key"
        f" other than '{key}' if you meant to execute a different request."
    )
    return Refusal(400, message, "idempotency_error")


def _internal_error(request_id: str) -> bytes:
    message = "Sorry! There was an error while talking to one of our backends. Support has been notified."
    return orjson.dumps(error_object("api_error", message, request_id))


def _refusal_body(refusal: Refusal, request_id: str) -> bytes:
    body = error_object(refusal.type, refusal.message, request_id, code=refusal.code, param=refusal.param)
    return orjson.dumps(body)


def _number(id: str) -> int:
    return int(id.partition("_")[2])


async def _serve(latency_seconds: float, charges: int) -> None:
    server = await FaultyStripe(latency_seconds=latency_seconds).start()
    server.fill(charges)
    print(server.url, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":  # python -m tests.gateways.fault 0.2: a provider with a latency of 200 ms, for measurements
    parser = argparse.ArgumentParser()
    parser.add_argument("latency_seconds", type=float)
    parser.add_argument("--charges", type=int, default=0, help="charges of other processes within the last 300 seconds")
    arguments = parser.parse_args()
    asyncio.run(_serve(arguments.latency_seconds, arguments.charges))
