"""The alerts: one message when a rule begins to hold, one when it ends, each delivered at least once and kept over restarts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from app.analytics.errors import FileInUse
from app.analytics.query import Answer
from app.analytics.watch.alerts import MESSAGES_MAX, Alerts, StateUnusable
from app.analytics.watch.rules import Rule
from app.analytics.watch.watcher import BACKOFF_SECONDS_MAX, PostFailed, Watcher
from app.cli.main import main
from tests.analytics.report.shop import shop_file
from tests.analytics.watch.receiver import Receiver

START = datetime(2026, 3, 2, 12, tzinfo=UTC)
URL = "http://127.0.0.1:9/alerts?token=secret"


class Stand:
    """A watcher whose rule holds as a test wants, with a clock and a receiver of its own."""

    def __init__(self, path: Path, *, for_seconds: int = 0) -> None:
        self.path = path
        self.holds = False
        self.seconds = 0.0
        self.is_refusing = False
        self.sent: list[Mapping[str, Any]] = []
        self.error: Exception | None = None
        self.rule = Rule(name="r", sql="SELECT", for_seconds=for_seconds)
        self.start()

    def start(self) -> None:
        """Start a watcher, as after a restart."""
        self.alerts = Alerts.open(self.path)
        self.watcher = Watcher(
            [self.rule], {}, self._ask, self.alerts, URL, self._post, lambda: START + timedelta(seconds=self.seconds)
        )

    def step(self, *, holds: bool, seconds: float = 1) -> list[str]:
        """Let *seconds* pass and the rule hold or not; return the statuses of all messages so far."""
        self.holds = holds
        self.seconds += seconds
        self.watcher.step(self.seconds)
        return [message["status"] for message in self.sent]

    def _ask(self, sql: str, limit: int) -> Answer:
        if self.error is not None:
            raise self.error
        return Answer(["holds"], ["BOOLEAN"], [[self.holds]], True)

    def _post(self, url: str, message: Mapping[str, Any]) -> None:
        assert url == URL
        if self.is_refusing:
            raise PostFailed("the answer is 503")
        self.sent.append(message)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Stand]]:
    """Make stands over one state."""
    stands: list[Stand] = []

    def stand(**options: Any) -> Stand:
        stands.append(Stand(tmp_path / "alerts.json", **options))
        return stands[-1]

    yield stand
    for each in stands:
        each.alerts.close()


def test_a_rule_is_reported_once_when_it_begins_and_once_when_it_ends(make: Callable[..., Stand]) -> None:
    """However often it is evaluated between."""
    stand = make()
    assert stand.step(holds=False) == []
    assert stand.step(holds=True) == ["firing"]
    assert stand.step(holds=True) == ["firing"]
    assert stand.step(holds=False) == ["firing", "resolved"]
    assert stand.step(holds=False) == ["firing", "resolved"]
    assert stand.step(holds=True) == ["firing", "resolved", "firing"]
    assert len({message["id"] for message in stand.sent}) == 3
    assert {"rule", "condition", "since", "at", "value", "rows", "for_seconds"} <= set(stand.sent[0])
    assert "url" not in stand.sent[0]


def test_a_rule_must_hold_for_its_time(make: Callable[..., Stand]) -> None:
    """An interruption begins the time anew, and is never reported."""
    stand = make(for_seconds=60)
    assert stand.step(holds=True) == []
    assert stand.step(holds=True, seconds=59) == []
    assert stand.step(holds=False) == []
    assert stand.step(holds=True) == []
    assert stand.step(holds=True, seconds=60) == ["firing"]
    assert stand.sent[0]["since"] == "2026-03-02T12:01:02+00:00"


def test_a_restart_reports_nothing_twice_and_forgets_nothing(make: Callable[..., Stand]) -> None:
    """Neither what was delivered, nor since when the rule holds."""
    first = make(for_seconds=60)
    assert first.step(holds=True) == []
    first.alerts.close()
    second = make(for_seconds=60)
    second.seconds = 1
    assert second.step(holds=True, seconds=60) == ["firing"]
    second.alerts.close()
    third = make(for_seconds=60)
    third.seconds = 100
    assert third.step(holds=True) == []
    assert third.step(holds=False) == ["resolved"]


def test_an_undelivered_message_is_sent_after_a_restart_with_its_id(make: Callable[..., Stand]) -> None:
    """The rule may have ended meanwhile: both messages are sent, in order."""
    first = make()
    first.is_refusing = True
    assert first.step(holds=True) == []
    assert first.step(holds=False) == []
    (id, _) = [message["id"] for message in first.alerts.messages]
    first.alerts.close()
    second = make()
    assert second.step(holds=False) == ["firing", "resolved"]
    assert second.sent[0]["id"] == id


def test_a_message_that_was_sent_right_before_a_kill_has_the_same_id_again(make: Callable[..., Stand], tmp_path: Path) -> None:
    """The receiver recognises it."""
    first = make()
    first.alerts.save()
    before = (tmp_path / "alerts.json").read_text()
    assert first.step(holds=True) == ["firing"]
    first.alerts.close()
    (tmp_path / "alerts.json").write_text(before)
    second = make()
    assert second.step(holds=True) == ["firing"]
    assert second.sent[0]["id"] == first.sent[0]["id"]


def test_a_receiver_that_refuses_is_asked_ever_less_often(make: Callable[..., Stand]) -> None:
    """After 1, 2, 4 seconds and so on, up to five minutes; the rules are evaluated all the time."""
    stand = make()
    tries: list[float] = []

    def refuse(url: str, message: Mapping[str, Any]) -> None:
        tries.append(stand.seconds)
        raise PostFailed("the answer is 503")

    stand.watcher.post = refuse
    for _ in range(1000):
        stand.step(holds=True)
    waits = [after - before for before, after in pairwise(tries)]
    assert waits[:6] == [1, 2, 4, 8, 16, 32]
    assert max(waits) == BACKOFF_SECONDS_MAX
    stand.watcher.post = lambda url, message: stand.sent.append(message)
    assert stand.step(holds=True, seconds=BACKOFF_SECONDS_MAX) == ["firing"]
    tries.clear()
    stand.watcher.post = refuse
    for _ in range(4):  # the receiver was well meanwhile: the next waits begin with the shortest again
        stand.step(holds=False)
    assert [after - before for before, after in pairwise(tries)] == [1, 2]


def test_a_file_that_cannot_be_asked_now_changes_nothing(make: Callable[..., Stand]) -> None:
    """The process that writes it may be restarted."""
    stand = make()
    assert stand.step(holds=True) == ["firing"]
    stand.error = FileInUse("the process that writes it ended during the query: ask again")
    assert stand.step(holds=False) == ["firing"]
    stand.error = None
    assert stand.step(holds=True) == ["firing"]


def test_undelivered_messages_are_limited(make: Callable[..., Stand], monkeypatch: pytest.MonkeyPatch) -> None:
    """A receiver that never comes back must not fill the disk."""
    stand = make()
    stand.is_refusing = True
    monkeypatch.setattr(Alerts, "save", lambda alerts: None)
    for number in range(MESSAGES_MAX + 10):
        stand.step(holds=number % 2 == 0)
    assert len(stand.alerts.messages) == MESSAGES_MAX
    assert stand.alerts.messages[-1]["at"] == (START + timedelta(seconds=MESSAGES_MAX + 10)).isoformat()  # the oldest ones are dropped


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        ("{", "is damaged"),
        ('{"format": 2, "rules": {}, "messages": []}', "was written by a newer release"),
        ("[]", "is damaged"),
        ('{"format": 1, "rules": [], "messages": []}', "is damaged"),
    ],
)
def test_a_state_that_cannot_be_used_is_refused(tmp_path: Path, text: str, detail: str) -> None:
    """What to do is part of the message."""
    (tmp_path / "alerts.json").write_text(text)
    with pytest.raises(StateUnusable, match=detail):
        Alerts.open(tmp_path / "alerts.json")


def test_two_processes_do_not_share_a_state(make: Callable[..., Stand]) -> None:
    """Each would report what the other has reported."""
    stand = make()
    with pytest.raises(StateUnusable, match="another `analytics watch` uses it"):
        Alerts.open(stand.path)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A server that receives alerts."""
    running = Receiver()
    yield running
    running.close()


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The analytics file of the shop."""
    return shop_file(tmp_path_factory.mktemp("shop") / "shop.duckdb")


def watch(file: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["analytics", "watch", "--file", str(file), "--once", *arguments])


def test_cron_reports_each_change_once(shop: Path, receiver: Receiver, tmp_path: Path) -> None:
    """The command evaluates, delivers and ends; its state is kept in a file that only its user reads."""
    state = tmp_path / "state.json"
    many = ("--rule", "cancellations.orders >= 1", "--url", receiver.url, "--state", str(state))
    assert watch(shop, *many).exit_code == 0
    assert watch(shop, *many).exit_code == 0
    assert receiver.statuses == ["firing"]
    (message,) = receiver.received
    assert (message["rule"], message["condition"], message["value"]) == ("cancellations.orders >= 1",) * 2 + (1,)
    assert message["rows"][0]["day"] == "2026-03-09T00:00:00Z"
    assert receiver.keys == [message["id"]]
    assert state.stat().st_mode & 0o777 == 0o600


def test_cron_tries_again_and_leaves_the_rest_to_the_next_call(
    shop: Path, receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message that is never accepted is an error of the call, and is kept."""
    monkeypatch.setattr("app.analytics.watch.watcher.Watcher.finish.__defaults__", (lambda seconds: None,))
    arguments = ("--rule", "cancellations.orders >= 1", "--url", receiver.url, "--state", str(tmp_path / "state.json"))
    receiver.refusals = 5
    result = watch(shop, *arguments)
    assert (result.exit_code, receiver.statuses) == (1, [])
    assert "1 alert(s) not accepted; they are sent with the next call" in result.stderr
    receiver.refusals = 2
    assert watch(shop, *arguments).exit_code == 0
    assert receiver.statuses == ["firing"]


