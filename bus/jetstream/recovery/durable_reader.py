"""A durable that is looked into now and then, a few messages at a time, by whoever has no hurry."""

from __future__ import annotations

__all__ = ["DurableReader", "headers_of"]

from base64 import b64decode
from collections.abc import Callable
from contextlib import suppress

import nats.errors
from attrs import define
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import ConsumerInfo, RawStreamMsg
from nats.js.errors import NotFoundError

from bus.jetstream.admin.configs import heard, lacking
from bus.jetstream.admin.provisioning import planned_config
from bus.jetstream.admin.topology import ConsumerPlan
from bus.port import ACK_WAIT_SECONDS


@define
class DurableReader:
    """
    Read the durable *plan*; several processes may.

    *js* returns the connection of the moment: nothing is kept on it between two calls.
    """

    js: Callable[[], JetStreamContext]
    plan: ConsumerPlan
    ack_wait_seconds: float = ACK_WAIT_SECONDS

    async def look(self) -> ConsumerInfo | None:
        """Return what the server says about the durable; None when there is none, or no stream for it."""
        try:
            info: ConsumerInfo = await self.js().consumer_info(self.plan.stream, self.plan.name)
        except NotFoundError:
            return None
        return info

    async def ensure(self) -> ConsumerInfo:
        """
        See to it that the durable is there and hears all of its subjects at least; return what it is like then.

        Raises:
            nats.errors.Error: The server does not do it.
        """
        wanted = planned_config(self.plan, ack_wait_seconds=self.ack_wait_seconds)
        info = await self.look()
        if info is not None and not lacking(wanted, info.config):
            return info
        if info is not None:
            both = sorted({*heard(wanted), *heard(info.config)})
            wanted = info.config.evolve(name=self.plan.name, filter_subject=None, filter_subjects=both)
        return await self.js().add_consumer(self.plan.stream, wanted)

    async def take(self, limit: int, wait_seconds: float) -> list[Msg]:
        """Return up to *limit* messages; wait up to *wait_seconds* for the first."""
        subscription = await self.js().pull_subscribe_bind(self.plan.name, stream=self.plan.stream)
        try:
            return await subscription.fetch(limit, timeout=wait_seconds)
        except TimeoutError:
            return []
        finally:
            with suppress(nats.errors.Error):
                await subscription.unsubscribe()


def headers_of(raw: RawStreamMsg) -> dict[str, str]:
    """
    Return the headers of a message that was read from a stream, as one that is delivered has them.

    The client reads those as it would an e-mail's: what is not ASCII does not come out as text then.
    """
    found: dict[str, str] = {}
    for line in b64decode(raw.hdrs or b"").split(b"\r\n")[1:]:
        name, colon, value = line.partition(b":")
        if colon and name.isascii():
            found[name.strip().decode()] = value.strip().decode("utf-8", "replace")
    return found
