"""
The planted bugs: each is one small change of the code that a test must find.

They are faults that this code has had, the classics of at-least-once delivery (an inbox that is skipped, an acknowledgement before
the commit, a timer that is lost), and those of `tests.planted.replicas`, `tests.planted.reported`, `tests.planted.runtime` and `tests.planted.bus`.
"""

from __future__ import annotations

__all__ = ["BUGS"]

from tests.planted.bug import Bug
from tests.planted.bus import BUS
from tests.planted.records import RECORDS
from tests.planted.replicas import REPLICAS
from tests.planted.reported import REPORTED
from tests.planted.runtime import RUNTIME
from tests.planted.web import WEB

_ORDERS = "modules/orders/decide.py"
_STOCK = "modules/inventory/decide.py"
_PAYMENTS = "modules/payments/decide.py"
_CHARGES = "modules/payments/charges.py"
_REFUNDS = "modules/payments/refunds.py"
_ENGINE = "app/runtime/engine.py"
_BATCH = "app/runtime/batch.py"
_RUNNER = "app/runtime/runner.py"
_WORK = "app/runtime/work.py"
_RELAY = "app/messaging/outbox_relay.py"
_WORKER = "app/gateways/payment_worker.py"
_DELAYS = "app/gateways/delay_notifier.py"
_CALLS = "app/gateways/gateway_calls.py"
_BREAKER = "app/gateways/breakers/circuit_breaker.py"
_OPERATIONS = "app/gateways/breakers/operations.py"
_STORE = "app/storage/module_store.py"
_ROWS = "app/storage/state_rows.py"
_TRANSACTIONS = "app/storage/sql/transactions.py"
_SQLITE = "app/storage/sql/sqlite.py"
_GROUP = "bus/memory/consumer_group.py"

_DECIDE = (
    "tests/modules/test_orders_decide.py",
    "tests/modules/test_inventory_decide.py",
    "tests/modules/test_payments_decide.py",
    "tests/modules",
)
"""Examples first: they fail at once, and a property is reduced to a small example when it fails."""

_RUNTIME = ("tests/runtime",)
_GATEWAYS = ("tests/gateways/test_payment_worker.py", "tests/gateways/test_operations.py", "tests/gateways")
_MESSAGING = ("tests/messaging",)
_STORAGE = ("tests/storage/test_sqlite.py", "tests/storage/test_state_cache.py", "tests/storage")
_POSTGRES = ("tests/storage/test_postgres.py",)
_BUS = ("tests/bus/memory",)