def test_the_url_is_not_logged_whole(shop: Path, receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have a secret in it."""
    monkeypatch.setattr("app.analytics.watch.watcher.Watcher.finish.__defaults__", (lambda seconds: None,))
    receiver.refusals = 9
    result = watch(shop, "--rule", "SELECT true", "--url", receiver.url, "--state", str(tmp_path / "s.json"))
    assert result.exit_code == 1
    assert "secret" not in result.output


@pytest.mark.parametrize(
    ("arguments", "code", "detail"),
    [
        ((), 2, "--rule: give a rule, or a file with --rules"),
        (("--rule", "SELECT true"), 2, "--url: is needed, because SELECT true has no url of its own"),
        (("--rule", "SELECT true", "--url", "example.org"), 2, "--url: must begin with http:// or https://"),
        (("--rule", "few"), 2, "there is no rule 'few'; known are none, because --rules is not given"),
        (("--rules", "/no/rules.toml"), 2, "/no/rules.toml: No such file or directory"),
        (("--rule", "no_such.z < 1", "--url", URL), 1, "there is no projection 'no_such'; known are "),
    ],
)
def test_wrong_usage_is_one_line(shop: Path, tmp_path: Path, arguments: tuple[str, ...], code: int, detail: str) -> None:
    """It names what is missing."""
    result = watch(shop, "--state", str(tmp_path / "s.json"), *arguments)
    assert result.exit_code == code
    assert detail in result.stderr


def test_rules_of_a_file_are_all_watched(shop: Path, receiver: Receiver, tmp_path: Path) -> None:
    """Unless --rule names some of them."""
    rules = tmp_path / "rules.toml"
    rules.write_text(
        '[[rule]]\nname = "a"\nsql = "SELECT true"\n[[rule]]\nname = "b"\nsql = "SELECT true"\n'
        '[[rule]]\nname = "c"\nsql = "SELECT false"\n'
    )
    options = ("--rules", str(rules), "--url", receiver.url)
    assert watch(shop, *options, "--rule", "a", "--state", str(tmp_path / "1.json")).exit_code == 0
    assert watch(shop, *options, "--state", str(tmp_path / "2.json")).exit_code == 0
    assert [message["rule"] for message in receiver.received] == ["a", "a", "b"]
    assert json.loads((tmp_path / "2.json").read_text())["messages"] == []
