"""
A module, running: one pass is *take, think, save, answer*, and the door is the same for the web, the workers and the bus.

Whoever comes takes a seat. Everybody who sits when a pass begins (of many, half) goes through it together, in one
transaction: what was heard before drops out, the states that are needed are brought together, the module decides about
one event after the other, and everything that has changed is written at once. An event that cannot be decided loses only
itself. After the commit the askers get their answers, the bus its acknowledgements, and the relay what was said.
"""

from __future__ import annotations

__all__ = ["DEFER_MAX", "DEFER_SECONDS", "CommitListener", "ModuleRunner", "retry_seconds"]

import asyncio
import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from loguru import logger

from app.messaging.cloudevents import event_id_and_trace, occurred_at, versions_of
from app.messaging.outbox_relay import OutboxRelay
from app.runtime.batch import BatchProcessor
from app.runtime.engine import ModuleStep, ShortWay
from app.runtime.errors import Overloaded
from app.runtime.outage import StorageOutage
from app.runtime.receiving import reject_unreadable
from app.runtime.service import Reply
from app.runtime.state_reader import StateReader
from app.runtime.work import DeferredToNewerVersion, ItemResult, ReplyBuilder, WorkItem
from app.runtime.work_queue import WorkQueue
from app.storage.errors import StorageUnavailable
from app.storage.module_store import ModuleStore
from app.storage.outbox import OutboxMessage
from app.telemetry.logs import enabled
from app.telemetry.message_metrics import MessageMetrics
from app.telemetry.metrics import Metrics
from app.telemetry.trace import TraceContext, trace_id
from bus.contracts.event_reader import EventReader
from bus.contracts.registry import ContractRegistry
from bus.errors import Rejected
from bus.port import Clock, Delivery, Subscription
from bus.replay_subjects import original_subject
from bus.subjects import is_express
from modules.module import Decision, Module

FETCH_SECONDS = 1.0
RETRY_SECONDS = 0.5
RETRY_SECONDS_MAX = 30.0
DEFER_SECONDS = 1.0
DEFER_MAX = 2
"""How often, and how long each time, a lower version of an event waits for the higher one before it is acted on itself."""

SHEDDING_OVER = 0.9
"""Below this part of the cap the log says that shedding is over, lest it say so again and again."""

CommitListener = Callable[[Any, Decision, WorkItem], None]
"""Called on the loop for each event that was heard or said, after the commit."""