BUGS = (
    # Decisions
    Bug(
        "the time-out of an order is not cancelled when it is confirmed", _ORDERS,
        "    return Decision((order,), (confirmed, CancelTimer(_timer(order))), order.is_express)\n",
        "    return Decision((order,), (confirmed,), order.is_express)\n",
        _DECIDE,
    ),
    Bug(
        "no time-out is set", _ORDERS,
        "    return Decision((order,), (created, timed_out), order.is_express)\n",
        "    return Decision((order,), (created,), order.is_express)\n",
        _DECIDE,
    ),
    Bug(
        "a payment that comes before the reservation is forgotten", _ORDERS,
        "            return _confirmed(held, now) if order.is_paid else _changed(held)\n",
        "            return _changed(held)\n",
        _DECIDE,
    ),
    Bug(
        "a clock that is behind turns an order's time back", _ORDERS,
        "    now = max(now, order.updated_at)  # the process that decided before may have a clock that is ahead\n",
        "",
        _DECIDE,
    ),
    Bug(
        "an order leaves its lane", _ORDERS,
        "    return Decision((order,), emitted, order.is_express)\n",
        "    return Decision((order,), emitted)\n",
        _DECIDE,
    ),
    Bug(
        "the reason of an order that timed out while the provider was out of reach is lost", _ORDERS,
        '"payment_unavailable" if order.waiting_for == "payment" else "timed_out"',
        '"timed_out"',
        _DECIDE,
    ),
    Bug(
        "two lines of one product are reserved one by one", _ORDERS,
        "    items = _summed(event.items)\n",
        "    items = tuple(event.items)\n",
        (*_DECIDE, "tests/web"),
    ),
    Bug(
        "the last piece cannot be sold", _STOCK,
        "        if product.available < line.quantity\n",
        "        if product.available <= line.quantity\n",
        _DECIDE,
    ),
    Bug(
        "a reservation beyond the stock is accepted", _STOCK,
        '        return _rejected(event, "insufficient_stock", short)\n',
        "        pass\n",
        _DECIDE,
    ),
    Bug(
        "a released reservation keeps its pieces", _STOCK,
        "            return _move_stock(reservation, products, ReservationStatus.RELEASED, reserved=-1)\n",
        "            return _move_stock(reservation, products, ReservationStatus.RELEASED)\n",
        _DECIDE,
    ),
    Bug(
        "a shipped order that is cancelled does not come back into the stock", _STOCK,
        "            return _move_stock(reservation, products, ReservationStatus.RELEASED, on_hand=1)\n",
        "            return _move_stock(reservation, products, ReservationStatus.RELEASED)\n",
        _DECIDE,
    ),
    Bug(
        "a shipment leaves its pieces in the stock", _STOCK,
        "            return _move_stock(reservation, products, ReservationStatus.SHIPPED, on_hand=-1, reserved=-1)\n",
        "            return _move_stock(reservation, products, ReservationStatus.SHIPPED, reserved=-1)\n",
        _DECIDE,
    ),
    Bug(
        "an order that is created after it was cancelled is reserved", _STOCK,
        "            return Decision((Reservation(order_id=event.order_id, status=ReservationStatus.RELEASED),))\n",
        "            return no_change()\n",
        _DECIDE,
    ),
    Bug(
        "no release is published", _STOCK,
        "if status is ReservationStatus.RELEASED else ()\n",
        "if False else ()\n",
        _DECIDE,
    ),
    Bug(
        "the total is that of one piece of each line", _STOCK,
        "        total=Money(sum([line.quantity * line.unit_price.amount for line in lines]), currency),\n",
        "        total=Money(sum([line.unit_price.amount for line in lines]), currency),\n",
        _DECIDE,
    ),
    Bug(
        "prices in two currencies are added", _STOCK,
        "    if len({product.currency for _, product in known}) > 1:\n",
        "    if len({product.currency for _, product in known}) > 9:\n",
        _DECIDE,
    ),
    Bug(
        "less than is reserved can be on hand", _STOCK,
        "    if on_hand < product.reserved:\n",
        "    if on_hand < 0:\n",
        _DECIDE,
    ),
    Bug(
        "an order that is cancelled before its reservation is charged", _PAYMENTS,
        "                    is_cancelled=True,\n                    updated_at=now,\n                )\n                return Decision((ended,))\n",
        "                    is_cancelled=True,\n                    updated_at=now,\n                )\n                return no_change()\n",
        _DECIDE,
    ),
    Bug(
        "a cancelled order keeps the money that was taken", _PAYMENTS,
        "            return concluded(payment, evolve(payment, is_cancelled=True), now)\n",
        "            return Decision((evolve(payment, is_cancelled=True, updated_at=now),))\n",
        _DECIDE,
    ),
    Bug(
        "a charge that turns up after a decline is ignored", _PAYMENTS,
        "        case ((PaymentStatus.PENDING | PaymentStatus.UNKNOWN | PaymentStatus.DECLINED), ChargeSucceeded()):\n",
        "        case ((PaymentStatus.PENDING | PaymentStatus.UNKNOWN), ChargeSucceeded()):\n",
        _DECIDE,
    ),
    Bug(
        "a notice of another amount counts", _PAYMENTS,
        '    if is_of_charge and notice.amount.amount != payment.amount:\n        return "wrong_amount"\n',
        "",
        (*_DECIDE, "tests/gateways/test_webhooks.py"),
    ),
    Bug(
        "a second charge of one order is not reported", _PAYMENTS,
        '        return "two_charges"\n',
        "        pass\n",
        (*_DECIDE, "tests/gateways/test_webhooks.py"),
    ),
    Bug(
        "a retry of a charge is not counted as an attempt", _CHARGES,
        "        attempts=payment.attempts + 1,  # even if no call was made: only a first attempt charges without a look-up\n",
        "        attempts=payment.attempts,\n",
        (*_DECIDE, *_GATEWAYS),
    ),
    Bug(
        "a charge of a cancelled order whose outcome is unknown is declined", _CHARGES,
        "    if payment.is_cancelled and not is_unknown and not payment.is_declined_softly:\n",
        "    if payment.is_cancelled and not payment.is_declined_softly:\n",
        _DECIDE,
    ),
    Bug(
        "the charge of a cancelled order is still wanted", _CHARGES,
        "        is_wanted=not (payment.is_cancelled or payment.needs_review or payment.is_given_up),\n",
        "        is_wanted=True,\n",
        _DECIDE,
    ),
    Bug(
        "a refund is requested twice", _REFUNDS,
        "    if any(refund.id == event.refund_id for refund in _ledger(payment).refunds):\n        return no_change()\n",
        "",
        _DECIDE,
    ),
    Bug(
        "more than is left is refunded", _REFUNDS,
        "    elif event.amount.amount > payment.refundable:\n",
        "    elif event.amount.amount > payment.captured:\n",
        _DECIDE,
    ),
    Bug(
        "a refund that failed for certain is not requested again", _REFUNDS,
        "        after, retry = _retry(after, refund, now)\n        requests += retry\n",
        "        pass\n",
        _DECIDE,
    ),
    Bug(
        "a refused look-up of a pending refund is its last one", _REFUNDS,
        "    if event.is_definite and not is_look_up:\n",
        "    if event.is_definite:\n",
        _DECIDE,
    ),
    Bug(
        "the gateway's total of refunds goes back", _REFUNDS,
        "    return payment if total <= ledger.refunded_total else evolve(payment, ledger=attrs.evolve(ledger, refunded_total=total))\n",
        "    return evolve(payment, ledger=attrs.evolve(ledger, refunded_total=total))\n",
        _DECIDE,
    ),
    # The engine
    Bug(
        "the inbox is not asked", _BATCH,
        "        if inbox_id is not None and inbox_id in processed:\n",
        "        if False and inbox_id is not None and inbox_id in processed:\n",
        _RUNTIME,
    ),
    Bug(
        "the inbox forgets what it has processed within one batch", _BATCH,
        "            processed[inbox_id] = item.fingerprint, stored_reply\n",
        "            pass\n",
        _RUNTIME,
    ),
    Bug(
        "a rejected request takes its idempotency key", _BATCH,
        "        elif inbox_id is not None and not _is_rejected(reply):\n",
        "        elif inbox_id is not None:\n",
        (*_RUNTIME, "tests/web"),
    ),
    Bug(
        "an idempotency key answers another request", _BATCH,
        "    if item.fingerprint is not None and item.fingerprint != fingerprint:\n",
        "    if False:\n",
        (*_RUNTIME, "tests/web"),
    ),
    Bug(
        "a decision does not see the one before it in the batch", _BATCH,
        "            states[cls][key] = unit.changed[cls][key] = state\n",
        "            unit.changed[cls][key] = state\n",
        _RUNTIME,
    ),
    Bug(
        "an event that cannot be decided fails its batch", _BATCH,
        "        except Exception as error:  # an exception of a decision concerns this event alone\n",
        "        except ZeroDivisionError as error:\n",
        _RUNTIME,
    ),
    Bug(
        "a timer that is due at once is kept", _BATCH,
        "                if due_at <= db_now:\n",
        "                if False:\n",
        _RUNTIME,
    ),
    Bug(
        "a cancelled timer of the same transaction is written", _WORK,
        "        if not self.timer_names.isdisjoint(names):\n",
        "        if False:\n",
        _RUNTIME,
    ),
    Bug(
        "a subject is dropped when a local subscriber fails", _ENGINE,
        "                    if each.error is not None:\n                        _divert_to_bus(item)\n",
        "                    pass\n",
        _RUNTIME,
    ),
    Bug(
        "a subject is dropped when the rounds run out", _ENGINE,
        "        for batch in batches.values():\n            for item in batch:\n                _divert_to_bus(item)\n",
        "",
        _RUNTIME,
    ),
    Bug(
        "an event for a worker is not carried by the bus", _ENGINE,
        "            if event.remote_subjects:\n                to_publish",
        "            if False:\n                to_publish",
        _RUNTIME,
    ),
    Bug(
        "a batch that failed is not processed item by item", _RUNNER,
        "                if len(items) > 1 and len(waiting) < REFUSED_MAX:\n",
        "                if False:\n",
        _RUNTIME,
    ),
    Bug(
        "what has failed is acknowledged", _RUNNER,
        "            await self._receiver.fail(delivery, error, item.origin_trace.correlation_id)\n",
        "            await delivery.ack()\n",
        _RUNTIME,
    ),
    Bug(
        "a local delivery that failed is not tried over the bus", _RUNNER,
        "            for is_local in (True, False) if self._engine.delivers_locally else (False,):\n",
        "            for is_local in (self._engine.delivers_locally,):\n",
        _RUNTIME,
    ),
    Bug(
        "a server that stops accepts requests", _RUNNER,
        "        if self._is_stopped:\n            raise",
        "        if False:\n            raise",
        _RUNTIME,
    ),
    # Outbox and bus
    Bug(
        "a publish that failed counts as sent", _RELAY,
        "        self._left_in_table += 1  # a later scan finds the row\n",
        "        self._on_sent(row)\n",
        _MESSAGING,
    ),
    Bug(
        "a request that its worker did not process counts as sent", _RELAY,
        "        if not processed.cancelled() and processed.exception() is None and processed.result():\n",
        "        if True:\n",
        (*_MESSAGING, *_GATEWAYS, *_RUNTIME),
    ),
    Bug(
        "marks are lost when the database is unavailable", _RELAY,
        "            self._sent = sent + self._sent  # marked",
        "            pass  # marked",
        _MESSAGING,
    ),
    Bug(
        "an event that the bus refuses is published for ever", _RELAY,
        "        if isinstance(error, PublishRefused):\n",
        "        if False:\n",
        _MESSAGING,
    ),
    Bug(
        "the outbox is scanned without a limit of what is in flight", _RELAY,
        "        if self._is_stopped or len(self._in_flight) >= limit or not self._bus.is_connected:\n",
        "        if self._is_stopped or not self._bus.is_connected:\n",
        _MESSAGING,
    ),
    Bug(
        "a message without an answer is never delivered again", _GROUP,
        "            if message.tries < host.max_tries:\n                self.requeue(message, is_first=True)\n            else:\n                host.dead",
        "            if message.tries < host.max_tries:\n                pass\n            else:\n                host.dead",
        _BUS,
    ),
    Bug(
        "one try too few", _GROUP,
        "        if message.tries >= group.host.max_tries:\n",
        "        if message.tries + 1 >= group.host.max_tries:\n",
        _BUS,
    ),
    # Storage
    Bug(
        "the cache is kept after a rollback", _TRANSACTIONS,
        "    with suppress(Exception):\n        invalidate_cache(transaction.connection)\n",
        "",
        _STORAGE,
    ),
    Bug(
        "the inbox is purged too early", _STORE,
        "INBOX_RETENTION = timedelta(hours=48)\n",
        "INBOX_RETENTION = timedelta(hours=1)\n",
        (*_STORAGE, *_RUNTIME),
    ),
    Bug(
        "unsent rows of the outbox are purged", _STORE,
        'delete(outbox, "id < ? AND sent_at < ?", "id")\n',
        'delete(outbox, "id < ? AND (sent_at IS NULL OR sent_at < ?)", "id")\n',
        _STORAGE,
    ),
    Bug(
        "what was sent cannot be published again for a day", _STORE,
        "OUTBOX_RETENTION = timedelta(hours=24)\n",
        "OUTBOX_RETENTION = timedelta(minutes=10)\n",
        (*_STORAGE, "tests/messaging/test_republish.py"),
    ),
    Bug(
        "a cancelled timer stays", _STORE,
        "        if cancelled_timers:\n",
        "        if False:\n",
        _STORAGE,
    ),
    Bug(
        "a state that another process has inserted is overwritten", _ROWS,
        "        self._insert.execute(connection, [row for row in rows if row[0] in new_keys])\n",
        "        self._replace.execute(connection, [row for row in rows if row[0] in new_keys])\n",
        _POSTGRES,
    ),
    Bug(
        "the states of the earlier half of the cache are never found", _ROWS,
        "                state = current.get(key) or previous.get(key)\n",
        "                state = current.get(key)\n",
        _STORAGE,
    ),
    Bug(
        "what another process has written is not in the cache", _ROWS,
        "        if generation is not self._generation:\n",
        "        if self._generation is None:\n",
        _STORAGE,
    ),
    Bug(
        "a commit whose answer was lost is repeated", _TRANSACTIONS,
        "            if not was_committed:\n                raise\n            self.disconnect()\n",
        "            raise\n",
        _POSTGRES,
    ),
    # The provider
    Bug(
        "two calls at a time for one order", _WORKER,
        "        async with self._order_locks.turn(received.event.order_id) as is_uncontended:\n",
        "        async with self._order_locks.turn(received.id) as is_uncontended:\n",
        _GATEWAYS,
    ),
    Bug(
        "no earlier call is ever looked up", "app/gateways/gateway_request.py",
        "    return is_redelivered or requested_at is None or requested_at < known_since\n",
        "    return False\n",
        _GATEWAYS,
    ),
    Bug(
        "no request counts as late", _WORKER,
        "            needs_recheck=not (is_first_call and is_fresh),\n",
        "            needs_recheck=False,\n",
        _GATEWAYS,
    ),
    Bug(
        "a message is acknowledged before its result is stored", _WORKER,
        "            await self._process(received, lane)\n        except Exception as error:  # any error is this message's",
        "            await delivery.ack()\n            await self._process(received, lane)\n"
        "        except Exception as error:  # any error is this message's",
        _GATEWAYS,
    ),
    Bug(
        "a result is stored under a new id each time", _WORKER,
        "        id = result_id(request.id, CONSUMER, result)\n",
        '        id = result_id(request.id, f"{CONSUMER}{self._clock.monotonic()}", result)\n',
        _GATEWAYS,
    ),
    Bug(
        "a late duplicate refunds under a key that has ended", _WORKER,
        "        return None if is_ended else await self._calls.refund(request)\n",
        "        return await self._calls.refund(request)\n",
        _GATEWAYS,
    ),
    Bug(
        "a delay that is reported again is published again", _DELAYS,
        "            is_new=False,\n",
        "",
        _GATEWAYS,
    ),
    Bug(
        "a call without an answer counts as not made", _CALLS,
        "            is_unknown = is_repeat or isinstance(error, GatewayTimeout) if calls else request.may_be_repeat\n",
        "            is_unknown = False\n",
        _GATEWAYS,
    ),
    Bug(
        "a refund gets a new key while its outcome is unknown", _CALLS,
        'order_id, key = event.order_id, numbered_key("refund", event.order_id, event.key_number)\n',
        'order_id, key = event.order_id, numbered_key("refund", event.order_id, event.attempt)\n',
        _GATEWAYS,
    ),
    Bug(
        "a charge after a definite failure keeps its key", _CALLS,
        "                key_number=event.key_number + (calls and ends_key(error)),\n",
        "                key_number=event.key_number,\n",
        _GATEWAYS,
    ),
    Bug(
        "waits have no jitter", _CALLS,
        "        return seconds * self._rng.uniform(1.0, 1.5)\n",
        "        return seconds\n",
        ("tests/gateways/test_gateway_calls.py",),
    ),
    Bug(
        "a second probe is permitted", _BREAKER,
        "        if self._state is BreakerState.HALF_OPEN and self._probes_in_flight + self._probes_succeeded >= self.probes:\n",
        "        if self._state is BreakerState.HALF_OPEN and self._probes_in_flight + self._probes_succeeded > self.probes:\n",
        _GATEWAYS,
    ),
    Bug(
        "a permit of an earlier state closes the breaker", _BREAKER,
        "        if permit.generation != self._generation:\n            return\n        if self._state",
        "        if self._state",
        _GATEWAYS,
    ),
    Bug(
        "a cancelled probe is never given back", _BREAKER,
        "        if permit.generation == self._generation and self._state is BreakerState.HALF_OPEN:\n            self._probes_in_flight -= 1\n",
        "        return\n",
        _GATEWAYS,
    ),
    Bug(
        "no time-out of a call", _OPERATIONS,
        "            async with asyncio.timeout(seconds_max):\n",
        "            async with asyncio.timeout(None):\n",
        ("tests/gateways/test_operations.py",),
    ),
    Bug(
        "a wrong parameter of one call stops all calls", _OPERATIONS,
        "            if error.param is None:\n",
        "            if True:\n",
        _GATEWAYS,
    ),
    Bug(
        "a commit is not synced to the disk", _SQLITE,
        '    "PRAGMA synchronous = FULL",\n',
        '    "PRAGMA synchronous = NORMAL",\n',
        ("tests/storage/test_database.py",),
    ),
    *REPLICAS,
    *REPORTED,
    *RUNTIME,
    *WEB,
    *RECORDS,
    *BUS,
)  # fmt: skip
