"""Gather what all processes know of one order, and put it together."""

from __future__ import annotations

__all__ = ["FORMAT", "RECORDS_PATH", "Explainer", "OrderUnreachable"]

from collections.abc import Awaitable, Mapping, Sequence
from datetime import datetime
from typing import Any
from urllib.parse import quote

from app.web.operations.explain.sentence import Standing, summary, waiting_for
from app.web.operations.module_api import ApiAnswer, ModuleApi, ModuleUnreachable
from bus.port import Clock
from config.api_keys import ApiKey

RECORDS_PATH = "/v1/order-records/{order_id}"
"""Where each process has its records about an order."""

ORDERS = "orders"

FORMAT = "fulfilment-order-1"
"""What an export begins with, so that an import recognises it."""

IDS_MAX = 200
"""Ids of events that are sent to another process."""

PRINCIPAL = ApiKey("explain", "viewer")
"""Who asks the other processes: who may see the order was decided before."""

Json = dict[str, Any]


class OrderUnreachable(Exception):
    """The process that has the order gives no answer; *reason* is half a sentence."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Explainer:
    """Explains orders by what *api* gets from all modules."""

    def __init__(self, api: ModuleApi, clock: Clock) -> None:
        self._api = api
        self._clock = clock

    async def explain(self, order_id: str, customer: str | None = None, *, has_states: bool = False) -> Json | None:
        """
        Return the explanation of an order; None if there is no such order, or it is not one of *customer*.

        With *has_states* it has what another machine needs to import the order: ``format``, ``states`` by module and class,
        and ``history``, the transactions with what the modules have decided in each.

        Raises:
            OrderUnreachable: The process of orders gives no answer.
        """
        path = quote(order_id, safe="")
        try:
            answer = await self._api.request("GET", f"/v1/orders/{path}", principal=PRINCIPAL)
        except ModuleUnreachable as error:
            raise OrderUnreachable(error.reason) from None
        if answer.status == 404:
            return None
        if not answer.is_success:
            raise OrderUnreachable(f"it answers {answer.status}")
        order: Json = answer.body
        if customer is not None and order["customer_id"] != customer:
            return None
        records, unreachable = await self._records(path, order, {"states": "true"} if has_states else {})
        explanation = self._explanation(order, records, unreachable)
        if has_states:
            explanation |= {"format": FORMAT, "states": {name: each["states"] for name, each in records.items()}, "history": _history(records)}
        return explanation

    async def _records(self, path: str, order: Json, more: Mapping[str, str]) -> tuple[dict[str, Json], dict[str, str]]:
        """
        Return the records of each module, and the modules that give none with the reason.

        The process of orders is asked first: the events that it knows lead to the others.
        """
        moments = list(dict.fromkeys(entry["at"] for entry in order["timeline"]))
        records, missing = await self._ask(path, [ORDERS], {"moments": ",".join(moments), **more})
        others = [name for name in self._api.modules if name not in records and name not in missing]
        ids = list(dict.fromkeys(event["event_id"] for each in records.values() for event in (*each["events"], *each["consumed"])))[:IDS_MAX]
        query = {"moments": ",".join(moments), "events": ",".join(ids), **more}
        found, more_missing = await self._ask(path, others, {name: text for name, text in query.items() if text})
        return records | found, missing | more_missing

    async def _ask(self, path: str, modules: Sequence[str], query: Mapping[str, str]) -> tuple[dict[str, Json], dict[str, str]]:
        """Ask for the records of *modules*; one process may return those of others, too."""
        target = RECORDS_PATH.replace("{order_id}", path)
        requests: dict[str, Awaitable[ApiAnswer]] = {}
        own = [name for name in modules if name in self._api.running]
        for name in (*own[:1], *(name for name in modules if name not in self._api.running)):
            # This process answers for all of its modules at once.
            named = {} if name in own else {"module": name}
            requests[name] = self._api.request("GET", target, query={**query, **named}, module=name, principal=PRINCIPAL)
        answers, unreachable = await ModuleApi.gather(requests)
        records: dict[str, Json] = {}
        missing = {name: error.reason for name, error in unreachable.items()}
        for name, answer in answers.items():
            if answer.is_success:
                records |= answer.body["modules"]
            else:
                missing |= dict.fromkeys(own if name in own else (name,), f"it answers {answer.status}")
        return records, {name: reason for name, reason in missing.items() if name not in records}

    def _explanation(self, order: Json, records: Mapping[str, Json], unreachable: Mapping[str, str]) -> Json:
        events = _events(records)
        timers = sorted((timer for each in records.values() for timer in each["timers"]), key=lambda timer: str(timer["due_at"]))
        letters = [letter for each in records.values() for letter in each["dead_letters"]]
        audit = sorted((entry for each in records.values() for entry in each["audit"]), key=lambda entry: str(entry["at"]))
        payments = records.get("payments", {})
        payment, reservation = payments.get("payment"), records.get("inventory", {}).get("reservation")
        standing = Standing(
            order=order, now=self._clock.now(), events=events, timers=timers, payment=payment, reservation=reservation,
            dead_letters=letters, gateway=payments.get("gateway"), unreachable=sorted(unreachable),
        )  # fmt: skip
        return {
            "order_id": order["order_id"],
            "status": order["status"],
            "summary": summary(standing),
            "waiting_for": waiting_for(standing),
            "events": events,
            "timers": timers,
            "payment": None if payment is None else {**payment, "calls": payment["attempts"], "attempts": _attempts(payments)},
            "reservation": reservation,
            "dead_letters": letters,
            "audit": audit,
            "unreachable": sorted(unreachable),
            "reasons": dict(unreachable),
            "is_complete": bool(events) and not unreachable and all(each["is_complete"] for each in records.values()),
            "order": order,
        }


def _history(records: Mapping[str, Json]) -> list[Json]:
    """Return the transactions in their order, each with the entries of the modules that took part."""
    found: dict[tuple[str, int], Json] = {}
    for name, each in records.items():
        for row in each["rows"]:
            found.setdefault((row["at"], row["number"]), {"at": row["at"], "modules": {}})["modules"][name] = row["entries"]
    return [transaction for _, transaction in sorted(found.items())]


def _attempts(payments: Json) -> list[Json]:
    """Return the answers of the payment provider, oldest first."""
    return [
        {"at": answer["at"], "request_id": answer["request_id"], "outcome": answer["answer"], "detail": answer["detail"]}
        for answer in payments["answers"]
    ]


def _events(records: Mapping[str, Json]) -> list[Json]:
    """
    Return all events, causes before effects.

    One whose producer gives no answer is there as its consumer has it, without its cause.
    """
    found: dict[str, Json] = {event["event_id"]: event for each in records.values() for event in each["events"]}
    for each in records.values():
        for taken in each["consumed"]:
            more = {"cause_id": None, "parent_id": None, "module": taken["subject"].partition(".")[0], "delivery": "published", "attempts": 1}
            found.setdefault(taken["event_id"], {**taken, **more})
    for event in found.values():
        if event["parent_id"] is None and event["cause_id"] in found:
            event["parent_id"] = event["cause_id"]  # its cause was found in another process
        if event["parent_id"] not in found:
            event["parent_id"] = None
    placed: dict[str, Json] = {}
    for event in sorted(found.values(), key=lambda event: (datetime.fromisoformat(event["at"]), event["parent_id"] is not None)):
        _place(event, found, placed)
    return list(placed.values())


def _place(event: Json, found: Mapping[str, Json], placed: dict[str, Json]) -> None:
    chain: list[Json] = []
    while event["event_id"] not in placed and event not in chain:
        chain.append(event)
        parent = found.get(event["parent_id"])
        if parent is None:
            break
        event = parent
    for each in reversed(chain):
        placed[each["event_id"]] = each
