"""What the live parts of pages do, without a browser: a session that ends, a state that cannot be read, and the time that they take."""

from __future__ import annotations

from hashlib import sha256
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp.test_utils import make_mocked_request

from app.web.access.authentication import Authenticator
from app.web.console.frame import Visit
from app.web.console.live import PROBLEM, SHARE_MAX, _Channel, pause_seconds
from app.web.console.screens.orders.listing import read_filters
from app.web.console.session import Sessions
from app.web.operations.module_api import ModuleUnreachable
from config.api_keys import ApiKey

KEY = ApiKey("ada", "operator", sha256(b"ada").hexdigest())


def visit(sessions: Sessions, path: str = "/") -> Visit:
    frame: Any = SimpleNamespace(sessions=sessions)
    return Visit(frame, make_mocked_request("GET", path), sessions.begin(KEY), "c-1")


@pytest.mark.parametrize(
    ("key", "is_valid"),
    [(KEY, True), (None, False), (ApiKey("ada", "viewer", KEY.digest), False), (ApiKey("ada", "operator", KEY.digest, "c-1"), False)],
    ids=["the same", "removed", "another role", "one customer"],
)
def test_a_page_that_stays_open_ends_with_the_rights_of_its_key(key: ApiKey | None, is_valid: bool) -> None:
    """The keys may be read again while a person looks at the page."""
    authenticator = Authenticator({"ada": KEY})
    open_page = visit(Sessions(authenticator))
    assert open_page.is_valid()
    authenticator.replace({} if key is None else {"ada": key})
    assert open_page.is_valid() == is_valid


async def test_a_state_that_cannot_be_read_is_said_until_it_can() -> None:
    """The page shows what was known before; what has not changed is not sent again."""
    answers: list[Any] = [1, ModuleUnreachable("orders", "no connection"), ZeroDivisionError("db-seven"), 1, 1, 2]

    async def fetch() -> Any:
        found = answers.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    channel, seen = _Channel(fetch, lambda state: {"state": str(state)}), []
    while answers:
        changed = channel.changed
        await channel.step()
        seen.append((channel.shown["state"], channel.shown[PROBLEM].partition(" is ")[0].partition(" cannot")[0], changed.done()))
    assert seen == [
        ("1", "", True), ("1", "The module orders", True), ("1", "The state", True), ("1", "", True), ("1", "", False), ("2", "", True),
    ]  # fmt: skip


@pytest.mark.parametrize(("step", "channels", "seconds"), [(0.0, 1, 2.0), (0.01, 1, 2.0), (0.1, 1, 0.1 / SHARE_MAX), (0.1, 7, 0.7 / SHARE_MAX)])
def test_all_channels_together_take_a_share_of_the_time(step: float, channels: int, seconds: float) -> None:
    """However many pages are open."""
    assert pause_seconds(step, channels, 2.0) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("2026-01-02T03:04", "2026-01-02T03:04:00Z"),
        ("2026-01-02T03:04:05", "2026-01-02T03:04:05Z"),
        ("2026-01-02T03:04:05.5", "2026-01-02T03:04:05.5Z"),
        ("2026-01-02T03:04:05+02:00", "2026-01-02T03:04:05+02:00"),
    ],
)
def test_a_time_that_a_form_sends_is_in_utc(given: str, sent: str) -> None:
    """A browser leaves the seconds out where they are zero."""
    path = "/?created_after=" + given.replace("+", "%2B")
    assert read_filters(visit(Sessions(Authenticator({"ada": KEY})), path)) == {"created_after": sent}
