"""Planted bugs of the bus, of the settings, of the log and of the commands, most of which no everyday test had noticed before."""

from __future__ import annotations

__all__ = ["BUS"]

from tests.planted.bug import Bug

BUS = (
    Bug(
        "a bus that closes loses the dead letter of the last answer", "bus/memory/bus.py",
        "        self._dead_letters.put(dead_letter, partial(self.settle, message.publication))\n"
        "        message.group.release(message)\n",
        "        message.group.release(message)\n"
        "        self._dead_letters.put(dead_letter, partial(self.settle, message.publication))\n",
        ("tests/bus/memory/test_bus.py",),
    ),
    Bug(
        "a bus that closes counts as connected", "bus/memory/bus.py",
        "        return not self.is_closing\n",
        "        return not self._is_closed\n",
        ("tests/bus/memory/test_bus.py",),
    ),
    Bug(
        "what a member had in hand comes again in the wrong order", "bus/memory/consumer_group.py",
        "        for message in reversed(held):",
        "        for message in held:",
        ("tests/bus/memory/test_bus.py",),
    ),
    Bug(
        "a handler that reports late loses its message", "bus/memory/consumer_group.py",
        "return message.state == READY or self.subscription",
        "return self.subscription",
        ("tests/bus/memory/test_bus.py",),
    ),
    Bug(
        "a message that was acknowledged late counts as waiting", "bus/memory/bus.py",
        "for message in group.ready if message.state == READY]",
        "for message in group.ready]",
        ("tests/bus/memory/test_bus.py",),
    ),
    Bug(
        "a dead letter is younger than its message", "bus/memory/bus.py",
        "first_seen = min(now, self._started_at + timedelta(seconds=message.first_at))",
        "first_seen = self._started_at + timedelta(seconds=message.first_at)",
        ("tests/bus/memory/test_bus.py",),
    ),
    Bug(
        "the deadline of what is being stored is not extended", "bus/dead_letter_queue.py",
        "        if self._current is not None:\n"
        "            self._current.extend()\n",
        "",
        ("tests/bus/test_dead_letter_queue.py",),
    ),
    Bug(
        "the timer of the dead letters goes in circles while one is stored", "bus/dead_letter_queue.py",
        "return self._waiting[0][0] if self._waiting and self._storing is None else inf",
        "return self._waiting[0][0] if self._waiting else inf",
        ("tests/bus/test_dead_letter_queue.py",),
    ),
    Bug(
        "a queue that stores its last dead letter counts as empty", "bus/dead_letter_queue.py",
        "return self._storing is None and not self._waiting",
        "return not self._waiting",
        ("tests/bus/test_dead_letter_queue.py",),
    ),
    Bug(
        "a task that swallows its cancellation is left behind", "bus/tasks.py",
        "        _, running = await asyncio.wait(running, timeout=_RETRY_SECONDS)",
        "        await asyncio.wait(running, timeout=_RETRY_SECONDS)\n"
        "        return",
        ("tests/bus/test_tasks.py",),
    ),
    Bug(
        "a redelivery of what waits for its dead letter is not terminated", "bus/jetstream/delivery.py",
        "        self._ack_subject, self.touched_at, self.overdue_at = later._ack_subject, later.touched_at, later.overdue_at",
        "        self.touched_at, self.overdue_at = later.touched_at, later.overdue_at",
        ("tests/bus/jetstream/test_pull_consumer.py",),
    ),
    Bug(
        "a redelivery is acknowledged before the dead letter is stored", "bus/jetstream/pull_consumer.py",
        "            earlier.supersede(delivery)  #",
        "            delivery.confirm()  #",
        ("tests/bus/jetstream/test_pull_consumer.py",),
    ),
    Bug(
        "an earlier delivery releases the later one", "bus/jetstream/pull_consumer.py",
        "        if self.in_hand.get(delivery.sequence) is delivery:\n"
        "            del self.in_hand[delivery.sequence]",
        "        self.in_hand.pop(delivery.sequence, None)",
        ("tests/bus/jetstream/test_pull_consumer.py",),
    ),
    Bug(
        "a last try is returned at the end", "bus/jetstream/pull_consumer.py",
        "if not delivery.is_answered and delivery.tries < self.max_tries:",
        "if not delivery.is_answered:",
        ("tests/bus/jetstream/test_pull_consumer.py",),
    ),
    Bug(
        "a last try for another version is returned", "bus/jetstream/pull_consumer.py",
        "        elif delivery.tries < self.max_tries:\n"
        "            delay",
        "        elif delivery.tries <= self.max_tries:\n"
        "            delay",
        ("tests/bus/jetstream/test_pull_consumer.py",),
    ),
    Bug(
        "a process takes the messages of another version again and again", "bus/jetstream/pull_consumer.py",
        "            self._no_request_before = max(self._no_request_before, self.now() + 2 * delay_seconds)\n",
        "",
        ("tests/bus/jetstream/test_pull_consumer.py",),
    ),
    Bug(
        "a last try without an answer is not noticed", "bus/jetstream/pull_consumer.py",
        "            if delivery.tries >= self.max_tries:\n"
        "                self.request(1)",
        "            if False:\n"
        "                self.request(1)",
        ("tests/bus/jetstream/test_pull_consumer.py",),
    ),
    Bug(
        "a refusal stays after a message", "bus/jetstream/pull_consumer.py",
        "        self.outstanding = max(0, self.outstanding - 1)\n"
        '        self.refusal = ""\n',
        "        self.outstanding = max(0, self.outstanding - 1)\n",
        ("tests/bus/jetstream/test_pull_consumer.py",),
    ),
    Bug(
        "a message that was acknowledged late becomes a dead letter", "bus/jetstream/pull_consumer.py",
        "            current.is_answered = current.is_settled_elsewhere = True\n",
        "            current.is_answered = True\n",
        ("tests/bus/jetstream/test_pull_consumer.py",),
    ),
    Bug(
        "headers that are too large are tried again without an end", "bus/jetstream/publisher.py",
        "_FAULTS_OF_THE_MESSAGE = (10054, 10097)",
        "_FAULTS_OF_THE_MESSAGE = (10054,)",
        ("tests/bus/jetstream/test_publisher.py",),
    ),
    Bug(
        "a publish waits while the connection is lost", "bus/jetstream/publisher.py",
        "if self._is_stopped or not (self._inbox and self._connection.is_up):",
        "if self._is_stopped or not self._inbox:",
        ("tests/bus/jetstream/test_publisher.py",),
    ),
    Bug(
        "a duplicate counts as the newest message of its stream", "bus/jetstream/publisher.py",
        "            if b'\"duplicate\"' in data:\n"
        "                self._look",
        "            self.newest[pending.subject] = pending.message.id, data\n"
        "            if b'\"duplicate\"' in data:\n"
        "                self._look",
        ("tests/bus/jetstream/test_publisher.py",),
    ),
    Bug(
        "an event whose id was taken counts as stored before it is", "bus/jetstream/publisher.py",
        "            await self.publish(salted(pending.message))\n",
        "            self.publish(salted(pending.message))\n",
        ("tests/bus/jetstream/test_publisher.py",),
    ),
    Bug(
        "a bus that closes still receives", "bus/jetstream/bus.py",
        "                consumer.return_buffered()\n"
        "                with suppress(nats.errors.Error):\n"
        "                    await consumer.unbind()\n"
        "            for group",
        "                consumer.return_buffered()\n"
        "            for group",
        ("tests/bus/jetstream/test_lifecycle.py",),
    ),
    Bug(
        "a publish in flight fails at the close", "bus/jetstream/bus.py",
        "            self._publisher.stop()\n",
        "            self._publisher.stop()\n"
        '            self._publisher.fail_all(BusClosed("the bus is closed"))\n',
        ("tests/bus/jetstream/test_lifecycle.py",),
    ),
    Bug(
        "a durable that is left stays a problem", "bus/jetstream/bus.py",
        "        self._verifier.forget(consumer.plan)\n",
        "",
        ("tests/bus/jetstream/test_lifecycle.py",),
    ),
    Bug(
        "a member that leaves keeps what it has not fetched", "bus/jetstream/bus.py",
        "        self._verifier.forget(consumer.plan)\n"
        "        consumer.return_buffered()\n",
        "        self._verifier.forget(consumer.plan)\n",
        ("tests/bus/jetstream/test_lifecycle.py",),
    ),
    Bug(
        "the durable of the advisories is not verified", "bus/jetstream/bus.py",
        "[*plans, *self._durables]",
        "plans",
        ("tests/bus/jetstream/test_lifecycle.py",),
    ),
    Bug(
        "a deleted stream is created again at once", "bus/jetstream/admin/verifier.py",
        "DELETION_SECONDS = 2.0",
        "DELETION_SECONDS = 0.0",
        ("tests/simulation/broker/test_facts.py",),
    ),
    Bug(
        "only what a process receives shows it that a stream was deleted", "bus/jetstream/admin/verifier.py",
        " or self._may_exist(stream)",
        "",
        ("tests/simulation/broker/test_facts.py",),
    ),
    Bug(
        "a process that starts while a stream has no leader creates it again at once", "bus/jetstream/admin/verifier.py",
        " or stream in self._unanswered_streams",
        "",
        ("tests/simulation/broker/test_facts.py",),
    ),
    Bug(
        "a publish without an answer does not show that its stream may have existed", "bus/jetstream/bus.py",
        " or name in self._publisher.unanswered_streams",
        "",
        ("tests/simulation/broker/test_facts.py",),
    ),
    Bug(
        "marks are looked for in the stream of the dead letters", "bus/jetstream/admin/stored_marks.py",
        "if stream not in (ADVISORIES, DEAD_LETTERS)}",
        "if stream != ADVISORIES}",
        ("tests/bus/jetstream/test_lifecycle.py",),
    ),
    Bug(
        "messages that a stream has lost are not shown", "bus/jetstream/bus.py",
        "return [*self._stall_detector.stalls, *refusals, *self._loss_detector.losses]",
        "return [*self._stall_detector.stalls, *refusals]",
        ("tests/bus/jetstream/test_lifecycle.py",),
    ),
    Bug(
        "a permission that was granted counts as denied", "bus/jetstream/connection.py",
        "        self.denied.clear()\n",
        "",
        ("tests/bus/jetstream/test_lifecycle.py",),
    ),
    Bug(
        "a publish that has ended is sent nevertheless", "bus/jetstream/connection.py",
        "            if observer is not None and observer.is_done:\n"
        "                continue\n",
        "",
        ("tests/bus/jetstream/test_lifecycle.py",),
    ),
    Bug(
        "a connection that comes after the close stays open", "bus/jetstream/connect_attempt.py",
        "            if self._is_closed():\n"
        '                raise ConnectRefused("closed in the meantime")\n',
        "",
        ("tests/bus/jetstream/test_lifecycle.py",),
    ),
    Bug(
        "what was stored before its mark is not published again", "bus/jetstream/admin/stored_marks.py",
        "_Mark(now - _TOLERANCE, sequence, id)",
        "_Mark(now, sequence, id)",
        ("tests/bus/jetstream/test_stored_marks.py",),
    ),
    Bug(
        "a second loss hides the first", "bus/jetstream/admin/stored_marks.py",
        "self._lost_since[stream] = min(since, self._lost_since.get(stream, since))",
        "self._lost_since[stream] = since",
        ("tests/bus/jetstream/test_stored_marks.py",),
    ),
    Bug(
        "marks are forgotten while the stream does not answer", "bus/jetstream/admin/stored_marks.py",
        "                self._fresh[stream] = fresh + self._fresh[stream]\n",
        "",
        ("tests/bus/jetstream/test_stored_marks.py",),
    ),
    Bug(
        "the repair of one loss ends another", "bus/jetstream/admin/stored_marks.py",
        "        if self._lost_since.get(stream) == since:\n"
        "            del self._lost_since[stream]",
        "        self._lost_since.pop(stream, None)",
        ("tests/bus/jetstream/test_stored_marks.py",),
    ),
    Bug(
        "messages that have expired count as lost", "bus/jetstream/admin/stored_marks.py",
        "[mark for mark in marks if mark.at > young]",
        "list(marks)",
        ("tests/bus/jetstream/test_stored_marks.py",),
    ),
    Bug(
        "log lines that are being written take no room", "app/telemetry/log_writer.py",
        "                self._bytes -= sum(map(len, lines))\n",
        "                self._bytes = 0\n",
        ("tests/telemetry/test_log_writer.py",),
    ),
    Bug(
        "dropped log lines are reported twice", "app/telemetry/log_writer.py",
        "                    self._reported += unreported\n",
        "                    self._reported = unreported\n",
        ("tests/telemetry/test_log_writer.py",),
    ),
    Bug(
        "a disk that is full for the second time is not reported", "app/telemetry/log_writer.py",
        '                self._refused = ""\n',
        "",
        ("tests/telemetry/test_log_writer.py",),
    ),
    Bug(
        "a log line before the stop is lost", "app/telemetry/log_writer.py",
        "            is_last = self._is_stopped\n"
        "            self._step()\n",
        "            self._step()\n"
        "            is_last = self._is_stopped\n",
        ("tests/telemetry/test_log_writer.py",),
    ),
    Bug(
        "each rotation of the log leaves a file open", "app/telemetry/log_writer.py",
        "        os.close(before)\n",
        "",
        ("tests/telemetry/test_log_writer.py",),
    ),
    Bug(
        "the console shows the fragment of an address", "config/shown.py",
        '_QUERY = re.compile(r"[?#][^,]*")',
        '_QUERY = re.compile(r"[?][^,#]*")',
        ("tests/config/test_shown.py",),
    ),
    Bug(
        "a password is not redacted as it is sent", "config/settings.py",
        "yield from {parts.password, unquote(parts.password)}",
        "yield parts.password",
        ("tests/config/test_settings.py",),
    ),
    Bug(
        "only the first webhook secret is redacted", "config/settings.py",
        'str(self.stripe_webhook_secret or "").split(",")',
        'str(self.stripe_webhook_secret or "").split(",")[:1]',
        ("tests/config/test_settings.py",),
    ),
    Bug(
        "the spaces of a secret are lost", "config/environment.py",
        '.decode().rstrip("\\r\\n")',
        ".decode().strip()",
        ("tests/config/test_settings.py",),
    ),
    Bug(
        "a password that was replaced is not read again", "config/environment.py",
        "    path = settings.secret_files.get(name)\n",
        '    path = settings.secret_files.get(f"{name}_FILE")\n',
        ("tests/config/test_settings.py",),
    ),
    Bug(
        "a list of payments repeats its first page", "app/cli/payments/__init__.py",
        '{} if cursor is None else {"cursor": cursor}',
        "{}",
        ("tests/cli/test_payments.py",),
    ),
    Bug(
        "the status of payments that wait for a person is ignored", "app/cli/payments/__init__.py",
        "    if needs_settling and not status:\n"
        "        status = CASE_STATUSES",
        "    if needs_settling:\n"
        "        status = CASE_STATUSES",
        ("tests/cli/test_payments.py",),
    ),
    Bug(
        "charges that were made late are not compared", "app/cli/payments/reconcile.py",
        "_shifted(until, charge_delay)",
        "until",
        ("tests/cli/test_payments.py",),
    ),
    Bug(
        "charges by a clock that is behind are not compared", "app/cli/payments/reconcile.py",
        "_shifted(since, -CLOCK_SKEW_MAX)",
        "_shifted(since, CLOCK_SKEW_MAX)",
        ("tests/cli/test_payments.py",),
    ),
    Bug(
        "the id of an order is part of a path", "app/cli/orders/requests.py",
        "quote(order, safe='')",
        "order",
        ("tests/cli/test_orders.py",),
    ),
    Bug(
        "a list of orders has no more than a page", "app/cli/orders/requests.py",
        "or len(rows) >= limit:\n"
        "            return rows",
        "or len(rows) >= PAGE:\n"
        "            return rows",
        ("tests/cli/test_orders.py",),
    ),
    Bug(
        "an imported transaction becomes several", "app/cli/orders/importing.py",
        "            is_next = False\n",
        "",
        ("tests/cli/test_orders.py",),
    ),
    Bug(
        "an imported reservation holds nothing", "app/cli/orders/importing.py",
        "on_hand=product.on_hand + line.quantity, reserved=product.reserved + line.quantity)",
        "on_hand=product.on_hand + line.quantity)",
        ("tests/cli/test_orders.py",),
    ),
    Bug(
        "states of another order are imported", "app/cli/orders/importing.py",
        '    if any(getattr(state, "order_id", None) != order_id for state in states.values()):\n'
        '        raise ImportFailed("the states in the file are those of another order")\n',
        "",
        ("tests/cli/test_orders.py",),
    ),
    Bug(
        "an export that breaks off is a success", "app/cli/orders/exchange.py",
        "        except Exception as error:  # http.client:",
        "        except ZeroDivisionError as error:  # http.client:",
        ("tests/cli/test_orders.py",),
    ),
    Bug(
        "timers that are due later are due earlier", "app/cli/records/replay_text.py",
        "'later' if seconds > 0 else 'earlier'",
        "'earlier' if seconds > 0 else 'later'",
        ("tests/cli/test_records.py",),
    ),
    Bug(
        "an export lacks the keys", "app/cli/records/history.py",
        '{**to_json(event), "key": event.key}',
        "to_json(event)",
        ("tests/cli/test_records.py",),
    ),
    Bug(
        "the audit ignores the end of its period", "app/cli/records/audit.py",
        "target=target, after=after, before=before, limit=limit)",
        "target=target, after=after, limit=limit)",
        ("tests/cli/test_records.py",),
    ),
    Bug(
        "an event whose cause is unknown is not shown", "app/cli/orders/tree.py",
        "children.setdefault(parent if parent in known else None, []).append(event)",
        "children.setdefault(parent, []).append(event)",
        ("tests/cli/test_orders.py",),
    ),
)  # fmt: skip
