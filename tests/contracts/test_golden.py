"""
Every event that a release has published is still readable, and leads to the same final states as then.

``golden/<subject>.jsonl`` has messages as the release that introduced the subject published them, ``golden/submitted.json``
the commands and results that were submitted to the modules before, and ``golden/states.json`` the final states as the
API returned them. Existing lines are never edited; new versions get new lines.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest

from app.messaging.event_registry import all_modules, build_registry
from app.runtime.receiving import EventReader
from bus.contracts.registry import ContractRegistry
from modules import payments
from modules.inventory.events import ProductSet
from modules.inventory.routes import show as show_product
from modules.inventory.state import Product
from modules.module import Module
from modules.orders.events import CancelRequested, OrderSubmitted, RefundSubmitted
from modules.orders.routes import show as show_order
from modules.orders.state import Order
from modules.payments.events import (
    ChargeDeclined,
    ChargeFailed,
    ChargeMismatch,
    ChargeSucceeded,
    DisputeReported,
    RefundSucceeded,
)
from modules.payments.routes import show as show_payment
from modules.payments.state import Payment
from modules.values import Address, Line, Money
from tests.architecture.tree import ROOT

GOLDEN = ROOT / "tests" / "contracts" / "golden"
FILES = sorted(GOLDEN.glob("*.jsonl"))
CONTRACTS = build_registry(all_modules())
SHOW: dict[type, Callable[[Any], Any]] = {Order: show_order, Product: show_product, Payment: show_payment}
SUBMITTED: dict[str, Any] = {
    cls.__name__: cls
    for cls in (
        ProductSet,
        OrderSubmitted,
        CancelRequested,
        RefundSubmitted,
        ChargeSucceeded,
        ChargeMismatch,
        ChargeFailed,
        ChargeDeclined,
        RefundSucceeded,
        DisputeReported,
    )
}


def golden_events() -> list[dict[str, Any]]:
    """Return every golden message, in the order of publication."""
    lines = [
        {"subject": path.name.removesuffix(".jsonl"), **json.loads(line)}
        for path in FILES
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    return sorted(lines, key=lambda line: line["at"])


def submitted_events() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((GOLDEN / "submitted.json").read_text(encoding="utf-8"))
    return found


def restored(name: str, members: dict[str, Any]) -> Any:
    """Return the submitted event of class *name*, from its JSON members."""
    members = dict(members)
    if "items" in members:
        members["items"] = tuple(Line(**line) for line in members["items"])
    for money in "unit_price", "amount":
        if members.get(money) is not None:
            members[money] = Money(**members[money])
    if members.get("shipping_address") is not None:
        members["shipping_address"] = Address(**members["shipping_address"])
    return SUBMITTED[name](**members)


class Replay:
    """The modules, each of which consumes the golden messages; what they emit is ignored."""

    def __init__(self, contracts: ContractRegistry, versions: set[str]) -> None:
        """Consume only the golden messages whose subjects are in *versions*."""
        self.states: dict[tuple[type, str], Any] = {}
        self._contracts = contracts
        self._versions = versions

    def run(self) -> dict[str, dict[str, Any]]:
        """Replay all messages; return the final states as the API returns them, by class and key."""
        modules = {module.name: module for module in all_modules()}
        readers = {name: EventReader(name, self._contracts, module.consumes) for name, module in modules.items()}
        processed: set[tuple[str, str]] = set()
        history = [*({**each, "subject": None} for each in submitted_events()), *golden_events()]
        for each in sorted(history, key=lambda each: each["at"]):
            now = datetime.fromisoformat(each["at"])
            if each["subject"] is None:
                self._decide(modules[each["to"]], restored(each["event"], each["members"]), now)
                continue
            body = json.dumps(each["body"]).encode()
            for name, reader in readers.items():
                if each["subject"] in reader.subjects and each["subject"] in self._versions:
                    event = reader.read(each["subject"], body)
                    if (name, each["id"]) not in processed:
                        processed.add((name, each["id"]))
                        self._decide(modules[name], event, now)
        found: dict[str, dict[str, Any]] = {}
        for (cls, key), state in self.states.items():
            if cls in SHOW:
                found.setdefault(cls.__name__, {})[key] = SHOW[cls](state)
        return found

    def _decide(self, module: Module, event: Any, now: datetime) -> None:
        keys = module.keys(event)
        decision = module.decide([self.states.get(key) for key in keys], event, now)
        for state in decision.states:
            key = state.product_id if isinstance(state, Product) else state.order_id
            self.states[type(state), key] = state


def differences(then: Any, now: Any, at: str = "") -> list[str]:
    """Return where *now* lacks or contradicts *then*; members that were added since do not count."""
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
    """Whether a consumer reads all versions of an event, only the oldest, or only the newest."""
    assert differences(states(), Replay(CONTRACTS, versions).run()) == []


def test_every_subject_has_golden_events() -> None:
    """The file of each version exists and is never empty; a new module gets its first ones when it is released."""
    kept = {path.name.removesuffix(".jsonl") for path in FILES}
    modules = {subject.partition(".")[0] for subject in kept}
    assert {"orders", "inventory", "payments"} <= modules
    assert kept == {subject for subject in SUBJECTS if subject.partition(".")[0] in modules}
    assert all(path.read_text(encoding="utf-8").strip() for path in FILES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_golden_events_can_still_be_published(path: Any) -> None:
    """Each is strictly valid, and unchanged when decoded and encoded again."""
    contract = CONTRACTS[path.name.removesuffix(".jsonl")]
    for line in path.read_text(encoding="utf-8").splitlines():
        body = json.loads(line)["body"]
        assert contract.is_valid_outgoing(body)
        assert json.loads(CONTRACTS.encode(contract.structure(body, contract.cls))) == body


def test_a_lost_message_changes_the_final_states() -> None:
    """The comparison can fail: without any one of the consumed subjects the final states differ."""
    processed = {subject for module in all_modules() for subject in CONTRACTS.subjects_for(module.consumes)}
    dual_published = {"orders.created.v1", "orders.created.v2"}
    for subject in sorted(processed - dual_published - {"payments.delayed.v1", "orders.timed_out.v1"}):
        try:
            found = Replay(CONTRACTS, SUBJECTS - {subject}).run()
        except Exception:
            continue  # a decision that cannot be made without it
        assert differences(states(), found), subject


def test_the_payment_worker_reads_its_golden_events() -> None:
    """They change no state here, but must be readable."""
    requests = payments.module().workers["payments-gateway"]
    reader = EventReader("payments-gateway", CONTRACTS, requests)
    for each in golden_events():
        if each["subject"] in reader.subjects:
            assert type(reader.read(each["subject"], json.dumps(each["body"]).encode())) in requests
