"""How the console writes moments, durations, amounts and numbers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from app.cli import console
from app.web.console.rendering import duration, integer, moment, money, rate

NOW = datetime(2026, 11, 28, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "title", "words"),
    [
        ("2026-11-28T11:57:00.123456Z", "2026-11-28 11:57:00.123 UTC", "3 min ago"),
        ("2026-11-28T11:59:48Z", "2026-11-28 11:59:48.000 UTC", "12 s ago"),
        ("2026-11-28T12:30:00.000000+01:00", "2026-11-28 11:30:00.000 UTC", "30 min ago"),
        ("2026-11-28T12:00:15.000000Z", "2026-11-28 12:00:15.000 UTC", "in 15 s"),
        ("2026-11-28T11:59:59.900000Z", "2026-11-28 11:59:59.900 UTC", "now"),
        ("2026-11-26T12:00:00.000000Z", "2026-11-26 12:00:00.000 UTC", "2 d ago"),
    ],
)
def test_a_moment_is_relative_and_has_date_and_time_as_its_title(text: str, title: str, words: str) -> None:
    """In UTC, whatever the offset; the attribute ``datetime`` is for programs."""
    assert moment(text, NOW) == f'<time datetime="{text}" title="{title}">{words}</time>'


@pytest.mark.parametrize("text", [None, ""])
def test_a_moment_that_is_not_known_is_a_dash(text: str | None) -> None:
    """An em dash would be read as a word."""
    assert moment(text, NOW) == "–"


def test_markup_in_a_moment_is_escaped() -> None:
    """ISO 8601 lets any character separate date and time; Python reads it."""
    assert '"<"' not in moment('2026-11-28"12:00:00Z', NOW)
    assert "&#34;" in moment('2026-11-28"12:00:00Z', NOW)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(None, "–"), (0, "0 s"), (0.0123, "12 ms"), (1, "1 s"), (9.96, "10 s"), (59.4, "59 s"), (90, "1.5 min"), (7200, "2 h"), (1e6, "12 d")],
)
def test_a_duration_is_in_its_largest_unit(seconds: float | None, words: str) -> None:
    """With one digit behind the point below ten."""
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("amount", "currency", "words"),
    [
        (1250, "EUR", "12.50 EUR"), (5, "EUR", "0.05 EUR"), (1250, "JPY", "1\u202f250 JPY"), (1234567, "KWD", "1\u202f234.567 KWD"),
        (-450, "USD", "−4.50 USD"), (1250, "ISK", "1\u202f250 ISK"), (1200, "MGA", "12.00 MGA"),
    ],
)
def test_an_amount_is_in_the_usual_unit_of_its_currency(amount: int, currency: str, words: str) -> None:
    """ISO 4217 gives the digits behind the point; the console and the commands agree on them."""
    assert money({"amount": amount, "currency": currency}) == words
    assert console.amount({"amount": amount, "currency": currency}) == words.replace("\u202f", "").replace("−", "-")


def test_numbers_are_grouped_and_unknown_ones_are_dashes() -> None:
    """Thousands by a narrow space; rates with a digit behind the point below a hundred."""
    assert (integer(1234567), integer(0), integer(None)) == ("1\u202f234\u202f567", "0", "–")
    assert (rate(2.04), rate(99.96), rate(1234.5), rate(None)) == ("2.0", "100.0", "1\u202f234", "–")
    assert (money(None), duration(timedelta(days=3).total_seconds())) == ("–", "3 d")
