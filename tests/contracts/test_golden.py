"""
What was ever said is understood today, and leads to where it led then.

``golden/<subject>.jsonl`` holds messages as they were said by the release that introduced the subject; ``golden/told.json``
what clients had told the modules before, and ``golden/states.json`` where it all ended, as the API showed it. A line that
is there is never edited; new versions get new lines.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest

from app.gateways.payment_worker import HEARS
from app.messaging.event_registry import all_modules, build_registry
from bus.contracts.event_reader import EventReader
from bus.contracts.registry import ContractRegistry
from modules.inventory.events import ProductSet
from modules.inventory.routes import show as show_product
from modules.inventory.state import Product
from modules.module import Module
from modules.orders.events import CancelRequested, OrderSubmitted
from modules.orders.routes import show as show_order
from modules.orders.state import Order
from modules.payments.events import ChargeDeclined, ChargeFailed, ChargeMismatch, ChargeSucceeded, RefundSucceeded
from modules.payments.routes import show as show_payment
from modules.payments.state import Payment
from modules.values import Address, Line, Money
from tests.architecture.tree import ROOT

GOLDEN = ROOT / "tests" / "contracts" / "golden"
FILES = sorted(GOLDEN.glob("*.jsonl"))
CONTRACTS = build_registry(all_modules())
SHOWN: dict[type, Callable[[Any], Any]] = {Order: show_order, Product: show_product, Payment: show_payment}
TOLD: dict[str, Any] = {
    cls.__name__: cls
    for cls in (ProductSet, OrderSubmitted, CancelRequested, ChargeSucceeded, ChargeMismatch, ChargeFailed, ChargeDeclined, RefundSucceeded)
}


def said() -> list[dict[str, Any]]:
    """Return every golden message, in the order in which they were said."""
    lines = [
        {"subject": path.name.removesuffix(".jsonl"), **json.loads(line)}
        for path in FILES
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    return sorted(lines, key=lambda line: line["at"])


def told() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((GOLDEN / "told.json").read_text(encoding="utf-8"))
    return found


def revived(name: str, members: dict[str, Any]) -> Any:
    """Return what a client or a worker told, from how it is written down."""
    members = dict(members)
    if "items" in members:
        members["items"] = tuple(Line(**line) for line in members["items"])
    if "unit_price" in members:
        members["unit_price"] = Money(**members["unit_price"])
    if members.get("shipping_address") is not None:
        members["shipping_address"] = Address(**members["shipping_address"])
    return TOLD[name](**members)


class Replay:
    """The modules, each hearing what it heard then; what they say now is left aside."""

    def __init__(self, contracts: ContractRegistry, versions: set[str]) -> None:
        """Hear only the golden messages whose subjects are in *versions*."""
        self.states: dict[tuple[type, str], Any] = {}
        self._contracts = contracts
        self._versions = versions

    def run(self) -> dict[str, dict[str, Any]]:
        """Replay everything; return the final states as the API shows them, by class and key."""
        modules = {module.name: module for module in all_modules()}
        hearing = {name: EventReader(name, self._contracts, module.consumes) for name, module in modules.items()}
        heard: set[tuple[str, str]] = set()
        happened = [*({**each, "subject": None} for each in told()), *said()]
        for each in sorted(happened, key=lambda each: each["at"]):
            now = datetime.fromisoformat(each["at"])
            if each["subject"] is None:
                self._decide(modules[each["to"]], revived(each["event"], each["members"]), now)
                continue
            body = json.dumps(each["body"]).encode()
            for name, ears in hearing.items():
                if each["subject"] in ears.subjects and each["subject"] in self._versions:
                    event = ears.read(each["subject"], body)
                    if (name, each["id"]) not in heard:
                        heard.add((name, each["id"]))
                        self._decide(modules[name], event, now)
        shown: dict[str, dict[str, Any]] = {}
        for (cls, key), state in self.states.items():
            if cls in SHOWN:
                shown.setdefault(cls.__name__, {})[key] = SHOWN[cls](state)
        return shown

    def _decide(self, module: Module, event: Any, now: datetime) -> None:
        keys = module.keys(event)
        decision = module.decide([self.states.get(key) for key in keys], event, now)
        for state in decision.states:
            key = state.product_id if isinstance(state, Product) else state.order_id
            self.states[type(state), key] = state


def differences(then: Any, now: Any, at: str = "") -> list[str]:
    """Say where *now* lacks or contradicts *then*. What has been added since is no difference."""
    if isinstance(then, dict) and isinstance(now, dict):
        return [line for name in then for line in differences(then[name], now.get(name), f"{at}/{name}")]
    if isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        return [line for n, (a, b) in enumerate(zip(then, now, strict=True)) for line in differences(a, b, f"{at}/{n}")]
    return [] if then == now else [f"{at}: {then!r} became {now!r}"]


def states() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((GOLDEN / "states.json").read_text(encoding="utf-8"))
    return found


SUBJECTS = {contract.subject for contract in CONTRACTS}
OLDEST = {subject for subject in SUBJECTS if subject.endswith(".v1")}


@pytest.mark.parametrize(
    "versions", [SUBJECTS, OLDEST, SUBJECTS - {"orders.created.v1"}], ids=["all", "oldest", "newest"]
)
def test_golden_events_lead_to_the_same_final_states(versions: set[str]) -> None:
    """Whether one hears all versions of an event, only the oldest, or only the newest."""
    assert differences(states(), Replay(CONTRACTS, versions).run()) == []


def test_every_subject_has_golden_events() -> None:
    """A version that is not kept would be forgotten; the file of each is never empty."""
    assert {path.name.removesuffix(".jsonl") for path in FILES} == SUBJECTS
    assert all(path.read_text(encoding="utf-8").strip() for path in FILES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_golden_events_are_still_what_we_might_say(path: Any) -> None:
    """Each fits its schema to the letter, and comes out of today's class as it went in."""
    contract = CONTRACTS[path.name.removesuffix(".jsonl")]
    for line in path.read_text(encoding="utf-8").splitlines():
        body = json.loads(line)["body"]
        assert contract.is_valid_outgoing(body)
        assert json.loads(CONTRACTS.encode(contract.structure(body, contract.cls))) == body


def test_a_lost_message_would_be_noticed() -> None:
    """The comparison can fail: without any one of the subjects that modules hear, something ends otherwise."""
    heard = {subject for module in all_modules() for subject in CONTRACTS.subjects_for(module.consumes)}
    said_twice = {"orders.created.v1", "orders.created.v2"}
    for subject in sorted(heard - said_twice - {"payments.delayed.v1", "orders.timed_out.v1"}):
        try:
            found = Replay(CONTRACTS, SUBJECTS - {subject}).run()
        except Exception:
            continue  # a decision that cannot be made without it
        assert differences(states(), found), subject


def test_the_gateway_s_requests_are_kept_too() -> None:
    """What only the worker hears has no state of its own, but is understood."""
    ears = EventReader("payments-gateway", CONTRACTS, HEARS)
    for each in said():
        if each["subject"] in ears.subjects:
            assert type(ears.read(each["subject"], json.dumps(each["body"]).encode())) in HEARS
