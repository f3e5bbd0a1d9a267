"""The figures in docs/payments.rst are the program's."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from app.gateways import gateway_calls as calls
from app.gateways import payment_worker as worker
from app.gateways.circuit_breaker import CircuitBreaker
from app.gateways.delay_notifier import SWEEP_SECONDS
from app.gateways.stripe import http_session as stripe_wire
from app.gateways.stripe import webhook_event as stripe_events
from app.gateways.stripe.gateway import TEST_PAYMENT_METHOD
from app.web.endpoints.stripe_webhook import DESCRIPTION
from modules.payments.decide import RECHECK_DELAY

TEXT = " ".join((Path(__file__).parents[2] / "docs" / "payments.rst").read_text(encoding="utf-8").split())
BREAKER = CircuitBreaker(time.monotonic)


@pytest.mark.parametrize(
    "sentence",
    [
        f"the last {BREAKER.window} calls, as far as they ended within {BREAKER.window_seconds:g} seconds",
        f"they are {BREAKER.calls_min} or more and {BREAKER.failure_share * 100:g} % of them failed",
        f"it opens for {BREAKER.open_seconds:g} seconds",
        f"at most {stripe_wire.RETRY_AFTER_SECONDS_MAX:g} seconds",
        f"not more than {stripe_events.TOLERANCE_SECONDS} seconds old",
        f"({calls.CALLS_MAX} requests at most)",
        f"after 0.5 to {calls.RETRY_SECONDS_MAX:g} seconds where nobody answered",
        f"after 2 seconds doubling to {calls.DECLINED_SECONDS_MAX:g} where Stripe refuses",
        f"After {RECHECK_DELAY.total_seconds():g} seconds the provider's list is looked at once more",
        f"A request that is more than {worker.FRESH_SECONDS:g} seconds old",
        f"Stripe's test card ``{TEST_PAYMENT_METHOD}``",
        *(f"``POST {path}``" for path in DESCRIPTION.paths),
        *(f"``{type_}``" for type_ in stripe_events.HANDLED_TYPES),
    ],
)
def test_what_the_page_says_is_so(sentence: str) -> None:
    """Each figure stands there in its sentence."""
    assert sentence in TEXT


def test_one_probe_and_one_hour() -> None:
    """In words."""
    assert (BREAKER.probes, SWEEP_SECONDS) == (1, 3_600)
    assert "Then exactly one call goes out as a probe" in TEXT
    assert "orders of the last hour" in TEXT


def test_every_code_of_what_is_not_believed_is_explained() -> None:
    """Whoever finds one in a dead letter finds it here."""
    sources = [*Path(stripe_events.__file__).parent.glob("*.py"), Path(__file__).parents[2] / "modules/payments/decide.py"]
    pattern = re.compile(r'(?:mismatch=|doubt = |reason=|ResponseMismatch\()"(\w+)"')
    codes = {code for path in sources for code in pattern.findall(path.read_text(encoding="utf-8"))}
    assert {"two_charges", "unknown_intent", "wrong_amount"} <= codes
    assert [code for code in sorted(codes) if f"``{code}``" not in TEXT] == []
