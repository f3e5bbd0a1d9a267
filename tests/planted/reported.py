"""Planted bugs that the changelog lists as fixed, and faults that users of such systems have reported."""

from __future__ import annotations

__all__ = ["REPORTED"]

from tests.planted.bug import Bug

_WORKER = "app/gateways/payment_worker.py"
_ERRORS = "app/gateways/stripe/error_table.py"
_WEBHOOKS = "app/gateways/stripe/webhook_event.py"
_HANDLER = "app/gateways/webhook_handler.py"
_OPERATIONS = "app/gateways/breakers/operations.py"
_STRIPE = "app/gateways/stripe/gateway.py"
_LEDGER = "modules/payments/ledger.py"
_SQLITE = "app/storage/sql/sqlite.py"
_FILES = "app/storage/sql/file_watch.py"
_GATE = "app/web/access/gate.py"
_LOGS = "app/telemetry/log_writer.py"

_DECIDE = (
    "tests/modules/test_payments_decide.py",
    "tests/modules/test_ledger.py",
    "tests/modules/test_orders_refunds.py",
    "tests/modules",
)

REPORTED = (
    # Money
    Bug(
        "a refused refund stops all charges", _OPERATIONS,
        "        kinds = {kind.value: Operation(kind, gateway_name, make_breaker(kind), clock, reported) for kind in OperationKind}\n",
        "        breaker = make_breaker(OperationKind.CHARGE)\n"
        "        kinds = {kind.value: Operation(kind, gateway_name, breaker, clock, reported) for kind in OperationKind}\n",
        ("tests/gateways/test_operations.py", "tests/gateways/test_payment_worker.py", "tests/test_bootstrap.py"),
    ),
    Bug(
        "too many calls open the breaker at once", _OPERATIONS,
        "            self.breaker.failed(permit, error.retry_after_seconds, opens_at_once=False)\n",
        "            self.breaker.failed(permit, error.retry_after_seconds)\n",
        ("tests/gateways/test_operations.py", "tests/gateways/test_faulty_provider.py"),
    ),
    Bug(
        "readiness does not show that the provider refuses the key", _OPERATIONS,
        "        self.fault = error\n",
        "",
        ("tests/gateways/test_operations.py",),
    ),
    Bug(
        "an error code that is not known declines the order", _ERRORS,
        "if holds), ErrorClass.MISCONFIGURED)\n",
        "if holds), ErrorClass.DECLINED)\n",
        ("tests/gateways/test_stripe_errors.py",),
    ),
    Bug(
        "a soft decline is final", _ERRORS,
        "        (is_soft and fault.advice_code not in FINAL_ADVICE, ErrorClass.DECLINED_SOFTLY),\n",
        "",
        ("tests/gateways/test_stripe_errors.py",),
    ),
    Bug(
        "a soft decline is tried again against the advice", _ERRORS,
        "        (is_soft and fault.advice_code not in FINAL_ADVICE, ErrorClass.DECLINED_SOFTLY),\n",
        "        (is_soft, ErrorClass.DECLINED_SOFTLY),\n",
        ("tests/gateways/test_stripe_errors.py",),
    ),
    Bug(
        "a soft decline is tried again after the time-out of the order", "modules/payments/charges.py",
        "        or (placed_at is not None and due_at >= placed_at + timeout)\n",
        "",
        _DECIDE,
    ),
    Bug(
        "the attempts after a soft decline have no end", "modules/payments/charges.py",
        "        or retries >= len(SOFT_DECLINE_SECONDS)\n",
        "",
        _DECIDE,
    ),
    Bug(
        "a look-up without an answer goes on for ever", "modules/payments/charges.py",
        "    if age > OPEN_MAX and payment.attempts >= LATE_ATTEMPTS_MIN:\n",
        "    if False:\n",
        _DECIDE,
    ),
    Bug(
        "a hundredth of an amount in ISK is charged", "app/gateways/stripe/currencies.py",
        '"ISK": 2, ',
        "",
        ("tests/gateways/test_stripe_currencies.py",),
    ),
    Bug(
        "a decline that has received nothing is nonsense", _WEBHOOKS,
        "(is_success and not intent.is_fully_received)",
        "not intent.is_fully_received",
        ("tests/gateways/test_webhook_types.py", "tests/gateways/test_webhooks.py"),
    ),
    Bug(
        "a refund that is pending counts as refunded", _WEBHOOKS,
        '    "pending": "pending",\n',
        '    "pending": "succeeded",\n',
        ("tests/gateways/test_webhook_types.py", "tests/gateways/test_webhooks.py"),
    ),
    Bug(
        "a dispute that was lost counts as open", _WEBHOOKS,
        ', "lost": "lost"}',
        "}",
        ("tests/gateways/test_webhook_types.py", "tests/gateways/test_webhooks.py"),
    ),
    Bug(
        "a signature of the future is valid", _WEBHOOKS,
        "    if abs(now - int(times[0])) > TOLERANCE_SECONDS:\n",
        "    if now - int(times[0]) > TOLERANCE_SECONDS:\n",
        ("tests/gateways/test_webhook_types.py", "tests/gateways/test_webhooks.py"),
    ),
    Bug(
        "only the first webhook secret is tried", _HANDLER,
        "        for secret in self._secrets:\n",
        "        for secret in self._secrets[:1]:\n",
        ("tests/gateways/test_webhooks.py",),
    ),
    Bug(
        "a webhook of other software on the account becomes a dead letter", _HANDLER,
        "        if mismatch == NOT_OURS:\n",
        "        if False:\n",
        ("tests/gateways/test_webhooks.py",),
    ),
    Bug(
        "a webhook is not recognised when it is repeated", _HANDLER,
        '            id=derived_id(notice.order_id, f"stripe:{event.id}"),\n',
        '            id=derived_id(notice.order_id, f"stripe:{event.id}:{self._clock.monotonic()}"),\n',
        ("tests/gateways/test_webhooks.py",),
    ),
    Bug(
        "a refund that failed for certain keeps its key", _LEDGER,
        "    return 1 + max((refund.key_number or 0 for refund in ledger.refunds), default=0)\n",
        "    return max((refund.key_number or 1 for refund in ledger.refunds), default=1)\n",
        _DECIDE,
    ),
    Bug(
        "a late notice takes a refund back", _LEDGER,
        "    return max(one, other, key=lambda refund: _REFUND_STEPS.index(refund.status))\n",
        "    return other\n",
        _DECIDE,
    ),
    Bug(
        "a late notice opens a dispute again", _LEDGER,
        "    status = max(known.status, reported.status, key=_DISPUTE_STEPS.index)\n",
        "    status = reported.status\n",
        _DECIDE,
    ),
    Bug(
        "a refund that the provider's total includes counts twice", _LEDGER,
        "    return evolve(ledger, refunds=(*ledger.refunds, *earlier, refund))\n",
        "    return evolve(ledger, refunds=(*ledger.refunds, refund))\n",
        _DECIDE,
    ),
    Bug(
        "what was refunded in the provider's dashboard is refunded again", "modules/payments/state.py",
        "        return self.captured - self.refunded\n",
        "        return self.captured\n",
        _DECIDE,
    ),
    Bug(
        "a refund that is pending can be asked for again", "modules/payments/state.py",
        "        return self.kept - self.pending\n",
        "        return self.kept\n",
        _DECIDE,
    ),
    Bug(
        "an order shows more refunded than was paid", "modules/orders/refunds.py",
        "    rest = event.amount.amount - _succeeded(order, event.refund_id)\n",
        "    rest = event.amount.amount\n",
        _DECIDE,
    ),
    Bug(
        "a failure that is delivered late undoes a refund", "modules/orders/refunds.py",
        "    if not event.has_returned and _succeeded(order, event.refund_id):\n",
        "    if False:\n",
        _DECIDE,
    ),
    Bug(
        "items are refunded that were refunded before", "modules/orders/refunds.py",
        '        for item in entry.get("items", ()) if entry["status"] != "failed" else ():\n',
        '        for item in entry.get("items", ()) if entry["status"] == "failed" else ():\n',
        _DECIDE,
    ),
    Bug(
        "a charge that a person has settled makes dead letters", "modules/payments/decide.py",
        "and notice.reference != payment.reference and not _lacks_reference(payment)\n",
        "and notice.reference != payment.reference\n",
        _DECIDE,
    ),
    Bug(
        "a refund that is reported before its capture is ignored", "modules/payments/decide.py",
        "                order_id=payment.order_id, reference=notice.reference, calls=0, refunded_total=total\n",
        "                order_id=payment.order_id, reference=notice.reference, calls=0\n",
        _DECIDE,
    ),
    Bug(
        "an order with an open dispute is archived", "modules/payments/state.py",
        'self.refund_status == "pending" or is_owed or self.dispute is DisputeStatus.OPEN)\n',
        'self.refund_status == "pending" or is_owed)\n',
        ("tests/storage/test_sqlite.py",),
    ),
    Bug(
        "the customer of a saved card is not sent", "app/gateways/stripe/charge_params.py",
        '    return params if customer is None else {**params, "customer": customer}\n',
        "    return params\n",
        ("tests/gateways/test_stripe_errors.py",),
    ),
    Bug(
        "a charge that was accepted counts as not made if the next call fails", _STRIPE,
        "        except GatewayNotReached:  # that a later call had no effect is no evidence about the charge\n"
        "            return Pending(intent.id)\n",
        "        except ZeroDivisionError:\n            return Pending(intent.id)\n",
        ("tests/gateways",),
    ),
    Bug(
        "a key counts as remembered for ever", _STRIPE,
        "        if placed_at is None or time.time() - placed_at.timestamp() > KEY_SECONDS:\n",
        "        if placed_at is None:\n",
        ("tests/gateways/test_stripe.py",),
    ),
    Bug(
        "what lies between two look-ups counts as read", "app/gateways/stripe/list_cursor.py",
        "        if self._read is None or not self._read[0] <= since <= self._read[1]:\n",
        "        if self._read is None or since < self._read[0]:\n",
        ("tests/gateways/test_intent_list.py",),
    ),
    Bug(
        "a look-up that is refused for the key has no code", "app/gateways/stripe/charge_lookup.py",
        "            lookup.rows.set_exception(error.copy())\n",
        "            lookup.rows.set_exception(type(error)(str(error), error.retry_after_seconds))\n",
        ("tests/gateways/test_stripe.py",),
    ),
    Bug(
        "a request that stops waiting for its order lets the next one in", "app/gateways/order_locks.py",
        "            ended.add_done_callback(lambda _: self._end())\n",
        "            self._end()\n",
        ("tests/gateways/test_payment_worker.py",),
    ),
    Bug(
        "the refund of an order that was cancelled early has no currency", "modules/orders/refunds.py",
        "    currency = order.currency or event.amount.currency\n",
        "    currency = order.currency\n",
        _DECIDE,
    ),
    Bug(
        "reconciliation reads all newer charges", "app/gateways/stripe/intent_list.py",
        'self._pages({"created": {"gte": since, "lt": until}, **expand})',
        'self._pages({"created": {"gte": since}, **expand})',
        ("tests/gateways/test_reconciliation.py", "tests/gateways/test_stripe.py", "tests/cli"),
    ),
    Bug(
        "reconciliation does not tell of a dispute that was lost", "app/gateways/reconciliation.py",
        "    return record.dispute in (DisputeStatus.OPEN, DisputeStatus.LOST)\n",
        "    return record.dispute == DisputeStatus.OPEN\n",
        ("tests/gateways/test_reconciliation.py",),
    ),
    Bug(
        "a call that is still under way ends its key", "app/gateways/stripe/http_session.py",
        "has_ended = status >= 500 and await _is_own_error(response)",
        "has_ended = await _is_own_error(response)",
        ("tests/gateways/test_stripe.py",),
    ),
    Bug(
        "a charge that is captured while it is cancelled counts as declined", "app/gateways/stripe/gateway.py",
        "            return Pending(intent.id)  # its status has changed meanwhile; the next look-up finds the new one\n",
        '            return Declined("canceled")\n',
        ("tests/gateways/test_stripe_intents.py",),
    ),
    Bug(
        "a charge is looked up by a clock that may be ahead of the provider's", "app/gateways/stripe/gateway.py",
        "int(placed_at.timestamp()) - SKEW_SECONDS",
        "int(placed_at.timestamp())",
        ("tests/gateways/test_stripe_intents.py",),
    ),
    Bug(
        "an empty webhook secret signs webhooks", "app/gateways/webhook_handler.py",
        'tuple(filter(None, (part.strip() for part in secrets.split(","))))',
        'tuple(part.strip() for part in secrets.split(","))',
        ("tests/gateways/test_webhooks.py",),
    ),
    Bug(
        "a refund can be asked for twice under one Idempotency-Key", "modules/orders/routes.py",
        '        status=202,\n        response_schema="Order",\n        idempotent=True,\n',
        '        status=202,\n        response_schema="Order",\n',
        ("tests/modules/test_routes.py",),
    ),
    Bug(
        "orders are accepted however many wait", "modules/orders/routes.py",
        "        sheds_load=True,\n",
        "",
        ("tests/modules/test_routes.py",),
    ),
    Bug(
        "the audit does not show who settled a payment", "modules/payments/routes.py",
        '        response_schema="Payment",\n        rejections=(404, 409),\n',
        '        response_schema="Payment",\n        rejections=(404, 409),\n        is_audited=False,\n',
        ("tests/modules/test_routes.py",),
    ),
    Bug(
        "a refund that exists after all is made again", "modules/payments/ledger.py",
        "status = joined.status if line.reference is None else _later(line, joined).status",
        "status = _later(line, joined).status",
        ("tests/modules/test_ledger.py",),
    ),
    Bug(
        "a refund is made beside one of unknown outcome", "modules/payments/refunds.py",
        " or any(each.reason == NO_ANSWER for each in ledger.refunds):\n        return payment, []",
        ":\n        return payment, []",
        ("tests/modules/test_ledger.py",),
    ),
    Bug(
        "an order is refunded when its dispute is won", "modules/payments/refunds.py",
        "    is_case = payment.is_cancelled and payment.reason == DISPUTED\n",
        "    is_case = False\n",
        ("tests/modules/test_ledger.py",),
    ),
    Bug(
        "a contradiction after a decline is ignored", "modules/payments/decide.py",
        "            (PaymentStatus.PENDING | PaymentStatus.UNKNOWN | PaymentStatus.DECLINED),\n            ChargeMismatch(),",
        "            (PaymentStatus.PENDING | PaymentStatus.UNKNOWN),\n            ChargeMismatch(),",
        ("tests/modules/test_payments_decide.py",),
    ),
    Bug(
        "a request from before the breaker closed counts as new", "app/gateways/payment_worker.py",
        "            self._closed_since = self._clock.now()\n",
        "            pass\n",
        ("tests/gateways/test_payment_worker.py",),
    ),
    Bug(
        "charges that wait for the breaker take the places of refunds", "app/gateways/payment_worker.py",
        "        lane.held += 1\n        self._free_call_slot(lane, task)\n",
        "        lane.held += 1\n",
        ("tests/gateways/test_payment_worker.py",),
    ),
    Bug(
        "the ack deadline of a charge is not extended", "app/gateways/payment_worker.py",
        "            await extend_ack_deadlines([each for each in self._in_hand.values() if each is not None], CONSUMER)\n",
        "",
        ("tests/gateways/test_payment_worker.py",),
    ),
    Bug(
        "a call that was cancelled blocks the breaker", "app/gateways/breakers/operations.py",
        "            self.breaker.cancelled(permit)\n            raise\n",
        "            raise\n",
        ("tests/gateways/test_operations.py",),
    ),
    # Messages
    Bug(
        "an event whose versions are all unreadable is lost", "app/runtime/receiving.py",
        "        is_unknown = not self._reader.reads(subject)\n",
        "        is_unknown = True\n",
        ("tests/runtime", "tests/contracts/test_versions.py", "tests/contracts/test_rolling_upgrade.py"),
    ),
    Bug(
        "the cap of the outbox counts rows", "app/messaging/outbox_relay.py",
        "        self.pending_events = round(self.pending / self._rows_per_event)\n",
        "        self.pending_events = self.pending\n",
        ("tests/messaging/test_outbox_relay.py",),
    ),
    Bug(
        "a stop loses the marks of what was published", "app/messaging/outbox_relay.py",
        "        if sent:\n            self._store.database.defer(partial(self._mark, sent))\n        await self._store.database.flush()\n",
        "        await self._store.database.flush()\n",
        ("tests/messaging/test_outbox_relay.py",),
    ),
    Bug(
        "republishing selects by the time of the event", "app/messaging/republish.py",
        "    return _readable(outbox.c.sent_at, connection) >= ",
        "    return _readable(outbox.c.occurred_at, connection) >= ",
        ("tests/messaging/test_republish.py",),
    ),
    Bug(
        "a limit of a stream that an operator has set is not compared", "bus/jetstream/admin/server_config.py",
        '"max_bytes", "allow_direct", "deny_delete", "deny_purge"]',
        '"max_bytes", "max_msgs_per_subject", "allow_direct", "deny_delete", "deny_purge"]',
        ("tests/bus/jetstream/test_server_config.py",),
    ),
    Bug(
        "a consumer without a filter counts as planned", "bus/jetstream/admin/server_config.py",
        "        if wanted.filter_subjects and not found.subjects:\n",
        "        if False:\n",
        ("tests/bus/jetstream/test_server_config.py", "tests/bus/jetstream/test_faults.py"),
    ),
    Bug(
        "a foreign message under the id of an event counts as the event", "bus/jetstream/admin/duplicates.py",
        '        if found.subject == message.subject and (found.data or b"") == message.body:\n',
        "        if found.subject == message.subject:\n",
        ("tests/bus/jetstream/test_message_identity.py",),
    ),
    Bug(
        "a delivery that is late is returned once more", "bus/jetstream/delivery.py",
        "        if self.is_late():\n            self.owner.release(self)\n        elif self.tries >= self.owner.max_tries:\n",
        "        if self.tries >= self.owner.max_tries:\n",
        ("tests/bus/jetstream/test_message_parser.py", "tests/bus/jetstream/test_delivery_contract.py"),
    ),
    # Storage
    Bug(
        "a missing table is the fault of the message", _SQLITE,
        "_FAILURES.get(code & 0xFF, Failure.REFUSED)\n",
        "_FAILURES.get(code & 0xFF)\n",
        ("tests/storage/test_error_classes.py", "tests/storage/test_sqlite.py"),
    ),
    Bug(
        "a database file that was replaced is not noticed", _FILES,
        "        if self.is_known and main != self._known[self._path]:\n",
        "        if self.is_known and main is None:\n",
        ("tests/storage/test_file_watch.py",),
    ),
    Bug(
        "a database file that was written over is not noticed", _FILES,
        "or not header.startswith(_MAGIC) or counter < self._counter):\n",
        "or not header.startswith(_MAGIC)):\n",
        ("tests/storage/test_file_watch.py",),
    ),
    Bug(
        "SQLite's own removal of a file counts as an operator's", _FILES,
        "                self._known.pop(self._path + suffix, None)\n",
        "                pass\n",
        ("tests/storage/test_file_watch.py",),
    ),
    Bug(
        "every user can read the database", _FILES,
        "os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))\n",
        "os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644))\n",
        ("tests/storage/test_file_watch.py", "tests/security/test_file_modes.py"),
    ),
    Bug(
        "a commit that a crash of the server has lost counts as stored", "app/storage/sql/postgres.py",
        "                    if _run(connection) != run:\n                        return None\n",
        "",
        ("tests/storage/test_failover.py", "tests/storage/test_postgres.py"),
    ),
    Bug(
        "a commit that a fail-over has lost counts as stored", "app/storage/sql/postgres.py",
        '        sql = f"SELECT CASE WHEN {_TIMELINE} = %s THEN pg_xact_status(%s::xid8) END"\n',
        '        sql = f"SELECT CASE WHEN {_TIMELINE} = %s OR true THEN pg_xact_status(%s::xid8) END"\n',
        ("tests/storage/test_failover.py",),
    ),
    Bug(
        "a rollback ends the limit of a session that leads", "app/storage/sql/postgres.py",
        '                connection.info.pop("has limit", None)\n',
        "",
        ("tests/storage/test_postgres.py",),
    ),
    Bug(
        "a halted process leads for as long as its connection stays", "app/storage/sql/postgres.py",
        "set_config('idle_session_timeout', '{LEAD_SECONDS}s', false)",
        "set_config('idle_session_timeout', '0s', false)",
        ("tests/storage/test_postgres.py",),
    ),
    Bug(
        "the end of a broken transaction hides why it broke", "app/storage/sql/postgres.py",
        "            if not connection.invalidated:  # otherwise",
        "            if True:  # otherwise",
        ("tests/storage/test_postgres.py",),
    ),
    Bug(
        "a database that cannot store every name is taken", "app/storage/sql/postgres_fitness.py",
        '    if encoding != "UTF8":\n',
        '    if encoding == "SQL_ASCII":\n',
        ("tests/process/test_unfit_postgres.py",),
    ),
    Bug(
        "a clock that was set back hides what is due now", "app/storage/heartbeat.py",
        "        if abs(seconds) <= limit.total_seconds():\n",
        "        if seconds <= limit.total_seconds():\n",
        ("tests/storage/test_sqlite.py",),
    ),
    Bug(
        "what the clock has skipped is the age of a row", "app/storage/heartbeat.py",
        "        if seconds > 0:  # a clock that went back makes rows look younger\n",
        "        if False:\n",
        ("tests/storage/test_sqlite.py",),
    ),
    Bug(
        "orders are archived earlier after a jump of the clock", "app/runtime/archiver.py",
        "now - self._kept - self._store.heartbeat.skipped(connection, now))",
        "now - self._kept)",
        ("tests/storage/test_sqlite.py",),
    ),
    Bug(
        "an archived order is in the cache", "app/storage/module_store.py",
        "            self._cache.drop(cls, swept.keys)\n",
        "            pass\n",
        ("tests/storage/test_state_cache.py",),
    ),
    Bug(
        "a timer that is cancelled in another process fires", "app/storage/module_store.py",
        "        return [row for row in due if row.due_at == DUE_NOW or row.id in ended]\n",
        "        return due\n",
        ("tests/storage/test_shared_database.py",),
    ),
    # HTTP, logs, security
    Bug(
        "an order that is cancelled later counts as slow", "app/runtime/order_metrics.py",
        '        if is_confirmed or not any(entry["event"] == "orders.confirmed" for entry in order.timeline):\n',
        "        if True:\n",
        ("tests/runtime/test_order_metrics.py",),
    ),
    Bug(
        "a finished stream is connected again for ever", "app/web/streams/state_stream.py",
        "request.headers.get(LAST_EVENT_ID) == event_id(route.show(state)):\n",
        "False:\n",
        ("tests/web/endpoints/test_stream.py",),
    ),
    Bug(
        "one key opens all streams", "app/web/streams/state_stream.py",
        "        if caller != ANONYMOUS.name and self._by_caller[caller] >= STREAMS_PER_KEY_MAX:\n",
        "        if False:\n",
        ("tests/security/test_limits.py", "tests/web/endpoints/test_stream.py"),
    ),
    Bug(
        "a cursor of another list is taken", "app/web/requests/paging.py",
        "    if not decoded.startswith(list_id):\n",
        "    if False:\n",
        ("tests/web/test_lists.py",),
    ),
    Bug(
        "an id of two dots names another resource", "app/web/requests/parameters.py",
        "    if not _DOT_SEGMENTS.isdisjoint(found.values()):\n",
        "    if False:\n",
        ("tests/web/requests/test_paths.py",),
    ),
    Bug(
        "of a parameter that is given twice the last one counts", "app/web/requests/parameters.py",
        "        elif name in found:\n",
        "        elif False:\n",
        ("tests/web",),
    ),
    Bug(
        "an Idempotency-Key that is given twice is one of them", "app/web/requests/command.py",
        "    if len(request.headers.getall(IDEMPOTENCY_KEY)) > 1:\n",
        "    if False:\n",
        ("tests/web/requests/test_idempotency.py",),
    ),
    Bug(
        "connections that wait are reset when the listener closes", "app/web/server.py",
        "                await _accept_waiting(each, server)\n",
        "                each.close()\n",
        ("tests/web/endpoints/test_connections.py",),
    ),
    Bug(
        "a connection can begin between the last accept and the close of the listener", "app/web/server.py",
        "                _drop_new_connections(each)\n",
        "                pass\n",
        ("tests/web/endpoints/test_connections.py",),
    ),
    Bug(
        "a key of one customer shows the orders of others", "app/web/access/ownership.py",
        "    return customer is not None and getattr(state, OWNER, None) != customer\n",
        "    return False\n",
        ("tests/security/test_roles.py",),
    ),
    Bug(
        "a page of another site sends requests", _GATE,
        '        if headers.get(SEC_FETCH_SITE) == "cross-site" and ',
        "        if False and ",
        ("tests/security/test_hosts.py",),
    ),
    Bug(
        "every private address is this machine", _GATE,
        '            return ip_address(name.strip("[]")).is_loopback\n',
        '            return ip_address(name.strip("[]")).is_private\n',
        ("tests/security/test_hosts.py",),
    ),
    Bug(
        "wrong keys can be tried without a limit", _GATE,
        "            if hdrs.AUTHORIZATION in request.headers or TOKEN in request.query:\n",
        "            if TOKEN in request.query:\n",
        ("tests/security/test_limits.py",),
    ),
    Bug(
        "the role of a caller does not count where a process asks for the caller", _GATE,
        "    return ApiKey(found[1], found[2])\n",
        '    return ApiKey(found[1], "operator")\n',
        ("tests/web/operations/test_module_api.py",),
    ),
    Bug(
        "a key file that every user can read is taken", "config/files.py",
        "mode & stat.S_IROTH and not",
        "mode & stat.S_IWOTH and not",
        ("tests/config", "tests/security/test_file_modes.py"),
    ),
    Bug(
        "a restricted live key goes over http", "config/rules.py",
        '("sk_live_", "rk_live_")',
        '("sk_live_",)',
        ("tests/config",),
    ),
    Bug(
        "a request from before the clock was set back counts as new", _WORKER,
        "            self._known_since = max(self._known_since, decided_at + timedelta(microseconds=1))\n",
        "            pass\n",
        ("tests/gateways/test_payment_worker.py",),
    ),
    Bug(
        "only the last decision shows what was requested before the clock was set back", "app/storage/archive/history_table.py",
        "ORDER BY number DESC LIMIT {LATEST}) latest",
        "ORDER BY number DESC LIMIT 1) latest",
        ("tests/gateways/test_payment_worker.py",),
    ),
    Bug(
        "a pause until the next tick does not move the clock", "bus/tasks.py",
        "    return seconds if seconds > interval_seconds / 100 else seconds + interval_seconds\n",
        "    return seconds\n",
        ("tests/bus/test_tasks.py",),
    ),
    Bug(
        "an order that is cancelled during a look-up is charged", "app/gateways/gateway_calls.py",
        "                    await recheck(attempt)\n",
        "",
        ("tests/gateways/test_payment_worker.py",),
    ),
    Bug(
        "an order that is cancelled while its charge waits for the pace is charged", _WORKER,
        "            attempt.needs_recheck = True  # the order may have been cancelled meanwhile\n",
        "",
        ("tests/gateways/test_payment_worker.py",),
    ),
    Bug(
        "an API key can be given to two callers", "config/api_keys.py",
        "            if key.digest in digests:\n",
        "            if False:\n",
        ("tests/config",),
    ),
    Bug(
        "log lines that nothing reads fill the memory", _LOGS,
        "            if self._bytes + len(line) > QUEUE_BYTES_MAX:\n",
        "            if False:\n",
        ("tests/telemetry/test_log_writer.py",),
    ),
    Bug(
        "lines follow a log file that was moved", _LOGS,
        "            return os.path.samestat(os.stat(self._path), os.fstat(self._descriptor))\n",
        "            return True\n",
        ("tests/telemetry/test_log_writer.py",),
    ),
    Bug(
        "analytics read on where a stream has lost its last messages", "app/analytics/sources/jetstream.py",
        "or _event_id(first) == stored.last_event_id\n",
        "or True\n",
        ("tests/analytics/test_lost_tail.py",),
    ),
)  # fmt: skip
