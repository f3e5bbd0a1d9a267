"""
Run one module: queue, batch, transaction, reply.

Submitted events and messages from the bus wait in one queue. `ModuleRunner.step` takes a batch, lets the transaction
engine decide about it, and after the commit sends the replies, acknowledges the messages, hands the outbox rows to the
relay and notifies the commit listeners. When several modules share the transaction, each runner reports its own part.
"""

from __future__ import annotations

__all__ = ["ModuleRunner"]

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from math import inf
from typing import Any

from loguru import logger

from app.messaging.cloudevents import event_id_and_trace
from app.messaging.outbox_relay import OutboxRelay
from app.runtime.engine import CommitResult, ModuleResult, TransactionEngine, failed_commit
from app.runtime.outage import StorageOutage
from app.runtime.receiving import EventReader, Receiver, fetch_seconds
from app.runtime.service import Reply
from app.runtime.states.state_changes import StateChanges
from app.runtime.states.state_reader import StateReader, StateWatchers
from app.runtime.work import CommitListener, DeferredToNewerVersion, ItemResult, ReplyBuilder, TakeEvent, WorkItem
from app.runtime.work_queue import LoadLimit, WorkQueue
from app.storage.audit import Audit
from app.storage.errors import StorageRefused, StorageUnavailable
from app.storage.module_store import ModuleStore
from app.telemetry.logs import enabled
from app.telemetry.message_metrics import MessageMetrics
from app.telemetry.metrics import Metrics
from app.telemetry.trace import TraceContext, trace_id
from bus.port import Clock, Delivery, Subscription
from bus.subjects import original_subject
from modules.filters import Condition
from modules.module import Module, State
from modules.routes import Response

REFUSED_MAX = 8
"""Items of a batch that the database may refuse one by one; after that all the others wait, too."""


