"""The figures in docs/howto/payments.rst are equal to those in the code."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from app.gateways import gateway_calls, payment_worker
from app.gateways.breakers.circuit_breaker import CircuitBreaker
from app.gateways.delay_notifier import SWEEP_SECONDS
from app.gateways.stripe import http_session, webhook_event
from app.gateways.stripe.gateway import TEST_PAYMENT_METHOD
from app.web.endpoints.stripe_webhook import DESCRIPTION
from modules.payments.charges import RECHECK_DELAY, SOFT_DECLINE_SECONDS
from modules.payments.refunds import LOOK_UP_SECONDS, OPEN_MAX, RETRY_SECONDS

TEXT = " ".join((Path(__file__).parents[2] / "docs" / "howto" / "payments.rst").read_text(encoding="utf-8").split())
BREAKER = CircuitBreaker(time.monotonic)


@pytest.mark.parametrize(
    "sentence",
    [
        f"the last {BREAKER.window} calls, as far as they ended within {BREAKER.window_seconds:g} seconds",
        f"they are {BREAKER.calls_min} or more and {BREAKER.failure_share * 100:g} % of them failed",
        f"it opens for {BREAKER.open_seconds:g} seconds",
        f"at most {http_session.RETRY_AFTER_SECONDS_MAX:g} seconds",
        f"not more than {webhook_event.TOLERANCE_SECONDS} seconds old",
        f"({gateway_calls.CALLS_MAX} requests at most)",
        f"after 0.5 to {gateway_calls.RETRY_SECONDS_MAX:g} seconds where the provider did not respond",
        f"at most {gateway_calls.REFUND_RETRY_SECONDS_MAX:g} seconds for a refund",
        f"{len(RETRY_SECONDS)} times, after {RETRY_SECONDS[0]} seconds at first and {RETRY_SECONDS[-1] // 3600} hours at last",
        f"after {LOOK_UP_SECONDS[0]} seconds at first, then every {LOOK_UP_SECONDS[-1] // 3600} hours",
        f"for {OPEN_MAX.days} days",
        "after {} seconds and {:g}, {:g} and {:g} minutes".format(SOFT_DECLINE_SECONDS[0], *(n / 60 for n in SOFT_DECLINE_SECONDS[1:])),
        f"After {RECHECK_DELAY.total_seconds():g} seconds the provider's list is read once more",
        f"A request that is more than {payment_worker.FRESH_SECONDS:g} seconds old",
        f"Stripe's test card ``{TEST_PAYMENT_METHOD}``",
        *(f"``POST {path}``" for path in DESCRIPTION.paths),
        *(f"``{type_}``" for type_ in webhook_event.HANDLED_TYPES),
    ],
)
def test_the_page_has_the_figures_of_the_code(sentence: str) -> None:
    """Each figure is in the page, in its sentence."""
    assert sentence in TEXT


def test_the_page_has_the_figures_that_are_written_in_words() -> None:
    """One probe, and orders of the last hour."""
    assert (BREAKER.probes, SWEEP_SECONDS) == (1, 3_600)
    assert "Then exactly one call goes out as a probe" in TEXT
    assert "orders of the last hour" in TEXT


def test_the_page_explains_every_mismatch_code() -> None:
    """An operator who finds a code in a dead letter finds it in the page."""
    sources = [*Path(webhook_event.__file__).parent.glob("*.py"), Path(__file__).parents[2] / "modules/payments/decide.py"]
    pattern = re.compile(r'(?:mismatch=|return |reason=|ResponseMismatch\()"(\w+)"')
    codes = {code for path in sources for code in pattern.findall(path.read_text(encoding="utf-8"))}
    assert {"not_asked_for", "two_charges", "unknown_intent", "wrong_amount"} <= codes
    assert [code for code in sorted(codes) if f"``{code}``" not in TEXT] == []
