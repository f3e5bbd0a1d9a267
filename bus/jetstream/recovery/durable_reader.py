"""A durable that is read from time to time, a few messages at once, in the background."""

from __future__ import annotations

__all__ = ["DurableReader", "raw_headers_of"]

from base64 import b64decode
from collections.abc import Callable
from contextlib import suppress

import nats.errors
from attrs import define
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import ConsumerInfo, RawStreamMsg
from nats.js.errors import NotFoundError

from bus.jetstream.admin.configs import filter_subjects, missing_subjects, planned_config
from bus.jetstream.admin.topology import ConsumerPlan
from bus.port import ACK_WAIT_SECONDS


@define
class DurableReader:
    """
    Reads the durable *plan*; several processes may share one.

    *js* returns the current connection's JetStream context: no state is kept on it between two calls.
    """

    js: Callable[[], JetStreamContext]
    plan: ConsumerPlan
    ack_wait_seconds: float = ACK_WAIT_SECONDS

    async def info(self) -> ConsumerInfo | None:
        """Return the server's information about the durable; None when it, or its stream, does not exist."""
        try:
            info: ConsumerInfo = await self.js().consumer_info(self.plan.stream, self.plan.name)
        except NotFoundError:
            return None
        return info

    async def ensure(self) -> ConsumerInfo:
        """
        Create the durable, or add to it the subjects that it lacks; return its information after that.

        Raises:
            nats.errors.Error: The server refuses, or does not answer.
        """
        wanted = planned_config(self.plan, ack_wait_seconds=self.ack_wait_seconds)
        info = await self.info()
        if info is not None and not missing_subjects(wanted, filter_subjects(info.config)):
            return info
        if info is not None:
            subjects = sorted({*filter_subjects(wanted), *filter_subjects(info.config)})
            wanted = info.config.evolve(name=self.plan.name, filter_subject=None, filter_subjects=subjects)
        return await self.js().add_consumer(self.plan.stream, wanted)

    async def fetch(self, limit: int, wait_seconds: float) -> list[Msg]:
        """Return up to *limit* messages; wait up to *wait_seconds* for the first."""
        subscription = await self.js().pull_subscribe_bind(self.plan.name, stream=self.plan.stream)
        try:
            return await subscription.fetch(limit, timeout=wait_seconds)
        except TimeoutError:
            return []
        finally:
            with suppress(nats.errors.Error):
                await subscription.unsubscribe()


def raw_headers_of(raw: RawStreamMsg) -> dict[str, str]:
    """
    Return the headers of a message that was read from a stream, as those of a delivered message are decoded.

    The client would decode them as an e-mail's, which loses what is not ASCII.
    """
    found: dict[str, str] = {}
    for line in b64decode(raw.hdrs or b"").split(b"\r\n")[1:]:
        name, colon, value = line.partition(b":")
        if colon and name.isascii():
            found[name.strip().decode()] = value.strip().decode("utf-8", "replace")
    return found
