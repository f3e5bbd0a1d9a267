"""Planted bugs of the runtime, the outbox and the storage that no test has found when they were planted first."""

from __future__ import annotations

__all__ = ["RUNTIME"]

from tests.planted.bug import Bug

_RUNNER = "app/runtime/runner.py"
_BATCH = "app/runtime/batch.py"
_OUTAGE = "app/runtime/outage.py"
_ENGINE = "app/runtime/engine.py"
_ARCHIVER = "app/runtime/archiver.py"
_METRICS = "app/runtime/order_metrics.py"
_WATCHERS = "app/runtime/states/state_reader.py"
_RELAY = "app/messaging/outbox_relay.py"
_RECEIVING = "app/runtime/receiving.py"
_FILES = "app/storage/sql/file_watch.py"

_OUTCOMES = ("tests/runtime/test_batch_outcomes.py",)
_WAITING = ("tests/runtime/test_waiting_messages.py",)
_LOCAL = ("tests/runtime/test_engine.py",)
_SWEEPS = ("tests/runtime/test_archiver.py",)
_WATCHING = ("tests/runtime/test_state_watchers.py",)
_COUNTED = ("tests/runtime/test_order_metrics.py",)
_RACES = ("tests/messaging/test_relay_races.py",)
_ARCHIVE = ("tests/storage/test_sqlite.py",)
_WATCHED = ("tests/storage/test_file_watch.py",)

