"""The operator: replays dead letters, and discards those whose event was processed, and webhooks that contradict the order."""

from __future__ import annotations

__all__ = ["operate"]

import asyncio
from typing import TYPE_CHECKING, Any

import orjson

from app.gateways.gateway_request import result_ids
from app.gateways.payment_worker import CONSUMER
from app.gateways.webhook_handler import CONSUMER as WEBHOOKS
from app.messaging.consumers import EXPRESS_LANE
from app.storage.errors import TemporarilyUnavailable
from bus.port import WAITS
from tests.simulation.world.customers import NoAnswer
from tests.simulation.world.plan import MODULES

if TYPE_CHECKING:
    from tests.simulation.world.world import World

ROUND_SECONDS = 5.0
REPLAY_SECONDS = 40.0
"""How long the operator waits for the effect of a replay."""


async def operate(world: World) -> None:
    """Look at the dead letters of each module from time to time."""
    replayed_at: dict[str, float] = {}
    while True:
        await asyncio.sleep(ROUND_SECONDS)
        for module in MODULES:
            if any(place.process is not None for place in world.places_of(module)):
                await _handle(world, module, replayed_at)


async def _handle(world: World, module: str, replayed_at: dict[str, float]) -> None:
    letters = world.read(module, f"SELECT id, consumer, error, subject, message_key, message_id, message_headers FROM {module}_dead_letter ORDER BY id")
    if not letters:
        return
    known = {id for (id,) in world.read(module, f"SELECT id FROM {module}_inbox")}
    for id, consumer, error, subject, key, message_id, headers in letters:
        event_id = orjson.loads(headers).get("ce-id", message_id)
        ids = result_ids(event_id, CONSUMER) if consumer.removesuffix(EXPRESS_LANE) == CONSUMER else [event_id]
        what = f"the dead letter of {consumer}, {error}, {subject} of {world.label(key)}"
        if id not in replayed_at:
            world.saw(f"dead letter: {error}")
        if not known.isdisjoint(ids) or consumer == WEBHOOKS:
            await _request(world, module, lambda process, id=id: process.dead_letters.discard(id))
            world.note(f"the operator discards {what}")
        elif error != WAITS and world.now >= replayed_at.get(id, 0.0):
            replayed_at[id] = world.now + REPLAY_SECONDS
            await _request(world, module, lambda process, id=id: process.dead_letters.replay(id))
            world.note(f"the operator replays {what}")


async def _request(world: World, module: str, call: Any) -> None:
    try:
        await world.request(module, call)
    except (NoAnswer, TemporarilyUnavailable):
        world.saw("operator: no answer")
