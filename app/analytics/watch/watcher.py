"""Evaluate the rules again and again, and deliver what has changed."""

from __future__ import annotations

__all__ = ["Post", "PostFailed", "Watcher", "post"]

import json
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from attrs import define, field
from loguru import logger

from app.analytics.errors import FileInUse, FileUnusable
from app.analytics.projections.declaration import Projection
from app.analytics.watch.alerts import Alerts
from app.analytics.watch.rules import Ask, Rule, evaluate

POST_SECONDS = 10.0
TRIES = 5
"""How often one call of `Watcher.finish` tries to send a message; the next call tries again."""

BACKOFF_SECONDS, BACKOFF_SECONDS_MAX = 1.0, 300.0

Post = Callable[[str, Mapping[str, Any]], None]
"""Sends a message to a URL; raises PostFailed."""


class PostFailed(Exception):
    """A message was not accepted; the reason is the message of the error."""


def post(url: str, message: Mapping[str, Any]) -> None:
    """
    Send *message* as JSON to *url*, with its id as the ``Idempotency-Key``.

    Raises:
        PostFailed: The answer is not 2xx, or there is none within `POST_SECONDS`.
    """
    headers = {"Content-Type": "application/json", "Idempotency-Key": str(message["id"]), "User-Agent": "fulfilment"}
    request = Request(url, json.dumps(message).encode(), headers)  # noqa: S310
    try:
        with urlopen(request, timeout=POST_SECONDS):  # noqa: S310
            pass
    except HTTPError as error:
        error.close()
        raise PostFailed(f"the answer is {error.code}") from None
    except (URLError, OSError, ValueError) as error:
        raise PostFailed(str(getattr(error, "reason", error))) from None


@define
class Watcher:
    """Evaluates *rules*, and keeps what it knows in *alerts*."""

    rules: Sequence[Rule]
    projections: Mapping[str, Projection]
    ask: Ask
    alerts: Alerts
    url: str | None
    """Where rules are reported to that have no URL of their own."""
    post: Post = post
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    _failures: int = 0
    _next_try: float = field(default=0.0, init=False)

    def step(self, monotonic: float) -> None:
        """
        Evaluate every rule, and send what is due at *monotonic*, in seconds.

        After a failure it waits 1 second, then twice as long, and so on, at most `BACKOFF_SECONDS_MAX`.

        Raises:
            BadRule, BadProjection: A rule cannot be evaluated.
            StateUnusable: What has changed cannot be kept.
        """
        try:
            self.evaluate()
        except (FileInUse, FileUnusable) as error:
            logger.warning("the rules cannot be evaluated now", detail=str(error))
        if self.alerts.messages and monotonic >= self._next_try and not self.deliver():
            self._failures += 1
            self._next_try = monotonic + min(BACKOFF_SECONDS_MAX, BACKOFF_SECONDS * 2.0 ** min(self._failures - 1, 20))
        elif not self.alerts.messages:
            self._failures = 0

    def evaluate(self) -> None:
        """Evaluate every rule once, and keep what has changed; see `step` for what it raises."""
        now = self.now()
        findings = [(rule, evaluate(rule, self.ask, self.projections, now)) for rule in self.rules]
        for rule, finding in findings:
            url = rule.url or self.url
            assert url is not None, "every rule has a URL"
            if self.alerts.note(rule, finding, now, url):
                logger.info("a rule has changed", rule=rule.name, holds=finding.holds, value=finding.value)
        self.alerts.save()

    def deliver(self) -> bool:
        """Send the undelivered messages in order, up to the first that is not accepted; return whether all were."""
        for message in list(self.alerts.messages):
            sent = {name: value for name, value in message.items() if name != "url"}
            try:
                self.post(message["url"], sent)
            except PostFailed as error:
                host = urlsplit(message["url"]).hostname  # the rest of the URL may be a secret
                logger.warning("an alert was not accepted, and is sent again", rule=message["rule"], host=host, detail=str(error))
                return False
            self.alerts.delivered(message["id"])
            self.alerts.save()
        return True

    def finish(self, sleep: Callable[[float], None] = time.sleep) -> bool:
        """Send the undelivered messages, up to `TRIES` times; return whether all were accepted."""
        for tried in range(TRIES):
            if self.deliver():
                return True
            if tried < TRIES - 1:
                sleep(BACKOFF_SECONDS * 2.0**tried)
        return False