class ModuleRunner:
    """One running module; implements `app.runtime.service.ModuleService`."""

    def __init__(
        self,
        module: Module,
        store: ModuleStore,
        engine: TransactionEngine,
        reader: EventReader,
        relay: OutboxRelay,
        peers: Mapping[str, ModuleRunner],
        clock: Clock,
        metrics: Metrics,
        *,
        batch_max: int = 256,
        backlog: Collection[OutboxRelay] = (),
        backlog_max: int = 400_000,
        rng: random.Random | None = None,
    ) -> None:
        """
        Prepare to run *module*; `run` and `consume` do the work.

        *peers* holds the runners of all modules of this process by name, this one included. While the relays in *backlog*
        have over *backlog_max* events to publish, `submit` sheds load.
        """
        self.module = module
        self._database = store.database
        self._engine, self._relay, self._peers = engine, relay, peers
        self._clock = clock
        self._batch_max = batch_max
        self._load_limit = LoadLimit(backlog, backlog_max)
        self._listeners: list[CommitListener] = []
        self.takers: Mapping[type, TakeEvent] = {}
        """What takes a committed event, by the event's class, before it is published; nothing else may consume it."""
        self.states = StateReader(store)
        self._watchers = StateWatchers({cls: mapper.key_of for cls, mapper in store.mappers.items()})
        self.changes = StateChanges(store, self._watchers, clock)
        self._messages, self._tracer = MessageMetrics(module.name, metrics), metrics.tracer
        self._receiver = Receiver(reader, self._messages, rng := rng or random.Random())
        self._queue: WorkQueue[WorkItem] = WorkQueue(batch_max, lambda item: item.delivery is not None)
        self._newest_by_event_id: dict[str, WorkItem] = {}
        """The queued items for the newest version of an event that has several versions, by event id."""
        self._outage = StorageOutage(module.name, self._queue, store.database, clock, rng)
        self._is_stopped = False
        self._waits_since = inf

    def waiting_seconds(self) -> float:
        """Return for how long work has waited without any batch being finished; 0 if none waits."""
        return max(0.0, self._clock.monotonic() - self._waits_since)

    @property
    def is_standby(self) -> bool:
        """True while another process on the same database leads the module: it fetches what comes over the bus."""
        return not self._relay.is_leader

    def add_listener(self, listener: CommitListener) -> None:
        """Call *listener* for each event that the module decides about, after the commit."""
        self._listeners.append(listener)

    # Submitted events

    async def submit(
        self,
        event: Any,
        *,
        id: str,
        trace: TraceContext,
        respond: ReplyBuilder | None = None,
        is_express: bool = False,
        key: str | None = None,
        fingerprint: str = "",
        sheds_load: bool = False,
        new_key: str | None = None,
        audit: Audit | None = None,
        is_new: bool = True,
    ) -> Reply:
        """
        Submit *event*; see `app.runtime.service.ModuleService.submit`.

        Without *respond* the reply is empty. Set *is_new* to False when the event may have been submitted before under
        the same *id*: it has no effect then.
        """
        if sheds_load:
            self._load_limit.check(len(self._queue))
        if self._is_stopped:
            raise StorageUnavailable("The server is shutting down.")
        if self._outage.is_active:
            raise StorageUnavailable("The database is out of reach.")
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        inbox_id = key if key is not None else None if is_new else id
        item = WorkItem(
            event, id, trace, is_express, inbox_id, fingerprint if key else None, respond, future, new_key=new_key,
            audit=audit,
        )  # fmt: skip
        self._queue.put(item, is_express)
        return await future

    async def get(self, cls: type, key: str) -> State | None:
        """Return the state of *cls* under *key*, or None."""
        return await self.states.get(cls, key)

    async def list_states(
        self, cls: type, filters: Mapping[str, Any], *, after: str | None, limit: int, newest_first: bool
    ) -> Sequence[State]:
        """Return up to *limit* states of *cls* whose columns equal *filters*, in key order, beyond *after*."""
        return await self.states.list_states(cls, filters, after=after, limit=limit, newest_first=newest_first)

    async def search(
        self, cls: type, conditions: Sequence[Condition], *, after: str | None, limit: int, newest_first: bool
    ) -> tuple[Sequence[State], str | None]:
        """Return up to *limit* states of *cls* that meet all *conditions*, and where the search stopped."""
        return await self.states.search(cls, conditions, after=after, limit=limit, newest_first=newest_first)

    def watch(self, cls: type, key: str) -> AbstractAsyncContextManager[AsyncIterator[None]]:
        """Enter to get an iterator that yields after each change of a state."""
        return self._watchers.watch(cls, key)

    # Messages from the bus

    async def consume(self, subscription: Subscription, is_express: bool = False) -> None:
        """Queue the messages of one lane until cancelled, never more than the lane may prefetch."""
        while True:
            free = await self._queue.wait_for_space(is_express)
            for delivery in await subscription.fetch(min(free, self._batch_max), fetch_seconds(self._clock), not self._relay.is_leader):
                try:
                    await self._receive(delivery)
                except Exception as error:  # an unforeseen error concerns this message alone
                    await self._receiver.fail(delivery, error, None)

    async def _receive(self, delivery: Delivery) -> None:
        if self._newest_by_event_id and self._receiver.is_older(delivery):
            newest = self._newest_by_event_id.get(event_id_and_trace(delivery.message)[0])
            if newest is not None:
                newest.older_deliveries += (delivery,)
                return
        received = await self._receiver.receive(delivery)
        if received is None:
            return
        item = WorkItem(
            received.event, received.id, received.trace, received.is_express, received.id,
            delivery=delivery, subject=received.subject, occurred_at=received.occurred_at,
            defers_to_newer=received.may_be_deferred,
        )  # fmt: skip
        if received.versions is not None and not received.is_older:
            self._newest_by_event_id[item.id] = item
        self._queue.put(item, item.is_express)

    # Batches

    async def run(self) -> None:
        """Process batches until cancelled."""
        while True:
            await self.step()

    async def step(self) -> None:
        """Take one batch from the queue, process it, and report what was committed."""
        items = await self._queue.get_batch(self._batch_max)
        began_at = self._clock.monotonic()
        self._waits_since = min(self._waits_since, began_at)
        commits, waiting, outage = await self._commit(items)
        if self._tracer is not None:
            self._tracer.end_transactions(commits, self._clock.monotonic() - began_at, self._database.dialect.name)
        for commit in commits:
            for name, result in commit.items():
                self._peers[name].relay(result)
            for name, result in commit.items():
                await self._peers[name].report(result, began_at)
        if outage is not None:
            await self._outage.wait_out(waiting, outage)
        else:
            self._waits_since = inf

    async def drain(self) -> None:
        """Reject new submissions; return once the queue is empty and the last batch is finished."""
        self._is_stopped = True
        await self._queue.wait_until_empty()

    async def _commit(self, items: Sequence[WorkItem]) -> tuple[list[CommitResult], list[WorkItem], StorageUnavailable | None]:
        """
        Commit what follows from *items*.

        The first attempt delivers locally, the second sends every event over the bus; if both fail, each item gets its own
        transaction, and may fail alone. Return the commits, the items that wait for the database, and its error.
        """
        commits: list[CommitResult] = []
        waiting: list[WorkItem] = []
        try:
            for is_local in (True, False) if self._engine.delivers_locally else (False,):
                outcome = await self._try_commit(items, is_local)
                if not isinstance(outcome, Exception):
                    return [outcome], waiting, None
            refusal = outcome if isinstance(outcome, StorageRefused) else None
            for item in items:
                if len(items) > 1 and len(waiting) < REFUSED_MAX:
                    outcome = await self._try_commit([item], False)
                if isinstance(outcome, StorageRefused):
                    waiting.append(item)
                    refusal = outcome
                else:
                    commits.append(outcome if isinstance(outcome, dict) else failed_commit(self.module.name, item, outcome))
        except StorageUnavailable as error:
            return commits, [*waiting, *items[len(commits) + len(waiting) :]], error
        return commits, waiting, refusal if waiting else None

    async def _try_commit(self, items: Sequence[WorkItem], is_local: bool) -> CommitResult | Exception:
        """
        Return the committed result, or the error that rolled the transaction back.

        Raises:
            StorageUnavailable: The database is unavailable.
        """
        name = self.module.name
        try:
            return await self._database.write(partial(self._engine, name, items, is_local), name)
        except Exception as error:  # a row that breaks a constraint; a refusal, perhaps of one item or one module only
            if isinstance(error, StorageUnavailable) and not isinstance(error, StorageRefused):
                raise
            if is_local:
                logger.debug("local delivery failed; the events go over the bus", module=name, detail=repr(error))
            return error

    # After the commit

    def relay(self, result: ModuleResult) -> None:
        """Hand events to the workers of this process, publish the others, and count what was delivered locally."""
        for event in result.to_publish:
            take = self.takers.get(type(event.event))
            if take is None or len(event.messages) > 1:
                self._relay.publish(event.messages)
            else:
                self._relay.hand_over(event.messages[0], partial(take, event))
        if result.delivered_subjects:
            self._relay.count_delivered(result.delivered_subjects)

    async def report(self, result: ModuleResult, began_at: float) -> None:
        """Reply to submitters, settle deliveries, notify listeners and count, for one committed part of a transaction."""
        outcomes: dict[tuple[str, str], int] = defaultdict(int)  # Counter would call Python code for each new key
        handled: dict[str | None, int] = defaultdict(int)
        is_logged = enabled("DEBUG")
        listeners, watchers = self._listeners, self._watchers
        for item, each in zip(result.items, result.results, strict=True):
            if each.decision is not None:
                for listener in listeners:
                    listener(item.event, each.decision, item.origin_trace)
                if not watchers.is_idle:
                    watchers.notify(each.decision.states)
            if item.future is not None:
                _reply(item.future, each)
                continue
            if item.delivery is not None:
                await self._settle(item.delivery, item, each)
            if each.error is None:
                outcome = "handled" if each.decision is not None else "superseded" if item.defers_to_newer else "repeated"
                outcomes[item.subject, outcome] += 1
                if is_logged:
                    self._log_settled(item, outcome)
            if each.error is None or item.delivery is not None:
                handled[item.occurred_at] += 1
        for (subject, outcome), count in outcomes.items():
            self._messages.count(subject, outcome, count)
        if result.superseded_subjects:
            for subject, count in Counter(result.superseded_subjects).items():
                self._messages.count(subject, "superseded", count)
        if handled:
            self._messages.observe(self._clock.monotonic() - began_at, handled, self._clock.now())

    async def _settle(self, delivery: Delivery, item: WorkItem, result: ItemResult) -> None:
        """Acknowledge the message, or let the bus deliver it again; its older versions share its outcome."""
        error = result.error
        if error is None:
            await delivery.ack()
        elif isinstance(error, DeferredToNewerVersion):
            await self._receiver.defer(delivery, str(error))
        else:
            await self._receiver.fail(delivery, error, item.origin_trace.correlation_id)
        self._newest_by_event_id.pop(item.id, None)
        for older in item.older_deliveries:
            if error is None:
                self._messages.count(original_subject(older.message.subject), "superseded")
                await older.ack()
            else:
                await self._receiver.defer(older)

    def _log_settled(self, item: WorkItem, outcome: str) -> None:
        logger.debug(
            "message settled", consumer=self.module.name, subject=item.subject, outcome=outcome, event_id=item.id,
            correlation_id=item.origin_trace.correlation_id, trace_id=trace_id(item.origin_trace.traceparent),
        )  # fmt: skip


def _reply(future: asyncio.Future[Reply], result: ItemResult) -> None:
    if future.done():
        return
    if result.error is not None:
        future.set_exception(result.error)
    else:
        future.set_result(result.reply or Reply(Response(200, None)))
