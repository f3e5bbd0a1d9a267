"""The values of filters."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from aiohttp import ClientSession
from hypothesis import example, given
from hypothesis import strategies as st

from app.application import Application
from app.web.requests.filters import FilterReader
from app.web.responses.problems import ProblemError
from config.settings import Settings
from modules.filters import Filter
from modules.registry import MODULES

READER = FilterReader([Filter("at", {"type": "string", "format": "date-time"})])


@given(moment=st.datetimes(), minutes=st.integers(-23 * 60 - 59, 23 * 60 + 59))
@example(moment=datetime.min, minutes=23 * 60 + 59)
@example(moment=datetime.max, minutes=-23 * 60 - 59)
def test_every_moment_is_read(moment: datetime, minutes: int) -> None:
    """In any zone; a moment at an end of the calendar may be moved by days."""
    given_moment = moment.replace(tzinfo=timezone(timedelta(minutes=minutes)))
    (condition,) = READER.read({"at": given_moment.isoformat()})
    (read,) = condition.values
    assert read.tzinfo is UTC
    if datetime(1, 1, 5) < moment < datetime(9999, 12, 27):
        assert read == given_moment.astimezone(UTC)
    assert abs(read.replace(tzinfo=None) - moment) < timedelta(days=4)


@pytest.mark.parametrize(
    ("text", "second", "microsecond"),
    [
        ("2016-12-31T23:59:60Z", 59, 0),
        ("2017-01-01t00:59:60.5+01:00", 59, 500_000),
        ("2016-12-31T21:59:60-02:00", 59, 0),
        ("2016-12-31T23:59:58.1234567z", 58, 123_456),
    ],
)
def test_a_moment_may_have_what_a_datetime_has_not(text: str, second: int, microsecond: int) -> None:
    """A leap second counts as the one before it, and further digits are cut off (RFC 3339); letters may be small."""
    (condition,) = READER.read({"at": text})
    assert condition.values == (datetime(2016, 12, 31, 23, 59, second, microsecond, UTC),)


@pytest.mark.parametrize("text", ["2026-02-30T00:00:00Z", "2026-01-01T24:00:00Z", "2026-01-01T00:00:00+24:00", "2026-01-01"])
def test_what_is_no_moment_is_refused(text: str) -> None:
    """With 400 and the member, and never with an error of the parser."""
    with pytest.raises(ProblemError) as caught:
        READER.read({"at": text})
    assert caught.value.members["errors"][0]["pointer"] == "/at"


async def test_the_ends_of_the_calendar_are_answered(tmp_path: Path) -> None:
    """In every list with times: nothing is that old or that new."""
    settings = Settings(known_modules=MODULES, database_url=f"sqlite:///{tmp_path}/test.db", http_port=0, shutdown_grace_s=2)
    application = Application(settings)
    address = await application.start()
    moments = ["0000-01-01T00:00:00Z", "0001-01-01T00:00:00+23:59", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59.9999999-23:59"]
    names = {"orders": ("created_after", "created_before"), "payments": ("created_after", "created_before"), "audit": ("after", "before")}
    async with ClientSession() as session:
        for path, parameters in names.items():
            for name in parameters:
                for moment in moments:
                    async with session.get(f"{address}/v1/{path}", params={name: moment}) as response:
                        assert (response.status, (await response.json())["items"]) == (200, [])
    await application.stop()