class ModuleRunner(StateReader):
    """One running module; see `app.runtime.service.ModuleService` for what it promises to those who come."""

    def __init__(
        self,
        module: Module,
        store: ModuleStore,
        contracts: ContractRegistry,
        relay: OutboxRelay,
        clock: Clock,
        metrics: Metrics,
        *,
        batch_max: int = 256,
        backlog: Callable[[], int] = lambda: 0,
        backlog_max: int = 20_000,
        observers: Mapping[type, CommitListener] | None = None,
        rng: random.Random | None = None,
    ) -> None:
        super().__init__(store)
        self.module = module
        self._store = store
        self.reader = EventReader(module.name, contracts, module.consumes)
        self.relay = relay
        self._clock = clock
        self.processor = BatchProcessor(module, store, contracts, clock)
        self.short_way: ShortWay | None = None
        """To the neighbours, where there is one."""
        self._batch_max = batch_max
        self._backlog = backlog
        self._backlog_max = backlog_max
        self._observers = dict(observers or {})
        self._rng = rng or random.Random()
        self._queue: WorkQueue[WorkItem] = WorkQueue(batch_max * 4, lambda item: item.delivery is not None)
        self._by_event_id: dict[str, WorkItem] = {}
        """Who sits for an event that is said in several versions, for the highest of them."""
        self._outage = StorageOutage(self._queue, store.database, clock, self._rng)
        self._is_stopped = False
        self._is_shedding = False
        self._messages = MessageMetrics(module.name, metrics)

    # Coming in

    async def submit(
        self,
        event: Any,
        *,
        id: str,
        trace: TraceContext,
        respond: ReplyBuilder,
        is_express: bool = False,
        key: str | None = None,
        fingerprint: str = "",
        sheds_load: bool = False,
        new_key: str | None = None,
        is_new: bool = True,
    ) -> Reply:
        """
        Tell the module that *event* happened; see `app.runtime.service.ModuleService.tell`.

        With *is_new* false it may have been told before, under the same *id*: then nothing happens again.
        """
        if sheds_load:
            self._shed()
        if self._is_stopped:
            raise StorageUnavailable("The server is shutting down.")
        if self._outage.is_active:
            raise StorageUnavailable("The database is out of reach.")
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        inbox_id = key if key is not None else None if is_new else id
        item = WorkItem(event, id, trace, is_express, inbox_id, fingerprint if key else None, respond, future, new_key=new_key)
        self._queue.put(item, is_express)
        return await future

    def _shed(self) -> None:
        """
        Let nobody in who can come again later, if too much is waiting.

        Raises:
            Overloaded: It is.
        """
        waiting, most = self._backlog() + len(self._queue), self._backlog_max
        if waiting > most:
            if not self._is_shedding:
                self._is_shedding = True
                logger.warning("too much is waiting; new orders are refused", waiting=waiting, most=most)
            raise Overloaded("Too much is waiting; nothing was stored.", 2)
        if self._is_shedding and waiting <= most * SHEDDING_OVER:
            self._is_shedding = False
            logger.info("orders are taken again", waiting=waiting)

    async def consume(self, subscription: Subscription, is_express: bool = False) -> None:
        """Hear *subscription*, one lane, until cancelled; take no more than there is room for in that lane."""
        while True:
            free = await self._queue.wait_for_space(is_express)
            for delivery in await subscription.fetch(min(free, self._batch_max), FETCH_SECONDS):
                try:
                    await self._receive(delivery)
                except Exception as error:  # nobody foresaw it; whatever it is, it is this message's trouble alone
                    await self._nak(delivery, error, None)

    async def _receive(self, delivery: Delivery) -> None:
        message = delivery.message
        subject = original_subject(message.subject)
        versions = versions_of(message)
        gives_way = versions is not None and self.reader.has_newer(subject, versions)
        if gives_way and (higher := self._by_event_id.get(event_id_and_trace(message)[0])) is not None:
            higher.older_deliveries += (delivery,)  # the better one sits already: this one shares its fate
            return
        try:
            event = self.reader.read(subject, message.body)
        except Rejected as error:
            await reject_unreadable(delivery, error, self.reader, self._messages)
            return
        id, context = event_id_and_trace(message)
        express = is_express(subject)
        item = WorkItem(event, id, context, express, id)
        item.delivery = delivery
        item.occurred_at = occurred_at(message)
        item.defers_to_newer = gives_way and delivery.tries <= DEFER_MAX
        if versions is not None and not gives_way:
            self._by_event_id[id] = item
        self._queue.put(item, express)

    # One pass

    async def step(self) -> None:
        """Take everybody who sits, see them through, and answer."""
        batch = await self._queue.get_batch(self._batch_max)
        began = self._clock.monotonic()
        results, trouble = await self._process_batch(batch, began)
        await self._reply(batch[: len(results)], results, began)
        if trouble is not None:
            await self._outage.wait_out(batch[len(results) :], trouble)

    async def _process_batch(self, batch: Sequence[WorkItem], began: float) -> tuple[Sequence[ItemResult], StorageUnavailable | None]:
        """
        See *batch* through, the short way if there is one and it is free.

        Return the verdicts; fewer than there are seats if the database went away meanwhile, and then that, too.
        """
        if self.short_way is not None:
            try:
                results = await self.short_way.go(self, batch, began)
            except StorageUnavailable as error:
                return [], error
            if results is not None:
                return results, None
        found, due, trouble = await self._process_isolating_failures(batch)
        self.relay.publish(due)
        return found, trouble

    def overhear(self, step: ModuleStep, began: float) -> None:
        """Let everybody know what was decided here on the short way."""
        said: dict[str | None, int] = defaultdict(int)
        ended: dict[tuple[str, str], int] = defaultdict(int)
        is_logged, is_observed = enabled("DEBUG"), bool(self._observers or self._watchers)
        for item, subject, result in zip(step.items, step.subjects, step.results, strict=True):
            decision = result.decision
            if decision is not None and is_observed:
                self._tell_observers(item, decision)
            if result.error is None:
                outcome = "handled" if decision is not None else "repeated"
                ended[subject, outcome] += 1
                said[item.occurred_at] += 1
                if is_logged:
                    self._log_settled(item, subject, outcome)
        for (subject, outcome), count in ended.items():
            self._messages.count(subject, outcome, count)
        self._messages.observe(self._clock.monotonic() - began, said, self._clock.now())

    async def _process_isolating_failures(self, batch: Sequence[WorkItem]) -> tuple[list[ItemResult], list[OutboxMessage], StorageUnavailable | None]:
        """
        Think *batch* and commit what follows; what the database will not write is found out one by one.

        Return the verdicts and what goes out; where the database went away, those of the seats before, and the trouble.
        """
        try:
            results, due = await self._store.database.write(partial(self.processor, batch), self.module.name)
            return results, due, None
        except StorageUnavailable as error:
            return [], [], error
        except Exception as error:  # a row that breaks a constraint, say: whose it is, only a single pass can tell
            if len(batch) == 1:
                return [ItemResult(error=error)], [], None
        results, due = [], []
        for item in batch:
            found, outbox_messages, trouble = await self._process_isolating_failures([item])
            results += found
            due += outbox_messages
            if trouble is not None:
                return results, due, trouble
        return results, due, None

    async def run(self) -> None:
        """Step until cancelled."""
        while True:
            await self.step()

    async def drain(self) -> None:
        """Take no more; return once nobody sits."""
        self._is_stopped = True
        await self._queue.wait_until_empty()

    def pass_over(self, subject: str, count: int) -> None:
        """Count lower versions of what came on the short way in a higher one."""
        self._messages.count(subject, "superseded", count)

    # Going out

    async def _reply(self, batch: Sequence[WorkItem], results: Sequence[ItemResult], began: float) -> None:
        now = self._clock.now()
        handle_seconds = self._clock.monotonic() - began
        for item, result in zip(batch, results, strict=True):
            if result.decision is not None:
                self._tell_observers(item, result.decision)
            if item.delivery is not None:
                await self._ack(item.delivery, item, result)
                if self._by_event_id.pop(item.id, None) is not None or item.older_deliveries:
                    await self._ack_older(item, result)
                self._messages.observe(handle_seconds, {item.occurred_at: 1}, now)
            elif item.future is not None and not item.future.done():
                if result.reply is not None:
                    item.future.set_result(result.reply)
                else:
                    assert result.error is not None
                    item.future.set_exception(result.error)

    def _tell_observers(self, item: WorkItem, decision: Decision) -> None:
        observer = self._observers.get(type(item.event))
        if observer is not None:
            observer(item.event, decision, item)
        for event in decision.events:
            observer = self._observers.get(type(event))
            if observer is not None:
                observer(event, decision, item)
        self.notify(decision.states)

    async def _ack_older(self, item: WorkItem, result: ItemResult) -> None:
        """Be done with the lower versions of what *seat* sat for, or let them come again if it must."""
        for delivery in item.older_deliveries:
            if result.error is None:
                self._messages.count(original_subject(delivery.message.subject), "superseded")
                await delivery.ack()
            else:
                await delivery.nak(DEFER_SECONDS, error="superseded")

    async def _ack(self, delivery: Delivery, item: WorkItem, result: ItemResult) -> None:
        subject = original_subject(delivery.message.subject)
        if result.error is None:
            again = "superseded" if item.defers_to_newer else "repeated"
            outcome = "handled" if result.decision else again
            await delivery.ack()
            self._messages.count(subject, outcome)
            self._log_settled(item, subject, outcome)
            return
        if isinstance(result.error, DeferredToNewerVersion):
            await delivery.nak(DEFER_SECONDS, error="superseded", detail=str(result.error))
            return
        await self._nak(delivery, result.error, item.origin_trace.correlation_id)

    async def _nak(self, delivery: Delivery, error: Exception, correlation_id: str | None) -> None:
        """Let *delivery* come again after a while; five times, then it is a dead letter."""
        subject = original_subject(delivery.message.subject)
        self._messages.count(subject, "failed")
        detail = f"{type(error).__name__}: {error}"
        logger.warning(
            "message failed", consumer=self.module.name, subject=subject, tries=delivery.tries, detail=detail,
            message_id=delivery.message.id, correlation_id=correlation_id,
        )  # fmt: skip
        await delivery.nak(retry_seconds(delivery.tries, self._rng), error="failed", detail=detail)

    def _log_settled(self, item: WorkItem, subject: str, outcome: str) -> None:
        if enabled("DEBUG"):
            logger.debug(
                "message settled", consumer=self.module.name, subject=subject, outcome=outcome, event_id=item.id,
                correlation_id=item.origin_trace.correlation_id, trace_id=trace_id(item.origin_trace.traceparent),
            )  # fmt: skip


def retry_seconds(tries: int, rng: random.Random) -> float:
    """Return how long a message waits after its try *tries*: doubling, with jitter so that failures do not keep step."""
    return min(RETRY_SECONDS * 2.0 ** (tries - 1), RETRY_SECONDS_MAX) * rng.uniform(0.5, 1.5)