RUNTIME = (
    # Batches
    Bug(
        "what waits for the database is queued twice", _RUNNER,
        "[*waiting, *items[len(commits) + len(waiting) :]]",
        "[*waiting, *items[len(commits) :]]",
        _OUTCOMES,
    ),
    Bug(
        "what the database refuses is dropped", _RUNNER,
        "        return commits, waiting, refusal if waiting else None\n",
        "        return commits, waiting, None\n",
        _OUTCOMES,
    ),
    Bug(
        "finished work counts as waiting", _RUNNER,
        "        else:\n            self._waits_since = inf\n",
        "",
        _OUTCOMES,
    ),
    Bug(
        "an outage hides how long work waits", _RUNNER,
        "        else:\n            self._waits_since = inf\n",
        "        self._waits_since = inf\n",
        _OUTCOMES,
    ),
    Bug(
        "a client that has gone ends its module", _RUNNER,
        "    if future.done():\n        return\n",
        "",
        _OUTCOMES,
    ),
    Bug(
        "the leader leaves the messages to the others", _RUNNER,
        "fetch_seconds(self._clock), not self._relay.is_leader)",
        "fetch_seconds(self._clock), self._relay.is_leader)",
        _OUTCOMES,
    ),
    Bug(
        "an unforeseen error ends a consumer", _RUNNER,
        "                except Exception as error:  # an unforeseen error concerns this message alone\n",
        "                except ZeroDivisionError as error:\n",
        _OUTCOMES,
    ),
    Bug(
        "an older version is acknowledged although the newest has failed", _RUNNER,
        "            else:\n                await self._receiver.defer(older)\n",
        "            else:\n                await older.ack()\n",
        _WAITING,
    ),
    Bug(
        "an older version waits for one that is settled", _RUNNER,
        "        self._newest_by_event_id.pop(item.id, None)\n",
        "",
        _WAITING,
    ),
    Bug(
        "an older version takes the place of the newer one behind a dead letter", _BATCH,
        " or item.inbox_id in processed or item.defers_to_newer\n",
        " or item.inbox_id in processed\n",
        ("tests/messaging/test_dead_letter_order.py",),
    ),
    Bug(
        "a decision that fails cancels timers", _BATCH,
        "                cancelled.append(event.timer)\n",
        "                unit.cancel_timers([event.timer])\n",
        ("tests/runtime/test_runner.py",),
    ),
    Bug(
        "an archived state counts as one that has a row", "app/runtime/work.py",
        "                self.new_keys[cls] |= missing\n",
        "",
        ("tests/runtime/test_unit_of_work.py",),
    ),
    # Outages
    Bug(
        "an outage moves express messages to the other lane", _OUTAGE,
        "if item.delivery is not None], lambda item: item.is_express)\n",
        "if item.delivery is not None])\n",
        _WAITING,
    ),
    Bug(
        "deadlines are extended after an outage", _OUTAGE,
        "            extending.cancel()\n",
        "            pass\n",
        _WAITING,
    ),
    Bug(
        "a request that waits in an outage gets no answer", _OUTAGE,
        "                _reject(self._queue.remove_if(lambda item: item.future is not None), error)\n",
        "                pass\n",
        _WAITING,
    ),
    Bug(
        "refused work is tried ten times a second", _OUTAGE,
        "            self._refused_seconds = min(SECONDS_MAX, seconds * 2)\n",
        "",
        _WAITING,
    ),
    Bug(
        "a database that is away is looked at ten times a second", _OUTAGE,
        "            seconds = min(SECONDS_MAX, seconds * 2)\n            try:",
        "            try:",
        _WAITING,
    ),
    Bug(
        "the next messages are fetched after the commit", "app/runtime/work_queue.py",
        "        self._submitted = len(batch) - prefetched + self._express.prefetched + self._bulk.prefetched\n        self._has_space.set()\n",
        "        self._submitted = len(batch) - prefetched + self._express.prefetched + self._bulk.prefetched\n",
        ("tests/runtime/test_work_queue.py",),
    ),
    # Local delivery
    Bug(
        "a subject that fails locally takes the place of those that others subscribe to", _ENGINE,
        "(item.cause.remote_subjects or _NO_SUBJECTS) | {item.subject}\n",
        "frozenset({item.subject})\n",
        _LOCAL,
    ),
    Bug(
        "an event that two consumers read goes to one of them", _ENGINE,
        "if consumers[cls] == 1 and name in takers",
        "if name in takers",
        _LOCAL,
    ),
    Bug(
        "a worker gets one version and the others wait", _RUNNER,
        "            if take is None or len(event.messages) > 1:\n",
        "            if take is None:\n",
        _LOCAL,
    ),
    Bug(
        "an older version is delivered locally as it is", _ENGINE,
        "    steps += reader.upcasts(subject)\n",
        "",
        ("tests/contracts/test_versions.py",),
    ),
    # Archiver, watchers, metrics
    Bug(
        "a sweep leaves out the smaller keys of the next kind", _ARCHIVER,
        '        self._after = swept.next_after or ""\n',
        "        self._after = swept.next_after or self._after\n",
        _SWEEPS,
    ),
    Bug(
        "a row that cannot be read stops the archiver for ever", _ARCHIVER,
        "            swept, seconds = Swept((), None), 0.0\n",
        "            return SWEEP_SECONDS\n",
        _SWEEPS,
    ),
    Bug(
        "a page without finished states ends its kind", _ARCHIVER,
        "        self._position += swept.next_after is None\n",
        "        self._position += swept.next_after is None or not swept.keys\n",
        _SWEEPS,
    ),
    Bug(
        "the archiver takes all of the time", _ARCHIVER,
        "        return max(PAUSE_SECONDS, seconds * (1 / SHARE_MAX - 1))\n",
        "        return PAUSE_SECONDS\n",
        _SWEEPS,
    ),
    Bug(
        "the end of one stream ends another", _WATCHERS,
        "for each in self._key_sets[cls] if each is not keys]\n",
        "for each in self._key_sets[cls] if each != keys]\n",
        _WATCHING,
    ),
    Bug(
        "a state that was watched is remembered for ever", _WATCHERS,
        "            if not watchers:\n                self._by_state.pop((cls, key), None)\n",
        "",
        _WATCHING,
    ),
    Bug(
        "a late reservation counts as one more", _METRICS,
        "        if decision.states:  # a stale event changes nothing\n            self._reserved.inc()\n",
        "        self._reserved.inc()\n",
        _COUNTED,
    ),
    Bug(
        "a refund that is made again calls for a person", _METRICS,
        "if isinstance(each, PaymentRefundFailed) and each.is_final:\n",
        "if isinstance(each, PaymentRefundFailed):\n",
        _COUNTED,
    ),
    # The outbox
    Bug(
        "a row that is accepted during a scan is published again", _RELAY,
        "if row.id not in done and row.id not in self._in_flight]\n",
        "if row.id not in self._in_flight]\n",
        _RACES,
    ),
    Bug(
        "a row that is accepted during a scan counts as pending", _RELAY,
        "            self._left_in_table = max(0, count - len(self._in_flight) - len(done))\n",
        "            self._left_in_table = max(0, count - len(self._in_flight))\n",
        _RACES,
    ),
    Bug(
        "a publish that was cancelled is not pending", _RELAY,
        "        if published.cancelled():\n            self._left_in_table += 1\n            return\n",
        "        if published.cancelled():\n            return\n",
        _RACES,
    ),
    Bug(
        "a bus that accepts nothing does not show", _RELAY,
        "        if sent or not self.pending:\n            self._progress_at = now\n",
        "        self._progress_at = now\n",
        _RACES,
    ),
    Bug(
        "the outbox grows faster than it is purged", _RELAY,
        "        self._purge_at = now + (MARK_SECONDS if deleted else PURGE_SECONDS)\n",
        "        self._purge_at = now + PURGE_SECONDS\n",
        _RACES,
    ),
    Bug(
        "a row that the bus refuses is published again in an outage", _RELAY,
        "        except StorageUnavailable:\n            stored = []\n",
        "        except StorageUnavailable:\n            pass\n",
        _RACES,
    ),
    Bug(
        "a mark waits although rows are in flight", _RELAY,
        "        if self._sent or self._in_flight or min(",
        "        if self._sent or min(",
        ("tests/messaging/test_outbox_relay.py",),
    ),
    Bug(
        "republishing ends after a minute although the bus accepts events", "app/messaging/republish.py",
        "        accepted += 1\n        accepted_at = clock.monotonic()\n",
        "        accepted += 1\n",
        ("tests/messaging/test_republish.py",),
    ),
    Bug(
        "republishing takes a time in another zone for one in UTC", "app/messaging/republish.py",
        "(to_db_timestamp(since.astimezone(UTC)) if is_text else since)\n",
        "(to_db_timestamp(since) if is_text else since)\n",
        ("tests/storage/test_sqlite.py",),
    ),
    Bug(
        "a second fault is not logged because it is like the first", _RELAY,
        "            if self._logged_errors:\n                self._logged_errors.clear()\n",
        "",
        _RACES,
    ),
    Bug(
        "a worker begins a call while the process stops", _RELAY,
        "        processed = None if self._is_stopped else take()\n",
        "        processed = take()\n",
        _RACES,
    ),
    Bug(
        "orders are accepted beyond the cap while the bus is away", _RELAY,
        "until the next count finds out\n            self._count_events()\n",
        "until the next count finds out\n",
        _RACES,
    ),
    # Messages
    Bug(
        "an older version waits once too few", _RECEIVING,
        "self.delivery.tries <= DEFER_MAX\n",
        "self.delivery.tries < DEFER_MAX\n",
        _WAITING,
    ),
    Bug(
        "a deadline that cannot be extended keeps the others from it", _RECEIVING,
        '        except Exception as error:\n            logger.warning("a message that is being processed',
        '        except ZeroDivisionError as error:\n            logger.warning("a message that is being processed',
        _WAITING,
    ),
    Bug(
        "what has waited for a dead letter is none when it fails", "app/messaging/dead_letters/dead_letter_table.py",
        ' or old.error == WAITS:\n',
        ":\n",
        ("tests/messaging/test_dead_letter_order.py",),
    ),
    Bug(
        "a dead letter that holds its order is archived", "app/messaging/dead_letters/archive.py",
        ' and row["place"] is None]\n',
        "]\n",
        _ARCHIVE,
    ),
    Bug(
        "a replayed version does not name the others", "app/messaging/dead_letters/rows.py",
        "headers.get(VERSIONS) if is_unpublished_event else None,\n",
        "None,\n",
        ("tests/messaging/test_dead_letters.py",),
    ),
    # Storage
    Bug(
        "a stream leaves out what was archived", "app/runtime/states/state_changes.py",
        "            moved = [key for key in keys if key not in found]\n",
        "            moved: list[str] = []\n",
        _ARCHIVE,
    ),
    Bug(
        "a sweep ends where nothing is finished", "app/storage/archive/state_archive.py",
        "examined[-1][0] if len(examined) == EXAMINED_MAX else None)\n",
        "examined[-1][0] if found and len(examined) == EXAMINED_MAX else None)\n",
        _ARCHIVE,
    ),
    Bug(
        "two changes of a folder at one moment are one", _FILES,
        "time.time_ns() - folder.st_mtime_ns > _FRESH_NS and not os.path.islink(self._path)\n",
        "not os.path.islink(self._path)\n",
        _WATCHED,
    ),
    Bug(
        "a file behind a link is watched by the folder of the link", _FILES,
        " and not os.path.islink(self._path)\n",
        "\n",
        _WATCHED,
    ),
    Bug(
        "a file is opened while another thread closes it", _FILES,
        "    with watch.opening_or_closing:\n        if watch.is_known:\n",
        "    if True:\n        if watch.is_known:\n",
        _WATCHED,
    ),
    Bug(
        "a start that fails keeps its claims", "app/storage/databases.py",
        "            for acquired in claims.values():\n                acquired.close()\n",
        "",
        ("tests/storage/test_claims.py",),
    ),
    Bug(
        "a read waits for the next one", "app/storage/sql/database.py",
        "        if self._waiting:\n            self._wake_ups.release()\n        else:\n            self._is_idle = True\n",
        "        self._is_idle = True\n",
        ("tests/storage/test_database.py",),
    ),
    Bug(
        "many orders are counted all the time", "app/storage/search/status_counts.py",
        "max(RECOUNT_SECONDS_MIN, whole.seconds / SHARE_MAX)",
        "RECOUNT_SECONDS_MIN",
        ("tests/web/operations/test_overview.py",),
    ),
)  # fmt: skip
